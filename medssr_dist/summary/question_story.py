"""One question through the whole run, as text for a reader: passages, question, votes, label, rollouts, answers.

The question is the rare-disease one with a kept label whose rollouts were recorded most often, the first of several.
The answers before and after training are those to the first benchmark question that the last policy answers better.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Label, Question, Vote, parse_record, read_record
from medssr_dist.evaluation.policy_answers import Answer
from medssr_dist.evaluation.question_letters import QuestionLetters, read_question_letters
from medssr_dist.evaluation.scores import read_scores
from medssr_dist.run.directory import Manifest
from medssr_dist.run.paths import STAGES, RunPaths
from medssr_dist.voting.segments import list_segments, read_votes

WIDTH = 100
_INDENT = 12
_LONGEST = 320  # characters of a text that are shown
_ROLLOUTS, _VOTES = 3, 2


class _Told(NamedTuple):
    """A part of the story: the label beside it, and its text."""

    label: str
    text: str


def tell_question_story(run_folder: Path) -> str:
    """Return the story as lines of at most WIDTH columns; "" if the run has no kept label or no evaluation."""
    run = RunPaths(Path(run_folder))
    parts = [*_tell_question(run), *_tell_answers(run)]
    lines = ["--- one question ".ljust(WIDTH, "-"), *(line for part in parts for line in _format(part))]
    return "\n".join([*lines, "=" * WIDTH]) + "\n" if parts else ""


def _format(part: _Told) -> list[str]:
    text = part.text if len(part.text) <= _LONGEST else f"{part.text[:_LONGEST].rstrip()} ..."
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - _INDENT - 2) or [""]
    return [f"  {label:<{_INDENT}}{line}" for label, line in zip([part.label, *[""] * len(lines)], lines, strict=False)]


def _tell_question(run: RunPaths) -> Iterator[_Told]:
    """Yield the parts on a synthetic question."""
    rollouts = [row for stage in STAGES if run.stage(stage).samples.exists() for row in _read_samples(run, stage)]
    label = _choose_label(run, Counter(row["question_id"] for row in rollouts))
    if label is None:
        return
    question = label.question
    entity = question.provenance.entity if question.provenance else None
    if entity:
        yield _Told("disease", f"{entity}; passages {', '.join(question.provenance.passage_ids)}")
    yield from _tell_options("question", question)
    votes = [vote for number in list_segments(run.voting.votes) for vote in read_votes(run.voting.votes, number)]
    own: list[Vote] = [vote for vote in votes if vote.question_id == question.id]
    counts = ", ".join(f"{letter} {count}" for letter, count in sorted(label.counts.items()))
    yield _Told("votes", f"{counts} of {label.taken}; label {label.answer}, confidence {label.confidence_valid[0]:.2f}")
    yield from (_Told(f"vote {vote.answer or '-'}", vote.text) for vote in own[:_VOTES])
    shown = [row for row in rollouts if row["question_id"] == question.id][:_ROLLOUTS]
    for row in shown:
        yield _Told("rollout", f"{row['stage']}, step {row['step']}, reward {row['reward']:g}: {row['response']}")


def _read_samples(run: RunPaths, stage: str) -> list[dict[str, Any]]:
    return [row | {"stage": stage.replace("stage", "stage ")} for row in read_jsonl(run.stage(stage).samples)]


def _choose_label(run: RunPaths, recorded: Mapping[str, int]) -> Label | None:
    if not run.voting.labels.exists():
        return None
    rows = (parse_record(Label, row, str(run.voting.labels)) for row in read_jsonl(run.voting.labels))
    kept = [label for label in rows if label.kept]
    return max(kept, key=lambda label: (label.question.rare, recorded.get(label.question.id, 0)), default=None)


def _tell_options(label: str, question: Question) -> Iterator[_Told]:
    yield _Told(label, question.stem)
    yield _Told("", "; ".join(f"{letter}. {text}" for letter, text in question.options.items()))


def _tell_answers(run: RunPaths) -> Iterator[_Told]:
    """Yield the parts on a benchmark question that the last policy answers better than the base policy."""
    if not (run.evaluation.letters.exists() and run.evaluation.scores.exists()):
        return
    scores = read_scores(run.evaluation.scores)
    names, protocol = list(scores.policies), scores.protocol.headline
    row = _find_gain(read_question_letters(run.evaluation.letters), names, protocol)
    if row is None:
        return
    prints: Mapping[str, str] = read_record(Manifest, run.manifest_file).steps["evaluate"].inputs
    answers = [parse_record(Answer, one, str(run.evaluation.answers)) for one in read_jsonl(run.evaluation.answers)]
    yield _Told("benchmark", f"{row.benchmark}, question {row.question_id}, right answer {row.truth}")
    for name in (names[0], names[-1]):
        letters = row.policies[name][protocol].letters
        text = next(
            (one.text for one in answers if one.question_id == row.question_id and one.policy == prints.get(name)), ""
        )
        yield _Told(name, f"answers {' '.join(letter or '-' for letter in letters)}; the first: {text}")


def _find_gain(rows: list[QuestionLetters], names: list[str], protocol: Any) -> QuestionLetters | None:
    def share(row: QuestionLetters, name: str) -> float:
        return fmean(letter == row.truth for letter in row.policies[name][protocol].letters)

    better = (row for row in rows if row.rare and share(row, names[-1]) > 0.5 > share(row, names[0]))
    return next(better, None) if len(names) > 1 else None
