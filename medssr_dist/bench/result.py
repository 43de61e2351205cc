"""What every benchmark result carries: date, commit, machine, versions."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from medssr_dist.data.jsonl import write_json
from medssr_dist.run.directory import commit, versions


def write_result(path: Path, figures: dict) -> None:
    """Write `figures` and their circumstances as JSON."""
    write_json(
        path,
        {
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit(),
            "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "gpu": _gpu_name()},
            "versions": versions(),
        }
        | figures,
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
