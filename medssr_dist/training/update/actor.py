"""The policy network of a rank: OpenRLHF's Actor, whose output layer computes log-probs or the loss, not logits.

Only rows that predict an unmasked action reach the output layer; rows of prompt and padding are dropped before it.
Options of OpenRLHF's Actor that this class does not read (images, ring attention, mixture-of-experts loss) are fixed to
off in `backend/options.py`.

Shapes: B sequences, T tokens, A = T - 1 actions (token t + 1 is the action of row t), R rows that predict an unmasked
action, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from medssr_dist.config.training import Training
from medssr_dist.errors import InputError
from medssr_dist.kernels import linear_logprob
from medssr_dist.training.backend.openrlhf import Actor
from medssr_dist.training.backend.strategy import Strategy
from medssr_dist.training.update import varlen_attention  # noqa: F401  registers itself with transformers
from medssr_dist.training.update.lm_head import KernelHead, install_head
from medssr_dist.training.update.sequence_layout import Layout, lay_out_packed, lay_out_padded, lay_out_shared

# (token_BT, attention_BT, action_BA) -> the model's input
LayOut = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Layout]
# (hidden_RH, weight_VH, target_R) -> one tensor
OverRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class KernelActor(Actor):
    """OpenRLHF's Actor with the kernels in its output layer.

    Args:
        lay_out: turns sequences into the model's input; a function of `sequence_layout.py`.
    """

    def __init__(self, *args: Any, lay_out: LayOut = lay_out_padded, **kwargs: Any):
        super().__init__(*args, **kwargs)
        install_head(self.model)
        self._lay_out = lay_out

    @property
    def head(self) -> KernelHead:
        return self.model.get_output_embeddings()

    def forward(
        self,
        sequences_BT: torch.Tensor,
        actions_BA: torch.Tensor,
        attention_mask: torch.Tensor,
        ring_attn_group: None = None,
        packed_seq_lens: None = None,
    ) -> torch.Tensor:
        """Return the log-probs of the actions at the rollout temperature: logp_BA in fp32, 0 where masked."""

        def compute(hidden_RH: torch.Tensor, weight_VH: torch.Tensor, target_R: torch.Tensor) -> torch.Tensor:
            return linear_logprob(hidden_RH, weight_VH, target_R, temperature=self.temperature)

        logp_R = self.over_rows(compute, sequences_BT, actions_BA, attention_mask)
        return torch.zeros(actions_BA.shape, device=logp_R.device).masked_scatter(actions_BA.bool(), logp_R)

    def over_rows(
        self, compute: OverRows, sequences_BT: torch.Tensor, actions_BA: torch.Tensor, attention_BT: torch.Tensor
    ) -> torch.Tensor:
        """Run the model with `compute` in place of its output layer, over the rows that predict an unmasked action.

        Args:
            actions_BA: mask of the last A tokens that are generated; the row before a token predicts it.
        """
        layout = self._lay_out(sequences_BT, attention_BT, actions_BA)

        def compute_rows(hidden: torch.Tensor, weight_VH: torch.Tensor) -> torch.Tensor:
            return compute(hidden.flatten(0, 1).index_select(0, layout.row_R), weight_VH, layout.target_R)

        with self.head.computing(compute_rows):
            output = self.model(
                layout.token_SL,
                attention_mask=layout.attention,
                position_ids=layout.position_SL,
                **layout.make_limits(),
            )
        return output["logits"]


def load_actor(strategy: Strategy, folder: str, ds_config: dict[str, Any], lora_rank: int = 0) -> KernelActor:
    """Load the model in `folder` for this rank, in shards if `ds_config` is for ZeRO-3."""
    args, training = strategy.args, strategy.config.training
    if training.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise InputError(
            "training.attention = flash_attention_2 needs the package flash-attn, which is absent; set "
            "training.attention=varlen"
        )
    return KernelActor(
        folder,
        attn_implementation=args.ds.attn_implementation,
        experts_implementation=args.ds.experts_implementation,
        param_dtype=args.ds.param_dtype,
        lora_rank=lora_rank,
        lora_alpha=args.ds.lora.alpha,
        target_modules=args.ds.lora.target_modules,
        lora_dropout=args.ds.lora.dropout,
        ds_config=ds_config,
        packing_samples=args.ds.packing_samples,
        temperature=args.rollout.temperature,
        lay_out=choose_layout(training),
    )


def choose_layout(training: Training) -> LayOut:
    """Return the function of `sequence_layout.py` that the config chooses."""
    if training.share_prompts:
        return lay_out_shared
    return lay_out_packed if training.packing else lay_out_padded
