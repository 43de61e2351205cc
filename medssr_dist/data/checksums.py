"""Checksums (CRC-32) of what the package writes and reads back: each line of a JSONL file, and each JSON document.

A line ends in `,"crc32":"0a1b2c3d"}`: the checksum of the line without this key. A document has the key `crc32`: the
checksum of its other keys as canonical JSON, so that it may be formatted anew. Files of earlier versions have neither
and are read as they are. In a file that has begun to have checksums, every later line must have one.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from medssr_dist.errors import InputError
from medssr_dist.secret_registry import scrub_bytes

logger = logging.getLogger(__name__)

CRC_KEY = "crc32"
_MARK = b'"crc32":"'
_END = b'"}'
_LENGTH = len(_MARK) + 8 + len(_END)
_CHUNK = 2**22  # bytes of a file that are read at once
_FEW = 3  # bytes by which the end of a damaged line differs from a checksum


class Damaged(InputError):
    """Bytes on disk do not match their checksum."""


def seal_line(row: bytes) -> bytes:
    """Return the JSON object `row` as a line with its checksum and a newline. Secrets are scrubbed."""
    return seal_lines([row])


def seal_lines(rows: Iterable[bytes]) -> bytes:
    """Return JSON objects as lines, each with its checksum and a newline. Secrets are scrubbed."""
    parts: list[bytes] = []
    for row in rows:
        row = scrub_bytes(row)
        parts.append(row[:-1])
        parts.append((b'"crc32":"%08x"}\n' if len(row) == 2 else b',"crc32":"%08x"}\n') % zlib.crc32(row))
    return b"".join(parts)


class LineChecker:
    """Checks the lines of one file, in their order.

    Args:
        start: number of lines before the first that is checked.
        fix: what to do about a damaged line.
        on_damage: called with the error in place of raising it; the line then counts as absent.

    Attributes:
        number: number of the last line, from 1.
        matched: whether the last line had a checksum, and matched it: it is as this package has written it.
    """

    def __init__(
        self,
        path: Path,
        start: int = 0,
        fix: str = "put back a good copy of the file",
        on_damage: Callable[[Damaged], object] | None = None,
    ):
        self.number = start
        self.matched = False
        self._path, self._fix, self._on_damage = path, fix, on_damage
        self._sealed = False

    def open(self, line: bytes) -> bytes | None:
        """Return the JSON text of the next line, without checksum and newline; None if it is damaged and left out.

        Raises:
            Damaged: the line differs from its checksum, or has lost it.
        """
        self.number += 1
        self.matched = False
        text = line.rstrip()
        if text[-_LENGTH:-10] == _MARK and text.endswith(_END):
            body = _remove_seal(text)
            self._sealed = True
            self.matched = bool(body) and b"%08x" % zlib.crc32(body) == text[-10:-2]
            if self.matched:
                return body
        elif not text.strip() or not (self._sealed or _resembles_seal(text)):
            return text
        error = Damaged(
            f"{self._path} line {self.number} does not match its checksum, so it is damaged; {self._fix}"
            f' (if you edited it, delete "{CRC_KEY}" from every line)'
        )
        if self._on_damage is None:
            raise error
        self._on_damage(error)
        return None


def warn_of_damage(error: Damaged) -> None:
    """Warn of a damaged line that is left out, because what it held is made again."""
    logger.warning("%s", error)


def compute_file_checksum(file: Path) -> str:
    """Return the checksum of a whole file."""
    crc = 0
    with open(file, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def seal_document(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON document with its checksum."""
    return value | {CRC_KEY: _compute(value)}


def open_document(value: Any, path: Path) -> Any:
    """Return a JSON document without its checksum.

    Raises:
        Damaged: it has a checksum that it does not match.
    """
    if not isinstance(value, dict) or CRC_KEY not in value:
        return value
    body = {key: part for key, part in value.items() if key != CRC_KEY}
    if value[CRC_KEY] != _compute(body):
        raise Damaged(
            f"{path} does not match its checksum, so it is damaged; put back a good copy, or, if you edited it, delete "
            f'its "{CRC_KEY}"'
        )
    return body


def _compute(value: dict[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(canonical.encode()):08x}"


def _remove_seal(text: bytes) -> bytes:
    """Return a line without its checksum; b"" if something else than a comma stands before that."""
    rest = text[:-_LENGTH]
    if rest.endswith(b","):
        return rest[:-1] + b"}"
    return b"{}" if rest == b"{" else b""


def _resembles_seal(text: bytes) -> bool:
    """Return whether a line ends as one with a checksum does, apart from a few damaged bytes."""
    end = text[-_LENGTH:]
    fixed = end[: len(_MARK)] + end[-len(_END) :]
    return len(end) == _LENGTH and sum(a != b for a, b in zip(fixed, _MARK + _END, strict=True)) <= _FEW
