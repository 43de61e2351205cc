"""The CPU: its name, and what it has for the arithmetic of vectors and matrices."""

from __future__ import annotations

import os
import platform
from pathlib import Path

ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"  # holds oneDNN, which computes torch's GEMMs in 16 bits, to fewer instructions
_FAMILIES = ("avx", "amx", "neon", "sve", "sme", "bf16", "fp16", "i8mm")


def read_cpu_name() -> str:
    """The model, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def list_instruction_sets() -> list[str]:
    """Those for vectors and matrices, by torch's names, sorted. Example: ["amx_bf16", "amx_tile", "avx2"]."""
    import torch

    able = torch.cpu.get_capabilities()
    return sorted(name for name, has in able.items() if has is True and name.startswith(_FAMILIES))


def read_isa_limit() -> str | None:
    """Value of ONEDNN_MAX_CPU_ISA where it is set."""
    return os.environ.get(ISA_LIMIT)


def describe_cpu() -> str:
    """The instruction sets in one line, and the limit where there is one."""
    limit = f"; {ISA_LIMIT}={read_isa_limit()}" if read_isa_limit() else ""
    return f"{', '.join(list_instruction_sets()) or 'no vector instructions known'}{limit}"
