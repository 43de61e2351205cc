"""GPU or CPU: the only place that asks, and what differs in vLLM's arguments and environment."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from medssr_dist.errors import InputError


@lru_cache(maxsize=1)
def on_gpu() -> bool:
    """True where torch sees a CUDA device. MEDSSR_DEVICE=cpu keeps a GPU machine on its CPU.

    Ray actors are told by the driver, through the same variable (`build_device_env`).
    """
    chosen = os.environ.get("MEDSSR_DEVICE", "")
    if chosen not in ("", "cpu", "cuda"):
        raise InputError(f"MEDSSR_DEVICE = {chosen!r}: set it to cpu or cuda, or unset it")
    if chosen:
        return chosen == "cuda"
    import torch

    return torch.cuda.is_available()


def build_device_env() -> dict[str, str]:
    """What tells a Ray actor the run's device, also where it holds no GPU itself."""
    return {"MEDSSR_DEVICE": "cuda" if on_gpu() else "cpu", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def read_available_memory() -> int:
    """Bytes that may still be used: the machine's, or the control group's where that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if not limit.exists() or limit.read_text().strip() == "max":
        return machine
    return min(machine, int(limit.read_text()) - int(used.read_text()))
