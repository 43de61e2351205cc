"""The synthesis prompt: two seeds and, when knowledge is injected, a rare entity with its passages.

The paper (section 3.1) gives no prompt text; these words are ours. Each part stands under a bracketed
heading on a line of its own, and everything filled in is folded onto single lines, so that no seed or
passage can pass for a heading. A seed's truth letter never enters the prompt: the question that comes
back is labelled by vote, not by what the seeds were labelled with.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from medssr_dist.config.synthesis import Endpoint, Synthesis
from medssr_dist.data.records import LETTERS, Question

if TYPE_CHECKING:
    from medssr_dist.knowledge.corpus import Passage

SEED_HEADING = "[Seed question {number}]"
ENTITY_HEADING = "[Entity]"
PASSAGE_HEADING = "[Passage {number}]"
TASK_HEADING = "[Task]"
PASSAGE_CHARS = 2400  # 90% of GARD/GHR passages are shorter; longer ones cost more than they add
_RENDERED = 16384  # seeds and passages that are held rendered: they come again and again
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

_OPTION_LETTERS = ("A", "B", "C", "D")
# Strict schemas know no optional key, so under a schema every question has four options.
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "question",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "question": {"type": "string"},
                "options": {
                    "type": "object",
                    "properties": {letter: {"type": "string"} for letter in _OPTION_LETTERS},
                    "required": list(_OPTION_LETTERS),
                    "additionalProperties": False,
                },
            },
            "required": ["question", "options"],
            "additionalProperties": False,
        },
    },
}


def build_messages(
    seeds: tuple[Question, Question], entity: str | None, passages: list[Passage]
) -> list[dict[str, str]]:
    """Chat messages that ask for one new question (paper section 3.1).

    Args:
        seeds: the two seed questions of the draw.
        entity: rare disease to ask about; None for a question without injected knowledge.
        passages: retrieved for `entity`; ignored when it is None.
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


def request_body(messages: list[dict[str, str]], endpoint: Endpoint, synthesis: Synthesis) -> dict[str, Any]:
    """The JSON body of a chat completion request to `endpoint`."""
    body = {
        "model": endpoint.model,
        "messages": messages,
        "temperature": synthesis.temperature,
        "max_tokens": synthesis.max_tokens,
    }
    if endpoint.json_schema:
        body["response_format"] = RESPONSE_FORMAT
    return body


def request_hash(messages: list[dict[str, str]], synthesis: Synthesis) -> str:
    """Hash of all that the reply depends on: messages, models, sampling and form; not addresses or keys."""
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
    """`text` on one line; half a surrogate pair, which has no UTF-8 form, is replaced."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


@lru_cache(maxsize=_RENDERED)
def _render_passage(title: str, content: str) -> str:
    content = _one_line(content)
    if len(content) > PASSAGE_CHARS:
        content = content[:PASSAGE_CHARS].rsplit(" ", 1)[0] + " ..."
    return f"{_one_line(title)}\n{content}"
