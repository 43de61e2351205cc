"""Whether the run uses GPUs or the CPU; no other module asks torch for it."""

from __future__ import annotations

import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from medssr_dist.errors import InputError

ASSUMED_GPU_BYTES = 80 * 10**9  # of a GPU that is not here; that of an A100 or H100
_ASSUMED_GPUS = f"GPUs, none visible here: {ASSUMED_GPU_BYTES / 1e9:.0f} GB each are assumed"


@lru_cache(maxsize=1)
def on_gpu() -> bool:
    """Return whether the run uses GPUs: whether torch sees a CUDA device, unless MEDSSR_DEVICE says cpu or cuda.

    The driver passes its decision to Ray actors in the same variable (`build_device_env`).

    Raises:
        InputError: MEDSSR_DEVICE has another value.
    """
    chosen = os.environ.get("MEDSSR_DEVICE", "")
    if chosen not in ("", "cpu", "cuda"):
        raise InputError(f"MEDSSR_DEVICE = {chosen!r}: set it to cpu or cuda, or unset it")
    if chosen:
        return chosen == "cuda"
    return _import_torch().cuda.is_available()


def describe_device() -> str:
    """Return what a run here would compute on. Example: '2 x NVIDIA H100 80GB HBM3', or 'CPU, 8 cores'.

    Raises:
        InputError: torch is not installed.
    """
    forced = " (as set)" if os.environ.get("MEDSSR_DEVICE") else ""
    if not on_gpu():
        return f"CPU, {os.cpu_count()} cores, {read_available_memory() / 1e9:.0f} GB free{forced}"
    torch = _import_torch()
    names = Counter(torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count()))
    return (", ".join(f"{count} x {name}" for name, count in names.items()) or _ASSUMED_GPUS) + forced


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            "torch is not installed; install the tested set with launch/install.sh, or the extra: "
            "pip install 'medssr_dist[cpu]' (with GPUs: 'medssr_dist[gpu]')"
        ) from None
    return torch


def build_device_env() -> dict[str, str]:
    """Return the environment that passes the run's device to a Ray actor, even to one without a GPU."""
    return {"MEDSSR_DEVICE": "cuda" if on_gpu() else "cpu", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def read_gpu_bytes() -> int:
    """Return the memory of this machine's first GPU, in bytes; ASSUMED_GPU_BYTES where none is visible.

    The driver is asked, not torch, which would take memory of the GPU for itself.
    """
    nvml = _open_nvml()
    return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(0)).total) if nvml else ASSUMED_GPU_BYTES


def read_gpu_count() -> int | None:
    """Return the number of this machine's GPUs; None where none is visible."""
    nvml = _open_nvml()
    return int(nvml.nvmlDeviceGetCount()) if nvml else None


def read_compute_capability() -> float | None:
    """Return the compute capability of this machine's first GPU, for instance 9.0; None where none is visible."""
    nvml = _open_nvml()
    if nvml is None:
        return None
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(nvml.nvmlDeviceGetHandleByIndex(0))
    return float(f"{major}.{minor}")


def _open_nvml() -> Any | None:
    """Return the driver's library of NVIDIA, or None where it or a GPU is missing."""
    try:
        import pynvml
    except ImportError:  # not in the CPU set
        return None
    try:
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except pynvml.NVMLError:
        return None


def read_free_gpu_bytes() -> int:
    """Return the free bytes of the current GPU; ASSUMED_GPU_BYTES where none is visible, for plans."""
    cuda = _import_torch().cuda
    return int(cuda.mem_get_info()[0]) if cuda.device_count() else ASSUMED_GPU_BYTES


def choose_device(device: str) -> None:
    """Plan for this device, `cpu` or `gpu`, whatever this machine has; `auto` keeps what it has."""
    if device != "auto":
        os.environ["MEDSSR_DEVICE"] = {"cpu": "cpu", "gpu": "cuda"}[device]
        on_gpu.cache_clear()


def require_device(device: str) -> None:
    """Check the `runtime.device` of a run whose nodes are known.

    Raises:
        InputError: it is `gpu`, and they have none.
    """
    if device == "gpu" and not on_gpu():
        why = "MEDSSR_DEVICE is cpu" if os.environ.get("MEDSSR_DEVICE") == "cpu" else "no GPU is visible"
        raise InputError(
            f"runtime.device = gpu, but {why} here; run it where nvidia-smi lists GPUs, or set runtime.device=cpu"
        )


def count_threads(processes: int) -> int:
    """Return the CPU threads that each of `processes` processes on this node may use."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, processes))


def read_available_memory() -> int:
    """Return the bytes of memory that are available: on the machine, or in the control group if that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return machine
    return min(machine, int(limit.read_text()) - int(used.read_text()))
