"""summary.png: the whole run on one page. From the questions to the labels, their precision, rewards, accuracies.

The report of a run shows the same panels, one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.data.figures import (
    POLICY_COLOURS,
    SKY,
    add_links,
    make_link,
    name_policy,
    save_figure,
    say_nothing_to_show,
    title_panel,
    write_in_bars,
)
from medssr_dist.evaluation.score_rows import list_score_rows
from medssr_dist.evaluation.scores import OTHERS, RARE, Accuracy, Scores
from medssr_dist.run.paths import STAGES
from medssr_dist.summary.closing_table import RunSummary, StepSummaries
from medssr_dist.training.stage_job import StageSummary
from medssr_dist.voting.quality_records import LabelQuality

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOT_RUN = "this step has not run"
_MEAN_OF = 5  # steps that the bold line of the reward averages
_SHOWN_POINTS = 400
_STAGE_NAMES = {"stage1": "stage 1 (pseudo-labels)", "stage2": "stage 2 (human labels)"}


def draw_summary(summary: RunSummary, file: Path) -> None:
    """Draw four panels: questions and labels by number, precision of the labels, rewards by step, accuracies.

    A panel whose step has not run says so.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    steps = summary.steps
    figure = Figure(figsize=(12, 8.4), layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15))
    funnel, precision, rewards, scores = figure.subplots(2, 2).flat
    draw_funnel(funnel, steps)
    draw_precision(precision, steps.vote.quality if steps.vote else None)
    draw_rewards(rewards, {name: getattr(steps, name) for name in STAGES})
    draw_accuracies(scores, steps.evaluate)
    figure.suptitle(f"Run {Path(summary.run).name}", fontsize=14, x=0.01, ha="left")
    save_figure(figure, file)


def draw_funnel(axes: Axes, steps: StepSummaries) -> None:
    """Draw how many requests became accepted questions, questions with a majority, and kept labels."""
    title, bars, links = "From requests to kept labels", {}, []
    if steps.synthesize:
        bars |= {
            "requests to the chat API": steps.synthesize.requested,
            "accepted questions": steps.synthesize.accepted,
        }
        links += [make_link("rejected"), make_link("questions")]
    if steps.vote:
        bars |= {"with a majority answer": steps.vote.quality.labeled, "kept labels": steps.vote.quality.kept}
        links += [make_link("questions", outcome="labeled"), make_link("questions", kept=1)]
    if not bars:
        say_nothing_to_show(axes, title, NOT_RUN)
        return
    first = max(next(iter(bars.values())), 1)
    drawn = axes.barh(list(bars), list(bars.values()), color=SKY)
    add_links(drawn.patches, links)
    axes.bar_label(
        drawn, [f"{count:,}  ({100 * count / first:.0f}%)" for count in bars.values()], padding=4, fontsize=9
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(*bars.values(), 1))
    axes.set_xlabel("number of questions")
    note = f"n = {first:,}; each bar counts the questions that are left; percent are of the first bar"
    title_panel(axes, title, note)


def draw_precision(axes: Axes, quality: LabelQuality | None) -> None:
    """Draw the share of right labels among the kept ones whose answer is known: all, rare diseases, others."""
    title = "Kept labels that are right"
    if quality is None or not quality.precision.of:
        say_nothing_to_show(axes, title, NOT_RUN if quality is None else "no kept label has a known answer")
        return
    kinds = {
        "all": (quality.precision, make_link("questions", kept=1, known=1)),
        "rare diseases": (quality.by_kind.rare.precision, make_link("questions", kept=1, known=1, kind="rare")),
        "other questions": (quality.by_kind.common.precision, make_link("questions", kept=1, known=1, kind="other")),
    }
    shown = {f"{name}\nn = {share.of:,}": (share, link) for name, (share, link) in kinds.items() if share.of}
    shares = [share for share, _ in shown.values()]
    middle = [100 * (share.share or 0) for share in shares]
    low = [100 * abs((share.share or 0) - (share.low or 0)) for share in shares]
    high = [100 * abs((share.high or 0) - (share.share or 0)) for share in shares]
    drawn = axes.bar(list(shown), middle, 0.5, yerr=[low, high], capsize=4, color=SKY)
    add_links(drawn.patches, [link for _, link in shown.values()])
    write_in_bars(axes, drawn, [f"{value:.0f}%" for value in middle], SKY)
    note = "bars: of the kept labels whose right answer is known; whiskers: 95% interval (Wilson)"
    if quality.chance is not None:
        axes.axhline(100 * quality.chance, color="black", linestyle="--", linewidth=1)
        note += f"; dashed line: labels drawn at random, {100 * quality.chance:.0f}%"
    axes.set(ylabel="right labels, %", ylim=(0, 100))
    title_panel(axes, title, note)


def draw_rewards(axes: Axes, stages: Mapping[str, StageSummary | None]) -> None:
    """Draw the mean reward of each training step, one stage behind the other, and held-out accuracies if there are."""
    title = "Mean reward in training"
    known = {name: found for name, found in stages.items() if found and found.reward_by_step}
    if not known:
        say_nothing_to_show(axes, title, NOT_RUN)
        return
    start = 0
    for name, found in known.items():
        _draw_stage(axes, name, found, start)
        start += len(found.reward_by_step)
    axes.set(xlabel="training step (both stages in a row)", ylabel="reward, 0 to 1", ylim=(0, 1))
    axes.legend(fontsize=8.5, loc="lower right")
    note = "reward 1: the answer is the label. Points: mean over the answers of a step; bold: mean of 5 steps"
    title_panel(axes, title, note.replace("5", str(_MEAN_OF)))


def _draw_stage(axes: Axes, name: str, found: StageSummary, start: int) -> None:
    rewards, colour = found.reward_by_step, POLICY_COLOURS[name]
    places = [start + step for step in range(1, len(rewards) + 1)]
    means = [sum(part) / len(part) for part in (rewards[max(0, i - _MEAN_OF + 1) : i + 1] for i in range(len(rewards)))]
    stride = max(1, len(rewards) // _SHOWN_POINTS)
    points = axes.scatter(places[::stride], rewards[::stride], s=16, color=colour, alpha=0.55, linewidths=0)
    points.set_urls([make_link("rollouts", stage=name, step=place - start) for place in places[::stride]])
    label = f"{_STAGE_NAMES[name]}, {len(rewards):,} steps"
    axes.plot(places, means, color=colour, linewidth=2.2, label=label)
    if held_out := found.accuracy_by_step:
        steps = [start + step for step in held_out]
        axes.plot(steps, [*held_out.values()], "D--", color=colour, markersize=4, label=f"{name}: held-out accuracy")


def draw_accuracies(axes: Axes, scores: Scores | None) -> None:
    """Draw the accuracies of all policies on the rare-disease questions and on the others, or on each set."""
    title = "Accuracy on the benchmarks"
    if scores is None:
        say_nothing_to_show(axes, title, NOT_RUN)
        return
    rows = [row for row in list_score_rows(scores) if row.on]
    rows = [row for row in rows if row.on in (RARE, OTHERS)] or rows
    width = min(0.25, 0.8 / len(scores.policies))
    for place, policy in enumerate(scores.policies):
        cells: list[Accuracy] = [row.cells[policy] for row in rows]
        spans = [cell.interval or (cell.accuracy, cell.accuracy) for cell in cells]
        ends = [
            [100 * abs(cell.accuracy - span[end]) for cell, span in zip(cells, spans, strict=True)] for end in (0, 1)
        ]
        places = [row + (place - (len(scores.policies) - 1) / 2) * width for row in range(len(rows))]
        values = [100 * cell.accuracy for cell in cells]
        colour, label = POLICY_COLOURS.get(policy), name_policy(policy)
        drawn = axes.bar(places, values, width, yerr=ends, capsize=3, color=colour, label=label)
        add_links(drawn.patches, [make_link("answers", set=row.on, policy=policy) for row in rows])
        write_in_bars(axes, drawn, [f"{value:.0f}%" for value in values], colour)
    axes.set_xticks(range(len(rows)), [f"{row.on}\nn = {row.questions:,}" if row.questions else row.on for row in rows])
    axes.set(ylabel="right answers, %", ylim=(0, 100))
    axes.legend(fontsize=8.5, loc="upper left", ncols=3)
    generations = scores.protocol.generations
    title_panel(
        axes, title, f"bars: mean over {generations} answers to each question; whiskers: 95% interval over questions"
    )
