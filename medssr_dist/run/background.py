"""Steps that run concurrently with the step of the main thread, and end together with it.

Synthesis runs in a thread of the driver: a separate process would survive a kill of the driver and continue to append.
Stage 1 runs in Ray actors (training.train_stage.RunningStage). Signals and the manifest stay with the main thread.
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

_POLL_S = 1.0


class BackgroundStep(Protocol):
    """A step that runs somewhere else: in a thread or in Ray actors."""

    def check(self) -> bool:
        """Return whether the step is done. Raises the error that ended it."""

    def kill(self) -> None:
        """End the step and wait until it has ended."""


class ThreadStep:
    """A step that runs in a thread of this process, and therefore dies with the process.

    Args:
        work: does the step. It gets a function `should_stop`, which it has to poll.
        should_stop: returns True to end the step, as `kill` does.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], object], should_stop: Callable[[], bool]):
        self._work, self._should_stop = work, should_stop
        self._killed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def check(self) -> bool:
        """Return whether the step is done. Raises the error that ended it."""
        done = not self._thread.is_alive()
        if self._error:
            raise self._error
        return done

    def kill(self) -> None:
        """Ask the step to stop, and wait until it has ended."""
        self._killed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work(lambda: self._killed.is_set() or self._should_stop())
        except BaseException as error:  # raised again by `check`
            self._error = error


class BackgroundSteps:
    """The steps that run concurrently with the vote. Use it as a context manager: an error ends the remaining steps."""

    def __init__(self, session: Session):
        self._session = session
        self.running: dict[str, BackgroundStep] = {}
        self._clocks: dict[str, ExitStack] = {}
        self._next_poll = 0.0

    def add(self, name: str, step: BackgroundStep) -> None:
        """Watch `step`, which is running already, and count its seconds."""
        self.running[name] = step
        self._clocks[name] = ExitStack()
        self._clocks[name].enter_context(time_step(self._session.run.root, name))

    def poll(self) -> None:
        """Mark the steps that are done as finished. Raises the error that ended a step. Acts at most once a second."""
        if time.monotonic() < self._next_poll:
            return
        self._next_poll = time.monotonic() + _POLL_S
        for name in [name for name, step in self.running.items() if step.check()]:
            del self.running[name]
            self._clocks.pop(name).close()
            self._session.run.finish_step(name)

    def wait(self) -> None:
        """Wait until all steps are done. Raises the error that ended a step, or Stopped if the run has to stop."""
        while self.running:
            self.poll()
            if self._session.should_stop():
                raise Stopped(f"{', '.join(self.running)} stopped; the same command resumes")
            time.sleep(_POLL_S / 4)

    def __enter__(self) -> BackgroundSteps:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is KeyboardInterrupt:  # the second Ctrl-C: do not wait; everything ends with this process
            return
        for step in reversed(self.running.values()):
            step.kill()
        for clock in self._clocks.values():
            clock.close()
