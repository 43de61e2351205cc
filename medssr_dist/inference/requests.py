"""The requests that an engine pool answers, the samples that come back, and where requests come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from medssr_dist.data.answers import extract_answer


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One prompt, to be sampled `n` times. Sample i is drawn with seed `seed + i`.

    Example: SampleRequest(key="ab12", prompt=(1, 4093, 198), options={"A": "C", "B": "D"}, n=4, seed=1000)
    asks for the samples with seeds 1000 to 1003.

    Attributes:
        key: identifies the request; of a vote, the question's id.
        prompt: token ids (`data.prompt_renderer`).
        options: letter -> option text of the question; the engine extracts the answer with it.
        stop: strings that end a sample. Its text ends before the string, its tokens with the one that completes it.
        opening: the mark with which the prompt opens the thoughts of a sample; it is put in front of the sample's text.
        choices: generate exactly one of these texts (each a single token), greedily; () = free text.
        expected_tokens: tokens that a sample is expected to take; 0 = as many as the mean of all samples.
        logprobs: return the mean log-prob of each sample's tokens too.
        keep_tokens: return the generated tokens too.
    """

    key: str
    prompt: Sequence[int]
    options: Mapping[str, str] = field(default_factory=dict)
    n: int = 1
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    opening: str = ""
    choices: tuple[str, ...] = ()
    expected_tokens: float = 0.0
    logprobs: bool = False
    keep_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample.

    Example: Completion(seed=1002, text="The answer is (B).", tokens=7, truncated=False, answer="B",
    method="statement")

    Attributes:
        seed: the seed that it was drawn with.
        tokens: number of generated tokens.
        truncated: whether it was cut at the token limit, or ends inside its thoughts.
        answer: the letter that the text answers; None if it names none.
        method: the form in which the answer was found (`data.answers`); None without an answer.
        logprob: mean log-prob of its tokens in the policy's own distribution (temperature 1); None if not asked for.
        token_ids: the generated tokens; None if they were not asked for.
    """

    seed: int
    text: str
    tokens: int
    truncated: bool
    answer: str | None = None
    method: str | None = None
    logprob: float | None = None
    token_ids: tuple[int, ...] | None = None

    @classmethod
    def from_text(
        cls,
        request: SampleRequest,
        seed: int,
        text: str,
        tokens: int,
        truncated: bool,
        logprob: float | None = None,
    ) -> Completion:
        """Build a sample of `request` and extract its answer from `text`; a truncated one must state it."""
        text = request.opening + text
        found = extract_answer(text, request.options, truncated)
        return cls(seed, text, tokens, truncated or found.is_open, found.letter, found.method, logprob)


@dataclass(frozen=True, slots=True)
class PoolResult:
    """A sample of the request with this key.

    Example: PoolResult("ab12", Completion(1002, "The answer is (B).", 7, False, "B", "statement"))
    """

    key: str
    sample: Completion


class CompletedRequest(NamedTuple):
    """All samples of a request, by seed.

    Example: CompletedRequest("ab12", [Completion(1000, "(A)", 3, False), Completion(1001, "(B)", 3, False)])
    """

    key: str
    samples: list[Completion]


def make_empty_completions(request: SampleRequest) -> list[Completion]:
    """Return the samples of a request whose prompt fills the whole context: empty and truncated."""
    return [Completion(request.seed + index, "", 0, truncated=True) for index in range(request.n)]


def find_choice_ids(choices: tuple[str, ...], tokenize: Callable[[str], list[int]]) -> list[int]:
    """Return the token id of each of `choices`. Raises ValueError where one is not a single token."""
    ids = [tokenize(choice) for choice in choices]
    if any(len(tokens) != 1 for tokens in ids):
        raise ValueError(f"choices must be single tokens of this tokenizer, got {choices}")
    return [tokens[0] for tokens in ids]


class RequestSource(Protocol):
    """Where the requests of a pool come from."""

    @property
    def is_finished(self) -> bool:
        """Whether no further request will come, not even after the samples in flight have arrived."""

    @property
    def remaining(self) -> int | None:
        """Samples that are still to be requested, once no new questions will come; None = not known yet."""

    def next_request(self, max_samples: int) -> SampleRequest | None:
        """Return the next request, with at most `max_samples` samples; None = nothing to request now."""

    def spare_request(self, max_samples: int) -> SampleRequest | None:
        """Return samples that may turn out to be needed, for an engine that would idle; None = there are none."""

    def pop_unwanted_keys(self) -> list[str]:
        """Return the keys whose samples in flight are no longer needed; each key once."""


class RequestList:
    """A fixed sequence of requests as a `RequestSource`.

    Attributes:
        pending: key -> number of samples, of the requests that were handed out and are not complete.
    """

    remaining: int | None = None

    def __init__(self, requests: Iterator[SampleRequest]):
        self._requests = requests
        self.pending: dict[str, int] = {}
        self.is_finished = False

    def next_request(self, max_samples: int) -> SampleRequest | None:
        request = next(self._requests, None)
        self.is_finished = request is None
        if request:
            self.pending[request.key] = request.n
        return request

    def spare_request(self, max_samples: int) -> None:
        return None

    def pop_unwanted_keys(self) -> list[str]:
        return []
