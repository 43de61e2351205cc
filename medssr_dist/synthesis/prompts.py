"""The synthesis prompt: two seed questions and, if knowledge is injected, a rare disease with its passages.

The paper (section 3.1) gives no prompt text; this text is ours. Each part has a bracketed heading on a separate line,
and every inserted text is joined into one line, so that no seed or passage can be mistaken for a heading. The true
answer of a seed is never part of the prompt: the new question is labelled by a vote, not by the labels of the seeds.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from medssr_dist.config.synthesis import Synthesis
from medssr_dist.data.records import LETTERS, Question

if TYPE_CHECKING:
    from medssr_dist.knowledge.passages import Passage

SEED_HEADING = "[Seed question {number}]"
ENTITY_HEADING = "[Entity]"
PASSAGE_HEADING = "[Passage {number}]"
TASK_HEADING = "[Task]"
PASSAGE_CHARS = 2400  # 90% of GARD/GHR passages are shorter; more text costs more than it helps
_RENDERED = 16384  # cache of rendered seeds and passages: each is used in many prompts
_encode = msgspec.json.Encoder().encode

_SYSTEM = "You are a physician who writes multiple-choice questions for medical licensing examinations."
_COMMON_TASK = (
    "Take the two seed questions above as inspiration for topic, style and difficulty, and write ONE new medical "
    "multiple-choice question. It must differ from both seeds in what it tells and what it asks."
)
_RARE_TASK = (
    "Write ONE new medical multiple-choice question about {entity}, in the style and difficulty of the two seed "
    "questions above. Rest every fact that it tells on the passages above; invent none. If {entity} is one of the "
    "options, do not name it in the question."
)
_FORM = (
    "The question must be understood without any figure, table or outside text, and exactly one of its 4 or 5 "
    "options must be correct. Keep the question under 120 words. Do not say which option is correct and do not "
    "explain.\n"
    'Reply with JSON only: {"question": "...", "options": {"A": "...", "B": "...", "C": "...", "D": "..."}}'
)


def build_messages(
    seeds: tuple[Question, Question], entity: str | None, passages: list[Passage]
) -> list[dict[str, str]]:
    """Return chat messages that ask for one new question (paper section 3.1).

    Args:
        seeds: the two seed questions of the draw.
        entity: rare disease to ask about; None for a question without injected knowledge.
        passages: retrieved for `entity`; ignored if `entity` is None.
    """
    parts = [
        f"{SEED_HEADING.format(number=number)}\n{_render_seed(seed)}" for number, seed in enumerate(seeds, start=1)
    ]
    task = _COMMON_TASK
    if entity is not None:
        parts.append(f"{ENTITY_HEADING}\n{_one_line(entity)}")
        parts += [
            f"{PASSAGE_HEADING.format(number=number)}\n{_render_passage(passage.title, passage.content)}"
            for number, passage in enumerate(passages, start=1)
        ]
        task = _RARE_TASK.format(entity=_one_line(entity))
    parts.append(f"{TASK_HEADING}\n{task}\n{_FORM}")
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def hash_request(messages: list[dict[str, str]], synthesis: Synthesis) -> str:
    """Return a hash of everything the reply depends on: messages, models, sampling, JSON schema; not address or key."""
    schema = any(endpoint.json_schema for endpoint in synthesis.endpoints)
    asked = [messages, synthesis.models, synthesis.temperature, synthesis.max_tokens, schema]
    return hashlib.sha256(_encode(asked)).hexdigest()[:16]


def _render_seed(seed: Question) -> str:
    return _render_options(seed.stem, tuple(seed.options.values()))


@lru_cache(maxsize=_RENDERED)
def _render_options(stem: str, options: tuple[str, ...]) -> str:
    lettered = [f"{letter}. {_one_line(text)}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([_one_line(stem), *lettered])


def _one_line(text: str) -> str:
    """Return `text` on one line; a lone surrogate, which cannot be written as UTF-8, is replaced."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


@lru_cache(maxsize=_RENDERED)
def _render_passage(title: str, content: str) -> str:
    content = _one_line(content)
    if len(content) > PASSAGE_CHARS:
        content = content[:PASSAGE_CHARS].rsplit(" ", 1)[0] + " ..."
    return f"{_one_line(title)}\n{content}"
