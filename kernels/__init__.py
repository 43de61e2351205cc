"""Kernels where the hidden states meet the vocabulary, and the GRPO loss on top. Imports only torch and triton.

Shapes: N tokens, H hidden size, V vocabulary, B sequences or groups. See README.md beside this file.
"""

from medssr_dist.kernels.group_advantage import GroupAdvantage, group_advantage
from medssr_dist.kernels.grpo_loss import grpo_loss
from medssr_dist.kernels.grpo_options import GrpoMetrics, GrpoOptions
from medssr_dist.kernels.linear_grpo_loss import linear_grpo_loss
from medssr_dist.kernels.linear_logprob import linear_logprob

__all__ = [
    "GroupAdvantage",
    "GrpoMetrics",
    "GrpoOptions",
    "group_advantage",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_logprob",
]
