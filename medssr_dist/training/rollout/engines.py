"""The rollout engines of a stage: requests go to the least busy engine, and an engine that dies is restarted."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

import ray

from medssr_dist.inference.requests import CompletedRequest, SampleRequest
from medssr_dist.training.engine_failures import EngineLostError, is_engine_death

if TYPE_CHECKING:
    from medssr_dist.training.rollout.groups import Group, GroupRequest

_MOST_DEATHS = 3  # of one engine, without a finished group in between
_LOOK_S = 1.0  # interval at which a thread looks for what other threads have received for it


class _Sent(NamedTuple):
    """A request in flight. thread: that waits for the answer. index, engine: where it was sent."""

    request: GroupRequest | SampleRequest
    thread: int
    index: int
    engine: ray.actor.ActorHandle


class RolloutEngines:
    """Takes requests and returns their answers, even if engines die in between.

    A request that an engine had in flight when it died is sent again. Several threads may use the engines at the same
    time; each gets the answers to its own requests.

    Args:
        start: start(i) starts engine number i and returns its actor at once, before the engine is ready.
        count: number of engines.
        send_weights: sends the policy's current weights to these engines, by name; returns False, without having done
            anything, if the ranks are busy.

    Attributes:
        restarts: how often an engine was restarted.
    """

    def __init__(
        self,
        start: Callable[[int], ray.actor.ActorHandle],
        count: int,
        send_weights: Callable[[dict[str, ray.actor.ActorHandle]], bool],
    ):
        self._start, self._send_weights = start, send_weights
        self._engines = [start(index) for index in range(count)]
        self._lock = threading.RLock()  # guards everything below
        self._ready: set[int] = set()
        self._starting: dict[ray.ObjectRef, int] = {}
        self._old: set[int] = set()  # restarted, but still with the weights of the stage's beginning
        self._in_flight: dict[ray.ObjectRef, _Sent] = {}
        self._waiting: deque[tuple[GroupRequest | SampleRequest, int]] = deque()  # and the thread that wants the answer
        self._answers: defaultdict[int, deque[Group | CompletedRequest]] = defaultdict(deque)
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

    def call_all(self, method: str, *args: object) -> None:
        """Call `method` of every engine, and wait for all. An engine that has died is left to `update_all`."""
        with self._lock:
            for call in [getattr(engine, method).remote(*args) for engine in self._engines]:
                try:
                    ray.get(call)
                except ray.exceptions.RayError as error:
                    if not is_engine_death(error):
                        raise

    def update_all(self, send: Callable[[dict[str, ray.actor.ActorHandle]], None]) -> None:
        """Send weights to all engines, by name, while no request is sent to any.

        Engines that have died unnoticed are restarted first, and those that are starting are waited for.
        """
        with self._lock:
            self._restart_dead()
            send(self.by_name)
            self._ready |= self._old
            self._old.clear()

    def _restart_dead(self) -> None:
        for index in self._ready | self._old:
            try:
                ray.get(self._engines[index].check_health.remote())
            except ray.exceptions.RayError as error:
                if not is_engine_death(error):
                    raise
                self._restart(index, error)
        while self._starting:
            done, _ = ray.wait(list(self._starting))
            self._finish_start(done[0])

    def submit(self, request: GroupRequest | SampleRequest) -> None:
        """Send the request to the least busy engine, immediately or as soon as one is ready."""
        with self._lock:
            self._waiting.append((request, threading.get_ident()))
            self._dispatch()

    def next_group(self) -> Group:
        """Wait for the next finished group, of any request, and return it. Raises RewardError, EngineLostError."""
        return cast("Group", self._next_answer())

    def next_completed(self) -> CompletedRequest:
        """Wait for the next finished request of a vote, while no groups are requested. Raises EngineLostError."""
        return cast("CompletedRequest", self._next_answer())

    def _next_answer(self) -> Group | CompletedRequest:
        own = self._answers[threading.get_ident()]
        while True:
            with self._lock:
                self._update_old()
                self._dispatch()
                if own:
                    return own.popleft()
                awaited = [*self._in_flight, *self._starting]
            if not awaited:  # the only engines are old, and the ranks busy
                time.sleep(_LOOK_S)
                continue
            done, _ = ray.wait(awaited, timeout=_LOOK_S)  # without the lock: another thread may receive it first
            with self._lock:
                for ref in done:
                    if ref in self._starting:
                        self._finish_start(ref)
                    elif ref in self._in_flight:
                        self._receive(ref)

    def _update_old(self) -> None:
        """Send the current weights to restarted engines, if the ranks are free."""
        for index in sorted(self._old):
            try:
                is_sent = self._send_weights({engine_name(index): self._engines[index]})
            except Exception as error:
                if not is_engine_death(error):
                    raise
                self._restart(index, error)
            else:
                if is_sent:
                    self._old.discard(index)
                    self._ready.add(index)

    def _dispatch(self) -> None:
        load = Counter(dict.fromkeys(self._ready, 0))
        load.update(sent.index for sent in self._in_flight.values() if sent.engine is self._engines[sent.index])
        while self._waiting and self._ready:
            index = min(self._ready, key=lambda index: (load[index], index))
            (request, thread), engine = self._waiting.popleft(), self._engines[index]
            load[index] += 1
            answer = engine.complete if isinstance(request, SampleRequest) else engine.sample_group
            self._in_flight[answer.remote(request)] = _Sent(request, thread, index, engine)

    def _receive(self, ref: ray.ObjectRef) -> None:
        """Keep the finished answer for its thread. If its engine has died, the request waits to be sent again."""
        sent = self._in_flight.pop(ref)
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            if not is_engine_death(error):
                raise getattr(error, "cause", None) or error from None
            self._waiting.appendleft((sent.request, sent.thread))
            if sent.engine is self._engines[sent.index] and sent.index in self._ready:
                self._restart(sent.index, error)
            return
        del self._deaths[sent.index]
        self._answers[sent.thread].append(answer)

    def _restart(self, index: int, error: Exception) -> None:
        self._deaths[index] += 1
        deaths = self._deaths[index]
        if deaths > _MOST_DEATHS:
            cause = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}"
            raise EngineLostError(f"{engine_name(index)} died {deaths} times without finishing a prompt ({cause})")
        self._ready.discard(index)
        self._old.discard(index)
        ray.kill(self._engines[index])
        self.restarts += 1
        self._engines[index] = self._start(index)
        self._starting[self._engines[index].ready.remote()] = index

    def _finish_start(self, ref: ray.ObjectRef) -> None:
        index = self._starting.pop(ref)
        try:
            ray.get(ref)
        except Exception as error:
            if not is_engine_death(error):
                raise
            self._restart(index, error)
        else:
            self._old.add(index)


def engine_name(index: int) -> str:
    """Return the engine's name in messages and heartbeats."""
    return f"rollout engine {index}"
