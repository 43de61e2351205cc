"""The policy's output layer, which can compute log-probs or the loss in its forward instead of logits.

Under ZeRO-3, `lm_head.weight` has no elements outside the forward of its module: DeepSpeed's hooks gather it for the
forward, gather it again for the backward, and then reduce its gradient. So log-probs and loss are computed in this
forward, and the model returns them in place of the logits.

Shapes: R rows that predict an action, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from medssr_dist.errors import InputError
from medssr_dist.runtime.model_files import LOGIT_CHANGES


class KernelHead(nn.Linear):
    """A linear output layer with the weight of `linear`, whose forward can run another computation."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight  # the same Parameter, so that a tied embedding stays tied
        self.register_parameter("bias", None)
        self._compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @contextmanager
    def computing(self, compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
        """While the context is open, forward returns `compute(hidden, weight_VH)`, one tensor, in place of logits."""
        self._compute = compute
        try:
            yield
        finally:
            self._compute = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) if self._compute is None else self._compute(hidden, self.weight)


def install_head(model: nn.Module) -> None:
    """Replace the output layer of a Hugging Face model by a KernelHead, before DeepSpeed hooks its modules.

    Raises:
        InputError: the model's logits are not just hidden states times a matrix.
    """
    head = model.get_output_embeddings()
    changes = [name for name in LOGIT_CHANGES if getattr(model.config, name, None) not in (None, 1.0)]
    changes += ["an output bias"] if getattr(head, "bias", None) is not None else []
    if changes or not isinstance(head, nn.Linear):
        found = ", ".join(changes) or type(head).__name__
        raise InputError(
            f"{type(model).__name__} has {found} at its output, which the training kernels do not support; choose a "
            "policy.model whose logits are its hidden states times a matrix, such as Qwen3 or Llama"
        )
    model.set_output_embeddings(KernelHead(head))
