"""The report of an evaluation: scores.json, a markdown table and a bar plot in one folder."""

from __future__ import annotations

import os
from pathlib import Path

from medssr_dist.data.jsonl import write_atomic, write_json
from medssr_dist.evaluation.scores import Accuracy, Score, Scores
from medssr_dist.run.paths import EvaluationPaths


def write_report(scores: Scores, folder: Path) -> None:
    """Write scores.json, scores.md and scores.png, in this order, into `folder`."""
    paths = EvaluationPaths(folder)
    write_json(paths.scores, scores.model_dump(mode="json"))
    write_atomic(paths.table, render_table(scores))
    plot_scores(scores, paths.plot)


def render_table(scores: Scores) -> str:
    """Return a markdown table with one row per benchmark and one column per policy.

    A cell shows accuracy in percent as mean ± standard deviation, and the share of invalid answers in brackets.
    """
    policies = scores.policies
    header = ["benchmark", "questions", *policies]
    rows = [
        [name, str(facts.questions), *(_cell(policy.benchmarks[name]) for policy in policies.values())]
        for name, facts in scores.benchmarks.items()
    ]
    if len(rows) > 1:
        rows.append(["macro average", "", *(_cell(policy.macro) for policy in policies.values())])
    rare = [policy.rare for policy in policies.values() if policy.rare]
    if rare:
        rows.append(["rare diseases", str(rare[0].questions), *map(_cell, rare)])
    protocol = scores.protocol
    note = (
        f"Accuracy in percent, mean ± sample standard deviation over {protocol.generations} generations; "
        f"in brackets the share of answers without a letter after the second pass. Temperature "
        f"{protocol.temperature}, top-p {protocol.top_p}, top-k {protocol.top_k}, "
        f"at most {protocol.max_tokens} tokens."
    )
    return "\n".join([*_align([header, *rows]), "", note, ""])


def _cell(score: Score | Accuracy) -> str:
    text = f"{100 * score.accuracy:.1f} ± {100 * score.std:.1f}"
    return f"{text} ({100 * score.invalid / score.answers:.1f}%)" if isinstance(score, Score) else text


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def plot_scores(scores: Scores, path: Path) -> None:
    """Write a PNG bar plot: one group per benchmark, one bar per policy, error bars of one standard deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(scores.benchmarks)
    width = 0.8 / len(scores.policies)
    figure = Figure(figsize=(max(4.0, 1.6 * len(names) + 2), 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, policy) in enumerate(scores.policies.items()):
        values = [policy.benchmarks[benchmark] for benchmark in names]
        axes.bar(
            [position + (index + 0.5) * width - 0.4 for position in range(len(names))],
            [100 * value.accuracy for value in values],
            width,
            yerr=[100 * value.std for value in values],
            capsize=2,
            label=name,
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 100)
    axes.tick_params("x", rotation=20)
    figure.legend(loc="outside upper center", ncols=len(scores.policies))
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_png(temporary)
    os.replace(temporary, path)
