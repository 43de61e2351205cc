"""The figures of a report as SVG. Bars and points are links to the entries that they count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from medssr_dist.data.figures import POLICY_COLOURS, RED, SKY, add_links, make_link, render_svg, title_panel
from medssr_dist.evaluation.score_report import draw_scores
from medssr_dist.run.paths import STAGES, RunPaths
from medssr_dist.summary.closing_table import StepSummaries
from medssr_dist.summary.summary_plot import draw_funnel, draw_precision, draw_rewards
from medssr_dist.synthesis.synthesis_summary import AlphaShares
from medssr_dist.training.step_metrics import StepMetrics, read_metrics
from medssr_dist.voting.quality_plots import PANELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE, _HALF = (9.6, 4.0), (6.2, 4.0)
_SHOWN_POINTS = 300
_SIGNALS = {
    "kl": ("Distance from the reference model", "KL divergence per token"),
    "entropy": ("Entropy of the answers", "nats per token"),
    "response_length": ("Length of the answers", "tokens"),
    "truncated": ("Answers cut at the token limit", "share of the answers"),
    "majority_agreement": ("Answers that agree with their group's majority", "share of the answers"),
    "grad_norm": ("Norm of the gradient", "norm"),
}


@dataclass(frozen=True)
class ReportFigure:
    """A figure and how to read it. Example: ReportFigure("alpha", Markup("<svg>...</svg>"), "Click a bar to ...")"""

    name: str
    svg: Markup
    help: str


def draw_report_figures(run: RunPaths, steps: StepSummaries) -> dict[str, ReportFigure]:
    """Return the figures by name; only those whose step has run."""
    found: list[ReportFigure] = []
    if steps.synthesize or steps.vote:
        found.append(
            _draw("funnel", lambda axes: draw_funnel(axes, steps), "Click a bar to list its questions.", _WIDE)
        )
    if steps.synthesize:
        alpha, reasons = steps.synthesize.alpha, steps.synthesize.rejected_by_reason
        found.append(_draw("alpha", lambda axes: _draw_alpha(axes, alpha), "Click a bar to list the questions."))
        if reasons:
            text = "Click a bar to read the rejected replies."
            found.append(_draw("reasons", lambda axes: _draw_reasons(axes, reasons), text))
    if steps.vote:
        quality = steps.vote.quality
        found.append(_draw("precision", lambda axes: draw_precision(axes, quality), "Click a bar to list its labels."))
        for name, draw in PANELS.items():
            text = "" if name in ("threshold", "kinds") else "Click a bar to list its questions."
            found.append(_draw(name, lambda axes, draw=draw: draw(axes, quality), text))
    stages = {name: getattr(steps, name) for name in STAGES}
    if any(found and found.reward_by_step for found in stages.values()):
        text = "Click a point to read recorded answers of that step."
        found.append(_draw("rewards", lambda axes: draw_rewards(axes, stages), text, _WIDE))
        found += _draw_signals({name: read_metrics(run.stage(name).metrics) for name in STAGES})
    if steps.evaluate:
        figure = draw_scores(steps.evaluate)
        found.append(ReportFigure("scores", Markup(render_svg(figure)), "Click a bar to list the answers."))  # noqa: S704
    return {figure.name: figure for figure in found}


def _draw(name: str, draw: Callable[[Axes], None], text: str, size: tuple[float, float] = _HALF) -> ReportFigure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    return ReportFigure(name, Markup(render_svg(figure)), text)  # noqa: S704 - matplotlib escapes the texts


def _draw_alpha(axes: Axes, alpha: AlphaShares) -> None:
    """Draw the share of rare-disease questions that was asked for, and those achieved, with their intervals."""
    bars = {
        f"requests\nn = {alpha.requests.of:,}": alpha.requests,
        f"accepted\nn = {alpha.accepted.of:,}": alpha.accepted,
    }
    middle = [100 * (share.share or 0) for share in bars.values()]
    low = [100 * max(0.0, (share.share or 0) - (share.low or 0)) for share in bars.values()]
    high = [100 * max(0.0, (share.high or 0) - (share.share or 0)) for share in bars.values()]
    drawn = axes.bar(list(bars), middle, 0.5, yerr=[low, high], capsize=4, color=SKY)
    add_links(drawn.patches, [make_link("questions", kind="rare")] * 2)
    axes.axhline(100 * alpha.asked, color="black", linestyle="--", linewidth=1)
    axes.set(ylabel="about a rare disease, %", ylim=(0, 100))
    note = f"bars: achieved; whiskers: 95% interval (Wilson); dashed line: asked for, alpha = {alpha.asked:g}"
    title_panel(axes, "Questions about rare diseases", note)


def _draw_reasons(axes: Axes, reasons: dict[str, int]) -> None:
    """Draw the number of rejected replies by reason, the commonest first."""
    ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    drawn = axes.barh([name.replace("_", " ") for name, _ in ordered], [count for _, count in ordered], color=RED)
    add_links(drawn.patches, [make_link("rejected", reason=name) for name, _ in ordered])
    axes.bar_label(drawn, [f"{count:,}" for _, count in ordered], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("number of replies")
    title_panel(axes, "Replies that were rejected", f"n = {sum(reasons.values()):,}; bars: by the first reason found")


def _draw_signals(steps: dict[str, list[StepMetrics]]) -> list[ReportFigure]:
    """Draw one small figure for each signal of training that was measured."""
    figures = []
    for name, (title, unit) in _SIGNALS.items():
        curves = {stage: _list_points(found, name) for stage, found in steps.items()}
        if any(curves.values()):
            draw = _make_curve_drawer(curves, title, unit)
            figures.append(_draw(f"signal-{name}", draw, "", (4.8, 3.2)))
    return figures


def _list_points(steps: Sequence[StepMetrics], name: str) -> list[tuple[int, float]]:
    values = [(step.step, getattr(step, name)) for step in steps]
    known = [(step, value) for step, value in values if value is not None and math.isfinite(value)]
    return known[:: max(1, len(known) // _SHOWN_POINTS)]


def _make_curve_drawer(curves: dict[str, list[tuple[int, float]]], title: str, unit: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for stage, points in curves.items():
            if points:
                label = f"{stage.replace('stage', 'stage ')}, {points[-1][0]:,} steps"
                axes.plot(*zip(*points, strict=True), color=POLICY_COLOURS[stage], label=label)
        axes.set(xlabel="step of its stage", ylabel=unit)
        axes.legend(fontsize=8)
        title_panel(axes, title, "lines: mean over the answers of each step")

    return draw
