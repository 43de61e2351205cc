"""One request to a chat API on its way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ChatJob:
    """One request on its way. `tokens` estimates its prompt and the longest reply; `tries` counts its own failures."""

    index: int
    messages: list[dict[str, str]]
    tokens: int
    prompt_tokens: int
    tries: int = 0
