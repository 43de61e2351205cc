"""What is asked of an engine pool and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from medssr_dist.data.answers import extract_answer


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt, sampled `n` times. Sample i draws with seed `seed + i`.

    `choices`: generate exactly one of these texts (each a single token), greedily; () = free text.
    `options`: letter -> text of the question, by which the answer is extracted beside the engine.
    `length`: tokens a sample is expected to take; 0 = as most do.
    """

    key: str
    prompt: str
    options: Mapping[str, str] = field(default_factory=dict)
    n: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    choices: tuple[str, ...] = ()
    length: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample: its text, what it answers, its generated tokens, and the seed it was drawn with."""

    seed: int
    text: str
    tokens: int
    truncated: bool
    answer: str | None = None  # the letter; None if the text names none
    method: str | None = None

    @classmethod
    def from_text(cls, request: SampleRequest, seed: int, text: str, tokens: int, truncated: bool) -> Completion:
        """A sample of `request`, with its answer extracted."""
        found = extract_answer(text, request.options)
        return cls(seed, text, tokens, truncated, found.letter, found.method)


def make_empty_completions(request: SampleRequest) -> list[Completion]:
    """The samples of a request whose prompt fills the context: empty and truncated."""
    return [Completion(request.seed + index, "", 0, truncated=True) for index in range(request.n)]


def find_choice_ids(choices: tuple[str, ...], tokenize: Callable[[str], list[int]]) -> list[int]:
    """The token of each of `choices`. Raises ValueError where one is not a single token."""
    ids = [tokenize(choice) for choice in choices]
    if any(len(tokens) != 1 for tokens in ids):
        raise ValueError(f"choices must be single tokens of this tokenizer, got {choices}")
    return [tokens[0] for tokens in ids]


class RequestSource(Protocol):
    """Where the requests come from."""

    @property
    def is_finished(self) -> bool:
        """Nothing will be asked any more; also not once what is out has come back."""

    @property
    def remaining(self) -> int | None:
        """Samples that can still be asked for, where no new questions are to come; None = plenty."""

    def next_request(self, max_samples: int) -> SampleRequest | None:
        """The next request, of at most `most` samples; None = nothing to ask now."""

    def spare_request(self, max_samples: int) -> SampleRequest | None:
        """Samples that may turn out to be needed, for an engine that would idle."""

    def pop_unwanted_keys(self) -> list[str]:
        """Keys whose samples on the way are no longer wanted, each told once."""


class RequestList:
    """A plain list of requests as a source of work."""

    remaining = None

    def __init__(self, requests: Iterator[SampleRequest]):
        self._requests = requests
        self.asked: dict[str, int] = {}
        self.is_finished = False

    def next_request(self, max_samples: int) -> SampleRequest | None:
        request = next(self._requests, None)
        self.is_finished = request is None
        if request:
            self.asked[request.key] = request.n
        return request

    def spare_request(self, max_samples: int) -> None:
        return None

    def pop_unwanted_keys(self) -> list[str]:
        return []
