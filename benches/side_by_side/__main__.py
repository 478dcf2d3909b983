"""`scripts/bench.sh`: measures this store and its peers in turn, in one run on this machine.

Prints a table on standard output and what it is doing on standard error. No time is ever asserted:
the exit code says whether things could be measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine
import report
from contenders import Programs
from scenes import Effort, Player, Results
from setup import ROOT, say, set_up
from works import IDLE, OURS, SCENES, Scene, smoke

#: Rounds of a full run and of a quick one.
_ROUNDS, _QUICK_ROUNDS, _SMOKE_ROUNDS = 7, 2, 1


def main() -> int:
    """Runs it all."""
    arguments = _arguments()
    # A thousand clients need as many descriptors, and inherit this.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    programs = set_up(only_ours=arguments.smoke)
    scenes = _chosen(smoke(SCENES) if arguments.smoke else SCENES, arguments.only)
    is_quick = arguments.quick or arguments.smoke
    rounds = _SMOKE_ROUNDS if arguments.smoke else _QUICK_ROUNDS if is_quick else _ROUNDS
    effort = Effort(arguments.rounds or rounds, is_quick, 0.1 if arguments.smoke else 10.0)
    results = Results()
    for name, reason in programs.missing.items():
        results.notes.append(f"{name} is left out: {reason}")
    started = time.monotonic()
    player = Player(programs, effort, results)
    for scene in scenes:
        say(f"== {scene.name}: {', '.join(work.title for work in scene.works[:3])} …")
        scene_started = time.monotonic()
        player.play(scene)
        say(f"   {time.monotonic() - scene_started:.0f} s")
    if _is_chosen(IDLE, arguments.only):
        say(f"== {IDLE}")
        player.idle()
    say(f"== measured for {time.monotonic() - started:.0f} s")
    if arguments.smoke:
        print(f"bench: {len(results.samples)} works of {len(scenes)} scenes can be measured")
        return _exit_code(scenes, results, programs.has(OURS, python=True))
    described = machine.describe()
    print(report.table(results, described))
    _keep(arguments, report.as_json(results, described, _settings(arguments, effort, programs)))
    return _exit_code(scenes, results, programs.has(OURS, python=True))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="about a minute, when built")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; a plot beside them")
    parser.add_argument("--keep", action="store_true", help="results to benches/results/")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="WORK,…",
        help="works and scenes whose names contain one of these",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help=f"instead of {_ROUNDS}")
    parser.add_argument("--list", action="store_true", help="print what can be measured")
    parser.add_argument(
        "--smoke", action="store_true", help="only whether it works: ours alone, no network"
    )
    arguments = parser.parse_args()
    if arguments.list:
        for scene in SCENES:
            print(scene.name, *(f"    {work.title}" for work in scene.works), sep="\n")
        sys.exit(0)
    return arguments


def _chosen(scenes: tuple[Scene, ...], only: list[str]) -> list[Scene]:
    """The scenes with what was asked for, and the limits that it is compared with."""
    chosen = []
    needed = {
        limit
        for scene in scenes
        for work in scene.works
        for limit in work.limits
        if _is_chosen(work.title, only) or _is_chosen(scene.name, only)
    }
    for scene in scenes:
        if _is_chosen(scene.name, only):
            chosen.append(scene)
            continue
        works = [w for w in scene.works if _is_chosen(w.title, only) or w.title in needed]
        if works:
            chosen.append(Scene(**{**vars(scene), "works": tuple(works)}))
    return chosen


def _is_chosen(title: str, only: list[str]) -> bool:
    return not only or any(part in title for part in only)


def _settings(arguments: argparse.Namespace, effort: Effort, programs: Programs) -> dict[str, Any]:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "quick": arguments.quick,
        "rounds": effort.rounds,
        "only": arguments.only,
        "left_out": programs.missing,
    }


def _keep(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    files = [arguments.json] if arguments.json else []
    if arguments.keep:
        files.append(ROOT / "benches/results" / f"{machine.kind(found['machine'])}.json")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        say(f"== {file}")
        _draw(file)


def _draw(file: Path) -> None:
    """By another interpreter: this one has no library for plots."""
    python = ROOT / ".venvs/bench/bin/python"
    if not python.exists():
        say("== no plot: .venvs/bench is missing")
        return
    plot = Path(__file__).parent / "plot.py"
    picture = file.with_suffix(".svg")
    subprocess.run([str(python), str(plot), str(file), str(picture)], check=True)
    say(f"== {picture}")


def _exit_code(scenes: list[Scene], results: Results, has_python: bool) -> int:
    """Whether ours could be measured in everything that was asked for."""
    titles = [work.title for scene in scenes for work in scene.works if scene.measures(work, OURS)]
    missing = [title for title in titles if OURS not in results.samples.get(title, {})]
    if not has_python:
        missing = [title for title in missing if not title.startswith("Python")]
    if missing:
        say(f"== not measured: {'; '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
