"""Attention over packed rows by torch alone, as an attention implementation of transformers named `VARLEN`.

A packed row is several sequences, one after another. Each attends to its own tokens only: the limits of the sequences
(`Layout.make_limits`) pass through the model to this function, which computes

- on a GPU of compute capability 8.0 or newer, in 16 bits: `torch.nn.attention.varlen.varlen_attn`, flash attention in
  one call for all sequences, so that the package flash-attn is not needed;
- otherwise (CPU, float32, heads that the kernel does not take): torch's dense attention, sequence by sequence.

Rows with padding have a mask instead of limits, and are computed by transformers' `sdpa`.

Shapes: L tokens of the packed row, N sequences, Q query heads, K key heads, D size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from medssr_dist.training.backend.options import VARLEN

_LARGEST_HEAD, _HEAD_MULTIPLE = 256, 8  # of the flash attention kernel
_OLDEST_GPU = (8, 0)
# What some models ask of their attention, and neither of our two ways computes.
_NOT_COMPUTED = ("softcap", "s_aux", "position_bias")


def attend(
    module: torch.nn.Module,
    query_1QLD: torch.Tensor,
    key_1KLD: torch.Tensor,
    value_1KLD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Return the output of a layer's attention, [1, L, Q, D], and None; transformers states the interface.

    Args:
        attention_mask: of rows with padding; None for a packed row.
        sliding_window: a token sees this many tokens, itself included; None = all tokens before it.
        cu_seq_lens_q: the limits of the sequences, int32 [N + 1].
        max_length_q: length of the longest sequence.

    Raises:
        RuntimeError: a packed row without limits (its sequences would see each other), or a model whose attention has
            a part that is not computed here.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(
            module, query_1QLD, key_1KLD, value_1KLD, attention_mask, dropout, scaling, **options
        )
    if cu_seq_lens_q is None:
        raise RuntimeError("attention=varlen: this model does not pass the limits of the sequences to its attention")
    asked = [name for name in _NOT_COMPUTED if options.get(name) is not None] + ["dropout"] * bool(dropout)
    if asked:
        raise RuntimeError(f"attention=varlen does not compute {', '.join(asked)}; set training.attention=sdpa")
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query_1QLD, key_1KLD, value_1KLD))
    attend_packed = _attend_at_once if _fits_kernel(query) else _attend_in_turn
    return attend_packed(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window)[None], None


def _fits_kernel(query_LQD: torch.Tensor) -> bool:
    head = query_LQD.shape[-1]
    return (
        query_LQD.is_cuda
        and query_LQD.dtype in (torch.bfloat16, torch.float16)
        and head <= _LARGEST_HEAD
        and head % _HEAD_MULTIPLE == 0
        and torch.cuda.get_device_capability(query_LQD.device) >= _OLDEST_GPU
    )


def _attend_at_once(
    query_LQD: torch.Tensor,
    key_LKD: torch.Tensor,
    value_LKD: torch.Tensor,
    limit_N1: torch.Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Return the output, [L, Q, D], by flash attention."""
    seen_before = -1 if sliding_window is None else sliding_window - 1
    return varlen_attn(
        query_LQD,
        key_LKD,
        value_LKD,
        limit_N1,
        limit_N1,
        longest,
        longest,
        scale=scaling,
        window_size=(seen_before, 0),
        enable_gqa=query_LQD.shape[1] != key_LKD.shape[1],
    )


def _attend_in_turn(
    query_LQD: torch.Tensor,
    key_LKD: torch.Tensor,
    value_LKD: torch.Tensor,
    limit_N1: torch.Tensor,
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Return the output, [L, Q, D], by dense attention within each sequence."""
    lengths = limit_N1.diff().tolist()
    parts = zip(*(tensor.transpose(0, 1).split(lengths, 1) for tensor in (query_LQD, key_LKD, value_LKD)), strict=True)
    outputs = [_attend_densely(*part, scaling, sliding_window) for part in parts]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def _attend_densely(
    query_QTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
) -> torch.Tensor:
    """Return the output for one sequence of T tokens, [Q, T, D]."""
    length, mask = query_QTD.shape[1], None
    if sliding_window is not None and sliding_window < length:
        seen = torch.ones(length, length, dtype=torch.bool, device=query_QTD.device)
        mask = seen.tril() & seen.triu(1 - sliding_window)
    return F.scaled_dot_product_attention(
        query_QTD[None],
        key_KTD[None],
        value_KTD[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query_QTD.shape[0] != key_KTD.shape[0],
    )[0]


def make_mask(attention_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor | None:
    """Return the mask of rows with padding, [S, 1, L, L]; None for a packed row, whose limits take its place."""
    if attention_mask is None:
        return None
    return sdpa_mask(attention_mask=attention_mask, **(options | {"allow_is_causal_skip": False}))


AttentionInterface.register(VARLEN, attend)
AttentionMaskInterface.register(VARLEN, make_mask)
