"""Scores from answers: mean and standard deviation of accuracy over generations.

`scores.json`:

    protocol    generations, temperature, top_p, top_k, max_tokens, random_seed, and what `std` is
    benchmarks  name -> questions, rare, truth_letters (how often each letter is right)
    policies    base | stage1 | stage2 -> benchmarks: name -> Score
                                          macro: Score's accuracy fields, averaged over benchmarks
                                          rare: Score over the rare-disease items of all benchmarks, or null
                                          tokens, seconds

    Score       questions, answers (= questions x generations), accuracy (mean over generations, 0-1), std,
                per_generation, recovered (letter found in the second pass), invalid (none in either),
                truncated (hit the token limit), letters (letter -> answers; "none" = invalid)

`std` is the sample standard deviation (n - 1) over the generations' accuracies, 0.0 for one generation.
An answer is one generation on its own: no majority is taken. An invalid answer counts as wrong.
"""

from __future__ import annotations

from collections import Counter
from statistics import fmean, stdev

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.records import Question
from medssr_dist.evaluation.protocol import Answer

Benchmarks = dict[str, list[Question]]


def build_scores(
    benchmarks: Benchmarks,
    answers: dict[str, list[Answer]],
    evaluation: Evaluation,
    random_seed: int,
    seconds: dict[str, float],
) -> dict:
    """The whole of scores.json.

    Args:
        benchmarks: name -> its questions.
        answers: policy name -> what `evaluate_policy` returned for the questions of all benchmarks.
        seconds: policy name -> wall time of its evaluation.
    """
    protocol = evaluation.model_dump(include={"generations", "temperature", "top_p", "top_k", "max_tokens"})
    return {
        "schema_version": 1,
        "protocol": {**protocol, "random_seed": random_seed, "std": "sample, over generations"},
        "benchmarks": {name: _describe(questions) for name, questions in benchmarks.items()},
        "policies": {
            policy: score_policy(benchmarks, given, evaluation.generations, seconds[policy])
            for policy, given in answers.items()
        },
    }


def score_policy(benchmarks: Benchmarks, answers: list[Answer], generations: int, seconds: float) -> dict:
    """Scores of one policy: each benchmark, their macro average, and the rare-disease items."""
    by_key = {(answer.question_id, answer.generation): answer for answer in answers}
    scores = {name: score_questions(questions, by_key, generations) for name, questions in benchmarks.items()}
    rare = [question for questions in benchmarks.values() for question in questions if question.rare]
    columns = zip(*(score["per_generation"] for score in scores.values()), strict=True)
    return {
        "benchmarks": scores,
        "macro": _over_generations([fmean(column) for column in columns]),
        "rare": score_questions(rare, by_key, generations) if rare else None,
        "tokens": sum(answer.tokens for answer in by_key.values()),
        "seconds": round(seconds, 1),
    }


def score_questions(questions: list[Question], by_key: dict[tuple[str, int], Answer], generations: int) -> dict:
    """Score of one set of questions, all with a truth. `by_key`: (question id, generation) -> answer.

    Raises:
        KeyError: an answer is missing.
    """
    rows = [[by_key[question.id, g] for question in questions] for g in range(generations)]
    given = [answer for row in rows for answer in row]
    letters = Counter(answer.letter or "none" for answer in given)
    return {
        "questions": len(questions),
        "answers": len(given),
        **_over_generations([_accuracy(questions, row) for row in rows]),
        "recovered": sum(answer.second_pass and answer.letter is not None for answer in given),
        "invalid": letters["none"],
        "truncated": sum(answer.truncated for answer in given),
        "letters": dict(sorted(letters.items())),
    }


def _accuracy(questions: list[Question], row: list[Answer]) -> float:
    return fmean(answer.letter == question.truth for question, answer in zip(questions, row, strict=True))


def _over_generations(accuracies: list[float]) -> dict:
    return {
        "accuracy": round(fmean(accuracies), 6),
        "std": round(stdev(accuracies), 6) if len(accuracies) > 1 else 0.0,
        "per_generation": [round(accuracy, 6) for accuracy in accuracies],
    }


def _describe(questions: list[Question]) -> dict:
    truths = Counter(question.truth for question in questions)
    return {
        "questions": len(questions),
        "rare": sum(question.rare for question in questions),
        "truth_letters": dict(sorted(truths.items())),
    }
