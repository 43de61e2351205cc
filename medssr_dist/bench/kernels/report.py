"""The report of `medssr bench kernels`: its rows as JSON, CSV, plot and table, and the aims that they meet or miss."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medssr_dist.bench.kernels.peers import OURS
from medssr_dist.bench.result_file import write_result

LIMITS = {"logprob": "4 GEMMs", "grpo": "3 GEMMs"}
# Aims on an H100. Speed is a share of the limit: time of the limit / own time.
LEAST_SHARE = {"logprob": 0.90, "grpo": 0.88}
LEAST_TERABYTES_PER_S = 2.5
EXTRA_BYTES, EXTRA_AT = 1.3e9, 16384  # peak memory beyond the gradients, at this N
RIVALS = ("liger", "cce", "cce unfiltered")


@dataclass
class Row:
    """One contestant at one shape: times in ms, peak memory in bytes, errors relative to fp32.

    >>> Row("logprob", "kernels", n=2048, h=576, v=49152, times=[1814.2], peak=270_000_000, error_loss=1e-4)

    It is filled round by round. `failed`: why there are no times; empty if there are.
    """

    task: str
    contestant: str
    n: int
    h: int
    v: int
    times: list[float] = field(default_factory=list)
    peak: int | None = None
    error_loss: float | None = None
    error_dx: float | None = None
    error_dw: float | None = None
    terabytes_per_s: float | None = None
    failed: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.n, self.h, self.v

    @property
    def p50(self) -> float | None:
        """Median time; None where it failed."""
        return self._quantile(0.5)

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the result file: quantiles in place of the times."""
        found = {name: value for name, value in asdict(self).items() if name != "times"}
        return found | {f"p{round(100 * share)}_ms": self._quantile(share) for share in (0.2, 0.5, 0.8)}

    def _quantile(self, share: float) -> float | None:
        return round(torch.tensor(self.times).quantile(share).item(), 4) if self.times and not self.failed else None


class JudgedAim(NamedTuple):
    """An aim in words, the measured value, and whether the aim is met; the names are keys of the result file.

    >>> JudgedAim("logprob N=16384 H=4096 V=151936: ahead of liger", "1.21 x", True)
    """

    aim: str
    found: str
    met: bool


def write_kernel_files(json_path: Path, device: str, rows: list[Row]) -> None:
    """Write `json_path`, and next to it the same rows as CSV and the shares of the limit as a plot."""
    figures = [row.to_json() for row in rows]
    aims = [aim._asdict() for aim in judge_aims(rows)] if device == "cuda" else []
    write_result(json_path, {"device": device, "dtype": "bfloat16", "rows": figures, "aims": aims})
    with open(json_path.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(figures[0]))
        writer.writeheader()
        writer.writerows(figures)
    _plot(json_path.with_suffix(".png"), device, rows)


def print_kernel_tables(device: str, rows: list[Row]) -> None:
    """Print all rows, and on a GPU the aims with the measured values."""
    for task, limit in LIMITS.items():
        print(f"\n{task}: forward + backward on {device}; share = time of {limit} / own time; errors against fp32")
        print(f"{'N':>6} {'H':>5} {'V':>7}  {'contestant':<15} {'p50 ms':>9} {'share':>6} {'peak MB':>8}", end="")
        print(f" {'loss':>8} {'dX':>8} {'dW':>8}")
        for row in (row for row in rows if row.task == task):
            print(_format_row(row, _find_row(rows, task, limit, row.shape)))
    for row in (row for row in rows if row.task == "rows"):
        rate = row.failed or f"{row.terabytes_per_s:.2f} TB/s"
        print(f"{row.n:>6} {row.h:>5} {row.v:>7}  {row.contestant:<22} {rate}")
    if device != "cuda":
        print("\nFigures of a CPU: the aims are for an H100 and are not judged here.")
        return
    for aim in judge_aims(rows):
        print(f"{'met    ' if aim.met else 'NOT MET'}  {aim.aim}: {aim.found}")


def _format_row(row: Row, limit: Row) -> str:
    start = f"{row.n:>6} {row.h:>5} {row.v:>7}  {row.contestant:<15}"
    if row.p50 is None:
        return f"{start} {row.failed}"
    share = "" if limit.p50 is None else f"{limit.p50 / row.p50:.3f}"
    errors = (row.error_loss, row.error_dx, row.error_dw)
    shown = " ".join("       -" if error is None else f"{error:8.1e}" for error in errors)
    return f"{start} {row.p50:>9.3f} {share:>6} {row.peak / 1e6:>8.0f} {shown}"


def judge_aims(rows: list[Row]) -> Iterator[JudgedAim]:
    """Yield every aim for every shape."""
    for own in (row for row in rows if row.contestant == OURS):
        yield from _judge_contestant(own, rows)
    for row in (row for row in rows if row.task == "rows"):
        rate = row.terabytes_per_s or 0.0
        text = f"{row.contestant} N={row.n} V={row.v}: >= {LEAST_TERABYTES_PER_S} TB/s"
        yield JudgedAim(text, f"{rate:.2f} TB/s", rate >= LEAST_TERABYTES_PER_S)


def _judge_contestant(own: Row, rows: list[Row]) -> Iterator[JudgedAim]:
    """Yield the aims of our kernels at one task and shape: speed, memory, and each rival."""
    where = f"{own.task} N={own.n} H={own.h} V={own.v}"
    if own.p50 is None:
        yield JudgedAim(f"{where}: runs", own.failed, False)
        return
    limit = _find_row(rows, own.task, LIMITS[own.task], own.shape).p50
    if limit is not None:
        share, least = limit / own.p50, LEAST_SHARE[own.task]
        yield JudgedAim(f"{where}: share of {LIMITS[own.task]} >= {least}", f"{share:.3f}", share >= least)
    if own.n == EXTRA_AT and own.peak is not None:
        extra = (own.peak - 2 * (own.n + own.v) * own.h) / 1e9
        text = f"{where}: peak over gradients <= {EXTRA_BYTES / 1e9} GB"
        yield JudgedAim(text, f"{extra:.2f} GB", extra <= EXTRA_BYTES / 1e9)
    for rival in rows:
        if rival.task == own.task and rival.shape == own.shape and rival.contestant in RIVALS and rival.p50:
            ahead = rival.p50 / own.p50
            yield JudgedAim(f"{where}: ahead of {rival.contestant}", f"{ahead:.2f} x", ahead > 1)


def _find_row(rows: list[Row], task: str, contestant: str, shape: tuple[int, int, int]) -> Row:
    return next(row for row in rows if (row.task, row.contestant, row.shape) == (task, contestant, shape))


def _plot(path: Path, device: str, rows: list[Row]) -> None:
    """Draw the share of the limit's speed over the shapes: one panel for each task, one line for each contestant."""
    from matplotlib.figure import Figure

    shapes = list(dict.fromkeys(row.shape for row in rows))
    figure = Figure(figsize=(12, 9), layout="constrained")
    for axes, (task, limit) in zip(figure.subplots(len(LIMITS), sharex=True), LIMITS.items(), strict=True):
        for name in dict.fromkeys(row.contestant for row in rows if row.task == task):
            own = [_find_row(rows, task, name, shape).p50 for shape in shapes]
            bare = [_find_row(rows, task, limit, shape).p50 for shape in shapes]
            shares = [b / o if b and o else float("nan") for b, o in zip(bare, own, strict=True)]
            if name not in ("1 GEMM", limit) and any(own):
                axes.plot(shares, marker="o", linewidth=3 if name == OURS else 1, label=name)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=f"{task}, forward + backward, {device}", ylabel=f"speed / speed of {limit}")
        axes.set_ylim(bottom=0)
        axes.set_xticks(range(len(shapes)), [f"{n} x {h} x {v}" for n, h, v in shapes], rotation=30, ha="right")
        axes.legend(ncols=3)
    figure.savefig(path, dpi=120)
