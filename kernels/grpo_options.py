"""What the GRPO loss can vary, checked once, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from medssr_dist.kernels import checks

AGGREGATIONS = ("token_mean", "sequence_mean", "fixed_length")
_CHOICES = {
    "ratio": ("token", "sequence"),
    "kl_estimator": ("k1", "k2", "k3"),
    "aggregation": AGGREGATIONS,
    "penalty_aggregation": (*AGGREGATIONS, None),
    "importance_level": ("off", "token", "sequence"),
    "importance_mode": ("mask", "clip"),
    "importance_gate": ("ratio", "binary_kl", "tv"),
}


@dataclass(frozen=True)
class GrpoOptions:
    """Loss = policy term + kl_coef * KL to the reference - entropy_coef * entropy. ValueError where fields clash.

    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high] (clip-higher: clip_high > clip_low).
    dual_clip: where the advantage is negative the term stops growing at dual_clip * |advantage|; > 1, None is off.
    ratio: "token" (PPO, GRPO) or "sequence" (GSPO, https://arxiv.org/abs/2507.18071: geometric mean of the ratios).
    kl_estimator: k1, k2, k3 of http://joschu.net/blog/kl-approx.html, held within +-10.
    kl_unbiased: keep the estimator's value, but give it the gradient of the true reverse KL.
    entropy_coef: None does not compute the entropy; 0.0 computes it for the metrics alone.
    aggregation: of the policy term. "token_mean": sum / tokens; "sequence_mean": mean over the sequences of each one's
        token mean; "fixed_length": sum / (sequences * fixed_length) (Dr. GRPO, https://arxiv.org/abs/2503.20783).
    penalty_aggregation: the same for KL and entropy; None takes `aggregation`.
    importance_*: correction for rollouts by another engine, with the ratio exp(old_logp - rollout_logp), as in
        OpenRLHF: level "token" or "sequence" tests `gate` (the ratio, or the binary KL or total variation at the
        sampled token) against [importance_low, importance_high]; mode "mask" drops what is outside and weights the
        rest by its token ratio, "clip" (token ratios only) clamps the ratio instead. With ratio "sequence" the
        sequence ratio is taken against rollout_logp, and nothing is gated.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    ratio: str = "token"
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    kl_unbiased: bool = False
    entropy_coef: float | None = None
    aggregation: str = "token_mean"
    penalty_aggregation: str | None = None
    fixed_length: int | None = None
    importance_level: str = "off"
    importance_mode: str = "mask"
    importance_gate: str = "ratio"
    importance_low: float = 0.5
    importance_high: float = 5.0

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            checks.require(value in choices, f"{field} must be one of {choices}, not {value!r}")
        checks.require(0 <= self.clip_low < 1, f"clip_low must be in [0, 1), not {self.clip_low}")
        checks.require(self.clip_high >= 0, f"clip_high must not be negative, not {self.clip_high}")
        checks.require(self.dual_clip is None or self.dual_clip > 1, f"dual_clip must be over 1, not {self.dual_clip}")
        checks.require(self.kl_coef >= 0, f"kl_coef must not be negative, not {self.kl_coef}")
        needs_length = "fixed_length" in (self.aggregation, self.penalty_aggregation)
        has_length = self.fixed_length is not None and self.fixed_length > 0
        checks.require(not needs_length or has_length, f"fixed_length must be positive, not {self.fixed_length}")
        self._check_importance()

    def _check_importance(self) -> None:
        if self.importance_level == "off":
            return
        low, high = self.importance_low, self.importance_high
        checks.require(0 <= low <= high, f"importance_low {low} and importance_high {high}: 0 <= low <= high")
        weighs_tokens = self.importance_level == "token" and self.importance_gate == "ratio"
        clips = self.importance_mode == "clip"
        checks.require(weighs_tokens or not clips, "importance_mode 'clip' needs level 'token' and gate 'ratio'")
        bounded_above = self.importance_gate == "ratio" or low == 0
        checks.require(bounded_above, f"importance_gate {self.importance_gate!r} needs importance_low 0, not {low}")


class GrpoMetrics(NamedTuple):
    """0-d float32 tensors without gradient. Means are over unmasked tokens; 0 where the input was not given.

    policy_loss, kl_loss, entropy: the terms of the loss as aggregated, before their coefficients.
    clip_share: share of tokens whose clipped term was taken. ratio_*: of the policy ratio.
    old_kl: mean of old_logp - logp. reference_log_ratio: mean of logp - ref_logp.
    rollout_kl: mean of rollout_logp - old_logp. importance_dropped: share of tokens (or sequences) outside the gate.
    """

    policy_loss: torch.Tensor
    kl_loss: torch.Tensor
    entropy: torch.Tensor
    clip_share: torch.Tensor
    ratio_mean: torch.Tensor
    ratio_min: torch.Tensor
    ratio_max: torch.Tensor
    old_kl: torch.Tensor
    reference_log_ratio: torch.Tensor
    rollout_kl: torch.Tensor
    importance_dropped: torch.Tensor
