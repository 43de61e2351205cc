"""How much a config asks of each step, in the step's own unit: questions, optimizer steps, answers."""

from __future__ import annotations

import math

from medssr_dist.config.schema import Config, Evaluation
from medssr_dist.config.training import Stage
from medssr_dist.errors import InputError
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.readers import read_all
from medssr_dist.run.paths import STAGES


def estimate_workload(config: Config) -> dict[str, int]:
    """Step -> units of work, at most: all questions are accepted and all labels kept.

    Without the steps whose data cannot be read: that is another check's to report.
    """
    training = config.training
    accepted = config.synthesis.accepted if training.uses_pseudo_labels else 0
    units = {"synthesize": accepted, "vote": accepted}
    if training.stage1.enabled:
        units["stage1"] = count_stage_steps(training.stage1, accepted)
    try:
        if training.stage2.enabled:
            units["stage2"] = count_stage_steps(
                training.stage2, count_gold_examples(config) + count_mixed_labels(config)
            )
        units["evaluate"] = count_answers(config)
    except InputError:
        pass
    return units


def count_stage_steps(stage: Stage, examples: float) -> int:
    """Optimizer steps of a stage: those that the config says, else one pass over `examples`."""
    return stage.steps or max(1, math.ceil(round(examples, 6) / stage.prompts_per_step))


def count_gold_examples(config: Config) -> int:
    """Human-annotated questions of stage 2; 0 where it is off. Raises InputError where they cannot be read."""
    stage = config.training.stage2
    return len(read_all(stage.data, config.runtime.random_seed)) if stage.enabled else 0


def count_mixed_labels(config: Config) -> int:
    """Pseudo-labels that stage 2 takes beside them, at most."""
    return config.synthesis.accepted if config.training.stage2.mix_pseudo_labels else 0


def count_answers(config: Config) -> int:
    """Answers of the evaluation's first pass. Raises InputError where a benchmark cannot be read."""
    asked = count_benchmark_questions(config.evaluation, config.runtime.random_seed)
    return asked * config.evaluation.generations * len(list_policies(config))


def count_benchmark_questions(evaluation: Evaluation, random_seed: int) -> int:
    """Distinct questions of all benchmarks. Raises InputError where one cannot be read."""
    return len({question.id for items in read_benchmarks(evaluation, random_seed).values() for question in items})


def list_policies(config: Config) -> list[str]:
    """Policies of `evaluation.policies` that the run will have: none of a stage that is off."""
    off = {name for name in STAGES if not getattr(config.training, name).enabled}
    return [name for name in config.evaluation.policies if name not in off]
