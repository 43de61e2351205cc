"""A stage that stands still is ended, with the name of what stands still and the stacks of its processes.

Each component (rollout engine, training rank, the stage's controller) tells a Board that it has moved and what it is
doing. Nothing is asked of a component, for one that hangs does not answer. The stage is stalled when of those that are
doing something none has moved for `training.stall_s`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_BEAT_S = 1.0  # at most one message a component in this time, unless what it is doing changes
_READ_S = 5.0
_DUMP_S = 10.0


class StalledError(Exception):
    """Nothing in a stage moves any more; the message names the component."""


@dataclass(frozen=True)
class Mark:
    """What a component last told: doing what ("" = nothing), how often it has moved, how long ago, where it lives."""

    component: str
    doing: str
    beats: int
    age_s: float
    node: str
    pid: int


class Board:
    """Ray actor: the last word of each component."""

    def __init__(self):
        self._marks: dict[str, tuple[str, int, float, str, int]] = {}

    def beat(self, component: str, doing: str, beats: int, node: str, pid: int) -> None:
        self._marks[component] = (doing, beats, time.monotonic(), node, pid)

    def read(self) -> list[Mark]:
        now = time.monotonic()
        return [
            Mark(component, doing, beats, now - at, node, pid)
            for component, (doing, beats, at, node, pid) in self._marks.items()
        ]


def start_board() -> Board:
    """A Board actor; it ends with its last handle."""
    return ray.remote(num_cpus=0)(Board).remote()


class Beats:
    """A component's line to the board, cheap enough to call for every token; and its process tells its stacks."""

    def __init__(self, board: Board, component: str):
        self._board, self._component = board, component
        self._doing, self._beats, self._told = "", 0, 0.0
        self._place = ray.get_runtime_context().get_node_id(), os.getpid()
        dump_stacks_on_signal()

    def beat(self, doing: str) -> None:
        """It has moved, and is now `doing` this; "" = nothing, until the next call."""
        self._beats += 1
        now = time.monotonic()
        if doing != self._doing or now - self._told >= _BEAT_S:
            self._doing, self._told = doing, now
            self._board.beat.remote(self._component, doing, self._beats, *self._place)

    def during(self, doing: str, function: Callable) -> Callable:
        """`function`, told as `doing` this while it runs."""

        def told(*args, **kwargs):
            before = self._doing
            self.beat(doing)
            try:
                return function(*args, **kwargs)
            finally:
                self.beat(before)

        return told


def stalled(marks: list[Mark], limit_s: float) -> list[Mark]:
    """Those that hold the stage up: none if one that is doing something has moved within `limit_s`.

    A component waits for others in a collective, and the controller for all: named are those behind, the controller
    only where it alone is doing something.
    """
    busy = [mark for mark in marks if mark.doing]
    if not busy or min(mark.age_s for mark in busy) < limit_s:
        return []
    workers = [mark for mark in busy if mark.component != "controller"] or busy
    kinds = {mark.component.rstrip("0123456789") for mark in workers}
    least = {kind: min(mark.beats for mark in workers if mark.component.rstrip("0123456789") == kind) for kind in kinds}
    return [mark for mark in workers if mark.beats == least[mark.component.rstrip("0123456789")]]


class StallWatch:
    """Looks at a board now and then, for whoever waits for the stage."""

    def __init__(self, board: Board, limit_s: float):
        self._board, self._limit_s, self._read = board, limit_s, time.monotonic()

    def check(self) -> None:
        """Raises StalledError, after each process has been told to write its stacks to its log."""
        if time.monotonic() - self._read < _READ_S:
            return
        self._read = time.monotonic()
        marks = ray.get(self._board.read.remote())
        if found := stalled(marks, self._limit_s):
            _dump_stacks(marks)
            names = ", ".join(f"{mark.component} ({mark.doing})" for mark in found)
            raise StalledError(
                f"training stands still: {names} has not moved for {found[0].age_s:.0f} s (training.stall_s = "
                f"{self._limit_s:g}); the stacks of all processes are in the run's logs/, and the same command goes "
                "on from the last checkpoint"
            )


def dump_stacks_on_signal() -> None:
    """At SIGUSR2 this process writes the stacks of all its threads to its stderr, also while it hangs.

    vLLM's own processes do it too (entry point `vllm.general_plugins` in setup.py).
    """
    faulthandler.register(signal.SIGUSR2, all_threads=True)


def _dump_stacks(marks: list[Mark]) -> None:
    refs = []
    for mark in marks:
        there = NodeAffinitySchedulingStrategy(mark.node, soft=False)
        refs.append(_signal_with_children.options(scheduling_strategy=there).remote(mark.pid))
    ray.wait(refs, num_returns=len(refs), timeout=_DUMP_S)  # a node that is gone keeps its stacks


@ray.remote(num_cpus=0, max_retries=0)
def _signal_with_children(pid: int) -> None:
    """SIGUSR2 to a process and to those of its children that are vLLM's; others would end of it."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        engines = [child for child in process.children(recursive=True) if child.name().startswith("VLLM")]
        for each in [process, *engines]:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGUSR2)
