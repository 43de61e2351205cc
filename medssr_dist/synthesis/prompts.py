"""The synthesis prompt: two seeds and, when knowledge is injected, a rare entity with its passages.

The paper (section 3.1) gives no prompt text; these words are ours. Each part stands under a bracketed
heading on a line of its own, and everything filled in is folded onto single lines, so that no seed or
passage can pass for a heading. A seed's truth letter never enters the prompt: the question that comes
back is labelled by vote, not by what the seeds were labelled with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from medssr_dist.config import Endpoint
from medssr_dist.records import Question, content_hash

if TYPE_CHECKING:
    from medssr_dist.knowledge.corpus import Passage

SEED_HEADING = "[Seed question {number}]"
ENTITY_HEADING = "[Entity]"
PASSAGE_HEADING = "[Passage {number}]"
TASK_HEADING = "[Task]"
PASSAGE_CHARS = 2400  # 90% of GARD/GHR passages are shorter; longer ones cost more than they add

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
            f"{PASSAGE_HEADING.format(number=number)}\n{_one_line(passage.title)}\n{_shorten(passage.content)}"
            for number, passage in enumerate(passages, start=1)
        ]
        task = _RARE_TASK.format(entity=_one_line(entity))
    parts.append(f"{TASK_HEADING}\n{task}\n{_FORM}")
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def request_body(messages: list[Mapping[str, str]], endpoint: Endpoint) -> dict:
    """The JSON body of a chat completion request."""
    return {
        "model": endpoint.model,
        "messages": messages,
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
    }


def prompt_hash(messages: list[Mapping[str, str]], endpoint: Endpoint) -> str:
    """Hash of all that the reply depends on: messages, model and sampling; not the address or the key."""
    return content_hash(request_body(messages, endpoint))


def _render_seed(seed: Question) -> str:
    options = [f"{letter}. {_one_line(text)}" for letter, text in seed.options.items()]
    return "\n".join([_one_line(seed.stem), *options])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _shorten(content: str) -> str:
    content = _one_line(content)
    if len(content) <= PASSAGE_CHARS:
        return content
    return content[:PASSAGE_CHARS].rsplit(" ", 1)[0] + " ..."
