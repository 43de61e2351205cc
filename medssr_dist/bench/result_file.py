"""The result file of a benchmark: its figures, with date, commit, machine and versions."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medssr_dist.data.jsonl import write_json
from medssr_dist.errors import InputError
from medssr_dist.run.directory import find_commit, list_versions
from medssr_dist.runtime import cpu


def write_result(path: Path, figures: Mapping[str, Any]) -> None:
    """Write `figures` as JSON, after the keys date, commit, machine and versions."""
    write_json(
        path,
        {
            "date": time.strftime("%Y-%m-%d"),
            "commit": find_commit(),
            "machine": _describe_machine(),
            "versions": list_versions(),
            **figures,
        },
        checked=False,
    )


def refuse_unfit_result(path: Path) -> None:
    """Raise InputError if no result can be written to `path`: it is a folder, or lies below a file."""
    if path.is_dir():
        raise InputError(f"--json {path} is a folder; give the name of a file, which may be new")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"--json {path}: {parent} is a file, not a folder; give another place")


def describe_measurement() -> str:
    """Return date, commit and CPU, for a result that is put together from several.

    Example: "2026-01-31, commit 0c1d2e3f40, AMD EPYC"
    """
    return f"{time.strftime('%Y-%m-%d')}, commit {find_commit()}, {cpu.read_cpu_name()}"


def _describe_machine() -> dict[str, Any]:
    limit = {cpu.ISA_LIMIT: cpu.read_isa_limit()} if cpu.read_isa_limit() else {}
    sets = {"instruction_sets": cpu.list_instruction_sets()} | limit
    return {"cpu": cpu.read_cpu_name(), "cores": os.cpu_count()} | sets | {"gpu": _gpu_name()}


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
