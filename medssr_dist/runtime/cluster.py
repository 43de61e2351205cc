"""The Ray cluster of a run: joins the one RAY_ADDRESS names, else starts one on this machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medssr_dist.config import Config
from medssr_dist.errors import InputError
from medssr_dist.runtime.device import on_gpu

_PLACEMENT_S = 120.0  # engines of the step before may still be on their way out


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
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        if "RAY_ADDRESS" in os.environ:
            _join(os.environ["RAY_ADDRESS"])
        else:
            _start(slots, stack.enter_context(_temp_dir(logs)))
        stack.callback(ray.shutdown)
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init puts in its own, which exits on the spot
        _check_slots(slots)
        yield


def _join(address: str) -> None:
    """Join a running cluster; whether it has real GPUs is its own nodes' word, not this machine's."""
    import ray

    ray.init(address=address, log_to_driver=False)
    real_gpus = any(name.startswith("accelerator_type:") for name in ray.cluster_resources())
    os.environ.setdefault("MEDSSR_DEVICE", "cuda" if real_gpus else "cpu")
    on_gpu.cache_clear()


def _start(slots: int, temp_dir: Path) -> None:
    """Start a cluster on this machine; on CPU its GPUs are logical, one a slot."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Else vLLM's processes outlive an engine that is killed, and hold its GPU's memory.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, 2 * slots + 2),
        num_gpus=None if on_gpu() else slots,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="WARNING",
        _temp_dir=str(temp_dir),
    )


def reserve(bundles: list[dict[str, float]], what: str):
    """A placement group of `bundles`, waited for. Raises InputError, with asked and available, if it cannot be had."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(bundles, strategy="PACK")
    ready, _ = ray.wait([group.ready()], timeout=_PLACEMENT_S)
    if ready:
        return group
    remove_placement_group(group)
    raise InputError(
        f"{what} ask for {len(bundles)} x {bundles[0]}, which the cluster cannot place; it has "
        f"{ray.available_resources().get('GPU', 0):g} GPUs free of {ray.cluster_resources().get('GPU', 0):g}, "
        f"on {len(ray.nodes())} nodes; ask for fewer, or for bundles that fit a node"
    )


@contextmanager
def _temp_dir(logs: Path) -> Iterator[Path]:
    """A short path of this run's own; its worker logs are kept. Those of killed runs are removed.

    A lock tells the living from the dead: process ids mean nothing across containers that share /tmp.
    """
    for stale in Path(tempfile.gettempdir()).glob("medssr-*"):
        if stale.lstat().st_uid == os.getuid() and (lock := _try_lock(stale)):
            shutil.rmtree(stale, ignore_errors=True)
            lock.close()
    folder = Path(tempfile.mkdtemp(prefix="medssr-"))
    lock = _try_lock(folder)
    try:
        yield folder
    finally:
        _keep_logs(folder, logs)
        lock.close()


def _try_lock(folder: Path):
    """The locked file of a run's temporary directory, or None while another process holds it."""
    file = open(folder / "lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


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
