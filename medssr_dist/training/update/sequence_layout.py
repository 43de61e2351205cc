"""How the sequences of a micro-batch are laid out for the model: side by side, end to end, or sharing their prompts.

Shared: the sequences become one row, a prompt, then all answers to it, then the next prompt, so that the tokens of a
prompt are computed once and not once an answer. An answer's tokens stand at the positions that they have in their own
sequence, and see their prompt and their own answer alone: hidden states are those of the sequences apart, up to
rounding (Prefix Grouper, arXiv 2506.05433, by a mask in place of two attentions).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Layout:
    """What the model is given, and where in what it gives the actions are predicted, sequence by sequence.

    tokens, positions: [R, L]. attention: the model's mask, None where `positions` tell the sequences apart.
    rows: [n], of R x L. target: [n], the action that is predicted there.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    attention: torch.Tensor | None
    rows: torch.Tensor
    target: torch.Tensor


def padded(sequences: torch.Tensor, attention_mask: torch.Tensor, action_mask: torch.Tensor) -> Layout:
    """Sequences [B, T] as they are. Actions [B, A] are marked among the last A tokens, here and in the others."""
    real, predicts = attention_mask.bool(), _predicts(sequences, action_mask)
    positions = (attention_mask.long().cumsum(-1) - 1).masked_fill(~real, 1)
    return Layout(sequences, positions, attention_mask, _where(predicts), _target(sequences, predicts))


def packed(sequences: torch.Tensor, attention_mask: torch.Tensor, action_mask: torch.Tensor) -> Layout:
    """One row of all real tokens; attention tells the sequences apart by positions that begin again."""
    real, predicts = attention_mask.bool(), _predicts(sequences, action_mask)
    positions = attention_mask.long().cumsum(-1) - 1
    return Layout(
        sequences[real][None], positions[real][None], None, _where(predicts[real]), _target(sequences, predicts)
    )


def _predicts(sequences: torch.Tensor, action_mask: torch.Tensor) -> torch.Tensor:
    """[B, T], True at the token before each action."""
    return F.pad(action_mask.bool(), (sequences.shape[1] - 1 - action_mask.shape[1], 1))


def _where(predicts: torch.Tensor) -> torch.Tensor:
    return predicts.flatten().nonzero().squeeze(1)


def _target(sequences: torch.Tensor, predicts: torch.Tensor) -> torch.Tensor:
    return sequences.roll(-1, dims=1)[predicts]


class _Row:
    """The row while it is being laid out."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segment: list[int] = []  # of a token: its prompt, or its answer
        self.parent: list[int] = []  # the prompt of its segment
        self._segments = 0

    def add(self, tokens: list[int], position: int, parent: int | None) -> tuple[int, int]:
        """Append a segment whose first token stands at `position`; its number and the place of its first token."""
        number, start = self._segments, len(self.tokens)
        self._segments += 1
        self.tokens += tokens
        self.positions += range(position, position + len(tokens))
        self.segment += [number] * len(tokens)
        self.parent += [number if parent is None else parent] * len(tokens)
        return number, start


def shared(sequences: torch.Tensor, attention_mask: torch.Tensor, action_mask: torch.Tensor) -> Layout:
    """One row, in which answers to the same prompt share it. `attention` is bool [1, 1, L, L], True where one sees.

    What stands before a sequence's first action is its prompt; what comes after its last one is left out.
    """
    predicts = _predicts(sequences, action_mask)
    row, prompts, rows, target = _Row(), {}, [], []
    for tokens, real, ahead in zip(sequences.tolist(), attention_mask.tolist(), predicts.tolist(), strict=True):
        acting = [index for index, acts in enumerate(ahead) if acts]
        if not acting:
            continue
        first, last = acting[0], acting[-1]
        prompt = [tokens[index] for index in range(first + 1) if real[index]]
        if tuple(prompt) not in prompts:
            prompts[tuple(prompt)] = row.add(prompt, 0, None)
        number, start = prompts[tuple(prompt)]
        _, answer = row.add(tokens[first + 1 : last + 1], len(prompt), number)
        rows += [start + len(prompt) - 1 if index == first else answer + index - first - 1 for index in acting]
        target += [tokens[index + 1] for index in acting]
    return _tensors(row, rows, target, sequences)


def _tensors(row: _Row, rows: list[int], target: list[int], like: torch.Tensor) -> Layout:
    if not row.tokens:  # a micro-batch without actions still has its share in ZeRO-3's gathers
        row.add(like[0, :1].tolist(), 0, None)
    tokens, positions, segment, parent, rows, target = (
        torch.tensor(values, dtype=torch.long, device=like.device)
        for values in (row.tokens, row.positions, row.segment, row.parent, rows, target)
    )
    own = segment[:, None] == segment[None]
    visible = (own | (parent[:, None] == segment[None])) & (positions[None] <= positions[:, None])
    return Layout(tokens[None], positions[None], visible[None, None], rows, target)
