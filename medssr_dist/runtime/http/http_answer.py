"""Reads what an HTTP server answers, whatever that is: bounded in size, decompressed, decoded, parsed.

Sessions are opened with `auto_decompress=False` and `ACCEPT_ENCODING`, so that the limit counts decompressed bytes and
a header that does not fit the body costs nothing.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from medssr_dist.runtime.failures import to_line

ACCEPT_ENCODING = {"Accept-Encoding": "gzip, deflate"}
MOST_BODY_BYTES = 2**24  # the longest replies, with thoughts and log-probs, have less than a tenth of it
_PIECE_BYTES = 2**20
_NAME_CHARS = 200
_LONG_NUMBER = 18  # digits; longer ones are no counts
_SURROGATES = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


class BadBody(Exception):
    """A body that cannot be read: too long, cut short, or in an encoding that is not known."""


class HttpResponse(Protocol):
    """What is used of `aiohttp.ClientResponse`."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def content(self) -> Any: ...


@dataclass(frozen=True)
class HttpAnswer:
    """A whole answer. Example: HttpAnswer(200, {"Content-Type": "application/json"}, b'{"choices": [...]}')"""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


async def read_answer(response: HttpResponse) -> HttpAnswer:
    """Read the whole answer. A body of more than MOST_BODY_BYTES is cut if it only explains a failure.

    Raises:
        BadBody: the body of a success is too long, or cannot be decompressed.
    """
    succeeded = 200 <= response.status < 300
    body = bytearray()
    try:
        async for piece in stream_body(response):
            body += piece
            if len(body) > MOST_BODY_BYTES:
                raise BadBody(f"the answer is longer than {MOST_BODY_BYTES >> 20} MiB")
    except BadBody:
        if succeeded:
            raise
    return HttpAnswer(response.status, response.headers, bytes(body[:MOST_BODY_BYTES]))


async def stream_body(response: HttpResponse) -> AsyncIterator[bytes]:
    """Yield the decompressed body in pieces of at most a MiB or what the network delivered at once.

    Raises:
        BadBody: it cannot be decompressed.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        async for piece in response.content.iter_any():
            yield piece
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BadBody(f"the answer has Content-Encoding: {to_line(encoding)[:40]}, which was not asked for")
    inflater = _Inflater(encoding)
    async for piece in response.content.iter_any():
        for part in inflater.feed(piece):
            yield part
    inflater.finish()


class _Inflater:
    """Decompresses gzip (several members too) and deflate; passes on a body that only claims to be compressed."""

    def __init__(self, encoding: str):
        self._encoding = encoding
        self._head = b""
        self._inflate: Any = None
        self._is_plain = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._inflate is None and not self._is_plain:
            self._head += data
            if len(self._head) < 2:
                return
            data, self._head = self._head, b""
            self._start(data)
        if self._is_plain:
            yield data
            return
        try:
            while data:
                yield self._inflate.decompress(data, _PIECE_BYTES)
                data = self._inflate.unconsumed_tail
                if self._inflate.eof:
                    data = self._inflate.unused_data
                    if not data.startswith(b"\x1f\x8b"):
                        return
                    self._start(data)
        except zlib.error as error:
            raise BadBody(f"the answer is not {self._encoding}, as its header says ({error})") from None

    def finish(self) -> None:
        """Raise BadBody if the compressed data ended early."""
        if self._inflate is not None and not self._inflate.eof:
            raise BadBody(f"the {self._encoding} data of the answer ends early")

    def _start(self, data: bytes) -> None:
        if data.startswith(b"\x1f\x8b"):
            self._inflate = zlib.decompressobj(31)
        elif self._encoding == "deflate":
            has_header = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._inflate = zlib.decompressobj(15 if has_header else -15)
        else:
            self._is_plain = True


def parse_json(body: bytes, content_type: str = "") -> Any:
    """Return the JSON value of a body that may be in any encoding, with NaN, with numbers of any length.

    What stands behind an object or a list is ignored: gateways append line ends, chunk marks and comments.

    A body that is neither UTF-8 nor in its declared charset is read for its structure only: what is not ASCII in it
    becomes U+FFFD, since guessed letters would be wrong unseen.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):  # also for a lone surrogate, NaN or a byte order mark
        pass
    for text in _read_texts(body, content_type):
        try:
            value, _ = _DECODER.raw_decode(text.lstrip())
            return value if isinstance(value, dict | list) else json.loads(text.rstrip("\0"), parse_int=_parse_number)
        except (ValueError, RecursionError):
            continue
    raise ValueError("not JSON")


def decode_text(body: bytes, content_type: str = "") -> str:
    """Return a body as text; what cannot be decoded becomes U+FFFD."""
    return next(_read_texts(body, content_type), "")


def replace_surrogates(text: str) -> str:
    """Return `text` with U+FFFD for halves of surrogate pairs, which cannot be written as UTF-8."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def read_name(value: Any) -> str:
    """Return a server's name for something as one printable line of at most 200 characters; "" if it is no text."""
    if not isinstance(value, str):
        return ""
    return to_line(" ".join(replace_surrogates(value[:1000]).split()))[:_NAME_CHARS]


def read_count(value: Any) -> int | None:
    """Return a server's count if it is a whole number that is not negative; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _LONG_NUMBER:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**_LONG_NUMBER:
        return None
    return value


def _read_texts(body: bytes, content_type: str) -> Iterator[str]:
    """Yield the possible readings of a body, the likeliest first; those that are guesses without their letters."""
    marked = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    declared = re.search(r"charset=[\"']?([\w.:-]+)", content_type, re.IGNORECASE)
    for name in ("utf-16" if marked else "utf-8-sig", declared[1] if declared else ""):
        try:
            yield body.decode(name)
        except (LookupError, ValueError):
            continue
    for name in ("gb18030", "latin-1"):  # in GBK a letter may contain the byte of a backslash
        try:
            yield _NOT_ASCII.sub("\ufffd", body.decode(name))
        except ValueError:
            continue


def _parse_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONG_NUMBER else float(digits)


_DECODER = json.JSONDecoder(parse_int=_parse_number)
