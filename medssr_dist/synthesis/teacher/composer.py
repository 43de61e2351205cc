"""From a prompt to a reply: the same prompt and seed always give the same reply."""

from __future__ import annotations

import json
import random

from medssr_dist.records import LETTERS
from medssr_dist.synthesis.teacher.common import compose_common
from medssr_dist.synthesis.teacher.rare import compose_rare
from medssr_dist.synthesis.teacher.reading import PromptParts


def compose_reply(prompt: PromptParts, seed: str, most_options: int = 5) -> str:
    """The reply's text: JSON in the form that the prompt asks for, without an answer."""
    rng = random.Random(seed)
    if prompt.entity and prompt.passages:
        draft = compose_rare(prompt, rng)
        stem, options = draft.stem, [draft.correct, *draft.wrong[: most_options - 1]]
        rng.shuffle(options)
    else:
        stem, options = compose_common(prompt, rng, most_options)
    return json.dumps({"question": stem, "options": dict(zip(LETTERS, options, strict=False))}, ensure_ascii=False)
