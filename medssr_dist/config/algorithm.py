"""What a GRPO stage optimizes: advantage, policy term, KL, entropy, importance correction.

The loss is that of arXiv 2402.03300 eq. 3, and its relatives are settings of the same keys:

| algorithm | settings |
|---|---|
| GRPO, loss over tokens (the default) | `advantage: group_norm`, `aggregation: token_mean` |
| GRPO as first written | `aggregation: sequence_mean` |
| Dr. GRPO (arXiv 2503.20783) | `advantage: mean_only`, `aggregation: fixed_length`, `kl_coef: 0` |
| DAPO's clip-higher (arXiv 2503.14476) | `clip_high: 0.28` |
| GSPO (arXiv 2507.18071) | `ratio: sequence`, `aggregation: sequence_mean`, `clip_low: 3.0e-4`, `clip_high: 4.0e-4` |
| dual clip (arXiv 1912.09729) | `dual_clip: 3.0` |
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medssr_dist.config.base import Section


class Algorithm(Section):
    """The loss of a stage."""

    advantage: Literal["group_norm", "mean_only", "rloo"] = Field(
        "group_norm",
        description="reward minus the group's mean, over its deviation | minus the mean | minus the others'",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token", description="of new to old probability: each token's, or the geometric mean of a sequence's (GSPO)"
    )
    aggregation: Literal["token_mean", "sequence_mean", "fixed_length"] = Field(
        "token_mean",
        description="of the policy term: over all tokens | over sequences of each one's mean | sum / (sequences x "
        "max_new_tokens). KL and entropy are means over tokens, or as fixed_length",
    )
    clip_low: float = Field(0.2, gt=0, lt=1, description="ratio is clipped below at 1 - clip_low")
    clip_high: float = Field(0.2, gt=0, description="ratio is clipped above at 1 + clip_high")
    dual_clip: float | None = Field(
        None, gt=1, description="a negative advantage's term stops growing at this many times it; null = off"
    )
    kl_coef: float = Field(1e-3, ge=0, description="weight of the KL to the reference; 0 = none, and no reference")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="of http://joschu.net/blog/kl-approx.html")
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="reward: each token's advantage is lowered by the KL of the tokens from it on"
    )
    kl_unbiased: bool = Field(False, description="keep the estimator's value, with the gradient of the KL itself")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus; 0 = none")
    importance: Literal["off", "token", "sequence"] = Field(
        "off",
        description="correct for a rollout engine that is not quite the trained policy; tested by token or sequence",
    )
    importance_mode: Literal["mask", "clip"] = Field(
        "mask", description="mask: drop what is outside the bounds, weight the rest by its ratio; clip: clamp the ratio"
    )
    importance_gate: Literal["ratio", "binary_kl", "tv"] = Field(
        "ratio", description="what is tested: probability ratio trained / rollout, binary KL or total variation"
    )
    importance_low: float = Field(0.5, ge=0, description="lower bound; 0 for binary_kl and tv")
    importance_high: float = Field(5.0, ge=0, description="upper bound")
    updates_per_rollout: int = Field(
        1, ge=1, description="optimizer steps that a step's samples are shared among, in a seeded random order"
    )

    @property
    def kl_in_reward(self) -> bool:
        """Whether advantages need the log-probs of policy and reference."""
        return self.kl_in == "reward" and self.kl_coef > 0

    @model_validator(mode="after")
    def _kl_has_a_gradient(self) -> Algorithm:
        if self.kl_in == "reward" and not self.kl_coef:
            raise ValueError("kl_in=reward does nothing with kl_coef = 0; set kl_coef, or leave kl_in out")
        if self.kl_in == "reward" and self.kl_unbiased:
            raise ValueError("kl_unbiased is about the gradient of a KL in the loss; leave it out with kl_in=reward")
        biased = self.kl_in == "loss" and self.kl_coef > 0 and not self.kl_unbiased
        if biased and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator=k1 in the loss has a gradient of mean zero; use k2 or k3, kl_unbiased or kl_in=reward"
            )
        return self

    @model_validator(mode="after")
    def _importance_fits(self) -> Algorithm:
        settings = ("importance_mode", "importance_gate", "importance_low", "importance_high")
        changed = [name for name in settings if getattr(self, name) != type(self).model_fields[name].default]
        if self.importance == "off" and changed:
            raise ValueError(f"{changed[0]} does nothing with importance=off; set importance=token or sequence")
        if self.importance == "off":
            return self
        if self.ratio == "sequence" and (self.importance == "token" or changed):
            raise ValueError(
                "ratio=sequence takes a sequence's ratio to the rollout's probability, and tests nothing: set "
                f"importance=sequence and leave {changed[0] if changed else 'importance=token'} out"
            )
        low, high = self.importance_low, self.importance_high
        if low > high:
            raise ValueError(f"importance_low = {low} is above importance_high = {high}")
        if self.importance_mode == "clip" and (self.importance, self.importance_gate) != ("token", "ratio"):
            raise ValueError("importance_mode=clip clamps a token's ratio: set importance=token importance_gate=ratio")
        if self.importance_gate != "ratio" and low > 0:
            raise ValueError(f"importance_gate={self.importance_gate} has an upper bound alone; set importance_low=0")
        return self
