"""From answers to scores: the final letters of each question first, then everything in scores.json.

Both protocols are scored from the same answers. `scores.py` says what the numbers are, `score_statistics.py` how their
intervals and differences come about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev

import numpy as np

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.records import Question
from medssr_dist.evaluation.paper_rule import list_gold_letters, round_as_paper
from medssr_dist.evaluation.policy_answers import PolicyAnswers
from medssr_dist.evaluation.question_letters import FinalLetters, QuestionLetters
from medssr_dist.evaluation.score_statistics import (
    Array,
    accuracy_interval,
    list_group_sizes,
    majority_at,
    paired_difference,
    pass_at,
)
from medssr_dist.evaluation.scores import (
    MACRO,
    OTHERS,
    PROTOCOLS,
    RARE,
    STD_KINDS,
    Accuracy,
    BenchmarkFacts,
    Difference,
    PolicyScores,
    ProtocolName,
    ProtocolScores,
    ProtocolSettings,
    Score,
    Scores,
)
from medssr_dist.readers import count_facts

Benchmarks = Mapping[str, Sequence[Question]]
Rows = Sequence[QuestionLetters]


def collect_letters(benchmarks: Benchmarks, answers: Mapping[str, PolicyAnswers]) -> list[QuestionLetters]:
    """Return the final letters of all policies for each question of each benchmark.

    Args:
        answers: policy name -> its answers to the questions of all benchmarks.
    Raises:
        KeyError: an answer is missing.
    """
    rows = []
    for name, questions in benchmarks.items():
        gold_letters = list_gold_letters(questions)
        for question in questions:
            policies = {policy: given.list_letters(question, gold_letters) for policy, given in answers.items()}
            shared = {"benchmark": name, "question_id": question.id, "truth": question.truth, "rare": question.rare}
            rows.append(QuestionLetters(**shared, policies=policies))
    return rows


def build_scores(
    benchmarks: Benchmarks,
    answers: Mapping[str, PolicyAnswers],
    rows: Rows,
    evaluation: Evaluation,
    random_seed: int,
    seconds: Mapping[str, float],
) -> Scores:
    """Score all policies under both protocols.

    Args:
        rows: what `collect_letters` returned for these benchmarks and answers.
        seconds: policy name -> wall time of its evaluation.
    """
    sampling = evaluation.model_dump(include={"generations", "temperature", "top_p", "top_k", "max_tokens"})
    headline = evaluation.protocol
    return Scores(
        protocol=ProtocolSettings(**sampling, random_seed=random_seed, headline=headline, std=STD_KINDS[headline]),
        benchmarks={name: _describe(questions) for name, questions in benchmarks.items()},
        policies={
            policy: PolicyScores(
                protocols={name: score_rows(rows, policy, name, _count_truncated(given)) for name in PROTOCOLS},
                tokens=given.tokens,
                seconds=round(seconds[policy], 1),
            )
            for policy, given in answers.items()
        },
        differences=tuple(
            found
            for protocol in PROTOCOLS
            for first, second in combinations(answers, 2)
            for found in compare_rows(rows, (first, second), protocol)
        ),
    )


def _count_truncated(answers: PolicyAnswers) -> Callable[[Rows], int]:
    return lambda rows: answers.count_truncated(row.question_id for row in rows)


def score_rows(
    rows: Rows, policy: str, protocol: ProtocolName, count_truncated: Callable[[Rows], int]
) -> ProtocolScores:
    """Score one policy under one protocol on each benchmark, their macro average and the rare-disease questions."""

    def score(part: Rows) -> Score:
        return _score_set(part, [row.policies[policy][protocol] for row in part], protocol, count_truncated(part))

    benchmarks = group_rows(rows)
    scores = {name: score(part) for name, part in benchmarks.items()}
    columns = zip(*(each.per_generation for each in scores.values()), strict=True)
    whole = _Questions.of(benchmarks.values())
    shares = whole.spread(_share_right(row, row.policies[policy][protocol]) for row in rows)
    rare = [row for row in rows if row.rare]
    others = [row for row in rows if not row.rare] if rare else []
    return ProtocolScores(
        benchmarks=scores,
        macro=_average([fmean(column) for column in columns], protocol, shares, whole.weights),
        rare=score(rare) if rare else None,
        others=score(others) if others else None,
        rare_benchmarks={name: score(part) for name, part in group_rows(rare).items()},
    )


def compare_rows(rows: Rows, policies: tuple[str, str], protocol: ProtocolName) -> list[Difference]:
    """Return the differences of two policies on each benchmark, their macro average, the rare diseases and the rest."""
    benchmarks = group_rows(rows)
    sets: dict[str, list[Rows]] = {name: [part] for name, part in benchmarks.items()}
    if len(benchmarks) > 1:
        sets[MACRO] = list(benchmarks.values())
    if rare := [row for row in rows if row.rare]:
        sets[RARE] = [rare]
        if others := [row for row in rows if not row.rare]:
            sets[OTHERS] = [others]
    return [_compare_set(name, parts, policies, protocol) for name, parts in sets.items()]


def group_rows(rows: Rows) -> dict[str, Rows]:
    """Return benchmark -> its rows."""
    groups: dict[str, list[QuestionLetters]] = {}
    for row in rows:
        groups.setdefault(row.benchmark, []).append(row)
    return dict(groups)


def _compare_set(name: str, parts: list[Rows], policies: tuple[str, str], protocol: ProtocolName) -> Difference:
    questions = _Questions.of(parts)
    first, second = (
        questions.spread(_share_right(row, row.policies[policy][protocol]) for part in parts for row in part)
        for policy in policies
    )
    found = paired_difference(first, second, questions.weights)
    return Difference(
        protocol=protocol,
        first=policies[0],
        second=policies[1],
        on=name,
        difference=round(found.difference, 6),
        interval=(round(found.low, 6), round(found.high, 6)),
        p=round(found.p, 4),
        questions=found.questions,
    )


@dataclass(frozen=True)
class _Questions:
    """The distinct questions of some benchmarks, and the weight of each (`score_statistics.estimate_mean`)."""

    order: list[int]  # of each row, the place of its question
    weights: Array

    @classmethod
    def of(cls, parts: Iterable[Rows]) -> _Questions:
        parts = list(parts)
        index: dict[tuple[str, str], int] = {}  # the truth too: a file may hold a copy with another one
        order = [index.setdefault((row.question_id, row.truth), len(index)) for part in parts for row in part]
        weights = np.zeros((len(parts), len(index)))
        places = iter(order)
        for number, part in enumerate(parts):
            for _ in part:
                weights[number, next(places)] += 1 / len(part)
        return cls(order, weights)

    def spread(self, values: Iterable[float]) -> Array:
        """Return one value for each question, from one for each row; copies of a question have the same answers."""
        found = np.zeros(self.weights.shape[1])
        found[self.order] = list(values)
        return found


def _share_right(row: QuestionLetters, given: FinalLetters) -> float:
    return fmean(letter == row.truth for letter in given.letters)


def _score_set(rows: Rows, given: list[FinalLetters], protocol: ProtocolName, truncated: int) -> Score:
    """Score one set of questions. `given`: the letters for each of them."""
    truths = [row.truth for row in rows]
    table = [each.letters for each in given]
    generations = len(table[0])
    right = np.array([[letter == truth for letter in letters] for letters, truth in zip(table, truths, strict=True)])
    questions = _Questions.of([rows])
    average = _average(right.mean(axis=0).tolist(), protocol, questions.spread(right.mean(axis=1)), questions.weights)
    letters = Counter(letter or "none" for row in table for letter in row)
    sizes = list_group_sizes(generations)
    return Score(
        **average.model_dump(),
        questions=len(rows),
        answers=right.size,
        recovered=sum(len(each.recovered) for each in given),
        invalid=letters["none"],
        truncated=truncated,
        letters=dict(sorted(letters.items())),
        pass_at={k: _round_mean(pass_at(right.sum(axis=1), generations, k)) for k in sizes},
        majority_at={k: _round_mean(majority_at(table, truths, k)) for k in sizes},
    )


def _round_mean(values: Array) -> float:
    return round(float(values.mean()), 6)


def _average(per_generation: Sequence[float], protocol: ProtocolName, shares: Array, weights: Array) -> Accuracy:
    """Return mean and deviation as the protocol has them, and the interval of the mean, which is the same for both."""
    low, high = accuracy_interval(shares, weights)
    interval = (round(low, 6), round(high, 6))
    if protocol == "paper":
        return Accuracy(**round_as_paper(per_generation)._asdict(), interval=interval)
    return Accuracy(
        accuracy=round(fmean(per_generation), 6),
        std=round(stdev(per_generation), 6) if len(per_generation) > 1 else 0.0,
        per_generation=tuple(round(accuracy, 6) for accuracy in per_generation),
        interval=interval,
    )


def _describe(questions: Sequence[Question]) -> BenchmarkFacts:
    facts = count_facts(questions)
    return BenchmarkFacts(
        questions=facts.questions,
        rare=facts.rare,
        rare_by=facts.rare_by,
        truth_letters=dict(sorted(Counter(question.truth or "none" for question in questions).items())),
        constant=round(facts.constant_baseline, 6),
        duplicates=facts.duplicates,
    )
