"""Reranking with a cross-encoder, which reads query and passage together (as MedCPT-Cross-Encoder does).

MedCPT (arXiv 2307.00589): the input is the pair [query, title and content], truncated at 512 tokens; the score is the
only logit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medssr_dist.errors import InputError
from medssr_dist.knowledge.encoders import load_pretrained
from medssr_dist.knowledge.passages import Passage

_MAX_TOKENS = 512


class Reranker:
    """A sequence classifier with one output, on the GPU if there is one.

    Raises:
        InputError: the model is not on this machine, or has more than one output.
    """

    def __init__(self, model: str, batch_size: int):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._tokenizer = load_pretrained(AutoTokenizer, model)
        network = load_pretrained(AutoModelForSequenceClassification, model, dtype=torch.float32)
        if network.config.num_labels != 1:
            raise InputError(
                f"knowledge.reranker = {model!r} has {network.config.num_labels} outputs; give a cross-encoder with one"
            )
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network, self._batch_size = network.to(self._device).eval(), batch_size

    def rank(self, query: str, passages: Sequence[Passage], k: int) -> list[Passage]:
        """Return the k passages with the highest scores, best first; equal scores keep the given order."""
        scores = self._score([(query, passage.text) for passage in passages])
        return [passages[place] for place in np.argsort(-scores, kind="stable")[:k]]

    def _score(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Return the scores of n (query, passage text) pairs, float32 [n]."""
        import torch

        scores = []
        with torch.inference_mode():
            for start in range(0, len(pairs), self._batch_size):
                inputs = self._tokenizer(
                    pairs[start : start + self._batch_size],
                    padding=True,
                    truncation=True,
                    max_length=_MAX_TOKENS,
                    return_tensors="pt",
                )
                scores.append(self._network(**inputs.to(self._device)).logits[:, 0].float().cpu().numpy())
        return np.concatenate(scores)
