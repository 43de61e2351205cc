"""The section "Evaluation" of a trained model's card."""

from __future__ import annotations

import re
from pathlib import Path

from medssr_dist.data.jsonl import read_text, write_atomic
from medssr_dist.evaluation.score_rows import align_table, format_accuracy, format_difference, list_score_rows
from medssr_dist.evaluation.scores import Scores

_BASE = "base"
_SECTION = re.compile(r"\n+## Evaluation\n.*?(?=\n## |\Z)", re.DOTALL)


def add_scores_to_card(card: Path, scores: Scores, policy: str) -> None:
    """Write the scores of `policy` into the model card `card`, in place of those of an earlier evaluation.

    Raises:
        InputError: the card is absent or unreadable, or the disk is full.
    """
    text = _SECTION.sub("", read_text(card)).rstrip()
    write_atomic(card, f"{text}\n\n{render_card_section(scores, policy)}\n")


def render_card_section(scores: Scores, policy: str) -> str:
    """Return the section: accuracies of the policy, and of the base model with the difference if it was evaluated."""
    compared = [name for name in (_BASE,) if name in scores.policies and name != policy]
    changes = {
        found.on: found for found in scores.headline_differences if (found.first, found.second) == (_BASE, policy)
    }
    table = [["benchmark", "questions", "constant", *compared, policy, *("difference" for _ in compared)]]
    for row in list_score_rows(scores):
        if policy not in row.cells:
            continue
        count = "" if row.questions is None else f"{row.questions:,}"
        constant = "" if row.constant is None else f"{100 * row.constant:.1f}"
        cells = [format_accuracy(row.cells[name]) for name in (*compared, policy)]
        change = changes.get(row.on)
        table.append(
            [row.label, count, constant, *cells, *(format_difference(change) if change else "" for _ in compared)]
        )
    protocol = scores.protocol
    note = (
        f"Accuracy in percent with its 95% interval over questions, mean of {protocol.generations} generations at "
        f"temperature {protocol.temperature}, top-p {protocol.top_p}, top-k {protocol.top_k} and at most "
        f"{protocol.max_tokens} tokens, reading rule: {protocol.headline}. Constant: always the commonest right "
        "letter. Differences are paired by question; p is that of a permutation test."
    )
    return "\n".join(["## Evaluation", "", *align_table(table), "", note])
