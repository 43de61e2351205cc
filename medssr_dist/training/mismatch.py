"""Warns when the rollout engines compute other probabilities than the training forward, and when that is over."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

# With 16-bit weights, a KL of 0.001 to 0.01 and a few tokens in 1,000 beyond a factor of 2 are usual. In float32 both
# sides agree within a few units of 1e-5, so that a single weight that has not arrived can be seen.
_MOST_KL, _MOST_BEYOND_2X, _MOST_RATIO_FLOAT32 = 0.05, 0.02, 1.01

logger = logging.getLogger(__name__)


class MismatchWatch:
    """Looks at the metrics of each step before its weight sync, which compares all weights if it finds something.

    Args:
        stage: name of the stage.
        dtype: of the weights in the rollout engines: `policy.dtype`, or fp8.
    """

    def __init__(self, stage: str, dtype: str):
        self._stage, self._is_far = stage, False
        self._most_ratio = _MOST_RATIO_FLOAT32 if dtype == "float32" else math.inf

    def check(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Warn at the first step at which the probabilities are far apart, and say when they are close again.

        Args:
            metrics: of the step, by field name of StepMetrics.

        Returns:
            Whether they are far apart.
        """
        kl = metrics.get("rollout_kl")
        if kl is None or metrics.get("policy_lag"):  # samples of older weights differ by the steps in between
            return False
        beyond, largest = metrics.get("rollout_beyond_2x") or 0.0, metrics.get("rollout_ratio_max") or 0.0
        is_far = abs(kl) > _MOST_KL or beyond > _MOST_BEYOND_2X or largest > self._most_ratio
        numbers = f"KL {kl:.2g}, {beyond:.2%} of tokens beyond a factor of 2, the largest {largest:.3g}"
        if is_far and not self._is_far:
            logger.warning(
                "%s step %d: the rollout engines' probabilities differ from those of the training forward (%s); the "
                "weight sync of this step compares all weights, and names one that does not arrive; if all arrive, "
                "correct for it with training.%s.importance=token, or compare policy.dtype and training.attention "
                "with what vLLM uses",
                *(self._stage, step, numbers, self._stage),
            )
        if self._is_far and not is_far:
            logger.info("%s step %d: the probabilities are close again (%s)", self._stage, step, numbers)
        self._is_far = is_far
        return is_far
