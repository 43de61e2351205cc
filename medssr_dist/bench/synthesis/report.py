"""The report of `medssr bench synthesis`: its figures, a table of aims, a table of all clients, and a plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medssr_dist.bench.aims import Aim, Value, at_least, format_aims
from medssr_dist.bench.synthesis.peers import Measurement


@dataclass(frozen=True)
class ClientCell:
    """One client at one latency and concurrency: medians over the rounds, and the rounds themselves.

    >>> ClientCell("ours", 0, 64, 5472.9, 183.5, p50_ms=8.9, p99_ms=16.8, peak_mb=105.2, rounds=[...])

    `contestant` is the client's name. The other fields are those of Measurement.
    """

    contestant: str
    latency_ms: int
    concurrency: int
    requests_per_s: float | None
    cpu_us_per_request: float | None
    p50_ms: float | None
    p99_ms: float | None
    peak_mb: float | None
    rounds: list[Measurement]


@dataclass(frozen=True)
class Goodput:
    """Replies of a server that refuses: replies/s over its limit, and the share of requests that it refused.

    >>> Goodput(share_of_limit=0.901, refused_share=0.635)
    """

    share_of_limit: float
    refused_share: float


@dataclass(frozen=True)
class SynthesisRatios:
    """Our client's requests/s against the others'; None where one of the two was not measured.

    >>> SynthesisRatios(0.75, 9.1, None, 0.6, 0.94, 0.96)

    A ratio is taken within each round; the median over rounds counts, and of two concurrencies the worse one.

    Attributes:
        ratio_to_bare_loop, ratio_to_async_openai, ratio_to_distilabel: at the smallest latency.
        ratio_judged_to_bare_loop: of our client with all checks on all replies.
        share_of_ideal_512x200ms: of concurrency / latency, at the largest latency and concurrency.
        share_of_bare_512x200ms: of the bare loop, at the largest latency.
    """

    ratio_to_bare_loop: float | None
    ratio_to_async_openai: float | None
    ratio_to_distilabel: float | None
    ratio_judged_to_bare_loop: float | None
    share_of_ideal_512x200ms: float | None
    share_of_bare_512x200ms: float | None


@dataclass(frozen=True)
class SynthesisFigures:
    """All figures of one run of the benchmark. benchmarks/results/synthesis_cpu.json is an example of `to_json`.

    Attributes:
        scale: the sizes that were measured, as a dict.
        contestants: names of the clients. prompt_chars: length of a prompt.
        peak_mb_10k, peak_mb_1m: peak memory after few and after many requests, MiB; `memory_requests`: how many.
        goodput: "over_limit" and "random_429" -> result.
        decontamination_per_s: questions. retrieval_10k_entities_s: seconds.
    """

    scale: dict[str, Any]
    contestants: list[str]
    prompt_chars: int
    ratios: SynthesisRatios
    peak_mb_10k: float
    peak_mb_1m: float
    memory_requests: tuple[int, int]
    goodput: dict[str, Goodput]
    decontamination_per_s: float
    retrieval_10k_entities_s: float
    cells: list[ClientCell]
    quick: bool

    @property
    def worst_goodput(self) -> float:
        """Goodput / limit in the worse of the two cases."""
        return min(case.share_of_limit for case in self.goodput.values())

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the result file."""
        figures: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if name == "goodput":
                figures["goodput_share_at_30pct_429"] = self.worst_goodput
            figures |= value if name == "ratios" else {name: value}
        cells = [asdict(cell) | {"rounds": [each.to_json() for each in cell.rounds]} for cell in self.cells]
        return figures | {"cells": cells}


def _is_flat(few: Value, many: Value) -> bool:
    """Whether memory grows by at most half and at most 64 MiB. 1,000,000 requests keep 8 bytes of offsets each."""
    return few is not None and many is not None and many <= 1.5 * few and many - few <= 64


def _waits_only(*shares: Value) -> bool:
    return any(share is not None and share >= 0.9 for share in shares)


_AIMS: tuple[Aim[SynthesisFigures], ...] = (
    Aim("requests/s to a bare loop", ">= 0.7", lambda figures: (figures.ratios.ratio_to_bare_loop,), at_least(0.7)),
    Aim("requests/s to AsyncOpenAI", ">= 5", lambda figures: (figures.ratios.ratio_to_async_openai,), at_least(5)),
    Aim(
        "512 x 200 ms: share of ideal, of bare loop",
        "one >= 0.9",
        lambda figures: (figures.ratios.share_of_ideal_512x200ms, figures.ratios.share_of_bare_512x200ms),
        _waits_only,
    ),
    Aim(
        "peak memory, few and many requests, MiB",
        "flat",
        lambda figures: (figures.peak_mb_10k, figures.peak_mb_1m),
        _is_flat,
    ),
    Aim("goodput / limit under 429", ">= 0.85", lambda figures: (figures.worst_goodput,), at_least(0.85)),
    Aim(
        "decontamination, questions/s",
        ">= 50,000",
        lambda figures: (figures.decontamination_per_s,),
        at_least(50_000),
    ),
    Aim(
        "retrieval of all entities, s",
        "< 60",
        lambda figures: (figures.retrieval_10k_entities_s,),
        lambda seconds: seconds < 60,
    ),
)
_COLUMNS = ("requests_per_s", "cpu_us_per_request", "p50_ms", "p99_ms", "peak_mb")


def format_synthesis_table(figures: SynthesisFigures) -> str:
    """Return the aims with what was measured, then every client at every latency and concurrency."""
    lines = format_aims(_AIMS, figures)
    lines += ["", f"{'':<32}{'requests/s':>12}{'CPU us':>10}{'p50 ms':>10}{'p99 ms':>10}{'peak MiB':>10}"]
    for cell in figures.cells:
        name = f"{cell.contestant}, {cell.concurrency} x {cell.latency_ms} ms"
        values = [getattr(cell, column) for column in _COLUMNS]
        numbers = ["-" if value is None else f"{value:,.1f}" for value in values]
        lines.append(f"{name:<32}{numbers[0]:>12}" + "".join(f"{number:>10}" for number in numbers[1:]))
    notes = [f"memory: {figures.memory_requests[0]:,} and {figures.memory_requests[1]:,} requests"]
    if "distilabel" not in figures.contestants:
        notes.append("distilabel cannot be imported here: see --peers-python")
    if figures.quick:
        notes.append("--quick: few, short rounds on smaller data; not figures to report")
    return "\n".join([*lines, "", *notes])


def draw_synthesis_plot(figures: SynthesisFigures, path: Path) -> None:
    """Draw the requests/s of every client, one panel for each latency and concurrency, and write it as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((cell.latency_ms, cell.concurrency) for cell in figures.cells))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.4), squeeze=False)
    for axis, (latency, concurrency) in zip(axes[0], panels, strict=True):
        shown = [cell for cell in figures.cells if (cell.latency_ms, cell.concurrency) == (latency, concurrency)]
        names = [cell.contestant for cell in shown]
        colours = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in names]
        bars = axis.barh(names, [cell.requests_per_s for cell in shown], color=colours)
        axis.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(f"{concurrency} in flight, {latency} ms", fontsize=10)
        axis.set_xlabel("requests/s")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
