"""The policy's output layer, with the work that needs its weight done inside its own forward.

Under ZeRO-3 `lm_head.weight` has no elements outside the forward of its module: DeepSpeed's hooks gather it there,
gather it again before the backward of what that forward returned, and reduce its gradient after. So log-probs and
loss are computed where the logits would have been, and take their place as the model's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from medssr_dist.errors import InputError

# Settings of models that change the logits after the output layer, where the kernels do not see them.
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class KernelHead(nn.Linear):
    """A linear output layer, sharing the weight of `linear`, whose forward can be lent to a computation."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight  # the same Parameter: a tied embedding stays tied
        self.register_parameter("bias", None)
        self._compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @contextmanager
    def computing(self, compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """Within, forward gives `compute(hidden, weight)`, one tensor, in place of the logits."""
        self._compute = compute
        try:
            yield
        finally:
            self._compute = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) if self._compute is None else self._compute(hidden, self.weight)


def install_head(model: nn.Module) -> None:
    """Give a Hugging Face model a KernelHead, before DeepSpeed hooks its modules.

    Raises InputError for a model whose logits are more than hidden states times a matrix.
    """
    head = model.get_output_embeddings()
    changes = [name for name in _LOGIT_CHANGES if getattr(model.config, name, None) not in (None, 1.0)]
    changes += ["an output bias"] if getattr(head, "bias", None) is not None else []
    if changes or not isinstance(head, nn.Linear):
        found = ", ".join(changes) or type(head).__name__
        raise InputError(
            f"{type(model).__name__} has {found} at its output, which the training kernels do not compute; choose a "
            "policy.model whose logits are its hidden states times a matrix, such as Qwen3 or Llama"
        )
    model.set_output_embeddings(KernelHead(head))
