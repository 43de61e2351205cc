"""Server-sent events: the data of each event, from a stream of pieces of any size or from a whole body."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator

from medssr_dist.runtime.http.http_answer import MOST_BODY_BYTES, BadBody

END_MARK = b"[DONE]"


async def read_lines(pieces: AsyncIterable[bytes], most: int = MOST_BODY_BYTES) -> AsyncIterator[bytes | None]:
    """Yield the lines of a stream without their ends; None in place of a line of more than `most` bytes."""
    rest: list[bytes] = []
    size = 0  # of `rest`; above `most` only counted
    async for piece in pieces:
        *lines, last = piece.split(b"\n")
        for line in lines:
            yield b"".join(rest) + line if size + len(line) <= most else None
            rest, size = [], 0
        size += len(last)
        rest = [*rest, last] if size <= most else []
    if size:
        yield b"".join(rest) if size <= most else None


async def read_events(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the data of the events of a stream, up to its end mark. Other lines, such as comments, are skipped.

    Raises:
        BadBody: an event is longer than MOST_BODY_BYTES.
    """
    async for line in read_lines(pieces):
        if line is None:
            raise BadBody(f"an event of the stream is longer than {MOST_BODY_BYTES >> 20} MiB")
        if (data := _read_data(line)) is not None:
            yield data


def is_event_stream(body: bytes) -> bool:
    """Return whether a body begins as a stream of events does."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"data:", b"event:", b": ", b":\n", b"id:", b"retry:"))


def drop_comments(body: bytes) -> bytes:
    """Return a body without the comments of a stream of events, with which some servers keep a connection alive."""
    return b"".join(line for line in body.splitlines(keepends=True) if not line.startswith(b":"))


def split_events(body: bytes) -> Iterator[bytes]:
    """Yield the data of the events of a whole body, without its end mark."""
    for line in body.removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"\n").split(b"\n"):
        if (data := _read_data(line)) is not None:
            yield data


def _read_data(line: bytes) -> bytes | None:
    data = line[5:].strip() if line.startswith(b"data:") else b""
    return data if data and data != END_MARK else None
