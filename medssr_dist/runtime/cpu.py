"""The CPU: its name and its vector and matrix instructions."""

from __future__ import annotations

import os
import platform
from pathlib import Path

ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"  # restricts the instructions of oneDNN, which computes torch's 16-bit matrix products
_FAMILIES = ("avx", "amx", "neon", "sve", "sme", "bf16", "fp16", "i8mm")


def read_cpu_name() -> str:
    """Return the model name that Linux reports. Example: "AMD EPYC 9654 96-Core Processor"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def list_instruction_sets() -> list[str]:
    """Return the names of the vector and matrix instruction sets, as torch has them, sorted.

    Example: ["amx_bf16", "amx_tile", "avx2"]
    """
    import torch

    able = torch.cpu.get_capabilities()
    return sorted(name for name, has in able.items() if has is True and name.startswith(_FAMILIES))


def read_isa_limit() -> str | None:
    """Return the value of ONEDNN_MAX_CPU_ISA; None if it is not set."""
    return os.environ.get(ISA_LIMIT)


def describe_cpu() -> str:
    """Describe the instruction sets, and the limit if there is one, in one line."""
    limit = f"; {ISA_LIMIT}={read_isa_limit()}" if read_isa_limit() else ""
    return f"{', '.join(list_instruction_sets()) or 'no vector instructions known'}{limit}"
