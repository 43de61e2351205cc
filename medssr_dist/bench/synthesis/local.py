"""The two parts of synthesis that send no requests: decontamination of questions and search for passages."""

from __future__ import annotations

import random
import time

from medssr_dist.config.synthesis import Checks, Knowledge
from medssr_dist.data.records import Question
from medssr_dist.knowledge.search import ExactIndex
from medssr_dist.knowledge.vectors import Vectors
from medssr_dist.synthesis.checks.decontamination import Decontaminator
from medssr_dist.synthesis.checks.wording import join_text

_VOCABULARY = 30_000
_STEM_WORDS = 106  # with the options 126 words, the median of MedQA's questions
_OPTIONS, _OPTION_WORDS = 4, 5
_LEAKED = 0.01  # share of the questions that are evaluation items
_DIMENSION = 768


def draw_questions(count: int, seed: int) -> list[Question]:
    """Return questions whose words follow Zipf's law: texts share common words, and rarely a phrase."""
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(_VOCABULARY)]
    weights = [1 / (rank + 2) for rank in range(_VOCABULARY)]
    drawn = iter(rng.choices(words, weights, k=count * (_STEM_WORDS + _OPTIONS * _OPTION_WORDS)))

    def text(length: int) -> str:
        return " ".join(next(drawn) for _ in range(length))

    return [
        Question.make(text(_STEM_WORDS), [text(_OPTION_WORDS) for _ in range(_OPTIONS)], source="bench")
        for _ in range(count)
    ]


def measure_decontamination(items: int, candidates: int, batch: int = 256) -> float:
    """Return the questions/s that one core checks against `items` evaluation items, in batches like the screen's.

    Raises:
        RuntimeError: unless the check finds exactly the leaked questions.
    """
    benchmark, fresh = draw_questions(items, seed=1), draw_questions(candidates, seed=2)
    leaked = max(1, int(_LEAKED * candidates))
    texts = [join_text(item.stem, item.options.values()) for item in (benchmark * leaked)[:leaked] + fresh[leaked:]]
    check = Decontaminator(benchmark, Checks().decontamination)
    check.check(texts[:batch])
    found, started = 0, time.perf_counter()
    for start in range(0, len(texts), batch):
        found += sum(match is not None for match in check.check(texts[start : start + batch]))
    seconds = time.perf_counter() - started
    if found != leaked:
        raise RuntimeError(f"decontamination found {found} of {leaked} leaked questions")
    return round(len(texts) / seconds, 1)


def measure_retrieval(passages: int, entities: int, batch: int = 4096) -> float:
    """Return the seconds to find the passages of `entities` entities among `passages` vectors with the exact index.

    Encoding is not included.

    Raises:
        RuntimeError: if a query that is itself one of the vectors is not its own first result.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((passages, _DIMENSION), dtype=np.float32)
    queries = vectors[rng.choice(passages, entities)]
    knowledge = Knowledge()
    index = ExactIndex(Vectors.split(vectors, passages))
    started = time.perf_counter()
    for start in range(0, entities, batch):
        part = queries[start : start + batch]
        _, rows = index.search(part, knowledge.top_k)
        if not np.array_equal(vectors[rows[:, 0]], part):
            raise RuntimeError("the index does not find a vector that it contains")
    return round(time.perf_counter() - started, 3)
