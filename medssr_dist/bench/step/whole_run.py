"""GPU-hours of a whole run of N questions, from predicted steps: vote, stage 1 on the kept labels, what is written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from medssr_dist.config.schema import Config
from medssr_dist.estimates.memory import estimate_one_checkpoint
from medssr_dist.estimates.model_shape import ModelShape
from medssr_dist.estimates.rollout_model import RolloutLoad, simulate_rollout
from medssr_dist.estimates.step_model import StepForecast, StepRates

KEPT_SHARE = 0.6  # of the labels; depends on policy and questions
DOLLARS_PER_GPU_HOUR = 2.5  # of a rented H100; prices differ by a factor of two
_VOTE_PROMPTS = 64  # questions in flight on one engine: its rate when it is full
_VOTE_BYTES, _TEXT_BYTES = 250, 4  # of a line of the ledger, and of a token of its text, before it is packed


@dataclass(frozen=True)
class WholeRun:
    """What a run of so many questions takes.

    Attributes:
        votes: sampled at most. vote_gpu_hours, train_gpu_hours: predicted, of vote and stage 1.
        steps: of stage 1. dollars: of both.
        vote_gigabytes: of the ledger before it is packed. checkpoint_gigabytes: of one checkpoint.

    Example: WholeRun(questions=43000, votes=688000, vote_gpu_hours=12.0, ...)
    """

    questions: int
    votes: int
    steps: int
    vote_gpu_hours: float
    train_gpu_hours: float
    dollars: float
    vote_gigabytes: float
    checkpoint_gigabytes: float


def predict_run(
    questions: int,
    config: Config,
    shape: ModelShape,
    rates: StepRates,
    step: StepForecast,
    lengths: Sequence[int],
    prompt_tokens: float,
    gpus: int,
) -> WholeRun:
    """Return the figures of a run: its vote on engines that are always full, and a stage 1 of `step` on `gpus` GPUs."""
    samples = config.voting.samples
    load = RolloutLoad(_VOTE_PROMPTS, samples, 1, 0.0, prompt_tokens, lengths)
    full = simulate_rollout(load, rates.engine, 0)
    votes = questions * samples
    vote_s = votes * statistics.mean(lengths) * full.seconds / full.tokens * config.voting.tensor_parallel_size
    steps = round(questions * KEPT_SHARE / config.training.stage1.prompts_per_step)
    train_s = steps * step.seconds * gpus
    return WholeRun(
        questions,
        votes,
        steps,
        vote_gpu_hours=vote_s / 3600,
        train_gpu_hours=train_s / 3600,
        dollars=(vote_s + train_s) / 3600 * DOLLARS_PER_GPU_HOUR,
        vote_gigabytes=votes * (_VOTE_BYTES + _TEXT_BYTES * statistics.mean(lengths)) / 1e9,
        checkpoint_gigabytes=estimate_one_checkpoint(config, shape.parameters) / 1e9,
    )
