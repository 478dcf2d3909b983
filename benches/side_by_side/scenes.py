"""Plays scenes: contenders are asked in turn, round after round, so that whatever else the machine
does hits all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import machine
from contenders import Contender, Failed, Programs
from setup import say
from works import (
    FILL_TURN,
    HEAP,
    HEAP_SCENE,
    IDLE,
    NATIVE,
    OURS,
    TURN_SCENE,
    TURNS,
    Scene,
    Work,
)

#: Clients of the idle store, and how long they may take to settle, in seconds.
_IDLE_CLIENTS = 1000
_SETTLE_SECONDS = 1.0

#: Operations of a work before it is measured.
_WARM_UP_COUNT = 100

#: Bytes of an object that touches memory.
_WARM_BYTES = 16_000_000

T = TypeVar("T")


@dataclass
class Results:
    """All samples: by the title of the work, by contender. Nanoseconds, unless the title is in
    `units`."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    #: What could not be measured, and why.
    notes: list[str] = field(default_factory=list)

    def add(self, work: Work, contender: str, samples: list[float]) -> None:
        """Samples of one round."""
        self.works[work.title] = work
        self.samples.setdefault(work.title, {}).setdefault(contender, []).extend(samples)

    def add_number(self, title: str, contender: str, number: float, unit: str) -> None:
        """A number that is no time of an operation."""
        self.units[title] = unit
        self.add(Work(title, "", 1, 1), contender, [number])

    def note(self, text: str) -> None:
        """Something that the reader has to know."""
        if text not in self.notes:
            self.notes.append(text)
            say(f"   note: {text}")


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    rounds: int
    quick: bool
    #: How long an idle store is watched.
    idle_seconds: float = 10.0

    def count(self, work: Work) -> int:
        """Operations of a round."""
        return work.quick if self.quick else work.count


@dataclass(frozen=True)
class Player:
    """Plays scenes with these programs, and keeps what comes out."""

    programs: Programs
    effort: Effort
    results: Results

    def play(self, scene: Scene) -> None:
        """Measures everything in a scene."""
        if machine.available_bytes() < scene.memory:
            gib = scene.memory / 2**30
            self.results.note(f"{scene.name}: left out, there are no {gib:.0f} GiB of free memory")
            return
        names = [name for name in scene.contenders if self.programs.has(name, scene.python)]
        rounds = min(self.effort.rounds, scene.rounds)
        if self.effort.quick and scene.quick_rounds:
            rounds = min(rounds, scene.quick_rounds)
        if scene.fresh:
            for number in range(rounds):
                for name in _turned(names, number):
                    with self._live(scene, [name]) as live:
                        self._round(scene, live)
            return
        with self._live(scene, names) as live:
            self._fill(scene, live)
            if scene.name != TURN_SCENE:
                self._warm_up(scene, live)
            for number in range(rounds):
                self._round(scene, _turned(live, number))

    def idle(self) -> None:
        """The processor time of stores that have many clients and nothing to do, side by side."""
        scene = Scene("idle", ())
        names = [name for name in NATIVE if self.programs.has(name, False)]
        with self._live(scene, names) as live:
            watched = [c for c in live if self._ask(c, "idle", _IDLE_CLIENTS, 0) is not None]
            time.sleep(_SETTLE_SECONDS)
            before = [machine.cpu_ns(contender.server_pid) for contender in watched]
            time.sleep(self.effort.idle_seconds)
            for contender, start in zip(watched, before, strict=True):
                spent = machine.cpu_ns(contender.server_pid) - start
                self.results.add_number(IDLE, contender.name, spent, "ns")

    def _round(self, scene: Scene, live: list[Contender]) -> None:
        for work in scene.works:
            for contender in live:
                if not scene.measures(work, contender.name):
                    continue
                samples = self._ask(contender, work.verb, self.effort.count(work), work.size)
                if samples is None:
                    continue
                if work.title.startswith(TURNS):
                    self._add_longest_turn(contender, work.title)
                else:
                    per = max(work.per, 1)
                    self.results.add(work, contender.name, [sample / per for sample in samples])
                if work.verb == "ping_evict":
                    # The next round has to find as much.
                    self._ask(contender, "fill", work.size, 1)

    def _warm_up(self, scene: Scene, live: list[Contender]) -> None:
        """Everything has been mapped and touched when it is measured."""
        for contender in live:
            if contender.name in NATIVE and scene.warm:
                # A little is left free: what is free need not be in one piece.
                self._ask(contender, "warm", int(scene.capacity * 0.9) // _WARM_BYTES, _WARM_BYTES)
        for work in scene.works:
            # What is asked for once in a round is large, and warm after the first time.
            count = min(self.effort.count(work), _WARM_UP_COUNT)
            for contender in live:
                if scene.measures(work, contender.name) and count > 1:
                    self._ask(contender, work.verb, count, work.size)

    def _fill(self, scene: Scene, live: list[Contender]) -> None:
        for contender in live if scene.fill else []:
            before = machine.heap_bytes(contender.server_pid)
            self._ask(contender, "fill", scene.fill, 1)
            grown = machine.heap_bytes(contender.server_pid) - before
            if scene.name == HEAP_SCENE:
                self.results.add_number(HEAP, contender.name, grown / scene.fill, "bytes")
            if scene.name == TURN_SCENE:
                self._add_longest_turn(contender, FILL_TURN)

    def _add_longest_turn(self, contender: Contender, title: str) -> None:
        """The store remembers the longest since its start, that of the fill included."""
        turn = self._ask(contender, "longest_turn", 1, 0)
        if turn is None:
            return
        self.results.add_number(title, contender.name, turn[0], "ns")
        if title != FILL_TURN and turn[0] in self.results.samples.get(FILL_TURN, {}).get(OURS, []):
            self.results.note(f"{title}: not longer than one of the puts before, which is shown")

    def _ask(self, contender: Contender, verb: str, count: int, size: int) -> list[int] | None:
        try:
            return contender.ask(verb, count, size)
        except Failed as error:
            self.results.note(f"{contender.name}, {verb} {size}: {error}")
            return None

    @contextmanager
    def _live(self, scene: Scene, names: list[str]) -> Iterator[list[Contender]]:
        live: list[Contender] = []
        try:
            for name in names:
                try:
                    made = Contender(
                        name, self.programs, scene.capacity, scene.python, scene.pinned
                    )
                except Failed as error:
                    self.results.note(f"{name}: {error}")
                else:
                    live.append(made)
            yield live
        finally:
            for contender in live:
                contender.end()


def _turned(items: list[T], number: int) -> list[T]:
    """Another one begins in each round."""
    first = number % max(len(items), 1)
    return items[first:] + items[:first]
