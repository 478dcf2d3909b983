"""Draws the results: how long each work takes with each contender, on a logarithmic scale.

Usage: plot.py RESULTS.json PICTURE.svg
Needs matplotlib, so it runs in the environment that has it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt  # noqa: E402 - after the choice of what draws
from matplotlib.ticker import FuncFormatter  # noqa: E402

#: One look for a contender wherever it is.
_LOOKS = {
    "ours": ("#c4007a", "o"),
    "original C++": ("#1f5fa8", "s"),
    "original Python": ("#1f5fa8", "D"),
    "redis": ("#b8860b", "^"),
    "shared_memory": ("#4d4d4d", "v"),
    "ray": ("#2e8b57", "P"),
    "limit": ("#999999", "|"),
}
_ROW_INCHES = 0.25
_NS = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns"))


def main(source: Path, picture: Path) -> None:
    """Reads and draws."""
    found = json.loads(source.read_text())
    times = [row for row in found["rows"] if row["unit"] == "ns" and row["p50"] > 0]
    groups = {
        "Rust and C++": [row for row in times if not row["work"].startswith("Python")],
        "Python": [row for row in times if row["work"].startswith("Python")],
    }
    groups = {title: rows for title, rows in groups.items() if rows}
    heights = [len({row["work"] for row in rows}) + 3 for rows in groups.values()]
    # The same input gives the same file, so that results can be compared as text.
    plt.rcParams.update({"svg.hashsalt": "plasma", "svg.fonttype": "none", "font.size": 8})
    figure, axes = plt.subplots(
        len(groups),
        1,
        figsize=(10, _ROW_INCHES * sum(heights) + 0.5),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, rows) in zip(axes[:, 0], groups.items(), strict=True):
        _draw(axis, title, rows)
    figure.suptitle(_title(found), fontsize=8)
    figure.savefig(picture, metadata={"Date": None})


def _draw(axis: Any, title: str, rows: list[dict[str, Any]]) -> None:
    works = list(dict.fromkeys(row["work"] for row in rows))
    for name, (colour, marker) in _LOOKS.items():
        own = [row for row in rows if row["contender"] == name]
        if not own:
            continue
        x, y = [row["p50"] for row in own], [works.index(row["work"]) for row in own]
        axis.hlines(y, x, [row["p99"] for row in own], colors=colour, alpha=0.35, linewidth=1.5)
        axis.scatter(x, y, color=colour, marker=marker, s=22, label=name, zorder=3)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(_shown))
    axis.set_yticks(range(len(works)), works)
    axis.set_ylim(len(works) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(f"{title}: median, and a line to the 99th percentile", fontsize=9, loc="left")
    axis.legend(loc="best", fontsize=7, framealpha=0.9)


def _shown(value: float, _position: int) -> str:
    for factor, unit in _NS:
        if value >= factor:
            return f"{value / factor:g} {unit}"
    return f"{value:g} ns"


def _title(found: dict[str, Any]) -> str:
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"Linux {machine['kernel'].split('-')[0]}; {found['settings']['date']}, "
        f"commit {found['settings']['commit']}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
