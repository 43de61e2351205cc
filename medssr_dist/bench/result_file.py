"""What every benchmark result carries: date, commit, machine, versions."""

from __future__ import annotations

import os
import time
from pathlib import Path

from medssr_dist.data.jsonl import write_json
from medssr_dist.run.directory import find_commit, list_versions
from medssr_dist.runtime import cpu


def write_result(path: Path, figures: dict) -> None:
    """Write `figures` and their circumstances as JSON."""
    write_json(
        path,
        {
            "date": time.strftime("%Y-%m-%d"),
            "commit": find_commit(),
            "machine": _machine(),
            "versions": list_versions(),
        }
        | figures,
    )


def _machine() -> dict:
    limit = {cpu.ISA_LIMIT: cpu.read_isa_limit()} if cpu.read_isa_limit() else {}
    sets = {"instruction_sets": cpu.list_instruction_sets()} | limit
    return {"cpu": cpu.read_cpu_name(), "cores": os.cpu_count()} | sets | {"gpu": _gpu_name()}


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
