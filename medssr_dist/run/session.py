"""An open run: its directory, the signals that stop it, and Ray, which starts when a step first needs it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError, Stopped
from medssr_dist.run.clock import time_step
from medssr_dist.run.directory import RunDir, open_run

logger = logging.getLogger(__name__)

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class Session:
    """An open run.

    Attributes:
        should_stop: returns whether a signal has asked the run to stop.
        start_ray: starts or joins Ray; does nothing when it is called again.
    """

    config: Config
    run: RunDir
    should_stop: Callable[[], bool]
    start_ray: Callable[[], None]

    def begin_step(self, step: str, inputs: dict[str, str]) -> bool:
        """Begin or resume `step`. Returns False if it is already finished with the same settings and inputs.

        Args:
            inputs: name -> hash of what the step reads.
        Raises:
            InputError: the step was begun with other settings or inputs.
        """
        self.run.begin_step(step, self.config, inputs)
        if self.run.is_finished(step):
            logger.info("%s: already finished", step)
            return False
        return True

    def run_step(self, step: str, inputs: dict[str, str], work: Callable[[], object]) -> None:
        """Do `work` and mark `step` as finished, unless it is already finished. See `begin_step`."""
        if self.begin_step(step, inputs):
            with time_step(self.run.root, step):
                work()
            self.run.finish_step(step)


@contextmanager
def open_session(config: Config, root: Path, before_ray: Callable[[Config], None]) -> Iterator[Session]:
    """Open the run in `root` for this process alone. Signal handlers and Ray last as long as the block.

    Args:
        before_ray: called with the config before Ray starts; raises InputError if Ray must not start.

    Raises:
        InputError: see `open_run`.
        Stopped: replaces any other error that follows SIGTERM, USR1 or Ctrl-C, since engines may fail when they end.
    """
    with (
        open_run(root, config) as run,
        _stop_on_signal() as should_stop,
        _prepare_ray(config, run, before_ray) as start_ray,
    ):
        yield Session(config, run, should_stop, start_ray)


@contextmanager
def _prepare_ray(config: Config, run: RunDir, before_ray: Callable[[Config], None]) -> Iterator[Callable[[], None]]:
    """Yield a function that starts Ray on its first call; Ray ends with the block."""
    with ExitStack() as stack:
        started = threading.Event()

        def start() -> None:
            from medssr_dist.runtime.cluster import open_ray_cluster

            if not started.is_set():
                before_ray(config)
                stack.enter_context(open_ray_cluster(config, run.logs))
                started.set()

        yield start


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM, USR1 and the first Ctrl-C ask the run to stop at the next safe point; a second Ctrl-C ends it.

    SIGTERM may come twice, from Slurm and from the job's launcher. Slurm sends USR1 before a job's time limit.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in _STOP_SIGNALS}
    try:
        yield asked.is_set
    except Exception as error:
        # Ctrl-C also reaches the engines' processes, which may raise anything here when they end.
        if asked.is_set() and not isinstance(error, (Stopped, InputError)):
            raise Stopped("stopped; the same command resumes") from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
