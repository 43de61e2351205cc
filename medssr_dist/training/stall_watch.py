"""Ends a stalled stage, and names the component that stalls.

Each component (rollout engine, training rank, the stage's controller) sends heartbeats to a board: that it made
progress, and what it is doing. Components are never queried, because one that hangs does not answer. The stage is
stalled when no component that is doing something has made progress for `training.stall_s`.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_BEAT_S = 1.0  # minimum time between two heartbeats of a component, unless its activity changes
_READ_S = 5.0
_DUMP_S = 10.0


class StalledError(Exception):
    """A stage no longer makes progress; the message names the component that stalls."""


@dataclass(frozen=True)
class LastBeat:
    """The last heartbeat of a component.

    doing: its activity; "" = none. beats: how often it made progress. age_s: seconds since the heartbeat. node, pid:
    where it runs.

    Example: LastBeat("training rank 0", "update", beats=12, age_s=3.1, node="8f2c...", pid=4242)
    """

    component: str
    doing: str
    beats: int
    age_s: float
    node: str
    pid: int


class HeartbeatBoard:
    """Ray actor: the last heartbeat of each component."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, int, float, str, int]] = {}

    def beat(self, component: str, doing: str, beats: int, node: str, pid: int) -> None:
        """Store a heartbeat; see LastBeat."""
        self._last[component] = (doing, beats, time.monotonic(), node, pid)

    def read(self) -> list[LastBeat]:
        """Return the last heartbeat of each component."""
        now = time.monotonic()
        return [
            LastBeat(component, doing, beats, now - at, node, pid)
            for component, (doing, beats, at, node, pid) in self._last.items()
        ]


def start_board() -> HeartbeatBoard:
    """Start a HeartbeatBoard actor; it ends with its last handle."""
    return ray.remote(num_cpus=0)(HeartbeatBoard).remote()


class Heartbeat:
    """Sends a component's heartbeats; it is cheap enough to call for every token.

    It also lets the process dump its stacks on a signal.
    """

    def __init__(self, board: HeartbeatBoard, component: str):
        self._board, self._component = board, component
        self._doing, self._beats, self._sent_at = "", 0, 0.0
        self._place = ray.get_runtime_context().get_node_id(), os.getpid()
        dump_stacks_on_signal()

    def beat(self, doing: str) -> None:
        """Report progress, and the component's activity until the next call; "" = none."""
        self._beats += 1
        now = time.monotonic()
        if doing != self._doing or now - self._sent_at >= _BEAT_S:
            self._doing, self._sent_at = doing, now
            self._board.beat.remote(self._component, doing, self._beats, *self._place)

    def during(self, doing: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, wrapped so that the component's activity is `doing` while it runs."""

        def reporting(*args: Any, **kwargs: Any) -> Any:
            before = self._doing
            self.beat(doing)
            try:
                return function(*args, **kwargs)
            finally:
                self.beat(before)

        return reporting


def find_stalled(beats: list[LastBeat], limit_s: float) -> list[LastBeat]:
    """Return the components that stall the stage; [] if a busy one has made progress within `limit_s`.

    In a collective a component waits for the others, and the controller waits for all of them. So the components with
    the fewest heartbeats of their kind are returned; the controller only if nothing else is busy.
    """
    busy = [last for last in beats if last.doing]
    if not busy or min(last.age_s for last in busy) < limit_s:
        return []
    workers = [last for last in busy if last.component != "controller"] or busy
    kinds = {last.component.rstrip("0123456789") for last in workers}
    least = {kind: min(last.beats for last in workers if last.component.rstrip("0123456789") == kind) for kind in kinds}
    return [last for last in workers if last.beats == least[last.component.rstrip("0123456789")]]


class StallWatch:
    """Reads a board every few seconds, for the process that waits for the stage."""

    def __init__(self, board: HeartbeatBoard, limit_s: float):
        self._board, self._limit_s, self._read = board, limit_s, time.monotonic()

    def check(self) -> None:
        """Raise StalledError if the stage is stalled, after every process has written its stacks to its log."""
        if time.monotonic() - self._read < _READ_S:
            return
        self._read = time.monotonic()
        beats = ray.get(self._board.read.remote())
        if found := find_stalled(beats, self._limit_s):
            _dump_stacks(beats)
            names = ", ".join(f"{last.component} ({last.doing})" for last in found)
            raise StalledError(
                f"training is stalled: no progress by {names} for {found[0].age_s:.0f} s (training.stall_s = "
                f"{self._limit_s:g}); the stacks of all processes are in the run's logs/, and the same command "
                "resumes from the last checkpoint"
            )


def dump_stacks_on_signal() -> None:
    """Make this process write the stacks of all its threads to stderr on SIGUSR2, even while it hangs.

    vLLM's own processes call it too (entry point `vllm.general_plugins` in pyproject.toml).
    """
    faulthandler.register(signal.SIGUSR2, all_threads=True)


def _dump_stacks(beats: list[LastBeat]) -> None:
    refs = []
    for last in beats:
        there = NodeAffinitySchedulingStrategy(last.node, soft=False)
        refs.append(_signal_with_children.options(scheduling_strategy=there).remote(last.pid))
    ray.wait(refs, num_returns=len(refs), timeout=_DUMP_S)  # a lost node cannot answer


@ray.remote(num_cpus=0, max_retries=0)
def _signal_with_children(pid: int) -> None:
    """Send SIGUSR2 to a process and to its vLLM children; other children would be killed by it."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        engines = [child for child in process.children(recursive=True) if child.name().startswith("VLLM")]
        for each in [process, *engines]:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGUSR2)
