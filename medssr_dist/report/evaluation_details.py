"""The benchmark questions of a run for its report: letters of all policies, answers, and their wording."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.records import Question, parse_record
from medssr_dist.errors import InputError
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.evaluation.policy_answers import Answer
from medssr_dist.evaluation.question_letters import QuestionLetters, read_question_letters
from medssr_dist.evaluation.scores import Scores
from medssr_dist.report.detail_store import DetailStore
from medssr_dist.run.directory import RunDir
from medssr_dist.run.recorded_config import RecordedConfig
from medssr_dist.run.stream import follow

_LETTERS, _WORDINGS, _ANSWERS = 512, 128, 32  # rows in a block
_MOST_COMPRESSION = 8


@dataclass(frozen=True)
class EvaluationShares:
    """Bytes of the page for each part. Example: EvaluationShares(letters=500_000, wordings=10**6, answers=10**6)"""

    letters: int
    wordings: int
    answers: int


def add_evaluation(
    store: DetailStore, run: RunDir, config: RecordedConfig, scores: Scores, shares: EvaluationShares
) -> None:
    """Add letters, wordings and answers of the benchmark questions, in the order of their ids, which are hashes."""
    if not run.evaluation.letters.exists():
        return
    rows = sorted(read_question_letters(run.evaluation.letters), key=lambda row: (row.question_id, row.benchmark))
    policies, protocol = list(scores.policies), scores.protocol.headline
    letters = (
        [row.benchmark, row.question_id, row.truth, int(row.rare), _join(row, policies, protocol)] for row in rows
    )
    store.add("letters", letters, len(rows), _LETTERS, shares.letters)
    wordings = _read_wordings(config)
    texts = ([found.stem, list(found.options.values())] if (found := wordings.get(r.question_id)) else [] for r in rows)
    store.add("benchmark", texts if wordings else [], len(rows), _WORDINGS, shares.wordings)
    answers = _read_answers(run, policies, [row.question_id for row in rows], shares.answers)
    store.add(
        "answers",
        (answers[row.question_id] for row in rows if row.question_id in answers),
        len(rows),
        _ANSWERS,
        shares.answers,
    )


def _join(row: QuestionLetters, policies: list[str], protocol: Any) -> list[str]:
    """Return the letters of each policy as one text, "-" for none."""
    found = [row.policies[name][protocol].letters if name in row.policies else () for name in policies]
    return ["".join(letter or "-" for letter in letters) for letters in found]


def _read_wordings(config: RecordedConfig) -> dict[str, Question]:
    """Return the benchmark questions by id; {} if the benchmarks cannot be read on this machine."""
    try:
        evaluation = parse_record(Evaluation, config.evaluation.model_dump(), "evaluation")
        found = read_benchmarks(evaluation, config.runtime.random_seed)
    except InputError:
        return {}
    return {question.id: question for questions in found.values() for question in questions}


def _read_answers(run: RunDir, policies: list[str], order: list[str], budget: int) -> dict[str, list[list[Any]]]:
    """Return question id -> [policy, generation, text] of each answer, for as many first questions as may have room."""
    file: Path = run.evaluation.answers
    begun = run.read_manifest().steps.get("evaluate")
    if not file.exists() or begun is None:
        return {}
    places = {print_: policies.index(name) for name, print_ in begun.inputs.items() if name in policies}
    size = max(1, file.stat().st_size)
    chosen = dict.fromkeys(order[: min(len(order), int(len(order) * budget * _MOST_COMPRESSION / size) + 1)])
    found: dict[str, dict[tuple[int, int], str]] = defaultdict(dict)
    for row in follow(file, ended=lambda: True):
        answer = parse_record(Answer, row, str(file))
        if answer.question_id in chosen and answer.policy in places:
            found[answer.question_id][places[answer.policy], answer.generation] = answer.text
    return {name: [[*key, text] for key, text in sorted(found[name].items())] for name in chosen}
