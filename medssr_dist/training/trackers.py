"""TensorBoard, W&B and MLflow: each follows a stage's metrics.jsonl, in a thread of the driver.

Only the driver has the user's environment, so keys reach neither workers nor logs, and a tracker that cannot be reached
does not delay a step. Keys: WANDB_API_KEY (not needed with WANDB_MODE=offline); MLFLOW_TRACKING_URI with
MLFLOW_TRACKING_TOKEN, or with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. The config that is logged contains
no secrets.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from medssr_dist.config.load import dump_config
from medssr_dist.config.training import Training
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.run.event_file import EventFile
from medssr_dist.run.stream import follow
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.step_metrics import StepMetrics

_NOT_METRICS = ("step", "time")
_CLOSE_S = 30.0  # time limit for sending the last rows

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A service that stores a stage's metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Store the metrics of a step, by name."""

    def close(self) -> None:
        """End the service's run."""


class TensorBoard:
    """Event files in the stage's folder; steps after `job.checkpoint` of an earlier attempt are replaced."""

    def __init__(self, job: StageJob):
        self._events = EventFile(job.paths.tensorboard, job.checkpoint.step + 1 if job.checkpoint else 0)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._events.add(step, {f"train/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._events.close()


class Wandb:
    """One W&B run for each stage, resumed after a restart."""

    def __init__(self, job: StageJob):
        import wandb

        known = _read_run_id(job, "wandb")
        self._wandb = wandb
        self._run = wandb.init(
            project=job.config.training.tracker_project,
            name=_make_run_name(job),
            dir=job.folder,
            id=known,
            resume="allow",
            config=dump_config(job.config),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        _write_run_id(job, "wandb", self._run.id)
        self._run.define_metric("train/step")
        self._run.define_metric("train/*", step_metric="train/step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"train/step": step} | {f"train/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()
        self._wandb.teardown()  # its process; one that dies later would fail the next run of this process


class MLflow:
    """One MLflow run for each stage, resumed after a restart."""

    def __init__(self, job: StageJob):
        import mlflow

        mlflow.set_experiment(job.config.training.tracker_project)
        known = _read_run_id(job, "mlflow")
        self._mlflow = mlflow
        self._run = mlflow.start_run(run_id=known, run_name=None if known else _make_run_name(job))
        if known is None:
            _write_run_id(job, "mlflow", self._run.info.run_id)
            mlflow.log_dict(dump_config(job.config), "config.json")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics(metrics, step=step, run_id=self._run.info.run_id)

    def close(self) -> None:
        self._mlflow.end_run()


_TRACKERS: dict[str, Callable[[StageJob], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def check_trackers(training: Training) -> None:
    """Raise InputError if a tracker is not installed or has no key."""
    for name in training.trackers:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"training.trackers names {name}, which is not installed here: pip install {name}, or leave it out"
            )
    offline = os.environ.get("WANDB_MODE") in ("offline", "disabled")
    if "wandb" in training.trackers and not (offline or os.environ.get("WANDB_API_KEY")):
        raise InputError(
            "training.trackers names wandb, which needs a key: export WANDB_API_KEY, or WANDB_MODE=offline"
        )
    if "mlflow" in training.trackers and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError("training.trackers names mlflow, which needs a server: export MLFLOW_TRACKING_URI")


class Trackers:
    """Sends a stage's metrics to its trackers, in a thread, until `close`.

    A tracker that fails gets no more metrics, with a warning; training continues.
    """

    def __init__(self, job: StageJob):
        self._job, self._ended = job, threading.Event()
        self._open: dict[str, Tracker] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the remaining metrics, and wait up to 30 seconds for it."""
        self._ended.set()
        self._thread.join(_CLOSE_S)

    def _follow(self) -> None:
        job = self._job
        for name in job.config.training.trackers:
            self._try(name, lambda name=name: self._open.update({name: _TRACKERS[name](job)}))
        before = job.checkpoint.step if job.checkpoint else 0  # these steps have been logged
        for row in follow(job.paths.metrics, self._ended.is_set):
            metrics = StepMetrics.from_row(row)
            if metrics.step > before:
                self._each(partial(_log_step, metrics=metrics))
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], object]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: act(tracker))

    def _try(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # an external service must not end the run
            self._open.pop(name, None)
            logger.warning("%s gets no more metrics of %s: %s: %s", name, self._job.name, type(error).__name__, error)


def _log_step(tracker: Tracker, metrics: StepMetrics) -> None:
    values = {name: value for name, value in metrics.as_row().items() if name not in _NOT_METRICS}
    tracker.log(metrics.step, values)


def _make_run_name(job: StageJob) -> str:
    """Return <run directory>/<stage>; the folder is RUN/training/stageN."""
    return f"{job.folder.parents[1].name}/{job.name}"


def _read_run_id(job: StageJob, tracker: str) -> str | None:
    file = job.paths.trackers
    return read_record(dict[str, str], file).get(tracker) if file.exists() else None


def _write_run_id(job: StageJob, tracker: str, run_id: str) -> None:
    file: Path = job.paths.trackers
    write_json(file, (read_record(dict[str, str], file) if file.exists() else {}) | {tracker: run_id})
