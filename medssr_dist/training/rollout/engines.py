"""The rollout engines of a stage: requests go to the least busy engine, and an engine that dies is restarted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import ray

from medssr_dist.inference.requests import CompletedRequest, SampleRequest

if TYPE_CHECKING:
    from medssr_dist.training.rollout.groups import Group, GroupRequest

_MOST_DEATHS = 3  # of one engine, without a finished group in between


class EngineLostError(Exception):
    """One engine has died again and again; the message names it."""


class RolloutEngines:
    """Takes requests and returns groups, even if engines die in between.

    A request that an engine had in flight when it died is sent again.

    Args:
        start: start(i) starts engine number i and returns its actor at once, before the engine is ready.
        count: number of engines.
        send_weights: sends the policy's current weights to these engines, by name.

    Attributes:
        restarts: how often an engine was restarted.
    """

    def __init__(
        self,
        start: Callable[[int], ray.actor.ActorHandle],
        count: int,
        send_weights: Callable[[dict[str, ray.actor.ActorHandle]], None],
    ):
        self._start, self._send_weights = start, send_weights
        self._engines = [start(index) for index in range(count)]
        self._ready: set[int] = set()
        self._starting: dict[ray.ObjectRef, int] = {}
        self._in_flight: dict[ray.ObjectRef, tuple[GroupRequest | SampleRequest, int, ray.actor.ActorHandle]] = {}
        self._waiting: deque[GroupRequest | SampleRequest] = deque()
        self._deaths: Counter[int] = Counter()
        self.restarts = 0

    @property
    def handles(self) -> list[ray.actor.ActorHandle]:
        """The engines' actors, in the order of their numbers."""
        return list(self._engines)

    @property
    def by_name(self) -> dict[str, ray.actor.ActorHandle]:
        """The engines' actors by name."""
        return {engine_name(index): engine for index, engine in enumerate(self._engines)}

    def wait_ready(self) -> None:
        """Wait until every engine takes requests. Raises the error of an engine that fails to start."""
        ray.get([engine.ready.remote() for engine in self._engines])
        self._ready = set(range(len(self._engines)))

    def restart_dead(self) -> None:
        """Restart engines that have died unnoticed, and wait for all that are starting.

        A restarted engine has the weights of the stage's beginning: send weights to all engines afterwards.
        """
        for index in range(len(self._engines)):
            if index in self._ready:
                try:
                    ray.get(self._engines[index].check_health.remote())
                except ray.exceptions.RayError as error:
                    if not _is_death(error):
                        raise
                    self._restart(index, error)
        while self._starting:
            done, _ = ray.wait(list(self._starting))
            self._finish_start(done[0], needs_weights=False)

    def submit(self, request: GroupRequest | SampleRequest) -> None:
        """Send the request to the least busy engine, immediately or as soon as one is ready."""
        self._waiting.append(request)
        self._dispatch()

    def next_group(self) -> Group:
        """Wait for the next finished group, of any request, and return it. Raises RewardError, EngineLostError."""
        return cast("Group", self._next_answer())

    def next_completed(self) -> CompletedRequest:
        """Wait for the next finished request of a vote, while no groups are requested. Raises EngineLostError."""
        return cast("CompletedRequest", self._next_answer())

    def _next_answer(self) -> Group | CompletedRequest:
        while True:
            self._dispatch()
            done, _ = ray.wait([*self._in_flight, *self._starting])
            if done[0] in self._starting:
                self._finish_start(done[0], needs_weights=True)
            elif answer := self._receive(done[0]):
                return answer

    def _dispatch(self) -> None:
        load = Counter(dict.fromkeys(self._ready, 0))
        load.update(index for _, index, engine in self._in_flight.values() if engine is self._engines[index])
        while self._waiting and self._ready:
            index = min(self._ready, key=lambda index: (load[index], index))
            request, engine = self._waiting.popleft(), self._engines[index]
            load[index] += 1
            answer = engine.complete if isinstance(request, SampleRequest) else engine.sample_group
            self._in_flight[answer.remote(request)] = (request, index, engine)

    def _receive(self, ref: ray.ObjectRef) -> Group | CompletedRequest | None:
        """Return the finished answer; None if its engine has died: the request then waits to be sent again."""
        request, index, engine = self._in_flight.pop(ref)
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            if not _is_death(error):
                raise getattr(error, "cause", None) or error from None
            self._waiting.appendleft(request)
            if engine is self._engines[index] and index in self._ready:
                self._restart(index, error)
            return None
        del self._deaths[index]
        return answer

    def _restart(self, index: int, error: Exception) -> None:
        self._deaths[index] += 1
        deaths = self._deaths[index]
        if deaths > _MOST_DEATHS:
            cause = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
            raise EngineLostError(f"{engine_name(index)} died {deaths} times without finishing a prompt ({cause})")
        self._ready.discard(index)
        ray.kill(self._engines[index])
        self.restarts += 1
        self._engines[index] = self._start(index)
        self._starting[self._engines[index].ready.remote()] = index

    def _finish_start(self, ref: ray.ObjectRef, needs_weights: bool) -> None:
        index = self._starting.pop(ref)
        try:
            ray.get(ref)
            if needs_weights:
                self._send_weights({engine_name(index): self._engines[index]})
        except Exception as error:
            if not _is_death(error):
                raise
            self._restart(index, error)
        else:
            self._ready.add(index)


def engine_name(index: int) -> str:
    """Return the engine's name in messages and heartbeats."""
    return f"rollout engine {index}"


def _is_death(error: Exception) -> bool:
    """Return whether the error means that an engine's actor, or vLLM's process behind it, has died."""
    from vllm.v1.engine.exceptions import EngineDeadError

    from medssr_dist.training.weights.sync import EngineDiedError

    died = (ray.exceptions.RayActorError, EngineDeadError, EngineDiedError)
    return isinstance(error, died) or isinstance(getattr(error, "cause", None), died)
