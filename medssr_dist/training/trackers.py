"""TensorBoard, W&B and MLflow: each follows a stage's metrics.jsonl, in a thread of the driver.

The driver is the one process that has the user's environment, so keys reach no worker and no log, and a tracker that
cannot be reached holds no step up. Keys: WANDB_API_KEY (WANDB_MODE=offline needs none), MLFLOW_TRACKING_URI and its
MLFLOW_TRACKING_TOKEN or _USERNAME and _PASSWORD. The config that is logged has no secrets in it.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from medssr_dist.config.load import dump_config
from medssr_dist.config.training import Training
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.errors import InputError
from medssr_dist.run.stream import follow
from medssr_dist.training.stage_job import StageJob

_NOT_METRICS = ("step", "time")
_CLOSE_S = 30.0  # what the last rows may take to be sent


class Tracker(Protocol):
    """One place that a stage's metrics go to."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the stage's folder; what an earlier attempt wrote after `job.checkpoint` is overruled."""

    def __init__(self, job: StageJob):
        from torch.utils.tensorboard import SummaryWriter

        after = job.checkpoint.step + 1 if job.checkpoint else 0
        self._writer = SummaryWriter(job.paths.tensorboard, purge_step=after)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """One W&B run a stage, gone on with after a restart."""

    def __init__(self, job: StageJob):
        import wandb

        known = _stored(job, "wandb")
        self._run = wandb.init(
            project=job.config.training.tracker_project,
            name=_run_name(job),
            dir=job.folder,
            id=known,
            resume="allow",
            config=dump_config(job.config),
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )
        _store(job, "wandb", self._run.id)
        self._run.define_metric("train/step")
        self._run.define_metric("train/*", step_metric="train/step")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"train/step": step} | {f"train/{name}": value for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One MLflow run a stage, gone on with after a restart."""

    def __init__(self, job: StageJob):
        import mlflow

        mlflow.set_experiment(job.config.training.tracker_project)
        known = _stored(job, "mlflow")
        self._mlflow = mlflow
        self._run = mlflow.start_run(run_id=known, run_name=None if known else _run_name(job))
        if known is None:
            _store(job, "mlflow", self._run.info.run_id)
            mlflow.log_dict(dump_config(job.config), "config.json")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics(metrics, step=step, run_id=self._run.info.run_id)

    def close(self) -> None:
        self._mlflow.end_run()


_TRACKERS: dict[str, Callable[[StageJob], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def check_trackers(training: Training) -> None:
    """Raise InputError for a tracker that is not installed or has no key."""
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
    """The stage's trackers, fed by a thread until `close`. One that fails is told of and left; training goes on."""

    def __init__(self, job: StageJob):
        self._job, self._ended = job, threading.Event()
        self._open: dict[str, Tracker] = {}
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send what is left, and wait for it a while."""
        self._ended.set()
        self._thread.join(_CLOSE_S)

    def _follow(self) -> None:
        job = self._job
        for name in job.config.training.trackers:
            self._try(name, lambda name=name: self._open.update({name: _TRACKERS[name](job)}))
        before = job.checkpoint.step if job.checkpoint else 0  # rows of these steps have been logged
        for row in follow(job.paths.metrics, self._ended.is_set):
            if row["step"] > before:
                metrics = {name: value for name, value in row.items() if name not in _NOT_METRICS}
                self._each(lambda tracker, row=row, metrics=metrics: tracker.log(row["step"], metrics))
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], object]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: act(tracker))

    def _try(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # of a service that is none of the run's own: the run goes on without it
            self._open.pop(name, None)
            tqdm.write(f"warning: {name} gets no more metrics of {self._job.name}: {type(error).__name__}: {error}")


def _run_name(job: StageJob) -> str:
    """<run directory>/<stage>: the folder is RUN/training/stageN."""
    return f"{job.folder.parents[1].name}/{job.name}"


def _stored(job: StageJob, tracker: str) -> str | None:
    file = job.paths.trackers
    return read_json(file).get(tracker) if file.exists() else None


def _store(job: StageJob, tracker: str, run_id: str) -> None:
    file: Path = job.paths.trackers
    write_json(file, (read_json(file) if file.exists() else {}) | {tracker: run_id})
