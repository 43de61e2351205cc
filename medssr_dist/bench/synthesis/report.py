"""The figures of `medssr bench synthesis` as a table of aims, a table of the matrix, and a plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _memory_is_flat(figures: dict) -> bool:
    """Within 1.5 times, and within 64 MiB: 1,000,000 requests keep 8 bytes of offsets each."""
    few, many = figures["peak_mb_10k"], figures["peak_mb_1m"]
    return many <= 1.5 * few and many - few <= 64


def _waits_only(figures: dict) -> bool:
    shares = figures["share_of_ideal_512x200ms"], figures["share_of_bare_512x200ms"]
    return any(share is not None and share >= 0.9 for share in shares)


def _at_least(key: str, aim: float) -> Callable[[dict], bool]:
    return lambda figures: figures[key] is not None and figures[key] >= aim


_AIMS: tuple[tuple[str, tuple[str, ...], str, Callable[[dict], bool]], ...] = (
    ("requests/s to a bare loop", ("ratio_to_bare_loop",), ">= 0.7", _at_least("ratio_to_bare_loop", 0.7)),
    ("requests/s to AsyncOpenAI", ("ratio_to_async_openai",), ">= 5", _at_least("ratio_to_async_openai", 5)),
    (
        "512 x 200 ms: share of ideal, of bare loop",
        ("share_of_ideal_512x200ms", "share_of_bare_512x200ms"),
        "one >= 0.9",
        _waits_only,
    ),
    ("peak memory, few and many requests, MiB", ("peak_mb_10k", "peak_mb_1m"), "flat", _memory_is_flat),
    (
        "goodput / limit under 429",
        ("goodput_share_at_30pct_429",),
        ">= 0.85",
        _at_least("goodput_share_at_30pct_429", 0.85),
    ),
    ("decontamination, questions/s", ("decontamination_per_s",), ">= 50,000", _at_least("decontamination_per_s", 5e4)),
    (
        "retrieval of all entities, s",
        ("retrieval_10k_entities_s",),
        "< 60",
        lambda figures: figures["retrieval_10k_entities_s"] < 60,
    ),
)
_COLUMNS = ("requests_per_s", "cpu_us_per_request", "p50_ms", "p99_ms", "peak_mb")


def format_synthesis_table(figures: dict) -> str:
    """Aims with what was seen, then every contestant at every latency and concurrency."""
    lines = [f"{'':<44}{'seen':>20}{'aim':>14}"]
    for title, keys, aim, met in _AIMS:
        seen = ", ".join("-" if figures[key] is None else f"{figures[key]:,.5g}" for key in keys)
        lines.append(f"{title:<44}{seen:>20}{aim:>14}  {'met' if met(figures) else 'NOT MET'}")
    lines += ["", f"{'':<32}{'requests/s':>12}{'CPU us':>10}{'p50 ms':>10}{'p99 ms':>10}{'peak MiB':>10}"]
    for cell in figures["cells"]:
        name = f"{cell['contestant']}, {cell['concurrency']} x {cell['latency_ms']} ms"
        numbers = ["-" if cell[column] is None else f"{cell[column]:,.1f}" for column in _COLUMNS]
        lines.append(f"{name:<32}{numbers[0]:>12}" + "".join(f"{number:>10}" for number in numbers[1:]))
    notes = [f"memory: {figures['memory_requests'][0]:,} and {figures['memory_requests'][1]:,} requests"]
    if "distilabel" not in figures["contestants"]:
        notes.append("distilabel does not import here: see --peers-python")
    if figures["quick"]:
        notes.append("--quick: few, short rounds on smaller data; not figures to report")
    return "\n".join([*lines, "", *notes])


def draw_synthesis_plot(figures: dict, path: Path) -> None:
    """Requests a second of every contestant, a panel for each latency and concurrency."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells = figures["cells"]
    panels = list(dict.fromkeys((cell["latency_ms"], cell["concurrency"]) for cell in cells))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.4), squeeze=False)
    for axis, (latency, concurrency) in zip(axes[0], panels, strict=True):
        shown = [cell for cell in cells if (cell["latency_ms"], cell["concurrency"]) == (latency, concurrency)]
        colours = ["tab:blue" if cell["contestant"].startswith("ours") else "tab:gray" for cell in shown]
        bars = axis.barh(
            [cell["contestant"] for cell in shown], [cell["requests_per_s"] for cell in shown], color=colours
        )
        axis.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(f"{concurrency} at once, {latency} ms", fontsize=10)
        axis.set_xlabel("requests/s")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
