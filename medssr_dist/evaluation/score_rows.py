"""The rows of the tables that show scores: which sets of questions, in which order, and how a number is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from medssr_dist.evaluation.scores import (
    MACRO,
    OTHERS,
    RARE,
    Accuracy,
    BenchmarkFacts,
    Difference,
    Interval,
    ProtocolName,
    ProtocolScores,
    Scores,
)


class ScoreRow(NamedTuple):
    """One set of questions and what each policy reached on it.

    Example: ScoreRow("medqa", "medqa", 1273, 0.277, {"base": Score(...), "stage2": Score(...)})

    Attributes:
        label: as tables show it.
        on: name of the set in differences; "" for a set without differences.
        questions: None for the macro average.
        constant: accuracy of always answering the commonest letter; None where it is not known.
        cells: policy -> its score.
    """

    label: str
    on: str
    questions: int | None
    constant: float | None
    cells: dict[str, Accuracy]


def list_score_rows(scores: Scores, protocol: ProtocolName | None = None) -> list[ScoreRow]:
    """Return the benchmarks, each followed by its rare questions, then the macro average, all rare questions and
    all others.

    The label of rare questions says what marked them.

    Args:
        protocol: None for the headline's.
    """
    policies = {
        name: policy.protocols[protocol or scores.protocol.headline] for name, policy in scores.policies.items()
    }
    rows = []
    for name, facts in scores.benchmarks.items():
        cells: dict[str, Accuracy] = {policy: found.benchmarks[name] for policy, found in policies.items()}
        rows.append(ScoreRow(name, name, facts.questions, facts.constant, cells))
        if facts.rare < facts.questions and (rare := _list_rare(policies, name)):
            rows.append(ScoreRow(f"{name}, rare{_explain_rare([facts])}", "", facts.rare, None, rare))
    if len(scores.benchmarks) > 1:
        constants = [facts.constant for facts in scores.benchmarks.values() if facts.constant is not None]
        constant = sum(constants) / len(constants) if len(constants) == len(scores.benchmarks) else None
        rows.append(ScoreRow(MACRO, MACRO, None, constant, {policy: found.macro for policy, found in policies.items()}))
    whole: dict[str, Accuracy] = {policy: found.rare for policy, found in policies.items() if found.rare}
    if whole:
        count = sum(facts.rare for facts in scores.benchmarks.values())
        rows.append(ScoreRow(f"{RARE}{_explain_rare(scores.benchmarks.values())}", RARE, count, None, whole))
        others: dict[str, Accuracy] = {policy: found.others for policy, found in policies.items() if found.others}
        if others:
            total = sum(facts.questions for facts in scores.benchmarks.values())
            rows.append(ScoreRow(OTHERS, OTHERS, total - count, None, others))
    return rows


def _list_rare(policies: dict[str, ProtocolScores], benchmark: str) -> dict[str, Accuracy]:
    found = {policy: scores.rare_benchmarks.get(benchmark) for policy, scores in policies.items()}
    return {policy: score for policy, score in found.items() if score}


def _explain_rare(benchmarks: Iterable[BenchmarkFacts]) -> str:
    """Return what marked the rare questions, for example ' (auto, source)'; '' where it is not recorded."""
    marks = sorted({how for facts in benchmarks for how in facts.rare_by})
    return f" ({', '.join(marks)})" if marks else ""


def list_main_differences(scores: Scores) -> list[Difference]:
    """Return the headline's differences on all benchmarks together, on the rare questions and on the others."""
    whole = MACRO if len(scores.benchmarks) > 1 else next(iter(scores.benchmarks))
    return [found for found in scores.headline_differences if found.on in (whole, RARE, OTHERS)]


def format_accuracy(score: Accuracy) -> str:
    """Return accuracy with interval in percent: '57.3 (54.6 to 60.0)'; with '± deviation' in older files."""
    if score.interval is None:
        return f"{100 * score.accuracy:.1f} ± {100 * score.std:.1f}"
    return f"{100 * score.accuracy:.1f} {_format_interval(score.interval)}"


def format_difference(found: Difference) -> str:
    """Return a difference in points: '+2.1 (0.4 to 3.8), p 0.016'."""
    p = "p < 0.001" if found.p < 0.001 else f"p {found.p:.3f}"
    points = round(100 * found.difference, 1) + 0.0  # no "-0.0"
    return f"{points:+.1f} {_format_interval(found.interval)}, {p}"


def _format_interval(interval: Interval) -> str:
    low, high = (round(100 * bound, 1) + 0.0 for bound in interval)
    return f"({low:.1f} to {high:.1f})"


def align_table(rows: list[list[str]]) -> list[str]:
    """Return a markdown table with columns of equal width; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
