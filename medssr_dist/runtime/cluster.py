"""The Ray cluster of a run: joins the one RAY_ADDRESS names, else starts one on this machine."""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medssr_dist.config import Config
from medssr_dist.errors import InputError
from medssr_dist.runtime.device import on_gpu


def slots_needed(config: Config) -> dict[str, int]:
    """GPUs (on CPU: process slots) each part asks for: voting, training ranks, rollout, reference."""
    training, voting = config.training, config.voting
    ranks = training.nodes * training.ranks_per_node
    return {
        "voting engines": voting.engines * voting.tensor_parallel_size,
        "training ranks": ranks,
        "reference ranks": 0 if training.colocate_reference else ranks,
        "rollout engines": training.engines * training.tensor_parallel_size,
    }


def slots_in_use(config: Config) -> int:
    """The most slots held at once: in stream mode voters and trainer stand side by side."""
    needed = slots_needed(config)
    voting = needed.pop("voting engines")
    training = sum(needed.values())
    return voting + training if config.runtime.mode == "stream" else max(voting, training)


@contextmanager
def ray_cluster(config: Config, logs: Path) -> Iterator[None]:
    """Connect to Ray for the duration of the block; a cluster started here is taken down after it.

    Worker logs go to `logs`. Raises InputError when the cluster has fewer GPUs than asked.
    """
    import ray

    slots = slots_in_use(config)
    started_here = "RAY_ADDRESS" not in os.environ
    temp_dir = _new_temp_dir() if started_here else None
    worker_env = {"MEDSSR_DEVICE": "cuda" if on_gpu() else "cpu", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    options: dict = {"log_to_driver": False, "runtime_env": {"env_vars": worker_env}}
    if started_here:
        cpus = max(os.cpu_count() or 1, 2 * slots + 2)
        options |= {"address": "local", "_temp_dir": temp_dir, "num_cpus": cpus, "include_dashboard": False}
        options |= {"logging_level": "WARNING"} | ({} if on_gpu() else {"num_gpus": slots})
    else:
        options |= {"address": os.environ["RAY_ADDRESS"]}
    ray.init(**options)
    try:
        _check_slots(slots)
        yield
    finally:
        ray.shutdown()
        if temp_dir:
            _keep_logs(Path(temp_dir), logs)


def _new_temp_dir() -> str:
    """A short path of this process's own; those of this user's runs that were killed are removed."""
    for stale in Path(tempfile.gettempdir()).glob("medssr-*-*"):
        owner = stale.name.split("-")[1]
        if stale.owner() == getpass.getuser() and owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(stale, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"medssr-{os.getpid()}-")


def _check_slots(slots: int) -> None:
    import ray

    available = int(ray.cluster_resources().get("GPU", 0))
    if available < slots:
        raise InputError(
            f"the run needs {slots} GPUs at once, the Ray cluster has {available}; lower voting.engines, "
            "training.ranks_per_node or training.engines, or set runtime.mode=sequential"
        )


def _keep_logs(temp_dir: Path, logs: Path) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    for pattern in ("worker-*.out", "worker-*.err", "raylet.err", "gcs_server.err"):
        for file in temp_dir.glob(f"session_2*/logs/{pattern}"):
            if file.stat().st_size:
                shutil.copy(file, logs / file.name)
    shutil.rmtree(temp_dir, ignore_errors=True)
