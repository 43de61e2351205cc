"""quality.png: the figures of `quality.py` as six panels, of which the third is the one to choose t by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.data.jsonl import raise_if_disk_full
from medssr_dist.data.wilson import part, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision.
_BLUE, _SKY, _GREEN, _ORANGE, _RED, _GREY = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#999999"


def plot_quality(quality: dict, path: Path) -> None:
    """PNG at `path` (replaced at once); `quality` as from `quality.measure_quality`. A full disk raises InputError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        FigureCanvasAgg(draw_quality(quality)).print_png(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_if_disk_full(error, path)
        raise


def draw_quality(quality: dict) -> Figure:
    """The six panels: confidence by both denominators, kept share and precision by t, votes, letters, rare/common."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    (requested, valid, curve), (votes, letters, kinds) = figure.subplots(2, 3)
    _plot_histogram(requested, quality, "requested")
    _plot_histogram(valid, quality, "valid")
    _plot_choice(curve, quality)
    _plot_votes(votes, quality)
    _plot_letters(letters, quality)
    _plot_kinds(kinds, quality)
    figure.suptitle(_headline(quality), fontsize=12)
    if any(point["open"] for point in quality["curve"]):
        figure.supxlabel(
            f"voting.adaptive = {quality['adaptive']} left votes untaken: where a line widens to a band, the result "
            "lies within it; which it is, only a vote with adaptive = never shows",
            fontsize=9,
        )
    return figure


def _headline(quality: dict) -> str:
    names = {"ties": "ties", "all_invalid": "no valid vote", "rejected": "rejected", "quarantined": "quarantined"}
    outcomes = [f"{name} {quality[key]:,}" for key, name in names.items() if quality[key]]
    return (
        f"{quality['questions']:,} questions, K = {quality['samples']}: kept "
        f"{part(quality['kept'], quality['questions'])} at t = {quality['threshold']:g}"
        + "".join(f", {outcome}" for outcome in outcomes)
    )


def _plot_histogram(axes: Axes, quality: dict, denominator: str) -> None:
    histogram = quality["histogram"][denominator]
    edges, width = histogram["edges"], histogram["edges"][1] - histogram["edges"][0]
    names = {
        "exact": ("all that counts was voted out", _BLUE),
        "least": ("votes untaken: drawn at the least it can be", _SKY),
        "no_winner": ("tie or no valid vote: never kept", _GREY),
    }
    most: list[int] = []
    middles, bottom = [edge + width / 2 for edge in edges[:-1]], [0] * (len(edges) - 1)
    for name, (label, colour) in names.items():
        counts = histogram[name]
        if any(counts):
            axes.bar(middles, counts, min(0.92 * width, 0.1), bottom=bottom, color=colour, label=label)
        bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
    if any(histogram["most"]):
        most = [sum(histogram[name][i] for name in ("exact", "most", "no_winner")) for i in range(len(middles))]
        axes.stairs(most, edges, color=_RED, linestyle="--", linewidth=1.2, label="all, untaken at the most it can be")
    if denominator == quality["confidence"]:
        _mark_threshold(axes, quality)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(0, 1.45 * max([*bottom, *most, 1]))  # room for the legend
    axes.set(xlabel=f"confidence: winner's votes / {denominator} votes", ylabel="questions")
    axes.set_title(f"Confidence in {denominator} votes, n = {sum(bottom):,} questions")
    _finish(axes, sum(bottom))


def _plot_choice(axes: Axes, quality: dict) -> None:
    curve = quality["curve"]
    thresholds = [point["threshold"] for point in curve]
    shares = [point["kept_share"] for point in curve] if quality["questions"] else []
    if shares:
        least, most = ([100 * share[name] for share in shares] for name in ("least", "most"))
        known = [not point["open"] for point in curve]
        _band(axes, thresholds, least, most, known, _BLUE, "kept share of all questions", "o")
    _plot_precision(axes, curve, _ORANGE, "precision of the kept, with 95% interval", "s")
    _mark_threshold(axes, quality)
    _percent_axes(axes, quality, "kept, or right of the kept, %")
    axes.set_title(f"To choose t: n = {quality['questions']:,} questions, {quality['with_truth']:,} with a truth")
    _finish(axes, quality["questions"])


def _plot_kinds(axes: Axes, quality: dict) -> None:
    for name, colour, marker in (("rare", _RED, "o"), ("common", _GREEN, "s")):
        kind = quality["by_kind"][name]
        found = kind["precision"]
        _plot_precision(axes, kind["curve"], colour, f"{name}: {part(found['count'], found['of'])} right at t", marker)
    _mark_threshold(axes, quality)
    _percent_axes(axes, quality, "precision: right of the kept, %")
    axes.set_title(f"Rare and common, n = {quality['truth_known']:,} kept with a truth")
    _finish(axes, len(axes.collections))


def _plot_precision(axes: Axes, curve: list[dict], colour: str, label: str, marker: str) -> None:
    points = [(point["threshold"], point["precision"]) for point in curve if point["precision"]]
    if not points:
        return
    thresholds = [threshold for threshold, _ in points]
    least, most, low, high = (
        [100 * precision[name] for _, precision in points] for name in ("least", "most", "low", "high")
    )
    axes.fill_between(thresholds, low, high, color=colour, alpha=0.12, linewidth=0)
    known = [not precision["open"] for _, precision in points]
    _band(axes, thresholds, least, most, known, colour, label, marker)


def _band(
    axes: Axes,
    x: list[float],
    least: list[float],
    most: list[float],
    known: list[bool],
    colour: str,
    label: str,
    marker: str,
) -> None:
    """A line with markers where all is known, a hatched band between the least and the most where it is not."""
    hatch = {"o": "///", "s": "\\\\\\"}[marker]
    axes.fill_between(x, least, most, facecolor="none", edgecolor=colour, hatch=hatch, alpha=0.35, linewidth=0)
    for line in (least, most):
        axes.plot(x, line, color=colour, linewidth=0.8)
    marked = [low if sure else float("nan") for low, sure in zip(least, known, strict=True)]
    axes.plot(x, marked, color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)


def _plot_votes(axes: Axes, quality: dict) -> None:
    taken = {int(number): count for number, count in quality["votes_taken"].items()}
    axes.bar(list(taken), list(taken.values()), 0.9, color=_BLUE)
    axes.set_xlim(-0.7, quality["samples"] + 0.7)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel=f"votes taken for a question, of K = {quality['samples']}", ylabel="questions")
    shown = ", ".join(f"{name} {percent(quality['rates'][name])}" for name in ("invalid", "truncated"))
    saved = f"{percent(quality['rates']['saved'])} of {quality['votes_requested']:,} saved"
    axes.set_title(f"Votes: {saved}\nn = {quality['votes']:,} taken; of these {shown}")
    _finish(axes, sum(taken.values()))


def _plot_letters(axes: Axes, quality: dict) -> None:
    by_letter = quality["letters"]["by_letter"]
    places = range(len(by_letter))
    valid = quality["votes"] - quality["invalid_votes"]
    if valid:
        kept = max(quality["kept"], 1)
        _bars(axes, places, [one["share"] for one in by_letter.values()], -0.2, _BLUE, "votes")
        answers = [one["kept"] / kept for one in by_letter.values()]
        _bars(axes, places, answers, 0.2, _SKY, f"kept answers, n = {quality['kept']:,}")
        _ticks(axes, places, [one["even"] for one in by_letter.values()], "black", "-", "even over the options offered")
    if quality["letters"]["right"] is not None:
        known = quality["with_truth"]
        truth = [one["truth"] for one in by_letter.values()]
        _ticks(axes, places, truth, _RED, ":", f"all votes right, n = {known:,} questions")
    axes.set_xticks(places, list(by_letter))
    axes.set(xlabel="letter", ylabel="share, %")
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
    axes.set_title(f"Letters, n = {valid:,} votes, {percent(quality['letters']['imbalance'])} off an even spread")
    _finish(axes, valid)


def _bars(axes: Axes, places: range, shares: list[float], shift: float, colour: str, label: str) -> None:
    axes.bar([place + shift for place in places], [100 * share for share in shares], 0.38, color=colour, label=label)


def _ticks(axes: Axes, places: range, shares: list[float], colour: str, style: str, label: str) -> None:
    starts, ends = [place - 0.45 for place in places], [place + 0.45 for place in places]
    axes.hlines([100 * share for share in shares], starts, ends, color=colour, linestyle=style, label=label, zorder=3)


def _mark_threshold(axes: Axes, quality: dict) -> None:
    threshold = quality["threshold"]
    axes.axvline(threshold, color="black", linestyle=":", linewidth=1.2, label=f"this run's t = {threshold:g}")


def _percent_axes(axes: Axes, quality: dict, label: str) -> None:
    axes.set(xlabel=f"threshold t on winner's votes / {quality['confidence']} votes", ylabel=label)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-3, 103)


def _finish(axes: Axes, count: int) -> None:
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.title.set_fontsize(11)
    if not count:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", va="center", color="grey")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.85)
