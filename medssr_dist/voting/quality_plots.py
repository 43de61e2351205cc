"""quality.png: the label quality as six panels. The third one shows the figures to choose the threshold t by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medssr_dist.data.jsonl import raise_if_disk_full
from medssr_dist.data.wilson import format_part, format_percent
from medssr_dist.voting.quality_records import CurvePoint, LabelQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which readers with any colour vision can tell apart.
_BLUE, _SKY, _GREEN, _ORANGE, _RED, _GREY = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#999999"


def plot_quality(quality: LabelQuality, path: Path) -> None:
    """Write the panels as a PNG to `path`, atomically. Raises InputError where the disk is full."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    temporary = path.with_name(f".{path.name}.tmp")
    try:
        FigureCanvasAgg(draw_quality(quality)).print_png(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_if_disk_full(error, path)
        raise


def draw_quality(quality: LabelQuality) -> Figure:
    """Draw the six panels: confidence by both denominators, the curve by t, votes, letters, rare and common."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(16, 9), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    (requested, valid, curve), (votes, letters, kinds) = figure.subplots(2, 3)
    _plot_histogram(requested, quality, "requested")
    _plot_histogram(valid, quality, "valid")
    _plot_curve(curve, quality)
    _plot_votes(votes, quality)
    _plot_letters(letters, quality)
    _plot_kinds(kinds, quality)
    figure.suptitle(_format_headline(quality), fontsize=12)
    if any(point.open for point in quality.curve):
        figure.supxlabel(
            f"voting.adaptive = {quality.adaptive} did not take all votes: where a line widens to a band, the result "
            "lies within the band; only a vote with adaptive = never shows where",
            fontsize=9,
        )
    return figure


def _format_headline(quality: LabelQuality) -> str:
    outcomes = {
        "ties": quality.ties,
        "no valid vote": quality.all_invalid,
        "rejected": quality.rejected,
        "quarantined": quality.quarantined,
    }
    return (
        f"{quality.questions:,} questions, K = {quality.samples}: kept "
        f"{format_part(quality.kept, quality.questions)} at t = {quality.threshold:g}"
        + "".join(f", {name} {count:,}" for name, count in outcomes.items() if count)
    )


def _plot_histogram(axes: Axes, quality: LabelQuality, denominator: Literal["requested", "valid"]) -> None:
    histogram = quality.histogram.requested if denominator == "requested" else quality.histogram.valid
    edges, width = histogram.edges, histogram.edges[1] - histogram.edges[0]
    layers = (
        (histogram.exact, "confidence known", _BLUE),
        (histogram.least, "votes not taken: drawn at the least possible", _SKY),
        (histogram.no_winner, "tie or no valid vote: never kept", _GREY),
    )
    middles, bottom = [edge + width / 2 for edge in edges[:-1]], [0] * (len(edges) - 1)
    for counts, label, colour in layers:
        if any(counts):
            axes.bar(middles, counts, min(0.92 * width, 0.1), bottom=bottom, color=colour, label=label)
        bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
    most: list[int] = []
    if any(histogram.most):
        most = [sum(each) for each in zip(histogram.exact, histogram.most, histogram.no_winner, strict=True)]
        label = "all, votes not taken at the most possible"
        axes.stairs(most, edges, color=_RED, linestyle="--", linewidth=1.2, label=label)
    if denominator == quality.confidence:
        _mark_threshold(axes, quality)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(0, 1.45 * max([*bottom, *most, 1]))  # room for the legend
    axes.set(xlabel=f"confidence: winner's votes / {denominator} votes", ylabel="questions")
    axes.set_title(f"Confidence in {denominator} votes, n = {sum(bottom):,} questions")
    _finish(axes, sum(bottom))


def _plot_curve(axes: Axes, quality: LabelQuality) -> None:
    points = [
        (point.threshold, point.kept_share.least, point.kept_share.most, not point.open) for point in quality.curve
    ]
    shares = [(t, least, most, known) for t, least, most, known in points if least is not None and most is not None]
    if shares:
        _plot_band(
            axes,
            [t for t, _, _, _ in shares],
            [100 * least for _, least, _, _ in shares],
            [100 * most for _, _, most, _ in shares],
            [known for _, _, _, known in shares],
            _BLUE,
            "kept share of all questions",
            "o",
        )
    _plot_precision(axes, quality.curve, _ORANGE, "precision of the kept, with 95% interval", "s")
    _mark_threshold(axes, quality)
    _set_percent_axes(axes, quality, "kept, or right of the kept, %")
    axes.set_title(f"To choose t: n = {quality.questions:,} questions, {quality.with_truth:,} with a truth")
    _finish(axes, quality.questions)


def _plot_kinds(axes: Axes, quality: LabelQuality) -> None:
    kinds = (("rare", quality.by_kind.rare, _RED, "o"), ("common", quality.by_kind.common, _GREEN, "s"))
    for name, kind, colour, marker in kinds:
        label = f"{name}: {format_part(kind.precision.count, kind.precision.of)} right at t"
        _plot_precision(axes, kind.curve, colour, label, marker)
    _mark_threshold(axes, quality)
    _set_percent_axes(axes, quality, "precision: right of the kept, %")
    axes.set_title(f"Rare and common, n = {quality.truth_known:,} kept with a truth")
    _finish(axes, len(axes.collections))


def _plot_precision(axes: Axes, curve: Sequence[CurvePoint], colour: str, label: str, marker: str) -> None:
    points = [(point.threshold, point.precision) for point in curve if point.precision]
    if not points:
        return
    thresholds = [threshold for threshold, _ in points]
    low, high = ([100 * precision.low for _, precision in points], [100 * precision.high for _, precision in points])
    axes.fill_between(thresholds, low, high, color=colour, alpha=0.12, linewidth=0)
    least = [100 * precision.least for _, precision in points]
    most = [100 * precision.most for _, precision in points]
    known = [not precision.open for _, precision in points]
    _plot_band(axes, thresholds, least, most, known, colour, label, marker)


def _plot_band(
    axes: Axes,
    x: list[float],
    least: list[float],
    most: list[float],
    known: list[bool],
    colour: str,
    label: str,
    marker: str,
) -> None:
    """Plot a line with markers where the value is known, and a hatched band between its bounds where it is not."""
    hatch = {"o": "///", "s": "\\\\\\"}[marker]
    axes.fill_between(x, least, most, facecolor="none", edgecolor=colour, hatch=hatch, alpha=0.35, linewidth=0)
    for line in (least, most):
        axes.plot(x, line, color=colour, linewidth=0.8)
    marked = [low if is_known else float("nan") for low, is_known in zip(least, known, strict=True)]
    axes.plot(x, marked, color=colour, marker=marker, markersize=4, linewidth=1.5, label=label)


def _plot_votes(axes: Axes, quality: LabelQuality) -> None:
    from matplotlib.ticker import AutoLocator

    axes.bar(list(quality.votes_taken), list(quality.votes_taken.values()), 0.9, color=_BLUE)
    axes.set_xlim(-0.7, quality.samples + 0.7)
    locator = AutoLocator()
    locator.set_params(integer=True)
    axes.xaxis.set_major_locator(locator)
    axes.set(xlabel=f"votes taken for a question, of K = {quality.samples}", ylabel="questions")
    shares = f"invalid {format_percent(quality.rates.invalid)}, truncated {format_percent(quality.rates.truncated)}"
    saved = f"{format_percent(quality.rates.saved)} of {quality.votes_requested:,} saved"
    axes.set_title(f"Votes: {saved}\nn = {quality.votes:,} taken; of these {shares}")
    _finish(axes, sum(quality.votes_taken.values()))


def _plot_letters(axes: Axes, quality: LabelQuality) -> None:
    by_letter = quality.letters.by_letter
    places = range(len(by_letter))
    valid = quality.votes - quality.invalid_votes
    if valid:
        kept = max(quality.kept, 1)
        _plot_bars(axes, places, [one.share or 0.0 for one in by_letter.values()], -0.2, _BLUE, "votes")
        answers = [one.kept / kept for one in by_letter.values()]
        _plot_bars(axes, places, answers, 0.2, _SKY, f"kept answers, n = {quality.kept:,}")
        even = [one.even or 0.0 for one in by_letter.values()]
        _plot_ticks(axes, places, even, "black", "-", "even over the options offered")
    if quality.letters.right is not None:
        truth = [one.truth or 0.0 for one in by_letter.values()]
        _plot_ticks(axes, places, truth, _RED, ":", f"all votes right, n = {quality.with_truth:,} questions")
    axes.set_xticks(places, list(by_letter))
    axes.set(xlabel="letter", ylabel="share, %")
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
    axes.set_title(f"Letters, n = {valid:,} votes, {format_percent(quality.letters.imbalance)} off an even spread")
    _finish(axes, valid)


def _plot_bars(axes: Axes, places: range, shares: list[float], shift: float, colour: str, label: str) -> None:
    axes.bar([place + shift for place in places], [100 * share for share in shares], 0.38, color=colour, label=label)


def _plot_ticks(axes: Axes, places: range, shares: list[float], colour: str, style: str, label: str) -> None:
    starts, ends = [place - 0.45 for place in places], [place + 0.45 for place in places]
    axes.hlines([100 * share for share in shares], starts, ends, color=colour, linestyle=style, label=label, zorder=3)


def _mark_threshold(axes: Axes, quality: LabelQuality) -> None:
    label = f"this run's t = {quality.threshold:g}"
    axes.axvline(quality.threshold, color="black", linestyle=":", linewidth=1.2, label=label)


def _set_percent_axes(axes: Axes, quality: LabelQuality, label: str) -> None:
    axes.set(xlabel=f"threshold t on winner's votes / {quality.confidence} votes", ylabel=label)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-3, 103)


def _finish(axes: Axes, count: int) -> None:
    """Add grid and legend; "nothing to show" where `count`, of the things drawn, is 0."""
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.title.set_fontsize(11)
    if not count:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", va="center", color="grey")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.85)
