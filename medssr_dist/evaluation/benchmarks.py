"""The benchmarks of a run: questions with a human answer, by benchmark name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import count_facts, name_source, read_questions, refuse_unlabelled

_log = logging.getLogger(__name__)


def read_benchmarks(evaluation: Evaluation, random_seed: int) -> dict[str, list[Question]]:
    """Read `evaluation.benchmarks` and return name -> questions, in the order of the config.

    Raises:
        InputError: there is no benchmark, two have the same name, a question has no answer, or a file is unreadable.
    """
    if not evaluation.benchmarks:
        raise InputError("evaluation.benchmarks is empty; name at least one evaluation file")
    benchmarks: dict[str, list[Question]] = {}
    for source in evaluation.benchmarks:
        name = name_source(source)
        if name in benchmarks:
            raise InputError(f"evaluation.benchmarks has two named {name!r}; give each its own `name`")
        benchmarks[name] = read_questions(source, random_seed)
        refuse_unlabelled(benchmarks[name])
    return benchmarks


def log_facts(benchmarks: Mapping[str, Sequence[Question]]) -> None:
    """Log what each benchmark consists of."""
    for name, questions in benchmarks.items():
        _log.info("benchmark %s: %s", name, count_facts(questions).describe())
