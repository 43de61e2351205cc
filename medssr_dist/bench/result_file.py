"""What every benchmark result carries: date, commit, machine, versions."""

from __future__ import annotations

import os
import time
from pathlib import Path

from medssr_dist.data.jsonl import write_json
from medssr_dist.run.directory import commit, versions
from medssr_dist.runtime import cpu


def write_result(path: Path, figures: dict) -> None:
    """Write `figures` and their circumstances as JSON."""
    write_json(
        path,
        {
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit(),
            "machine": _machine(),
            "versions": versions(),
        }
        | figures,
    )


def _machine() -> dict:
    limit = {cpu.ISA_LIMIT: cpu.isa_limit()} if cpu.isa_limit() else {}
    sets = {"instruction_sets": cpu.instruction_sets()} | limit
    return {"cpu": cpu.cpu_name(), "cores": os.cpu_count()} | sets | {"gpu": _gpu_name()}


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
