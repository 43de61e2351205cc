"""Answers to one question share its prompt: the tokens of the prompt are computed once, not once an answer.

The sequences of a micro-batch become one row: a prompt, then all answers to it, then the next prompt. An answer's
tokens stand at the positions that they have in their own sequence, and see their prompt and their own answer alone, so
hidden states are those of the sequences apart, up to rounding (arXiv 2506.05433 does so for long prompts).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class SharedRow:
    """L tokens, in which the sequences of a micro-batch share their prompts; n actions, sequence by sequence.

    tokens, positions: [1, L]. visible: bool [1, 1, L, L], True where the token of a row sees that of a column.
    rows: [n], where each action is predicted. target: [n], the action.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    rows: torch.Tensor
    target: torch.Tensor


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


def shared_row(sequences: torch.Tensor, attention_mask: torch.Tensor, action_mask: torch.Tensor) -> SharedRow:
    """Lay out sequences [B, T] of prompt and answer in one row; actions [B, A] are marked among the last A tokens.

    What stands before a sequence's first action is its prompt; what comes after its last one is left out.
    """
    predicts = F.pad(action_mask.bool(), (sequences.shape[1] - 1 - action_mask.shape[1], 1))
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


def _tensors(row: _Row, rows: list[int], target: list[int], like: torch.Tensor) -> SharedRow:
    if not row.tokens:  # a micro-batch without actions still has its share in ZeRO-3's gathers
        row.add(like[0, :1].tolist(), 0, None)
    tokens, positions, segment, parent, rows, target = (
        torch.tensor(values, dtype=torch.long, device=like.device)
        for values in (row.tokens, row.positions, row.segment, row.parent, rows, target)
    )
    own = segment[:, None] == segment[None]
    visible = (own | (parent[:, None] == segment[None])) & (positions[None] <= positions[:, None])
    return SharedRow(tokens[None], positions[None], visible[None, None], rows, target)
