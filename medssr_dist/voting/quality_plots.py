"""quality.png: the label quality as six panels, which the report of a run shows too.

The third one shows the figures to choose the threshold t by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medssr_dist.data.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    SKY,
    add_links,
    make_link,
    save_figure,
    title_panel,
)
from medssr_dist.data.wilson import format_part, format_percent
from medssr_dist.voting.quality_records import CurvePoint, LabelQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure


def plot_quality(quality: LabelQuality, path: Path) -> None:
    """Write the panels as a PNG to `path`, atomically. Raises InputError where the disk is full."""
    save_figure(draw_quality(quality), path)


def draw_quality(quality: LabelQuality) -> Figure:
    """Draw the six panels: majorities by both denominators, the curve by t, votes, letters, rare and others."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(17, 10), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    for axes, draw in zip(figure.subplots(2, 3).flat, PANELS.values(), strict=True):
        draw(axes, quality)
    figure.suptitle(_format_headline(quality), fontsize=13)
    if any(point.open for point in quality.curve):
        figure.supxlabel(
            f"Voting stopped where a label was certain (voting.adaptive = {quality.adaptive}): where a line widens to "
            "a hatched band, the true value lies within the band; only a vote with adaptive = never shows where",
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
        f"{quality.questions:,} questions, up to {quality.samples} votes each: kept "
        f"{format_part(quality.kept, quality.questions)} at threshold {quality.threshold:g}"
        + "".join(f", {name} {count:,}" for name, count in outcomes.items() if count)
    )


def _plot_histogram(axes: Axes, quality: LabelQuality, denominator: Literal["requested", "valid"]) -> None:
    histogram = quality.histogram.requested if denominator == "requested" else quality.histogram.valid
    edges, width = histogram.edges, histogram.edges[1] - histogram.edges[0]
    layers = (
        (histogram.exact, "share known", BLUE),
        (histogram.least, "voting stopped early: the least possible share", SKY),
        (histogram.no_winner, "tie, or no valid vote: never kept", GREY),
    )
    middles, bottom = [edge + width / 2 for edge in edges[:-1]], [0] * (len(edges) - 1)
    for counts, label, colour in layers:
        if any(counts):
            drawn = axes.bar(middles, counts, min(0.92 * width, 0.1), bottom=bottom, color=colour, label=label)
            add_links(drawn.patches, [_link_to_bin(edges, i, denominator) for i in range(len(counts))])
        bottom = [low + count for low, count in zip(bottom, counts, strict=True)]
    most: list[int] = []
    if any(histogram.most):
        most = [sum(each) for each in zip(histogram.exact, histogram.most, histogram.no_winner, strict=True)]
        label = "all, with the most possible shares"
        axes.stairs(most, edges, color=RED, linestyle="--", linewidth=1.2, label=label)
    if denominator == quality.confidence:
        _mark_threshold(axes, quality)
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(0, 1.45 * max([*bottom, *most, 1]))  # room for the legend
    axes.set(xlabel=f"votes for the winner / {denominator} votes", ylabel="number of questions")
    note = f"n = {sum(bottom):,} questions; bars: by the winner's share of the {denominator} votes"
    title_panel(axes, f"How large the majorities are, of {denominator} votes", note)
    _finish(axes, sum(bottom))


def _link_to_bin(edges: Sequence[float], place: int, denominator: str) -> str:
    last = place == len(edges) - 2
    return make_link("questions", **{denominator: f"{edges[place]:.6f}-{edges[place + 1] + last:.6f}"})


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
            BLUE,
            "labels kept, of all questions",
            "o",
        )
    _plot_precision(axes, quality.curve, ORANGE, "right labels, of the kept, with 95% interval", "s")
    _mark_threshold(axes, quality)
    _set_percent_axes(axes, quality, "share, %")
    note = f"n = {quality.questions:,} questions, {quality.with_truth:,} with a known answer; lines: at each threshold"
    title_panel(axes, "What another threshold would give", note)
    _finish(axes, quality.questions)


def _plot_kinds(axes: Axes, quality: LabelQuality) -> None:
    kinds = (
        ("rare diseases", quality.by_kind.rare, RED, "o"),
        ("other questions", quality.by_kind.common, GREEN, "s"),
    )
    for name, kind, colour, marker in kinds:
        label = f"{name}: {format_part(kind.precision.count, kind.precision.of)} right in this run"
        _plot_precision(axes, kind.curve, colour, label, marker)
    _mark_threshold(axes, quality)
    _set_percent_axes(axes, quality, "right labels, of the kept, %")
    note = f"n = {quality.truth_known:,} kept labels with a known answer; shaded: 95% interval"
    title_panel(axes, "Right labels on rare diseases and on other questions", note)
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

    drawn = axes.bar(list(quality.votes_taken), list(quality.votes_taken.values()), 0.9, color=BLUE)
    add_links(drawn.patches, [make_link("questions", taken=count) for count in quality.votes_taken])
    axes.set_xlim(-0.7, quality.samples + 0.7)
    locator = AutoLocator()
    locator.set_params(integer=True)
    axes.xaxis.set_major_locator(locator)
    axes.set(xlabel=f"votes taken for a question, of {quality.samples}", ylabel="number of questions")
    rates = quality.rates
    saved = f"{format_percent(rates.saved)} of {quality.votes_requested:,}"
    note = (
        f"n = {quality.votes:,} votes; stopping early saved {saved}; "
        f"without a letter {format_percent(rates.invalid)}, cut at the token limit {format_percent(rates.truncated)}"
    )
    title_panel(axes, "Votes that a decision took", note)
    _finish(axes, sum(quality.votes_taken.values()))


def _plot_letters(axes: Axes, quality: LabelQuality) -> None:
    by_letter = quality.letters.by_letter
    places = range(len(by_letter))
    valid = quality.votes - quality.invalid_votes
    if valid:
        kept = max(quality.kept, 1)
        _plot_bars(axes, places, [one.share or 0.0 for one in by_letter.values()], -0.2, BLUE, "of the votes")
        answers = [one.kept / kept for one in by_letter.values()]
        drawn = _plot_bars(axes, places, answers, 0.2, SKY, f"of the kept labels, n = {quality.kept:,}")
        add_links(drawn.patches, [make_link("questions", kept=1, answer=letter) for letter in by_letter])
        even = [one.even or 0.0 for one in by_letter.values()]
        _plot_ticks(axes, places, even, "black", "-", "if no letter were preferred")
    if quality.letters.right is not None:
        truth = [one.truth or 0.0 for one in by_letter.values()]
        _plot_ticks(axes, places, truth, RED, ":", f"if all votes were right, n = {quality.with_truth:,}")
    axes.set_xticks(places, list(by_letter))
    axes.set(xlabel="letter of the answer", ylabel="share, %")
    axes.set_ylim(0, 1.45 * axes.get_ylim()[1])  # room for the legend
    note = f"n = {valid:,} votes; {format_percent(quality.letters.imbalance)} of them off an even spread"
    title_panel(axes, "Whether the policy prefers a letter", note)
    _finish(axes, valid)


def _plot_bars(axes: Axes, places: range, shares: list[float], shift: float, colour: str, label: str) -> BarContainer:
    return axes.bar(
        [place + shift for place in places], [100 * share for share in shares], 0.38, color=colour, label=label
    )


def _plot_ticks(axes: Axes, places: range, shares: list[float], colour: str, style: str, label: str) -> None:
    starts, ends = [place - 0.45 for place in places], [place + 0.45 for place in places]
    axes.hlines([100 * share for share in shares], starts, ends, color=colour, linestyle=style, label=label, zorder=3)


def _mark_threshold(axes: Axes, quality: LabelQuality) -> None:
    label = f"this run's threshold, {quality.threshold:g}"
    axes.axvline(quality.threshold, color="black", linestyle=":", linewidth=1.2, label=label)


def _set_percent_axes(axes: Axes, quality: LabelQuality, label: str) -> None:
    axes.set(xlabel=f"threshold on: votes for the winner / {quality.confidence} votes", ylabel=label)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-3, 103)


def _finish(axes: Axes, count: int) -> None:
    """Add grid and legend; "nothing to show" where `count`, of the things drawn, is 0."""
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    if not count:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", va="center", color="grey")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, framealpha=0.85)


PANELS: dict[str, Callable[[Axes, LabelQuality], None]] = {
    "requested": lambda axes, quality: _plot_histogram(axes, quality, "requested"),
    "valid": lambda axes, quality: _plot_histogram(axes, quality, "valid"),
    "threshold": _plot_curve,
    "votes": _plot_votes,
    "letters": _plot_letters,
    "kinds": _plot_kinds,
}
