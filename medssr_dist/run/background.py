"""Steps that go on beside the one in the main thread, and end together with it.

Synthesis goes on in a thread of the driver: a process of its own would outlive a kill of the driver and go on
appending. Stage 1 goes on in Ray actors (training.run.RunningStage). The main thread keeps signals and manifest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from medssr_dist.errors import Stopped
from medssr_dist.run.clock import time_step
from medssr_dist.run.session import Session

_LOOK_S = 1.0


class BackgroundStep(Protocol):
    """Work under way elsewhere."""

    def check(self) -> bool:
        """Whether it is done. Raises what ended it before."""

    def kill(self) -> None:
        """End it."""


class ThreadStep:
    """Work in a thread of this process, beside the caller's: it dies with it, and its failure is told by `check`.

    Args:
        work: is given `should_stop`, which it polls.
        should_stop: ends the work, as `kill` does.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], object], should_stop: Callable[[], bool]):
        self._work, self._should_stop = work, should_stop
        self._asked = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Whether the work is done. Raises what ended it before."""
        done = not self._thread.is_alive()
        if self._error:
            raise self._error
        return done

    def kill(self) -> None:
        """Ask the work to stop, and wait until it has."""
        self._asked.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work(lambda: self._asked.is_set() or self._should_stop())
        except BaseException as error:  # raised again by `check`
            self._error = error


class BackgroundSteps:
    """The steps that go on beside the vote. A context: what is left of them on an error is ended with it."""

    def __init__(self, session: Session):
        self._session = session
        self.sides: dict[str, BackgroundStep] = {}
        self._clocks: dict[str, ExitStack] = {}
        self._next_look = 0.0

    def take(self, step: str, side: BackgroundStep) -> None:
        self.sides[step] = side
        self._clocks[step] = ExitStack()
        self._clocks[step].enter_context(time_step(self._session.run.root, step))

    def watch(self) -> None:
        """Finish the steps that are done; raise what ended one. Looks once a second."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        for step in [step for step, side in self.sides.items() if side.check()]:
            del self.sides[step]
            self._clocks.pop(step).close()
            self._session.run.finish_step(step)

    def wait(self) -> None:
        """Wait for all. Raises Stopped if the run is asked to stop."""
        while self.sides:
            self.watch()
            if self._session.should_stop():
                raise Stopped(f"{', '.join(self.sides)} stopped; the same command goes on")
            time.sleep(_LOOK_S / 4)

    def __enter__(self) -> BackgroundSteps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is KeyboardInterrupt:  # the second one: nothing is waited for, all ends with this process
            return
        for side in reversed(self.sides.values()):
            side.kill()
        for clock in self._clocks.values():
            clock.close()
