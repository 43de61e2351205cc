"""Kernels for the language-model head and the GRPO loss. They import torch and triton alone.

Shapes: N tokens, H hidden size, V vocabulary, B sequences or groups. README.md in this folder has the overview.
"""

from medssr_dist.kernels.group_advantage import GroupAdvantage, group_advantage
from medssr_dist.kernels.grpo_loss import GrpoLoss, grpo_loss
from medssr_dist.kernels.grpo_options import GrpoMetrics, GrpoOptions
from medssr_dist.kernels.linear_grpo_loss import linear_grpo_loss
from medssr_dist.kernels.linear_logprob import LogprobEntropy, linear_logprob

__all__ = [
    "GroupAdvantage",
    "GrpoLoss",
    "GrpoMetrics",
    "GrpoOptions",
    "LogprobEntropy",
    "group_advantage",
    "grpo_loss",
    "linear_grpo_loss",
    "linear_logprob",
]
