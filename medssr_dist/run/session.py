"""An open run: its directory, what asks it to stop, Ray when it is first needed, and which step is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.errors import Diverged, InputError, Stopped
from medssr_dist.run.clock import time_step
from medssr_dist.run.directory import RunDir, open_run

_STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True)
class Session:
    """An open run: its config, its directory, whether it was asked to stop, and Ray when first needed."""

    config: Config
    run: RunDir
    should_stop: Callable[[], bool]
    start_ray: Callable[[], None]

    def begins(self, step: str, inputs: dict[str, str]) -> bool:
        """Begin `step` or go on with it; False where it is finished with the same settings and inputs."""
        self.run.begin_step(step, self.config, inputs)
        if self.run.is_finished(step):
            print(f"{step}: already finished")
            return False
        return True

    def once(self, step: str, inputs: dict[str, str], work: Callable[[], object]) -> None:
        """Do `work` unless `step` is finished with the same settings and inputs."""
        if self.begins(step, inputs):
            with time_step(self.run.root, step):
                work()
            self.run.finish_step(step)


@contextmanager
def open_session(config: Config, root: Path, before_ray: Callable[[Config], None]) -> Iterator[Session]:
    """The run in `root`, held by this process alone; its signals and its Ray cluster are this block's.

    Args:
        before_ray: called with the config before Ray is started; raises InputError where it cannot be.

    Raises:
        InputError: see `open_run`.
        Stopped: in place of what an engine's end raises after SIGTERM, USR1 or Ctrl-C.
    """
    with (
        open_run(root, config) as run,
        _stop_on_signal() as should_stop,
        _ray_on_demand(config, run, before_ray) as start_ray,
    ):
        yield Session(config, run, should_stop, start_ray)


@contextmanager
def _ray_on_demand(config: Config, run: RunDir, before_ray: Callable[[Config], None]) -> Iterator[Callable[[], None]]:
    """Yields a function that starts Ray on its first call; a finished run never starts it."""
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
    """SIGTERM, USR1 and the first Ctrl-C ask the run to stop at the next safe point; a second Ctrl-C ends it.

    SIGTERM may come twice, from Slurm and from the job's launcher; USR1 is how Slurm warns of a job's end.
    """
    asked = threading.Event()

    def ask(number, frame):
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in _STOPS}
    try:
        yield asked.is_set
    except Exception as error:
        # Ctrl-C also reaches the engines' processes; what their end raises here is part of the stop.
        if asked.is_set() and not isinstance(error, (Stopped, Diverged, InputError)):
            raise Stopped("stopped; the same command resumes") from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
