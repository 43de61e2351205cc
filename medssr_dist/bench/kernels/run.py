"""`medssr bench kernels`: the kernels against bare GEMMs, plain torch and other libraries: time, memory and error.

    medssr bench kernels --json FILE [--quick]

There are two tasks, each forward and backward to dX and dW, in bf16: `logprob` (mean of -log p; its limit is four bare
GEMMs) and `grpo` (its limit is three). On a GPU the row kernels are also measured alone. Each round runs all
contestants in turn, so that other load on the machine affects all of them. A contestant that cannot be imported, or
fails, is listed with the reason.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from medssr_dist.bench.kernels import peers
from medssr_dist.bench.kernels.report import LIMITS, Row, print_kernel_tables, write_kernel_files

HEADS = ((4096, 151936), (4096, 128256), (576, 49152))  # (H, V): Qwen3-8B, Llama-3.1-8B, SmolLM2-135M
SHAPES = {
    "cuda": [(n, *head) for head in HEADS for n in (2048, 8192, 16384, 32768)],
    "cuda quick": [(n, *head) for head in HEADS for n in (2048, 16384)],
    "cpu": [(n, 576, 49152) for n in (512, 2048)],
    "cpu quick": [(64, 576, 49152)],
}
ROUNDS = 3
SECONDS_A_ROUND = 0.3
MAX_CALLS = 30  # in a round
SLOW_MS = 20_000  # a slower step is timed once


def bench_kernels(json_path: Path, quick: bool) -> None:
    """Run the benchmark; write `json_path`, and a CSV and a plot next to it; print the tables.

    The files are rewritten after every shape, so that an interrupted run keeps its results. `quick`: fewer and smaller
    shapes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = SHAPES[device + " quick" * quick]
    rows: list[Row] = []
    for shape in tqdm(shapes, desc=f"bench kernels on {device}", unit="shape"):
        problem = peers.make_problem(*shape, device)
        for task in peers.TASKS:
            rows += _measure_task(task, problem, 1 if quick else ROUNDS)
        if device == "cuda":
            rows += _measure_row_kernels(problem, 1 if quick else ROUNDS)
        write_kernel_files(json_path, device, rows)
    print_kernel_tables(device, rows)


def _measure_task(task: str, problem: peers.Problem, rounds: int) -> list[Row]:
    plan = peers.TASKS[task]
    exact = peers.compute_reference(problem, plan.loss_of_logp)
    losses: dict[str, peers.Loss] = {}
    shape = problem.target.numel(), problem.hidden.shape[1], len(problem.weight)

    def bare(forward: int, backward: int) -> Callable[[], peers.Step]:
        return lambda: peers.make_gemms(problem, forward, backward)

    def contestant(name: str, make: Callable[[], peers.Loss]) -> Callable[[], peers.Step]:
        def step() -> peers.Step:
            losses[name] = losses.get(name) or make()
            return peers.differentiate(problem, losses[name])

        return step

    steps = {"1 GEMM": bare(1, 0), LIMITS[task]: bare(plan.forwards, plan.backwards)}
    steps |= {name: contestant(name, make) for name, make in plan.losses.items()}
    rows = {name: Row(task, name, *shape) for name in steps}
    for turn in range(rounds):
        for name, make in tqdm(steps.items(), desc=f"{task} {shape} round {turn + 1}", leave=False):
            too_slow = turn > 0 and (rows[name].p50 or 0) > SLOW_MS
            if not rows[name].failed and not too_slow:
                _take_turn(rows[name], make, exact if turn == 0 else None)
    return list(rows.values())


def _take_turn(row: Row, make: Callable[[], peers.Step], exact: peers.LossGradients | None) -> None:
    """Time one contestant. In the first turn, with `exact`, measure also its memory and its errors."""
    _release_memory()
    try:
        step = make()
        step()  # compiles and tunes
        if exact is not None:
            _measure_memory_and_errors(row, step, exact)
        row.times += _time_calls(step)
    except Exception as error:  # a library's failure must not stop the others
        row.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:200]


def _measure_memory_and_errors(row: Row, step: peers.Step, exact: peers.LossGradients) -> None:
    _release_memory()
    before = _reset_peak()
    outputs = step()
    _synchronize()
    row.peak = max(0, _read_peak() - before)
    if outputs is not None:
        errors = [
            ((found.float() - right).norm() / right.norm()).item() for found, right in zip(outputs, exact, strict=True)
        ]
        row.error_loss, row.error_dx, row.error_dw = errors


def _time_calls(step: peers.Step) -> list[float]:
    """Return the milliseconds of each call, for about SECONDS_A_ROUND."""
    calls = [_time(step)]
    more = min(MAX_CALLS, max(1, int(SECONDS_A_ROUND * 1e3 / calls[0])))
    return calls if calls[0] > SLOW_MS else calls + [_time(step) for _ in range(more)]


def _time(step: peers.Step) -> float:
    if torch.cuda.is_available():
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        step()
        events[1].record()
        _synchronize()
        return events[0].elapsed_time(events[1])
    started = time.perf_counter()
    step()
    return (time.perf_counter() - started) * 1e3


def _measure_row_kernels(problem: peers.Problem, rounds: int) -> list[Row]:
    shape = problem.target.numel(), problem.hidden.shape[1], len(problem.weight)
    rows = []
    for name, (step, moved_bytes) in peers.make_row_kernels(problem).items():
        row = Row("rows", name, *shape)
        for _ in range(rounds):
            _take_turn(row, lambda step=step: step, None)
        if row.p50:
            row.terabytes_per_s = moved_bytes / (row.p50 * 1e9)
        rows.append(row)
    return rows


# Memory: of the GPU from torch's allocator; of the CPU from Linux's high-water mark of this process.
def _release_memory() -> None:
    """Release free memory, which would otherwise be missing in the next contestant's peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> int:
    """Reset the peak and return the bytes in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _read_resident("VmRSS")


def _read_peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _read_resident("VmHWM")


def _read_resident(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
