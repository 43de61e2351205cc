"""The report of `medssr bench voting`: a table of aims, a table of the simulated clusters, and plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.bench.aims import Aim, Value, at_least, at_most, format_aims, format_value
from medssr_dist.bench.voting.simulation_cluster import SimulatedRun
from medssr_dist.bench.voting.timeline import TimelineRows
from medssr_dist.bench.voting.voting_figures import VotingFigures

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _is_flat(few: float, many: float) -> bool:
    """Whether memory grows by at most 64 MiB. Only the large run fills the window of questions in progress."""
    return many - few <= 64


def _cluster_aims(name: str, title: str) -> tuple[Aim[VotingFigures], ...]:
    def read(key: str):
        return lambda figures: (getattr(figures.clusters[name], key),)

    return (
        Aim(f"{title}, utilisation", ">= 0.95", read("utilisation"), at_least(0.95)),
        Aim(f"{title}, votes lost", "0", read("lost"), at_most(0)),
        Aim(f"{title}, votes doubled", "0", read("doubled"), at_most(0)),
    )


_AIMS: tuple[Aim[VotingFigures], ...] = (
    Aim("pool, tokens/s to vLLM's", ">= 0.95", lambda figures: (figures.pool.ratio,), at_least(0.95)),
    Aim(
        "lossless, tokens to full voting's",
        "<= 0.75",
        lambda figures: (figures.adaptive.cases["lossless_requested"].token_ratio,),
        at_most(0.75),
    ),
    Aim("labels as by full voting", "true", lambda figures: (figures.labels_identical,), at_least(True)),
    Aim(
        "coordinator, votes/s",
        ">= 10,000",
        lambda figures: (figures.coordinator.median_rate("lossless"),),
        at_least(10_000),
    ),
    Aim(
        "its peak memory, few and many questions, MiB",
        "flat",
        lambda figures: tuple(run.peak_mb for run in figures.coordinator.memory),
        _is_flat,
    ),
    *_cluster_aims("sim64", "64 simulated engines"),
    *_cluster_aims("sim512", "512 simulated engines"),
    Aim("stream, wall time to sequential's", "<= 0.65", lambda figures: (figures.stream.wall_ratio,), at_most(0.65)),
)
_CLUSTER_ROWS = (
    "simulated_s",
    "wall_s",
    "coordinator_load",
    "votes",
    "utilisation",
    "steady_utilisation",
    "busy",
    "tail_s",
    "died",
    "wedged",
    "stragglers",
    "lost",
    "doubled",
    "labels_unlike_full_voting",
)


def format_voting_table(figures: VotingFigures) -> str:
    """Return the aims with what was measured, the adaptive cases, and the clusters in columns."""
    lines = format_aims(_AIMS, figures)
    lines += ["", f"{'adaptive voting, real engine':<32}{'tokens':>10}{'least':>10}{'labels':>12}{'wasted':>10}"]
    for name, case in figures.adaptive.cases.items():
        same = "identical" if case.labels_identical else "DIFFER"
        lines.append(
            f"{name:<32}{case.token_ratio:>10.3f}{case.least_possible_ratio:>10.3f}{same:>12}{case.wasted_samples:>10,}"
        )
    curve = figures.adaptive_simulated
    lines += ["", f"{'simulated votes, accuracy':<32}" + "".join(f"{each:>8}" for each in curve.accuracy)]
    for mode, ratios in (("lossless", curve.lossless), ("kept", curve.kept)):
        lines.append(f"{mode:<32}" + "".join(f"{ratio:>8.3f}" for ratio in ratios))
    lines += ["", f"{'simulated clusters':<32}" + "".join(f"{name:>12}" for name in figures.clusters)]
    columns = [run.to_json() for run in figures.clusters.values()]
    for row in _CLUSTER_ROWS:
        lines.append(f"{row:<32}" + "".join(f"{_format(column[row]):>12}" for column in columns))
    few, many = (f"{run.questions:,} questions {run.peak_mb:,} MiB" for run in figures.coordinator.memory)
    full_rate = figures.coordinator.median_rate("never")
    notes = [
        f"coordinator: {full_rate:,} votes/s with adaptive=never; memory: {few}, {many}",
        "least: tokens of the cheapest votes that decide the labels, chosen with hindsight; a lower bound",
    ]
    if figures.quick:
        notes.append("--quick: small sizes and few engines; not figures to report")
    return "\n".join([*lines, "", *notes])


def _format(value: Value) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else format_value(value)


def draw_voting_plots(figures: VotingFigures, json_path: Path) -> None:
    """Draw, next to `json_path`, a timeline of each cluster and the curve of what adaptive voting saves, as PNG."""
    for name, run in figures.clusters.items():
        _draw_timeline(run, json_path.with_name(f"{json_path.stem}_{name}.png"))
    _draw_savings(figures, json_path.with_name(f"{json_path.stem}_adaptive.png"))


def _draw_timeline(run: SimulatedRun, path: Path) -> None:
    """Draw each engine's occupancy and failures over time, and the rate of voted tokens against full batches."""
    import numpy
    from matplotlib.figure import Figure

    timeline, engines = run.timeline, run.cluster.engines
    times = numpy.array(timeline.time_s)
    occupancy = numpy.frombuffer(b"".join(timeline.occupancy), numpy.uint8).reshape(len(times), engines) / 255
    figure = Figure(figsize=(11, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    # Samples are about one second apart: their times are the edges of the cells.
    edges = numpy.append(times, times[-1] + 1)
    mesh = top.pcolormesh(
        edges, numpy.arange(engines + 1) - 0.5, occupancy.T, vmin=0, vmax=1, cmap="viridis", rasterized=True
    )
    for kind, marker, colour in (("died", "x", "red"), ("wedged", "s", "orange")):
        points = [(time, number) for time, number, how in timeline.failures if how == kind]
        if points:
            top.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=24, label=kind)
            top.legend(loc="upper right")
    figure.colorbar(mesh, ax=top, label="share of the batch in use")
    top.set(ylabel="engine", title=f"{engines} simulated engines: utilisation {run.utilisation:.3f}")
    _draw_rates(bottom, timeline, max(1, len(times) // 60))
    bottom.set(xlabel="simulated s", ylabel="million tokens/s")
    figure.savefig(path, dpi=120)


def _draw_rates(axes: Axes, timeline: TimelineRows, every: int) -> None:
    """Draw tokens a second, averaged over `every` samples."""
    import numpy

    at = numpy.array(timeline.time_s)[::every]
    middle = (at[1:] + at[:-1]) / 2
    for totals, label in ((timeline.capacity, "with full batches"), (timeline.tokens, "of votes in the ledger")):
        counts = numpy.array(totals, dtype=float)[::every]
        axes.plot(middle, numpy.diff(counts) / numpy.diff(at) / 1e6, label=label)
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_savings(figures: VotingFigures, path: Path) -> None:
    from matplotlib.figure import Figure

    curve, adaptive = figures.adaptive_simulated, figures.adaptive
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for mode, ratios in (("lossless", curve.lossless), ("kept", curve.kept)):
        axes.plot(curve.accuracy, ratios, marker="o", label=f"{mode}, simulated")
    if adaptive.share_of_right_votes is not None:
        for mode, marker in (("lossless", "*"), ("kept", "P")):
            ratio = adaptive.cases[f"{mode}_requested"].token_ratio
            label = f"{mode}, {adaptive.model} on the demo's questions"
            axes.plot([adaptive.share_of_right_votes], [ratio], marker, markersize=11, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="share of right votes", ylabel="tokens / tokens of full voting", ylim=(0.4, 1.05))
    axes.set_title(f"K = {curve.samples}, threshold 0.5 of K", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
