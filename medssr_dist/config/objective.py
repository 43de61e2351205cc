"""The loss of a GRPO stage: advantage, policy term, KL, entropy, importance correction.

The loss is equation 3 of arXiv 2402.03300. Related algorithms are other values of the same keys:

| algorithm | settings |
|---|---|
| GRPO, loss over tokens (the default) | `advantage: group_norm`, `aggregation: token_mean` |
| GRPO as in its paper | `aggregation: sequence_mean` |
| Dr. GRPO (arXiv 2503.20783) | `advantage: mean_only`, `aggregation: fixed_length`, `kl_coef: 0` |
| RLOO (arXiv 2402.14740) | `advantage: rloo` |
| DAPO's clip-higher (arXiv 2503.14476) | `clip_high: 0.28` |
| GSPO (arXiv 2507.18071) | `ratio: sequence`, `aggregation: sequence_mean`, `clip_low: 3.0e-4`, `clip_high: 4.0e-4` |
| dual clip (arXiv 1912.09729) | `dual_clip: 3.0` |
| truncated importance sampling (TIS) | `importance: token`, `importance_mode: clip`, `importance_low: 0` |
| masked importance sampling (MIS) | `importance: token`, `importance_mode: mask` |
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medssr_dist.config.base import Section


class Objective(Section):
    """What a stage optimizes."""

    advantage: Literal["group_norm", "mean_only", "rloo"] = Field(
        "group_norm",
        description="group_norm: (reward - mean of the group) / standard deviation of the group; mean_only: reward - "
        "mean of the group; rloo: reward - mean of the group's other samples",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="new / old probability of each token, or its geometric mean over a sequence (GSPO)"
    )
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = Field(
        "token_mean",
        description="of the policy term. token_mean: mean over all tokens; sequence_mean: mean over sequences of the "
        "mean over a sequence's tokens; fixed_length: sum / (sequences x max_new_tokens). KL and entropy: as the "
        "policy term with fixed_length, else the mean over all tokens",
    )
    clip_low: float = Field(0.2, gt=0, lt=1, description="lower bound of the ratio: 1 - clip_low")
    clip_high: float = Field(0.2, gt=0, description="upper bound of the ratio: 1 + clip_high")
    dual_clip: float | None = Field(
        None, gt=1, description="bound of the term of a negative advantage, as a multiple of the advantage; null = off"
    )
    kl_coef: float = Field(
        1e-3, ge=0, description="weight of the KL to the reference model; 0 = no KL, and no reference model is loaded"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3", description="estimator of the KL, see http://joschu.net/blog/kl-approx.html"
    )
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="reward: the advantage of a token is lowered by the KL of this and all later tokens"
    )
    kl_unbiased: bool = Field(False, description="the value of the estimator, with the unbiased gradient of the KL")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus; 0 = no bonus")
    importance: Literal["off", "token", "sequence"] = Field(
        "off",
        description="correct for the difference between the rollout engine's probabilities and the trained policy's, "
        "per token or per sequence; off: it is measured only",
    )
    importance_mode: Literal["mask", "clip"] = Field(
        "mask",
        description="mask: drop what is outside the bounds and weight the rest by its ratio; clip: clamp the ratio",
    )
    importance_gate: Literal["ratio", "binary_kl", "tv"] = Field(
        "ratio",
        description="what the bounds apply to: probability ratio trained / rollout, binary KL or total variation",
    )
    importance_low: float = Field(0.5, ge=0, description="lower bound of the gate; 0 for binary_kl and tv")
    importance_high: float = Field(5.0, ge=0, description="upper bound of the gate")
    updates_per_rollout: int = Field(
        1, ge=1, description="optimizer steps for the samples of one rollout; they are split in a seeded random order"
    )

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL is part of the reward; the advantages then need the log-probs of policy and reference."""
        return self.kl_in == "reward" and self.kl_coef > 0

    @model_validator(mode="after")
    def _refuse_unfit_kl(self) -> Objective:
        if self.kl_in == "reward" and not self.kl_coef:
            raise ValueError("kl_in=reward has no effect with kl_coef = 0; set kl_coef, or leave kl_in out")
        if self.kl_in == "reward" and self.kl_unbiased:
            raise ValueError("kl_unbiased changes the gradient of a KL in the loss; leave it out with kl_in=reward")
        biased = self.kl_in == "loss" and self.kl_coef > 0 and not self.kl_unbiased
        if biased and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator=k1 in the loss has a gradient of mean zero; use k2 or k3, kl_unbiased or kl_in=reward"
            )
        return self

    @model_validator(mode="after")
    def _refuse_unfit_importance(self) -> Objective:
        settings = ("importance_mode", "importance_gate", "importance_low", "importance_high")
        changed = [name for name in settings if getattr(self, name) != type(self).model_fields[name].default]
        if self.importance == "off" and changed:
            raise ValueError(f"{changed[0]} has no effect with importance=off; set importance=token or sequence")
        if self.importance == "off":
            return self
        if self.ratio == "sequence" and (self.importance == "token" or changed):
            raise ValueError(
                "ratio=sequence uses the ratio of a whole sequence to the rollout's probability, without bounds: set "
                f"importance=sequence and leave {changed[0] if changed else 'importance=token'} out"
            )
        low, high = self.importance_low, self.importance_high
        if low > high:
            raise ValueError(f"importance_low = {low} is above importance_high = {high}")
        if self.importance_mode == "clip" and (self.importance, self.importance_gate) != ("token", "ratio"):
            raise ValueError("importance_mode=clip clamps a token's ratio: set importance=token importance_gate=ratio")
        if self.importance_gate != "ratio" and low > 0:
            raise ValueError(f"importance_gate={self.importance_gate} has only an upper bound; set importance_low=0")
        return self
