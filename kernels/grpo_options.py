"""The options of the GRPO loss, checked when they are made, and the metrics that the loss reports."""

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
    """Loss = policy term + kl_coef * KL to the reference - entropy_coef * entropy.

    >>> GrpoOptions(clip_low=0.2, clip_high=0.28, kl_coef=1e-3, aggregation="token_mean")  # DAPO's clip-higher

    Attributes:
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]. clip_high > clip_low is DAPO's
            clip-higher (https://arxiv.org/abs/2503.14476).
        dual_clip: bounds the policy term of tokens with a negative advantage to dual_clip * |advantage|
            (https://arxiv.org/abs/1912.09729). Must be over 1; None turns it off.
        ratio: "token": each token's own ratio (PPO, GRPO). "sequence": the geometric mean of the ratios of a sequence
            (GSPO, https://arxiv.org/abs/2507.18071).
        kl_estimator: "k1", "k2" or "k3" of http://joschu.net/blog/kl-approx.html, clamped to [-10, 10].
        kl_unbiased: keep the estimator's value, but use an unbiased estimate of the reverse KL's gradient.
        entropy_coef: None: the entropy is not computed. 0.0: it is computed for the metrics alone.
        aggregation: of the policy term over tokens. "token_mean": sum / tokens. "sequence_mean": mean over sequences of
            the mean over each one's tokens. "fixed_length": sum / (sequences * fixed_length) (Dr. GRPO,
            https://arxiv.org/abs/2503.20783).
        penalty_aggregation: the same for KL and entropy. None: as `aggregation`.
        fixed_length: the length that "fixed_length" divides by, tokens.
        importance_level: importance correction for samples of another engine, as in OpenRLHF; the ratio is
            exp(old_logp - rollout_logp). "off"; "token": each token is tested; "sequence": each sequence is tested.
            With `ratio` "sequence", the sequence ratio is taken against rollout_logp and nothing is tested.
        importance_gate: what is tested against [importance_low, importance_high]: "ratio", or the divergence of the two
            policies at the sampled token: "binary_kl" or "tv" (total variation).
        importance_mode: "mask": tokens outside the interval are dropped, and the others are weighted by their ratio.
            "clip": the ratio is clamped to the interval (level "token" and gate "ratio" only).

    Raises:
        ValueError: a value that is not allowed, or options that contradict each other.
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
    """Metrics of one call: 0-d float32 tensors without gradient. Means and shares are over unmasked tokens.

    A metric whose input was not given is 0. The worked example is the first token of a rollout with ratio 1.5, clipped
    to 1.2, and advantage 2: policy_loss -2.4, clip_share 1, ratio_mean = ratio_min = ratio_max = 1.5.

    Attributes:
        policy_loss, kl_loss, entropy: the terms of the loss after aggregation, without their coefficients.
        clip_share: share of the tokens whose clipped term is the smaller one.
        ratio_mean, ratio_min, ratio_max: of the policy ratio.
        old_kl: mean of old_logp - logp.
        reference_log_ratio: mean of logp - ref_logp.
        rollout_kl: mean of rollout_logp - old_logp, the KL of the rollout engine's policy to the trained one.
        rollout_beyond_2x: share of the tokens whose probabilities under the two differ by more than a factor of 2.
        rollout_ratio_max: the largest of these factors, at most e^80.
        importance_dropped: share of the tokens (level "sequence": of the sequences) outside the importance interval.
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
    rollout_beyond_2x: torch.Tensor
    rollout_ratio_max: torch.Tensor
    importance_dropped: torch.Tensor
