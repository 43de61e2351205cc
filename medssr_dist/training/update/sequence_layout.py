"""How the sequences of a micro-batch become the model's input: padded, packed, or with shared prompts.

- Padded: one row for each sequence.
- Packed: all sequences in one row, one after another, without padding.
- Shared: one row for each prompt, with the prompt and then all answers to it, so that the tokens of a prompt are
  computed once and not once for each answer. An answer's tokens have the positions of their own sequence and see only
  their prompt and their own answer. Hidden states equal those of separate sequences, up to rounding (Prefix Grouper,
  arXiv 2506.05433; here with one mask instead of two attentions).

Shapes: B sequences, T tokens of a padded sequence, A actions (generated tokens: the last A of T positions, masked),
S rows of the model's input and L its length (padded: S = B, L = T; packed: S = 1; shared: S prompts), R predicted
actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

_PROMPT, _PADDING = 0, -1  # owners of a token that no answer has


@dataclass(frozen=True)
class Layout:
    """The model's input, and where its output predicts the actions, sequence by sequence.

    attention: the model's mask: [S, L], or bool [S, 1, L, L], or None if the positions separate the sequences.
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
    """Return a row for each prompt, with all answers to it; `attention` is True where a token sees another.

    A sequence's prompt is what stands before its first action; tokens after its last action are left out.
    """
    predicts_BT = _mark_predicting(token_BT, action_BA)
    rows: dict[tuple[int, ...], _PromptRow] = {}
    places, targets = [], []  # of all actions: (row, index in it) of the token that predicts it, and the action
    for tokens, is_real, predicts in zip(token_BT.tolist(), attention_BT.tolist(), predicts_BT.tolist(), strict=True):
        acting = [index for index, value in enumerate(predicts) if value]
        if not acting:
            continue
        first, last = acting[0], acting[-1]
        prompt = [tokens[index] for index in range(first + 1) if is_real[index]]
        if tuple(prompt) not in rows:
            rows[tuple(prompt)] = _PromptRow(len(rows), prompt)
        row = rows[tuple(prompt)]
        answer = row.append(tokens[first + 1 : last + 1])
        places += [(row.number, len(prompt) - 1 if index == first else answer + index - first - 1) for index in acting]
        targets += [tokens[index + 1] for index in acting]
    if not rows:  # a micro-batch without actions takes part in ZeRO-3's gathers too
        rows[()] = _PromptRow(0, token_BT[0, :1].tolist())
    return _make_shared_layout(list(rows.values()), places, targets, token_BT)


def _mark_predicting(token_BT: torch.Tensor, action_BA: torch.Tensor) -> torch.Tensor:
    """Return a mask [B, T] that is True at the token before each action."""
    return F.pad(action_BA.bool(), (token_BT.shape[1] - 1 - action_BA.shape[1], 1))


def _list_rows(predicts: torch.Tensor) -> torch.Tensor:
    return predicts.flatten().nonzero().squeeze(1)


def _list_targets(token_BT: torch.Tensor, predicts_BT: torch.Tensor) -> torch.Tensor:
    return token_BT.roll(-1, dims=1)[predicts_BT]


class _PromptRow:
    """The row of a prompt while it is built.

    Attributes:
        owners: of each token: 0 for the prompt, else the number of its answer, from 1 on.
    """

    def __init__(self, number: int, prompt: list[int]) -> None:
        self.number = number
        self.tokens, self.positions, self.owners = list(prompt), list(range(len(prompt))), [_PROMPT] * len(prompt)
        self._prompt, self._answers = len(prompt), 0

    def append(self, answer: list[int]) -> int:
        """Append an answer; return the index of its first token."""
        start = len(self.tokens)
        self._answers += 1
        self.tokens += answer
        self.positions += range(self._prompt, self._prompt + len(answer))
        self.owners += [self._answers] * len(answer)
        return start


def _make_shared_layout(
    rows: list[_PromptRow], places: list[tuple[int, int]], targets: list[int], token_BT: torch.Tensor
) -> Layout:
    length = max(len(row.tokens) for row in rows)

    def pad(lists: list[list[int]], filler: int) -> torch.Tensor:
        padded = [values + [filler] * (length - len(values)) for values in lists]
        return torch.tensor(padded, dtype=torch.long, device=token_BT.device)

    token_SL, position_SL = pad([row.tokens for row in rows], 0), pad([row.positions for row in rows], 0)
    owner_SL = pad([row.owners for row in rows], _PADDING)
    is_own_SLL = owner_SL[:, :, None] == owner_SL[:, None]
    visible_SLL = (is_own_SLL | (owner_SL == _PROMPT)[:, None]) & (position_SL[:, None] <= position_SL[:, :, None])
    row_R = torch.tensor([row * length + index for row, index in places], dtype=torch.long, device=token_BT.device)
    target_R = torch.tensor(targets, dtype=torch.long, device=token_BT.device)
    return Layout(token_SL, position_SL, visible_SLL[:, None], row_R, target_R)
