"""Details in a page: rows in blocks of compressed JSON, as many as a budget of bytes allows.

A block is the JSON of a list of rows, compressed by deflate, in base64, in a <script> element that browsers do not run.
The page's own script decompresses a block when a reader asks for one of its rows. The most important rows come first,
so a budget leaves out what matters least. The page always states how many rows of how many it has.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from medssr_dist.secret_registry import scrub

_LEVEL = 9
_TAG_BYTES = 64  # of the element around a block


@dataclass(frozen=True)
class DetailBlock:
    """A block of rows, ready for the page. Example: DetailBlock(name="questions-0", text="eJyLjgUAARUAuQ==")"""

    name: str
    text: str

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.text) + len(self.name) + _TAG_BYTES


@dataclass(frozen=True)
class DetailKind:
    """How many rows of a kind the page holds.

    Example: DetailKind(name="questions", rows=43000, of=43000, per_block=512, blocks=84)
    """

    name: str
    rows: int
    of: int
    per_block: int
    blocks: int


class DetailStore:
    """Collects blocks until `limit` bytes are used.

    Attributes:
        blocks: in the order in which they were added.
        kinds: name -> how many rows there are.
    """

    def __init__(self, limit: int):
        self._left = limit
        self.blocks: list[DetailBlock] = []
        self.kinds: dict[str, DetailKind] = {}

    @property
    def left(self) -> int:
        """Bytes that are not used yet."""
        return self._left

    def add(self, name: str, rows: Iterable[Any], of: int, per_block: int, share: int) -> DetailKind:
        """Add rows, the most important first, until they end or `share` bytes are used; return how many there are.

        Args:
            of: number of rows that there would be without a limit.
            per_block: rows in a block.
            share: bytes for these rows, at most; no more than is left.
        """
        budget, count, number = min(share, self._left), 0, 0
        for batch in _split(rows, per_block):
            block = DetailBlock(f"{name}-{number}", _pack(batch))
            if block.size > budget:
                break
            self.blocks.append(block)
            budget, self._left = budget - block.size, self._left - block.size
            count, number = count + len(batch), number + 1
        self.kinds[name] = DetailKind(name, count, of, per_block, number)
        return self.kinds[name]


def _split(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    source = iter(rows)
    while batch := list(islice(source, size)):
        yield batch


def _pack(rows: list[Any]) -> str:
    text = scrub(json.dumps(rows, ensure_ascii=False, separators=(",", ":")))
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), _LEVEL)).decode("ascii")
