"""`medssr doctor --gpu-check`: what only a GPU can show, within about a quarter of an hour on one or two GPUs.

Each part runs in a process of its own, by a committed command, and its figures are judged here:

    attention    torch's flash attention over packed rows equals attention within each sequence
    kernels      `medssr bench kernels --quick`: errors of our losses and gradients, against those of plain torch
    update       `medssr bench update --quick`: an update with the fused optimizer; tokens/s, MFU, memory
    whole run    `medssr run` of the demo in small, with the checksums of all weights after each sync: over NCCL on two
                 GPUs, over CUDA IPC on one, which rank and engine share (training.placement=colocated); needs vLLM
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import Any

from medssr_dist.commands.doctor.check_result import CheckResult, ResultRow, print_table
from medssr_dist.errors import InputError
from medssr_dist.runtime.device import on_gpu

_LARGEST_ERROR = 0.05  # relative, of attention in 16 bits; about 0.005 is usual
_LARGEST_RATIO = 2.0  # of a kernel's error to that of plain torch, which has the same inputs in 16 bits
_SMALL_ERROR = 1e-3  # relative; smaller ones are as large by chance
_PART_S = 900.0  # limit of one part
_SMALL_RUN = (
    "policy.dtype=bfloat16",
    "synthesis.accepted=24",
    "training.attention=varlen",
    "training.packing=true",
    "training.share_prompts=false",
    "training.stage1.micro_batch_tokens=8192",
    "training.stage2.micro_batch_tokens=8192",
    "training.ranks_per_node=1",
    "training.verify_sync=true",
    "training.stage1.steps=2",
    "training.stage2.steps=2",
    "evaluation.generations=1",
    "runtime.mode=sequential",
)
Judge = Callable[[Path], CheckResult]


def run_gpu_check() -> int:
    """Run all parts and print a table; return the exit code, 0 or 2.

    Raises:
        InputError: this machine has no GPU.
    """
    import torch

    if not on_gpu() or not torch.cuda.is_available():
        raise InputError("doctor --gpu-check needs a GPU, and this machine shows none; run it on a node with GPUs")
    with tempfile.TemporaryDirectory(prefix="medssr-gpu-check-") as scratch:
        folder = Path(scratch)
        results = {
            "attention": check_attention("cuda"),
            "kernels": _run_bench("kernels", folder, judge_kernels),
            "update": _run_bench("update", folder, judge_update),
            "whole run": _check_whole_run(folder, torch.cuda.device_count()),
        }
    return print_table(ResultRow(name, result) for name, result in results.items())


def check_attention(device: str) -> CheckResult:
    """Compare packed attention, forward and backward, with attention within each sequence in float64."""
    import torch
    from torch.nn.functional import pad

    from medssr_dist.training.update.varlen_attention import attend

    lengths = torch.tensor([300, 1, 77, 512])
    limits = pad(lengths.cumsum(0), (1, 0)).int()
    shapes = [(1, heads, int(lengths.sum()), 128) for heads in (32, 8, 8)]
    draw = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    packed = [tensor.detach().to(device, dtype).requires_grad_() for tensor in exact]

    def differentiate(tensors: list[torch.Tensor], limits: torch.Tensor) -> list[torch.Tensor]:
        options = {"cu_seq_lens_q": limits, "max_length_q": 512}
        output = attend(torch.nn.Module(), *tensors, None, scaling=128**-0.5, **options)[0]
        return [output, *torch.autograd.grad(output.square().sum(), tensors)]

    pairs = zip(differentiate(packed, limits.to(device)), differentiate(exact, limits), strict=True)
    errors = [((found.double().cpu() - right).norm() / right.norm()).item() for found, right in pairs]
    detail = "relative errors of output and gradients: " + ", ".join(f"{error:.1e}" for error in errors)
    if max(errors) > _LARGEST_ERROR:
        return CheckResult("fail", detail, "set training.attention=sdpa, and report these figures")
    return CheckResult("pass", detail)


def judge_kernels(file: Path) -> CheckResult:
    """Judge the figures of `medssr bench kernels`: did every kernel of ours run, with errors like those of torch?

    The error of a gradient in 16 bits depends on the task (0.006 of a mean, 0.1 of a GRPO loss), so that torch's own on
    the same inputs is the yardstick.
    """
    rows = [row for row in _read_rows(file) if row["contestant"] == "kernels"]
    torchs = {_name_problem(row): row for row in _read_rows(file) if row["contestant"] == "torch"}
    ratios = [
        row[name] / max(yardstick, _SMALL_ERROR)
        for row in rows
        for name in ("error_loss", "error_dx", "error_dw")
        if row.get(name) is not None and (yardstick := torchs.get(_name_problem(row), {}).get(name)) is not None
    ]
    failure = _find_failure(rows, "contestant")
    if failure or not ratios:
        return failure or CheckResult("fail", "torch has no errors to compare with", "use a GPU with more memory")
    worst = max(ratios, key=lambda ratio: (isnan(ratio), ratio))
    detail = f"{len(rows)} kernels, errors at most {worst:.2f} times torch's"
    if not worst <= _LARGEST_RATIO:
        return CheckResult("fail", detail, "report this; do not train here")
    return CheckResult("pass", detail)


def _name_problem(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("task", "n", "h", "v"))


def judge_update(file: Path) -> CheckResult:
    """Judge the figures of `medssr bench update`: did the update that training uses run?"""
    rows = [row for row in _read_rows(file) if row["variant"] == "ours"]
    speeds = [f"{row['shape']} {row['tokens_per_s']:,.0f} tokens/s" for row in rows if "tokens_per_s" in row]
    return _find_failure(rows, "shape") or CheckResult("pass", ", ".join(speeds))


def _find_failure(rows: list[dict[str, Any]], name: str) -> CheckResult | None:
    failed = [f"{row[name]}: {row['failed']}" for row in rows if row.get("failed")]
    if rows and not failed:
        return None
    return CheckResult("fail", "; ".join(failed) or "no figures of ours", "report this with the file of the figures")


def _read_rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def _run_bench(name: str, folder: Path, judge: Judge) -> CheckResult:
    file = folder / f"{name}.json"
    failure = _run(["bench", name, "--quick", "--json", str(file)])
    return failure or judge(file)


def _check_whole_run(folder: Path, gpus: int) -> CheckResult:
    if find_spec("vllm") is None:
        return CheckResult("warn", "left out: vLLM is not installed", "launch/install.sh cuda")
    placement = "split" if gpus > 1 else "colocated"
    overrides = [*_SMALL_RUN, f"training.placement={placement}"]
    failure = _run(["run", "--config", "demo_cpu", "--run-dir", str(folder / "run"), *overrides])
    return failure or CheckResult(
        "pass", f"synthesis, vote, two stages ({placement}) with weight sync and checksums, evaluation"
    )


def _run(arguments: list[str]) -> CheckResult | None:
    """Run a `medssr` command; return the result of its failure, None if it succeeds."""
    command = [sys.executable, "-m", "medssr_dist.cli", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PART_S)
    except subprocess.TimeoutExpired:
        return CheckResult("fail", f"`medssr {' '.join(arguments)}` did not end within {_PART_S:.0f} s", "run it alone")
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return CheckResult("fail", lines[-1][:300], f"medssr {' '.join(arguments)}")
