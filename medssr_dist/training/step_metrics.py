"""The line of metrics.jsonl that one GRPO step leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.data.records import parse_record
from medssr_dist.run.stream import follow

if TYPE_CHECKING:
    from medssr_dist.training.backend.openrlhf import Experience


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one step; a field is None if the step did not measure it. Times are in seconds.

    Rollout, means over the step's samples (N = B prompts x G samples):
        reward, reward_std: reward and its standard deviation over all N. group_reward_std: mean over the groups.
        invalid_answer: share of answers that name no option. response_length: tokens. truncated: share cut off at
        max_new_tokens. samples: N. label_confidence: of the pseudo-labels. zero_variance: share of groups whose
        rewards are all equal. advantage_abs: mean absolute advantage.
    Update, means over all tokens of the step:
        loss, policy_loss, kl (to the reference), entropy, clip_ratio (share of clipped tokens), old_kl (to the policy
        before the update), rollout_kl (of the rollout engine's policy to the policy before the update; with
        async_rollout, of an older one), rollout_beyond_2x (share of tokens whose two probabilities differ by more than
        a factor of 2), rollout_ratio_max (the largest such factor), importance_dropped (share of tokens),
        grad_norm and learning_rate of the last optimizer step, tokens_per_s_per_gpu, mfu (model FLOPs utilization).
    Health of the votes, over all drawn groups, also those that are not trained on (`VoteHealth`): majority_agreement,
        vote_entropy, letter_entropy, unanimous, drawn_length, drawn_truncated.
    Validation, in the steps after which there is one: validation_accuracy, seconds_validate.
    Sampler: policy_lag (how many versions of the weights the samples are behind), zero_variance_drawn (share of the
        drawn groups), prompts_drawn, groups_carried (with over_draw: left for later steps), engine_restarts,
        seconds_rollout.
    Step: step (from 1), prompts (drawn so far), tokens (generated), time (since the epoch), seconds (of the whole step,
        = seconds_generate + seconds_experience + seconds_update + seconds_sync + seconds_validate), seconds_wait (for
        examples).

    Example:
        StepMetrics(step=1, reward=0.25, kl=0.0, grad_norm=0.8, seconds=12.5, ...)
    """

    reward: float
    reward_std: float
    group_reward_std: float
    invalid_answer: float | None
    response_length: float
    truncated: float
    loss: float
    policy_loss: float
    kl: float
    entropy: float
    clip_ratio: float
    old_kl: float
    advantage_abs: float
    zero_variance: float
    tokens_per_s_per_gpu: float
    grad_norm: float
    learning_rate: float
    samples: float
    seconds_generate: float
    seconds_experience: float
    seconds_update: float
    seconds_sync: float
    seconds: float
    step: int
    prompts: int
    time: float
    tokens: int
    seconds_wait: float
    rollout_kl: float | None = None
    rollout_beyond_2x: float | None = None
    rollout_ratio_max: float | None = None
    importance_dropped: float | None = None
    label_confidence: float | None = None
    mfu: float | None = None
    policy_lag: float | None = None
    zero_variance_drawn: float | None = None
    prompts_drawn: int | None = None
    groups_carried: int | None = None
    engine_restarts: int | None = None
    seconds_rollout: float | None = None
    majority_agreement: float | None = None
    vote_entropy: float | None = None
    letter_entropy: float | None = None
    unanimous: float | None = None
    drawn_length: float | None = None
    drawn_truncated: float | None = None
    validation_accuracy: float | None = None
    seconds_validate: float | None = None

    def as_row(self) -> dict[str, float]:
        """Return the line as JSON values: what was not measured, or is no finite number, is left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None and math.isfinite(value)}
        return {name: _round(name, value) for name, value in values.items()}

    @classmethod
    def from_row(cls, row: Mapping[str, float]) -> StepMetrics:
        """Read a line back. A required field that is missing becomes NaN; keys of other versions are ignored."""
        values = {field.name: row.get(field.name, _missing(field)) for field in fields(cls)}
        return cls(**values)


def read_metrics(file: Path) -> list[StepMetrics]:
    """Read the whole lines of a metrics.jsonl; the stage may be writing the next one."""
    names = {field.name for field in fields(StepMetrics)}
    rows = ({name: row[name] for name in names & row.keys()} for row in follow(file, ended=lambda: True))
    return [StepMetrics.from_row(parse_record(dict[str, int | float], row, str(file))) for row in rows]


def _missing(field: Field) -> float | None:
    return math.nan if field.default is MISSING else field.default


def _round(name: str, value: float) -> float:
    return value if isinstance(value, int) or name == "time" else float(f"{value:.8g}")


def rollout_means(samples: list[Experience]) -> dict[str, float]:
    """Return means over the samples of a step, by field name of StepMetrics."""
    import torch

    reward_N = torch.cat([sample.rewards for sample in samples]).float()
    lengths_N = torch.cat([sample.response_length for sample in samples]).float()
    truncated_N = torch.cat([sample.truncated for sample in samples]).float()
    found = {
        "reward": reward_N.mean().item(),
        "reward_std": reward_N.std().item() if len(reward_N) > 1 else 0.0,
        "response_length": lengths_N.mean().item(),
        "truncated": truncated_N.mean().item(),
        "samples": float(len(reward_N)),
    }
    invalid = [float(sample.info["invalid_answer"]) for sample in samples if "invalid_answer" in sample.info]
    if invalid:
        found["invalid_answer"] = sum(invalid) / len(invalid)
    notes = [json.loads(label).get("confidence") for sample in samples for label in sample.labels]
    confidences = [confidence for confidence in notes if confidence is not None]
    if confidences:
        found["label_confidence"] = sum(confidences) / len(confidences)
    return found
