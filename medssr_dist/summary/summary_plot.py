"""summary.png: the whole run on one page. From the questions to the labels, their precision, rewards, accuracies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.evaluation.score_rows import list_score_rows
from medssr_dist.evaluation.scores import OTHERS, RARE, Accuracy, Scores
from medssr_dist.run.paths import STAGES
from medssr_dist.summary.closing_table import RunSummary
from medssr_dist.training.stage_job import StageSummary
from medssr_dist.voting.quality_records import LabelQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"base": "#999999", "stage1": "#56B4E9", "stage2": "#0072B2"}  # of Okabe and Ito
_MEAN_OF = 5  # steps that the bold line of the reward averages


def draw_summary(summary: RunSummary, file: Path) -> None:
    """Draw four panels: questions and labels by number, precision of the labels, rewards by step, accuracies.

    A panel whose step has not run says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained")
    funnel, precision, rewards, scores = figure.subplots(2, 2).flat
    _draw_funnel(funnel, summary)
    _draw_precision(precision, summary.steps.vote.quality if summary.steps.vote else None)
    _draw_rewards(rewards, {name: getattr(summary.steps, name) for name in STAGES})
    _draw_scores(scores, summary.steps.evaluate)
    figure.suptitle(f"run {Path(summary.run).name}")
    temporary = file.with_name(f".{file.name}.tmp")
    FigureCanvasAgg(figure).print_png(temporary)
    os.replace(temporary, file)


def _draw_funnel(axes: Axes, summary: RunSummary) -> None:
    synthesis, vote = summary.steps.synthesize, summary.steps.vote
    bars = {}
    if synthesis:
        bars |= {"requests": synthesis.requested, "accepted questions": synthesis.accepted}
    if vote:
        bars |= {"with a majority": vote.quality.labeled, "kept labels": vote.quality.kept}
    if not bars:
        _say_not_run(axes, "from requests to labels")
        return
    drawn = axes.barh(list(bars), list(bars.values()), color=_COLOURS["stage1"])
    axes.bar_label(drawn, [f"{count:,}" for count in bars.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(title="From requests to labels", xlabel="number")


def _draw_precision(axes: Axes, quality: LabelQuality | None) -> None:
    if quality is None or not quality.precision.of:
        _say_not_run(axes, "label precision")
        return
    kinds = {
        "all": quality.precision,
        "rare": quality.by_kind.rare.precision,
        "other": quality.by_kind.common.precision,
    }
    shown = {f"{name}\nn = {share.of:,}": share for name, share in kinds.items() if share.of}
    middle = [100 * (share.share or 0) for share in shown.values()]
    ends = [
        [100 * abs((share.share or 0) - (bound or 0)) for share, bound in zip(shown.values(), bounds, strict=True)]
        for bounds in ([share.low for share in shown.values()], [share.high for share in shown.values()])
    ]
    axes.bar(list(shown), middle, 0.5, yerr=ends, capsize=4, color=_COLOURS["stage1"])
    if quality.chance is not None:
        axes.axhline(100 * quality.chance, color="black", linestyle="--", linewidth=1, label="by chance")
        axes.legend()
    axes.set(title="Kept labels that are right (bars: 95% interval)", ylabel="%", ylim=(0, 100))


def _draw_rewards(axes: Axes, stages: dict[str, StageSummary | None]) -> None:
    known = {name: found for name, found in stages.items() if found and found.reward_by_step}
    if not known:
        _say_not_run(axes, "mean reward by step")
        return
    start = 0
    for name, found in known.items():
        rewards = found.reward_by_step
        steps = range(start + 1, start + len(rewards) + 1)
        means = [
            sum(part) / len(part) for part in (rewards[max(0, i - _MEAN_OF + 1) : i + 1] for i in range(len(rewards)))
        ]
        axes.plot(steps, rewards, color=_COLOURS[name], alpha=0.35)
        label = name.replace("stage", "stage ")
        axes.plot(steps, means, color=_COLOURS[name], linewidth=2, label=label)
        if held_out := found.accuracy_by_step:
            places = [start + step for step in held_out]
            axes.plot(places, [*held_out.values()], "o:", color=_COLOURS[name], label=f"{label}, held-out accuracy")
        start += len(rewards)
    axes.set(title=f"Mean reward by step (bold: mean of {_MEAN_OF})", xlabel="step", ylabel="reward", ylim=(0, 1))
    axes.legend()


def _draw_scores(axes: Axes, scores: Scores | None) -> None:
    if scores is None:
        _say_not_run(axes, "accuracy")
        return
    rows = [row for row in list_score_rows(scores) if row.on]
    rows = [row for row in rows if row.on in (RARE, OTHERS)] or rows
    for place, policy in enumerate(scores.policies):
        cells: list[Accuracy] = [row.cells[policy] for row in rows]
        spans = [cell.interval or (cell.accuracy, cell.accuracy) for cell in cells]
        ends = [
            [100 * abs(cell.accuracy - span[end]) for cell, span in zip(cells, spans, strict=True)] for end in (0, 1)
        ]
        places = [row + (place - (len(scores.policies) - 1) / 2) * 0.25 for row in range(len(rows))]
        values = [100 * cell.accuracy for cell in cells]
        axes.bar(places, values, 0.25, yerr=ends, capsize=3, color=_COLOURS.get(policy), label=policy)
    axes.set_xticks(range(len(rows)), [f"{row.on}\nn = {row.questions:,}" if row.questions else row.on for row in rows])
    axes.set(title="Accuracy (bars: 95% interval over questions)", ylabel="%", ylim=(0, 100))
    axes.legend()


def _say_not_run(axes: Axes, title: str) -> None:
    axes.text(0.5, 0.5, "not run", ha="center", va="center", color="#999999", transform=axes.transAxes)
    axes.set(title=title[:1].upper() + title[1:], xticks=[], yticks=[])
