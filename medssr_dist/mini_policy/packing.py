"""Documents as batches: prompt and reply as token ids, several documents to a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import LETTERS
from medssr_dist.mini_policy.mini_text import PLAIN, Document, MiniText, TextMix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
LETTER_WEIGHT = 8.0  # our choice: one token of a reply's thirty says whether it is right
MISFITS = 6
PROMPT = "direct"  # preset of policy.prompt that the mini policy is made for


class TrainingTokens(NamedTuple):
    """Tokens of documents, the target at each place (IGNORED where no loss is taken), weights of the losses, places.

    The places start at 0 in each document: the model then attends within a document only.
    """

    tokens: list[int]
    targets: list[int]
    weights: list[float]
    places: list[int]


class Batch(NamedTuple):
    """The same for several rows: int64, int64, float32 and int64, each (sequences, tokens)."""

    tokens_ST: torch.Tensor
    targets_ST: torch.Tensor
    weights_ST: torch.Tensor
    places_ST: torch.Tensor


class DocumentPacker:
    """Makes batches of documents with a tokenizer and the preset PROMPT."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self._tokenizer = tokenizer
        self._letters = {tokenizer.encode(f" {letter}")[-1] for letter in LETTERS[:5]}
        self._renderer = PromptRenderer(tokenizer, load_prompt_form(PROMPT))

    def encode(self, document: Document) -> TrainingTokens:
        """Encode a document; the loss is taken on replies and on whole passages, a letter weighs LETTER_WEIGHT."""
        reply = [*self._tokenizer.encode(document.text), self._tokenizer.eos_token_id]
        if document.question is None:
            targets = [*reply[1:], IGNORED]
            if document.letters_only:
                targets = [target if target in self._letters else IGNORED for target in targets]
            return self._complete(reply, targets)
        prompt = self._renderer.render(document.question).ids
        targets = [IGNORED] * (len(prompt) - 1) + reply + [IGNORED]
        return self._complete([*prompt, *reply], targets)

    def _complete(self, tokens: list[int], targets: list[int]) -> TrainingTokens:
        weights = [LETTER_WEIGHT if target in self._letters else 1.0 for target in targets]
        return TrainingTokens(tokens, targets, weights, list(range(len(tokens))))

    def pack(self, text: MiniText, rows: int, length: int, mix: TextMix = PLAIN) -> Batch:
        """Draw documents and put each into the first row that has room for it, behind those that are there.

        The batch ends with the MISFITS-th document that fits nowhere; these are dropped. One longer than `length` is
        cut.
        """
        filled = [TrainingTokens([], [], [], []) for _ in range(rows)]
        misfits = 0
        while misfits < MISFITS:
            parts = self.encode(text.draw(mix))
            row = next((row for row in filled if len(row.tokens) + min(len(parts.tokens), length) <= length), None)
            if row is None:
                misfits += 1
                continue
            for old, new in zip(row, parts, strict=True):
                old.extend(new[:length])
        fill = (self._tokenizer.pad_token_id, IGNORED, 0.0, 0)
        return Batch(
            *(
                torch.tensor([row[part] + [fill[part]] * (length - len(row[part])) for row in filled])
                for part in range(len(fill))
            )
        )
