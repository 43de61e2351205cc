"""The figures of `medssr bench voting` as a table of aims, a table of simulated clusters, and plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _at_least(aim: float) -> Callable[[dict, str], bool]:
    return lambda figures, key: figures[key] >= aim


def _at_most(aim: float) -> Callable[[dict, str], bool]:
    return lambda figures, key: figures[key] <= aim


def _is_flat(figures: dict, key: str) -> bool:
    """Within 64 MiB of the small run: the window of questions under way fills up only in the large one."""
    return figures[key] - figures["coordinator_peak_mb_10k"] <= 64


_AIMS: tuple[tuple[str, str, str, Callable[[dict, str], bool]], ...] = (
    ("pool, tokens/s to vLLM's", "pool_ratio_to_vllm", ">= 0.95", _at_least(0.95)),
    ("lossless, tokens to full voting's", "adaptive_token_ratio", "<= 0.75", _at_most(0.75)),
    ("labels as by full voting", "adaptive_labels_identical", "true", lambda figures, key: figures[key]),
    ("coordinator, votes/s", "coordinator_votes_per_s", ">= 10,000", _at_least(10_000)),
    ("its peak memory, most questions, MiB", "coordinator_peak_mb_1m", "flat", _is_flat),
    ("64 simulated engines, utilisation", "sim64_utilisation", ">= 0.95", _at_least(0.95)),
    ("512 simulated engines, utilisation", "sim512_utilisation", ">= 0.95", _at_least(0.95)),
    ("votes lost, 64 engines", "sim64_lost", "0", _at_most(0)),
    ("votes doubled, 64 engines", "sim64_doubled", "0", _at_most(0)),
    ("votes lost, 512 engines", "sim512_lost", "0", _at_most(0)),
    ("votes doubled, 512 engines", "sim512_doubled", "0", _at_most(0)),
    ("stream, wall time to sequential's", "stream_wall_ratio", "<= 0.65", _at_most(0.65)),
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


def format_voting_table(figures: dict) -> str:
    """Aims with what was seen, the adaptive cases, and the clusters side by side."""
    lines = [f"{'':<40}{'seen':>12}{'aim':>12}"]
    for title, key, aim, met in _AIMS:
        lines.append(f"{title:<40}{_said(figures[key]):>12}{aim:>12}  {'met' if met(figures, key) else 'NOT MET'}")
    lines += ["", f"{'adaptive voting, real engine':<32}{'tokens':>10}{'least':>10}{'labels':>12}{'wasted':>10}"]
    for name, case in figures["adaptive"]["cases"].items():
        same = "identical" if case["labels_identical"] else "DIFFER"
        lines.append(
            f"{name:<32}{case['token_ratio']:>10.3f}{case['least_possible_ratio']:>10.3f}{same:>12}"
            f"{case['wasted_samples']:>10,}"
        )
    curve = figures["adaptive_simulated"]
    lines += ["", f"{'drawn votes, policy right with':<32}" + "".join(f"{each:>8}" for each in curve["accuracy"])]
    lines += [f"{mode:<32}" + "".join(f"{ratio:>8.3f}" for ratio in curve[mode]) for mode in ("lossless", "kept")]
    lines += ["", f"{'simulated clusters':<32}" + "".join(f"{name:>12}" for name in figures["clusters"])]
    for row in _CLUSTER_ROWS:
        lines.append(f"{row:<32}" + "".join(f"{_said(found[row]):>12}" for found in figures["clusters"].values()))
    few, many = (f"{run['questions']:,} questions {run['peak_mb']:,} MiB" for run in figures["coordinator"]["memory"])
    notes = [
        f"coordinator: {figures['coordinator_votes_per_s_full']:,} votes/s with adaptive=never; memory: {few}, {many}",
        "least: tokens of the cheapest votes that settle the labels, chosen with hindsight; nothing can need fewer",
    ]
    if figures["quick"]:
        notes.append("--quick: little of everything, and few engines; not figures to report")
    return "\n".join([*lines, "", *notes])


def _said(value) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "true", False: "false"}[value]
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def draw_voting_plots(figures: dict, occupancy: dict[str, list[bytes]], json_path: Path) -> None:
    """Beside `json_path`: a timeline of each cluster, and the curve of what adaptive voting saves.

    `occupancy`: by cluster, each engine's share of its batch in 1/255, at the times of the timeline.
    """
    for name, found in figures["clusters"].items():
        _draw_timeline(found, occupancy[name], json_path.with_name(f"{json_path.stem}_{name}.png"))
    _draw_curve(figures, json_path.with_name(f"{json_path.stem}_adaptive.png"))


def _draw_timeline(found: dict, looks: list[bytes], path: Path) -> None:
    """Each engine's occupancy over time with its failures, and the tokens of votes against what could have been."""
    import numpy
    from matplotlib.figure import Figure

    timeline, engines = found["timeline"], found["cluster"]["engines"]
    times = numpy.array(timeline["time_s"])
    occupancy = numpy.frombuffer(b"".join(looks), numpy.uint8).reshape(len(times), engines) / 255
    figure = Figure(figsize=(11, 7), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    # Rows are looked at about once a second: their own times are the edges.
    edges = numpy.append(times, times[-1] + 1)
    mesh = top.pcolormesh(
        edges, numpy.arange(engines + 1) - 0.5, occupancy.T, vmin=0, vmax=1, cmap="viridis", rasterized=True
    )
    for kind, marker, colour in (("died", "x", "red"), ("wedged", "s", "orange")):
        points = [(time, number) for time, number, how in timeline["failures"] if how == kind]
        if points:
            top.scatter(*zip(*points, strict=True), marker=marker, color=colour, s=24, label=kind)
            top.legend(loc="upper right")
    figure.colorbar(mesh, ax=top, label="seats taken")
    top.set(ylabel="engine", title=f"{engines} simulated engines: utilisation {found['utilisation']:.3f}")
    _draw_rates(bottom, timeline, times, max(1, len(times) // 60))
    bottom.set(xlabel="simulated s", ylabel="million tokens/s")
    figure.savefig(path, dpi=120)


def _draw_rates(axes, timeline: dict, times, every: int) -> None:
    """Tokens a second, averaged over `every` looks."""
    import numpy

    at = times[::every]
    middle = (at[1:] + at[:-1]) / 2
    for key, label in (("capacity", "full batches would give"), ("tokens", "of votes in the ledger")):
        counts = numpy.array(timeline[key], dtype=float)[::every]
        axes.plot(middle, numpy.diff(counts) / numpy.diff(at) / 1e6, label=label)
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_curve(figures: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    curve, adaptive = figures["adaptive_simulated"], figures["adaptive"]
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for mode in ("lossless", "kept"):
        axes.plot(curve["accuracy"], curve[mode], marker="o", label=f"{mode}, simulated")
    if adaptive["share_of_right_votes"] is not None:
        for mode, marker in (("lossless", "*"), ("kept", "P")):
            case = adaptive["cases"][f"{mode}_requested"]
            label = f"{mode}, {adaptive['model']} on the demo's questions"
            axes.plot([adaptive["share_of_right_votes"]], [case["token_ratio"]], marker, markersize=11, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="share of votes that are right", ylabel="tokens / tokens of full voting", ylim=(0.4, 1.05))
    axes.set_title(f"K = {curve['samples']}, threshold 0.5 of K", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
