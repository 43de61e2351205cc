"""The optimizer state of a checkpoint, completed for torch's fused AdamW, which training uses.

Earlier versions trained with DeepSpeed's AdamW: it has the same moments, but counts steps in whole numbers, and other
options. DeepSpeed's universal form gives all parts of a rank one shared count, which torch would increase once for each
part.
"""

from __future__ import annotations

import torch


def complete_optimizer_state(optimizer: torch.optim.AdamW) -> None:
    """Give each state its own count of steps, a tensor on the device of its weights, and switch the fused form on."""
    for group in optimizer.param_groups:
        group.update({"fused": True, "foreach": None})
    for weight, state in optimizer.state.items():
        state["step"] = torch.tensor(float(state["step"]), dtype=torch.float32, device=weight.device)
