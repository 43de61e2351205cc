"""The Ray cluster of a run: the one at $RAY_ADDRESS, else a new one on this machine."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.config.schema import Config
from medssr_dist.errors import ClusterFailed, InputError
from medssr_dist.runtime.device import on_gpu, read_compute_capability, require_device
from medssr_dist.runtime.network import list_interfaces
from medssr_dist.runtime.shared_memory import RUN_VARIABLE
from medssr_dist.runtime.temp_dir import open_ray_temp_dir
from medssr_dist.runtime.working_directory import make_job_config

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_STARTS = 3  # of Ray, before a run gives up
_FP8_CAPABILITY = 8.9
_PLACEMENT_S = 120.0  # engines of the step before may need a while to end


def count_slots(config: Config) -> dict[str, int]:
    """Return how many slots each part of a run needs. A slot is a GPU, or on CPU a logical GPU for one process.

    Colocated rollout engines have the slots of the ranks; `auto` counts as split until it is resolved.

    Example: {"voting engines": 2, "training ranks": 4, "reference ranks": 0, "rollout engines": 2}
    """
    training, voting = config.training, config.voting
    ranks, is_colocated = training.nodes * training.ranks_per_node, training.placement == "colocated"
    return {
        "voting engines": voting.engines * voting.tensor_parallel_size,
        "training ranks": ranks,
        "reference ranks": 0 if training.colocate_reference else ranks,
        "rollout engines": 0 if is_colocated else training.engines * training.tensor_parallel_size,
    }


def count_slots_at_once(config: Config) -> int:
    """Return how many slots a run needs at the same time; in stream mode voting and training run concurrently."""
    needed = count_slots(config)
    voting = needed.pop("voting engines")
    trains = config.training.stage1.enabled or config.training.stage2.enabled
    training = sum(needed.values()) if trains else 0
    return voting + training if config.runtime.mode == "stream" else max(voting, training)


def refuse_unfit_rollout(config: Config) -> None:
    """Raise InputError if the rollout engines are to sample in 8 bits where this device cannot."""
    training = config.training
    if training.rollout_dtype != "fp8" or not (training.stage1.enabled or training.stage2.enabled):
        return
    capability = read_compute_capability()
    if on_gpu() and (capability is None or capability >= _FP8_CAPABILITY):
        return
    here = f"this GPU has {capability}" if on_gpu() else "this run uses the CPU"
    raise InputError(
        f"training.rollout_dtype = fp8 needs GPUs of compute capability {_FP8_CAPABILITY} or newer, and {here}; set "
        "training.rollout_dtype=policy"
    )


@contextmanager
def open_ray_cluster(config: Config, logs: Path) -> Iterator[None]:
    """Connect to Ray for the duration of the block; a cluster started here ends with it.

    Args:
        logs: folder that gets the logs of the workers.
    Raises:
        InputError: the cluster has no GPUs or fewer than the config needs, or they cannot sample in 8 bits.
        ClusterFailed: a process or a node of Ray was lost during the block, and nothing else has said so.
    """
    import ray

    address = read_ray_address()
    if not address:
        require_device(config.runtime.device)
    slots = count_slots_at_once(config)
    refuse_unfit_rollout(config)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        if address:
            _join(address)
            require_device(config.runtime.device)
        else:
            _start(slots, stack.enter_context(open_ray_temp_dir(logs)))
        stack.callback(ray.shutdown)
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init sets a handler that exits at once
        _check_slots(slots)
        with _explain_deaths():
            yield


@contextmanager
def _explain_deaths() -> Iterator[None]:
    """Raise ClusterFailed for an error of Ray that tells of a dead process or node; errors of tasks stay."""
    from ray import exceptions

    died = (
        exceptions.RayActorError,
        exceptions.WorkerCrashedError,
        exceptions.LocalRayletDiedError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
        exceptions.RpcError,
    )
    try:
        yield
    except died as error:
        reason = shorten_cause(find_cause(error), 200)
        raise ClusterFailed(
            f"a process of Ray was killed or has crashed ({reason}); the same command resumes the run"
        ) from error


def find_cause(error: BaseException) -> BaseException:
    """Return the error at the bottom: Ray wraps it once for each task or actor that it has passed."""
    cause = getattr(error, "cause", None)
    return error if cause is None or cause is error else find_cause(cause)


def shorten_cause(cause: BaseException, most: int) -> str:
    """Return the message of an error as one line of at most `most` characters, without Ray's colours."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).split())[:most]


def read_ray_address() -> str:
    """Return $RAY_ADDRESS, that of a running cluster; "" where it is absent or empty."""
    return os.environ.get("RAY_ADDRESS", "").strip()


def connect_to_ray(address: str) -> None:
    """Connect this process to a running cluster. Raises InputError if there is none at `address`."""
    import ray

    own_ip = os.environ.get("MEDSSR_NODE_IP")  # set by the launcher; Ray might choose an address of another network
    try:
        ray.init(address=address, job_config=make_job_config(), log_to_driver=False, _node_ip_address=own_ip)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"no Ray cluster can be joined at RAY_ADDRESS={address!r} ({reason}); unset RAY_ADDRESS to start one here"
        ) from error


def _join(address: str) -> None:
    """Join a running cluster. Its nodes, not this machine, decide whether the run uses GPUs."""
    import ray

    connect_to_ray(address)
    real_gpus = any(name.startswith("accelerator_type:") for name in ray.cluster_resources())
    os.environ.setdefault("MEDSSR_DEVICE", "cuda" if real_gpus else "cpu")
    on_gpu.cache_clear()


def _start(slots: int, temp_dir: Path) -> None:
    """Start a cluster on this machine; without real GPUs it gets one logical GPU for each slot.

    It listens on the loopback interface alone, and answers only processes that can read this user's token.
    Raises InputError if it does not start.
    """
    import ray

    _require_token(temp_dir)
    _stay_on_loopback()
    os.environ["VLLM_RPC_BASE_PATH"] = str(temp_dir)  # of its sockets, whose paths must be short too
    os.environ[RUN_VARIABLE] = temp_dir.name
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Otherwise vLLM's processes survive a killed worker and hold its GPU's memory.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 would slow the workers down
    # After a kill, Ray's agents report to the store that has ended too, for as long as this; by default for 60 s.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "4")
    for number in range(1, _STARTS + 1):
        try:
            ray.init(
                address="local",
                job_config=make_job_config(),
                num_cpus=max(os.cpu_count() or 1, 2 * slots + 2),
                num_gpus=None if on_gpu() else slots,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                _temp_dir=str(temp_dir),
            )
            return
        except Exception as error:  # of this class itself: Ray waits 30 s for its node, which no setting changes
            if "timed out during startup" not in str(error):
                raise
            logger.warning("Ray has not started within 30 s (try %d of %d)", number, _STARTS)
    raise InputError(
        f"Ray did not start within 30 s, {_STARTS} times in a row: the machine is overloaded, or {temp_dir} lies on a "
        "slow file system; run the same command again, with TMPDIR on a local disk"
    )


def _require_token(folder: Path) -> None:
    """Make Ray ask for a token, as the launcher does in a Slurm job: a new secret in a file for this user alone.

    Ray reads both variables when it is imported, which may be long ago, so it is made to read them again.
    """
    from ray._raylet import AuthenticationTokenLoader
    from ray._raylet import Config as RayConfig

    file = folder / "token"
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}
    AuthenticationTokenLoader.instance().reset_cache()
    RayConfig.initialize("")


def _stay_on_loopback() -> None:
    """Make Ray, gloo, NCCL and vLLM use the loopback address.

    Ray does so by itself on systems where its clusters have one node. `_node_ip_address` would not do: `ray.init`
    replaces a loopback address by one that other machines reach.
    """
    from ray._private import ray_constants

    interface = next((name for name, address in list_interfaces().items() if address == _LOOPBACK), "lo")
    os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface, "VLLM_HOST_IP": _LOOPBACK}
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for the processes that Ray starts
    ray_constants.ENABLE_RAY_CLUSTER = False


def reserve_bundles(bundles: list[dict[str, float]], what: str, per_node: int | None = None) -> PlacementGroup:
    """Reserve a placement group of `bundles`, and wait at most 120 s for it.

    Args:
        bundles: resources of each bundle. Example: [{"GPU": 1, "CPU": 1}] * 4
        what: who needs them, for the error message.
        per_node: number of bundles on each node that is used, in order; None: Ray uses as few nodes as possible.
    Raises:
        InputError: the cluster cannot place them; the message gives what was asked for and what is free.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    nodes = _nodes_with_room(per_node * bundles[0]["GPU"]) if per_node else []
    places = [index // per_node for index in range(len(bundles))] if per_node else []
    selectors = [{"ray.io/node-id": nodes[place]} if place < len(nodes) else {} for place in places]
    group: PlacementGroup = placement_group(bundles, bundle_label_selector=selectors or None)
    ready, _ = ray.wait([group.ready()], timeout=_PLACEMENT_S)
    if ready:
        return group
    remove_placement_group(group)
    raise _no_room(bundles[0], len(bundles), what, _free_gpus())


def reserve_each(bundle: dict[str, float], count: int, what: str) -> list[PlacementGroup]:
    """Reserve `count` placement groups of one bundle each. Raises InputError like `reserve_bundles` if one cannot be.

    Use it for actors that continue when a node is lost. For a larger group, Ray would search without pause for a new
    place for the lost part, and keep its control service busy with a whole core (seen with Ray 2.55).
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    free = _free_gpus()
    groups = [placement_group([bundle]) for _ in range(count)]
    deadline = time.monotonic() + _PLACEMENT_S
    if all(group.wait(max(0.1, deadline - time.monotonic())) for group in groups):
        return groups
    for group in groups:
        remove_placement_group(group)
    raise _no_room(bundle, count, what, free)


def _free_gpus() -> float:
    import ray

    return float(ray.available_resources().get("GPU", 0))


def _no_room(bundle: dict[str, float], count: int, what: str, free: float) -> InputError:
    import ray

    return InputError(
        f"{what} ask for {count} x {bundle}, which the cluster cannot place; it has {free:g} GPUs free of "
        f"{ray.cluster_resources().get('GPU', 0):g}, on {len(ray.nodes())} nodes; ask for fewer, or for bundles that "
        "fit a node"
    )


def _nodes_with_room(gpus: float) -> list[str]:
    """Return the ids of the nodes with `gpus` free GPUs, those with the most free GPUs first."""
    import ray

    free = {id: node.get("GPU", 0) for id, node in ray._private.state.available_resources_per_node().items()}
    return sorted((id for id in free if free[id] >= gpus), key=lambda id: -free[id])


def _check_slots(slots: int) -> None:
    import ray

    available = int(ray.cluster_resources().get("GPU", 0))
    if available < slots:
        raise InputError(
            f"the run needs {slots} GPUs at once, the Ray cluster has {available}; lower voting.engines, "
            "training.ranks_per_node or training.engines, or set runtime.mode=sequential"
        )
