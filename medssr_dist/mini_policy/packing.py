"""Documents as batches: prompt and reply as token ids, several documents to a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.mini_policy.mini_text import Document, MiniText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
MISFITS = 6
PROMPT = "direct"  # preset of policy.prompt that the mini policy is made for


class TrainingTokens(NamedTuple):
    """Tokens of a document, and the target at each place, IGNORED where no loss is taken."""

    tokens: list[int]
    targets: list[int]


class Batch(NamedTuple):
    """The same for several rows: int64 (sequences, tokens)."""

    tokens_ST: torch.Tensor
    targets_ST: torch.Tensor


class DocumentPacker:
    """Makes batches of documents with a tokenizer and the preset PROMPT."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._renderer = PromptRenderer(tokenizer, load_prompt_form(PROMPT))

    def encode(self, document: Document) -> TrainingTokens:
        """Encode a document; the loss is taken on replies and on whole passages."""
        reply = [*self._tokenizer.encode(document.text), self._tokenizer.eos_token_id]
        if document.question is None:
            return TrainingTokens(reply, [*reply[1:], IGNORED])
        prompt = self._renderer.render(document.question).ids
        return TrainingTokens([*prompt, *reply], [IGNORED] * (len(prompt) - 1) + reply + [IGNORED])

    def pack(self, text: MiniText, rows: int, length: int) -> Batch:
        """Draw documents and put each into the first row that has room for it, behind those that are there.

        The batch ends with the MISFITS-th document that fits nowhere; these are dropped. One longer than `length` is
        cut.
        """
        filled = [TrainingTokens([], []) for _ in range(rows)]
        misfits = 0
        while misfits < MISFITS:
            tokens, targets = self.encode(text.draw())
            row = next((row for row in filled if len(row.tokens) + min(len(tokens), length) <= length), None)
            if row is None:
                misfits += 1
                continue
            row.tokens.extend(tokens[:length])
            row.targets.extend(targets[:length])
        pad = self._tokenizer.pad_token_id
        return Batch(
            torch.tensor([row.tokens + [pad] * (length - len(row.tokens)) for row in filled]),
            torch.tensor([row.targets + [IGNORED] * (length - len(row.targets)) for row in filled]),
        )
