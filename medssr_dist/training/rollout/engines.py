"""The rollout engines of a stage: work goes to the least busy, and one that dies comes back with current weights."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import ray

if TYPE_CHECKING:
    from medssr_dist.training.rollout.groups import Group, GroupRequest

_DEATHS = 3  # of one engine, without a group that it has finished between them
_END_S = 30.0


class EngineLostError(Exception):
    """Engines die again and again, or one has died that cannot be brought back."""


class RolloutEngines:
    """Requests in, groups out, whatever becomes of the engines between.

    Args:
        start: starts engine number i and returns its actor at once, before it can be asked.
        count: of engines.
        admit: sends the policy's current weights to these engines, by name.

    Attributes:
        restarts: engines started again so far.
    """

    def __init__(
        self,
        start: Callable[[int], ray.actor.ActorHandle],
        count: int,
        admit: Callable[[dict[str, ray.actor.ActorHandle]], None],
    ):
        self._start, self._admit = start, admit
        self._engines = [start(index) for index in range(count)]
        self._ready: set[int] = set()
        self._starting: dict[ray.ObjectRef, int] = {}
        self._asked: dict[ray.ObjectRef, tuple[GroupRequest, int, ray.actor.ActorHandle]] = {}
        self._waiting: deque[GroupRequest] = deque()
        self._deaths: Counter[int] = Counter()
        self.restarts = 0

    @property
    def handles(self) -> list[ray.actor.ActorHandle]:
        return list(self._engines)

    def named(self) -> dict[str, ray.actor.ActorHandle]:
        return {engine_name(index): engine for index, engine in enumerate(self._engines)}

    def wait_ready(self) -> None:
        """Wait until every engine can be asked. Raises what one raises at its start."""
        ray.get([engine.ready.remote() for engine in self._engines])
        self._ready = set(range(len(self._engines)))

    def revive(self) -> None:
        """Start again, and wait for, engines that have died since they were last asked.

        They still have the weights they began with: a sync of all engines is to follow.
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
            self._started(done[0], admit=False)

    def give(self, request: GroupRequest) -> None:
        self._waiting.append(request)
        self._hand_out()

    def take(self) -> Group:
        """The next group that is done, waited for. Raises RewardError, and EngineLostError."""
        while True:
            self._hand_out()
            done, _ = ray.wait([*self._asked, *self._starting])
            if done[0] in self._starting:
                self._started(done[0], admit=True)
            elif group := self._finished(done[0]):
                return group

    def _hand_out(self) -> None:
        load = Counter(dict.fromkeys(self._ready, 0))
        load.update(index for _, index, engine in self._asked.values() if engine is self._engines[index])
        while self._waiting and self._ready:
            index = min(self._ready, key=lambda index: (load[index], index))
            request, engine = self._waiting.popleft(), self._engines[index]
            load[index] += 1
            self._asked[engine.sample_group.remote(request)] = (request, index, engine)

    def _finished(self, ref: ray.ObjectRef) -> Group | None:
        """The group; None where its engine has died, and then it is asked for again."""
        request, index, engine = self._asked.pop(ref)
        try:
            group = ray.get(ref)
        except ray.exceptions.RayError as error:
            if not _is_death(error):
                raise getattr(error, "cause", None) or error from None
            self._waiting.appendleft(request)
            if engine is self._engines[index] and index in self._ready:
                self._restart(index, error)
            return None
        del self._deaths[index]
        return group

    def _restart(self, index: int, error: Exception) -> None:
        self._deaths[index] += 1
        told = f"{engine_name(index)} died ({type(error).__name__}: {str(error).strip().splitlines()[-1][:300]})"
        if self._deaths[index] > _DEATHS:
            raise EngineLostError(f"{told}, for the {self._deaths[index]}th time without a prompt that it has finished")
        self._ready.discard(index)
        ray.kill(self._engines[index])
        self.restarts += 1
        self._engines[index] = self._start(index)
        self._starting[self._engines[index].ready.remote()] = index

    def _started(self, ref: ray.ObjectRef, admit: bool) -> None:
        index = self._starting.pop(ref)
        try:
            ray.get(ref)
            if admit:
                self._admit({engine_name(index): self._engines[index]})
        except Exception as error:
            if not _is_death(error):
                raise
            self._restart(index, error)
        else:
            self._ready.add(index)


def engine_name(index: int) -> str:
    """As in messages and on the board."""
    return f"rollout engine {index}"


def _is_death(error: Exception) -> bool:
    """Whether an engine's actor, or vLLM's process behind it, is gone."""
    from vllm.v1.engine.exceptions import EngineDeadError

    died = (ray.exceptions.RayActorError, EngineDeadError)
    return isinstance(error, died) or isinstance(getattr(error, "cause", None), died)
