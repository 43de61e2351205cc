"""How much work a config gives to each step, in the unit of that step: questions, training steps, answers."""

from __future__ import annotations

import math

from medssr_dist.config.schema import Config, Evaluation
from medssr_dist.config.training import Stage
from medssr_dist.errors import InputError
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.readers import read_all
from medssr_dist.run.paths import STAGES


def estimate_workload(config: Config) -> dict[str, int]:
    """Return the largest possible number of work units of each step: all questions accepted, all labels kept.

    A step whose data cannot be read is missing from the result; another check reports the data.

    Example:
        {"synthesize": 40, "vote": 40, "stage1": 10, "stage2": 3, "evaluate": 42}
    """
    training = config.training
    questions = expect_questions(config) if training.uses_pseudo_labels else 0
    units = {"synthesize": questions, "vote": questions}
    if training.stage1.enabled:
        units["stage1"] = count_stage_steps(training.stage1, config.voting.kept or questions)
    try:
        if training.stage2.enabled:
            examples = count_gold_examples(config) + count_mixed_labels(config)
            units["stage2"] = count_stage_steps(training.stage2, examples)
        units["evaluate"] = count_answers(config)
    except InputError:
        pass
    return units


def expect_questions(config: Config, kept_share: float | None = None) -> int:
    """Return how many questions are expected to be written and voted on.

    Args:
        kept_share: measured share of kept labels, for `voting.kept`; None = the share that the config assumes,
            voting.kept / synthesis.accepted.

    Example: with voting.kept = 30 and a kept share of 0.5, 60, but never more than synthesis.candidates.
    """
    kept, synthesis = config.voting.kept, config.synthesis
    if not kept:
        return synthesis.accepted
    needed = max(synthesis.accepted, kept) if kept_share is None else math.ceil(kept / max(kept_share, 1e-9))
    return min(needed, synthesis.most_candidates)


def count_stage_steps(stage: Stage, examples: float) -> int:
    """Return the training steps of a stage: the configured number, or else one pass over `examples`."""
    return stage.steps or max(1, math.ceil(round(examples, 6) / stage.prompts_per_step))


def count_gold_examples(config: Config) -> int:
    """Return the number of human-annotated questions of stage 2, or 0 if the stage is off.

    Raises:
        InputError: a data set cannot be read.
    """
    stage = config.training.stage2
    return len(read_all(stage.data, config.runtime.random_seed)) if stage.enabled else 0


def count_mixed_labels(config: Config) -> int:
    """Return the most pseudo-labels that stage 2 mixes into its human-annotated questions."""
    most = config.voting.kept or config.synthesis.accepted
    return most if config.training.stage2.mix_pseudo_labels else 0


def count_answers(config: Config) -> int:
    """Return the number of answers in the first pass of the evaluation.

    Raises:
        InputError: a benchmark cannot be read.
    """
    questions = count_benchmark_questions(config.evaluation, config.runtime.random_seed)
    return questions * config.evaluation.generations * len(list_policies(config))


def count_benchmark_questions(evaluation: Evaluation, random_seed: int) -> int:
    """Return the number of distinct questions in all benchmarks.

    Raises:
        InputError: a benchmark cannot be read.
    """
    return len({question.id for items in read_benchmarks(evaluation, random_seed).values() for question in items})


def list_policies(config: Config) -> list[str]:
    """Return the names in `evaluation.policies` without the stages that are off."""
    off = {name for name in STAGES if not getattr(config.training, name).enabled}
    return [name for name in config.evaluation.policies if name not in off]
