"""From samples to percentiles, and from those to the table that people read and the JSON that
programs do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from scenes import Results
from works import HEAP, IDLE, LIMIT, OURS, RATES, READ_CPU, READ_RANDOM, TURNS, Work

_PERCENTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}

#: What ours may be at most where it is not compared: nanoseconds, or bytes.
_ABSOLUTE = {
    HEAP: 200.0,
    IDLE: 10e6,
    TURNS: 2e6,
    "ping during": 10e6,
    READ_RANDOM: 500.0,
    READ_CPU: 0.0,
}

#: Of which percentile that is meant; of others the largest. While some read, memory of the rounds
#: before may go back to the system.
_PARTS = {"ping during": 0.999, READ_RANDOM: 0.5, READ_CPU: 0.5}


def percentile(ordered: list[float], part: float) -> float:
    """The smallest sample that is not exceeded by this part of them. Exact, nothing between."""
    return ordered[max(math.ceil(part * len(ordered)) - 1, 0)]


def rows(results: Results) -> list[dict[str, Any]]:
    """A row for each work and contender."""
    return [
        _row(results, title, contender)
        for title, by_contender in results.samples.items()
        for contender in by_contender
    ]


def _row(results: Results, title: str, contender: str) -> dict[str, Any]:
    ordered = sorted(results.samples[title][contender])
    work = results.works[title]
    row: dict[str, Any] = {
        "work": title,
        "contender": contender,
        "unit": results.units.get(title, "ns"),
        "samples": len(ordered),
        **{name: percentile(ordered, part) for name, part in _PERCENTILES.items()},
        "max": ordered[-1],
    }
    if work.is_rate:
        row["per_second"] = 1e9 / row["p50"]
    if contender != OURS:
        row["ours_to_this"] = _ratio(results, title, OURS, title, contender)
    if contender != LIMIT and work.limits:
        row["times_the_limit"] = _times_the_limit(results, work, contender)
    return row


def _ratio(results: Results, title: str, contender: str, other: str, of: str) -> float | None:
    """How many times as long."""
    upper, lower = (
        results.samples.get(work, {}).get(name) for work, name in ((title, contender), (other, of))
    )
    if not upper or not lower:
        return None
    return percentile(sorted(upper), 0.5) / max(percentile(sorted(lower), 0.5), 1e-9)


def _times_the_limit(results: Results, work: Work, contender: str) -> float | None:
    """Of the least of its limits."""
    ratios = [_ratio(results, work.title, contender, limit, LIMIT) for limit in work.limits]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


@dataclass(frozen=True)
class Verdict:
    """A thing that has to be shown, and what it is."""

    what: str
    at_most: str
    measured: str
    is_met: bool


def verdicts(results: Results) -> list[Verdict]:
    """What was to be shown. Only shown: nothing fails."""
    found = []
    for title, work in results.works.items():
        for target in work.targets:
            if target.of == LIMIT:
                of, ratio = work.limits[0], _times_the_limit(results, work, OURS)
            else:
                of, ratio = target.of, _ratio(results, title, OURS, title, target.of)
            if ratio is not None:
                what = f"{title}, of {of}"
                found.append(_verdict(what, target.at_most, ratio, _times))
    for many, few, at_most in RATES:
        if (ratio := _ratio(results, many, OURS, few, OURS)) is not None:
            what = f"{many}, of ours {few}"
            found.append(_verdict(what, at_most, ratio, lambda x: f"{x:.2f} ×"))
    for title, samples in results.samples.items():
        limit = next((v for name, v in _ABSOLUTE.items() if title.startswith(name)), None)
        if limit is not None and samples.get(OURS):
            part = next((p for name, p in _PARTS.items() if title.startswith(name)), 1.0)
            value = percentile(sorted(samples[OURS]), part)
            what = title + {0.5: ", p50", 0.999: ", p99.9"}.get(part, "")
            unit = results.units.get(title, "ns")
            found.append(_verdict(what, limit, value, lambda x, unit=unit: shown(x, unit)))
    return found


def _verdict(what: str, at_most: float, value: float, show: Any) -> Verdict:
    return Verdict(what, show(at_most), show(value), value <= at_most)


def shown(value: float, unit: str) -> str:
    """A number with its unit, in three digits."""
    if unit != "ns":
        return f"{value:.0f} {unit}"
    for factor, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if value >= factor:
            return f"{_digits(value / factor)} {name}"
    return f"{value:.0f} ns"


def _digits(value: float) -> str:
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def table(results: Results, machine: dict[str, Any]) -> str:
    """Everything, for people."""
    head = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}, Linux {machine['kernel']}"
    )
    lines = [head, "", "ratio: p50 of ours by p50 of this one. limit: p50 as a multiple of it.", ""]
    form = "{:<48} {:<16} {:>9} {:>9} {:>9} {:>9} {:>7} {:>7}"
    lines.append(form.format("work", "", "p50", "p99", "p99.9", "max", "ratio", "limit"))
    last = ""
    for row in rows(results):
        title = row["work"]
        times = [shown(row[name], row["unit"]) for name in ("p50", "p99", "p999", "max")]
        if row["samples"] == 1:
            times[1:] = ["", "", ""]
        ratios = [_times(row.get("ours_to_this")), _times(row.get("times_the_limit"))]
        line = form.format("" if title == last else title, row["contender"], *times, *ratios)
        rate = f"  {row['per_second']:,.0f}/s" if "per_second" in row else ""
        lines.append((line + rate).rstrip())
        last = title
    lines += ["", "What it has to show                                (at most)", ""]
    for verdict in verdicts(results):
        mark = "yes" if verdict.is_met else "NO "
        lines.append(f"{mark}  {verdict.what:<74} {verdict.measured:>9}  ({verdict.at_most})")
    if results.notes:
        lines += ["", "Notes", "", *(f"- {note}" for note in results.notes)]
    return "\n".join(lines)


def _times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.4f}" if ratio < 0.01 else f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def as_json(results: Results, machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything, for programs: what was measured, where, with what."""
    return {
        "machine": machine,
        "settings": settings,
        "rows": rows(results),
        "shows": [vars(verdict) for verdict in verdicts(results)],
        "notes": results.notes,
    }
