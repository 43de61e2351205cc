"""How the sequences of a micro-batch become the model's input: padded, packed, or with shared prompts.

- Padded: one row for each sequence.
- Packed: all sequences in one row, one after another, without padding.
- Shared: one row with a prompt, then all answers to it, then the next prompt, so that the tokens of a prompt are
  computed once and not once for each answer. An answer's tokens have the positions of their own sequence and see only
  their prompt and their own answer. Hidden states equal those of separate sequences, up to rounding (Prefix Grouper,
  arXiv 2506.05433; here with one mask instead of two attentions).

Shapes: B sequences, T tokens of a padded sequence, A actions (generated tokens: the last A of T positions, masked),
S rows of the model's input and L its length (S = B, L = T if padded; S = 1 if packed or shared), R predicted actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """The model's input, and where its output predicts the actions, sequence by sequence.

    attention: the model's mask: [S, L], or bool [1, 1, L, L], or None if the positions separate the sequences.
    length_N: tokens of each sequence of a packed row; None if the mask separates the sequences.
    row_R: index into the S x L positions of the output that predict an action. target_R: the action predicted there.
    """

    token_SL: torch.Tensor
    position_SL: torch.Tensor
    attention: torch.Tensor | None
    row_R: torch.Tensor
    target_R: torch.Tensor
    length_N: torch.Tensor | None = None

    def make_limits(self) -> dict[str, Any]:
        """Return the limits of the sequences in a packed row, under transformers' names; {} if there is a mask."""
        if self.length_N is None:
            return {}
        limits, longest = F.pad(self.length_N.cumsum(0, dtype=torch.int32), (1, 0)), int(self.length_N.max())
        names = {"cu_seq_lens": limits, "max_length": longest}
        return {f"{name}_{side}": value for name, value in names.items() for side in ("q", "k")}


def lay_out_padded(token_BT: torch.Tensor, attention_BT: torch.Tensor, action_BA: torch.Tensor) -> Layout:
    """Return the sequences as they are. `action_BA` masks the generated tokens among the last A tokens."""
    is_real_BT, predicts_BT = attention_BT.bool(), _mark_predicting(token_BT, action_BA)
    position_BT = (attention_BT.long().cumsum(-1) - 1).masked_fill(~is_real_BT, 1)
    target_R = _list_targets(token_BT, predicts_BT)
    return Layout(token_BT, position_BT, attention_BT, _list_rows(predicts_BT), target_R)


def lay_out_packed(token_BT: torch.Tensor, attention_BT: torch.Tensor, action_BA: torch.Tensor) -> Layout:
    """Return one row of all tokens without padding; positions start at 0 in each sequence and so separate them."""
    is_real_BT, predicts_BT = attention_BT.bool(), _mark_predicting(token_BT, action_BA)
    position_BT = attention_BT.long().cumsum(-1) - 1
    row_R, target_R = _list_rows(predicts_BT[is_real_BT]), _list_targets(token_BT, predicts_BT)
    packed = token_BT[is_real_BT][None], position_BT[is_real_BT][None]
    return Layout(*packed, None, row_R, target_R, length_N=attention_BT.sum(-1))


def lay_out_shared(token_BT: torch.Tensor, attention_BT: torch.Tensor, action_BA: torch.Tensor) -> Layout:
    """Return one row in which answers to the same prompt share it; `attention` is True where a token sees another.

    A sequence's prompt is what stands before its first action; tokens after its last action are left out.
    """
    predicts_BT = _mark_predicting(token_BT, action_BA)
    row, prompts, rows, targets = _SharedRow(), {}, [], []
    for tokens, is_real, predicts in zip(token_BT.tolist(), attention_BT.tolist(), predicts_BT.tolist(), strict=True):
        acting = [index for index, value in enumerate(predicts) if value]
        if not acting:
            continue
        first, last = acting[0], acting[-1]
        prompt = [tokens[index] for index in range(first + 1) if is_real[index]]
        if tuple(prompt) not in prompts:
            prompts[tuple(prompt)] = row.append(prompt, 0, None)
        number, start = prompts[tuple(prompt)]
        _, answer = row.append(tokens[first + 1 : last + 1], len(prompt), number)
        rows += [start + len(prompt) - 1 if index == first else answer + index - first - 1 for index in acting]
        targets += [tokens[index + 1] for index in acting]
    return _make_shared_layout(row, rows, targets, token_BT)


def _mark_predicting(token_BT: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
    """Return a mask [B, T] that is True at the token before each action."""
    return F.pad(action_BA.bool(), (token_BT.shape[1] - 1 - action_BA.shape[1], 1))


def _list_rows(predicts: torch.Tensor) -> torch.Tensor:
    return predicts.flatten().nonzero().squeeze(1)


def _list_targets(token_BT: torch.Tensor, predicts_BT: torch.Tensor) -> torch.Tensor:
    return token_BT.roll(-1, dims=1)[predicts_BT]


class _SharedRow:
    """The row with shared prompts while it is built; a segment is a prompt or an answer."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[int] = []  # number of each token's segment
        self.parents: list[int] = []  # number of the prompt of each token's segment
        self._count = 0

    def append(self, tokens: list[int], position: int, parent: int | None) -> tuple[int, int]:
        """Append a segment whose first token has `position`; return its number and the index of its first token."""
        number, start = self._count, len(self.tokens)
        self._count += 1
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.segments += [number] * len(tokens)
        self.parents += [number if parent is None else parent] * len(tokens)
        return number, start


def _make_shared_layout(row: _SharedRow, rows: list[int], targets: list[int], token_BT: torch.Tensor) -> Layout:
    if not row.tokens:  # a micro-batch without actions takes part in ZeRO-3's gathers too
        row.append(token_BT[0, :1].tolist(), 0, None)
    token_L, position_L, segment_L, parent_L, row_R, target_R = (
        torch.tensor(values, dtype=torch.long, device=token_BT.device)
        for values in (row.tokens, row.positions, row.segments, row.parents, rows, targets)
    )
    is_own_LL = segment_L[:, None] == segment_L[None]
    is_prompt_LL = parent_L[:, None] == segment_L[None]
    visible_LL = (is_own_LL | is_prompt_LL) & (position_L[None] <= position_L[:, None])
    return Layout(token_L[None], position_L[None], visible_LL[None, None], row_R, target_R)
