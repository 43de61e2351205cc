"""The report of an evaluation: letters.jsonl, scores.json, markdown tables and a bar plot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.data.figures import POLICY_COLOURS, add_links, make_link, name_policy, save_figure, title_panel
from medssr_dist.data.jsonl import write_atomic, write_json, write_jsonl
from medssr_dist.evaluation.question_letters import QuestionLetters
from medssr_dist.evaluation.score_rows import (
    ScoreRow,
    align_table,
    format_accuracy,
    format_difference,
    list_score_rows,
)
from medssr_dist.evaluation.scores import PROTOCOLS, STD_KINDS, Accuracy, Score, Scores
from medssr_dist.run.paths import EvaluationPaths

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(scores: Scores, letters: Sequence[QuestionLetters], paths: EvaluationPaths) -> None:
    """Write letters.jsonl, scores.json, scores.md and scores.png, in this order."""
    write_jsonl(paths.letters, (row.model_dump(mode="json") for row in letters))
    write_json(paths.scores, scores.model_dump(mode="json"))
    write_atomic(paths.table, render_table(scores))
    plot_scores(scores, paths.plot)


def render_table(scores: Scores) -> str:
    """Return the markdown tables: accuracy, differences, several answers together, both protocols side by side."""
    protocol = scores.protocol
    note = (
        f"Accuracy in percent, mean over {protocol.generations} generations, with its 95% interval over questions (all "
        f"generations of a question together); in brackets the share of answers without a letter after the second "
        f"pass. Constant: always the commonest right letter of the benchmark. Reading rule: {protocol.headline}. "
        f"Temperature {protocol.temperature}, top-p {protocol.top_p}, top-k {protocol.top_k}, at most "
        f"{protocol.max_tokens} tokens."
    )
    parts = [align_table(_list_accuracies(scores)), [note]]
    if scores.headline_differences:
        parts += [
            ["Differences in points, with 95% interval and p of a paired permutation test over questions:"],
            align_table(_list_differences(scores)),
        ]
    parts += [_describe_groups(scores), _describe_protocols(scores)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _list_accuracies(scores: Scores) -> list[list[str]]:
    header = ["benchmark", "questions", "constant", *scores.policies]
    return [header] + [
        [
            row.label,
            "" if row.questions is None else str(row.questions),
            "" if row.constant is None else f"{100 * row.constant:.1f}",
            *(_format_cell(row.cells[policy]) if policy in row.cells else "" for policy in scores.policies),
        ]
        for row in list_score_rows(scores)
    ]


def _format_cell(score: Accuracy) -> str:
    text = format_accuracy(score)
    return f"{text} [{100 * score.invalid / score.answers:.1f}%]" if isinstance(score, Score) else text


def _list_differences(scores: Scores) -> list[list[str]]:
    columns = list(dict.fromkeys((found.first, found.second) for found in scores.headline_differences))
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for found in scores.headline_differences:
        cells.setdefault(found.on, {})[found.first, found.second] = format_difference(found)
    header = ["benchmark", *(f"{second} - {first}" for first, second in columns)]
    return [header, *([on, *(row[pair] for pair in columns)] for on, row in cells.items())]


def _describe_groups(scores: Scores) -> list[str]:
    """Return the table of pass@n and maj@n, with a heading; [] for one generation, or a file of an older version."""
    n = scores.protocol.generations
    found = [score for policy in scores.headline.values() for score in policy.benchmarks.values()]
    if n == 1 or not all(score.pass_at and score.majority_at for score in found):
        return []
    rows = [["benchmark", *(f"{policy} {kind}@{n}" for policy in scores.policies for kind in ("pass", "maj"))]]
    for name in scores.benchmarks:
        each = [policy.benchmarks[name] for policy in scores.headline.values()]
        rows.append([name, *(f"{100 * value[n]:.1f}" for s in each for value in (s.pass_at, s.majority_at))])
    heading = (
        f"pass@{n}: at least one of {n} answers is right; maj@{n}: the majority of {n} answers is right (percent):"
    )
    return [heading, "", *align_table(rows)]


def _describe_protocols(scores: Scores) -> list[str]:
    """Return both protocols side by side, with a heading; [] for a file of an older version, which has one."""
    if not all(set(policy.protocols) == set(PROTOCOLS) for policy in scores.policies.values()):
        return []
    by_protocol = {protocol: list_score_rows(scores, protocol) for protocol in PROTOCOLS}
    rows = [["benchmark", *(f"{policy} {protocol}" for policy in scores.policies for protocol in PROTOCOLS)]]
    for parts in zip(*by_protocol.values(), strict=True):
        cells = [_format_std(row.cells[policy]) for policy in scores.policies for row in parts if policy in row.cells]
        rows.append([parts[0].label, *cells])
    kinds = "; ".join(f"{protocol}: {kind}" for protocol, kind in STD_KINDS.items())
    return [
        f"The same answers under both protocols, percent, mean ± standard deviation ({kinds}):",
        "",
        *align_table(rows),
    ]


def _format_std(score: Accuracy) -> str:
    return f"{100 * score.accuracy:.2f} ± {100 * score.std:.2f}"


def plot_scores(scores: Scores, path: Path) -> None:
    """Write scores.png; see `draw_scores`."""
    save_figure(draw_scores(scores), path)


def draw_scores(scores: Scores) -> Figure:
    """Draw a bar plot: one group per row of the table, one bar per policy.

    Error bars are 95% intervals; a dashed line is the accuracy of always answering the commonest letter.
    """
    from matplotlib.figure import Figure

    rows = list_score_rows(scores)
    width = 0.8 / len(scores.policies)
    figure = Figure(figsize=(max(6.5, 1.5 * len(rows) + 2), 4.6), layout="constrained")
    axes = figure.subplots()
    for index, policy in enumerate(scores.policies):
        places = [place for place, row in enumerate(rows) if policy in row.cells]
        cells = [rows[place].cells[policy] for place in places]
        drawn = axes.bar(
            [place + (index + 0.5) * width - 0.4 for place in places],
            [100 * cell.accuracy for cell in cells],
            width,
            yerr=_list_error_bars(cells),
            capsize=2,
            color=POLICY_COLOURS.get(policy),
            label=name_policy(policy),
        )
        add_links(drawn.patches, [_link_to_answers(rows[place], policy) for place in places])
    known = [(place, row.constant) for place, row in enumerate(rows) if row.constant is not None]
    for place, constant in known:
        label = "always the commonest letter" if place == known[0][0] else ""
        axes.hlines(100 * constant, place - 0.45, place + 0.45, colors="black", linestyles="dashed", label=label)
    axes.set_xticks(range(len(rows)), [_write_tick(row) for row in rows], fontsize=8.5)
    axes.set(ylabel="right answers, %", ylim=(0, 100))
    figure.legend(loc="outside lower center", ncols=len(scores.policies) + 1, fontsize=9, frameon=False)
    generations = scores.protocol.generations
    note = (
        f"n: questions; bars: mean over {generations} answers to each question; whiskers: 95% interval over questions"
    )
    title_panel(axes, "Accuracy on each set of questions", note)
    return figure


def _write_tick(row: ScoreRow) -> str:
    lines = textwrap.wrap(row.label, 18, break_long_words=True)
    return "\n".join([*lines, *([f"n = {row.questions:,}"] if row.questions is not None else [])])


def _link_to_answers(row: ScoreRow, policy: str) -> str:
    """Return the link to the answers that a bar counts; rare questions of one benchmark have no name of their own."""
    name = row.on or row.label.partition(", rare")[0]
    return make_link("answers", set=name, policy=policy, **({} if row.on else {"kind": "rare"}))


def _list_error_bars(cells: list[Accuracy]) -> list[list[float]]:
    """Return the lengths of the error bars, below and above, in percent; one standard deviation in older files."""
    spans = [cell.interval or (cell.accuracy - cell.std, cell.accuracy + cell.std) for cell in cells]
    below = [100 * max(0.0, cell.accuracy - low) for cell, (low, _) in zip(cells, spans, strict=True)]
    above = [100 * max(0.0, high - cell.accuracy) for cell, (_, high) in zip(cells, spans, strict=True)]
    return [below, above]
