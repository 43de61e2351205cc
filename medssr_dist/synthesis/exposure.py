"""Tokens that may be billed without a reply ever having come: of requests on the wire, or lost on it.

One number a request in a memory-mapped file, so that it outlives a kill at any moment: what was on the
wire then may have been paid for, is the only thing that may be asked again, and counts in the budget.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medssr_dist.jsonl import raise_if_disk_full


class Exposure:
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
