"""What is asked of an engine pool and what comes back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One prompt, sampled `n` times. Sample i draws with seed `seed + i`.

    `choices`: generate exactly one of these texts (each a single token), greedily; () = free text.
    """

    key: str
    prompt: str
    n: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sample of a request: its text, generated tokens, and the seed it was drawn with."""

    text: str
    tokens: int
    truncated: bool
    seed: int
