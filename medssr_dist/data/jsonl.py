"""JSONL files and atomic writes: after a crash, a file holds complete lines or its old content, nothing in between.

What is written has checksums (`checksums.py`) and no secrets (`secret_registry.py`).
"""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from medssr_dist.data.checksums import Damaged, LineChecker, open_document, seal_document, seal_lines
from medssr_dist.data.json_text import parse_json
from medssr_dist.data.private_files import open_private, replace_private
from medssr_dist.errors import InputError
from medssr_dist.secret_registry import scrub, scrub_bytes

_MOST_BYTES = 2**32  # of a file that is read as a whole
_CHUNK = 2**20  # bytes read at once in the search for the last newline
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"PK\x03\x04": "unzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}  # first bytes of a file -> the program that unpacks it


def write_atomic(path: Path, text: str, flush: bool = True) -> None:
    """Write `text` to a temporary file and rename it to `path`; readers see the old file or the new one.

    Raises:
        InputError: the disk is full.
    """
    try:
        with replace_private(path, flush) as file:
            file.write(scrub_bytes(text.encode()))
    except OSError as error:
        raise_if_disk_full(error, path)
        raise


def write_json(path: Path, value: Mapping[str, Any], checked: bool = True, flush: bool = True) -> None:
    """Write `value` as indented JSON, atomically.

    Args:
        checked: add the checksum that `read_json` verifies; false for files that other programs read.
        flush: wait until the file is on the disk.
    """
    document = seal_document(_scrub_values(value)) if checked else value
    write_atomic(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", flush)


def _scrub_values(value: Any) -> Any:
    """Return `value` as it is read back: without secrets, with text as keys and lists in place of tuples."""
    return json.loads(scrub(json.dumps(value)))


def read_json(path: Path) -> Any:
    """Read one JSON document, without its checksum.

    Raises:
        InputError: the file is absent, not UTF-8 or not JSON (`parse_json`), or differs from its checksum; the message
            names it.
    """
    return open_document(parse_json(read_text(path), str(path)), path)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        InputError: the file is absent, unreadable, compressed or not UTF-8; the message names the file and the wrong
            byte.
    """
    text = decode_text(read_bytes(Path(path)), Path(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path) -> bytes:
    """Read a whole file. Raises InputError if it is absent, unreadable or no file; the message names it."""
    try:
        refuse_pipe(path)
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise InputError(
                f"{path} has {size >> 30} GiB, too many for a file that is read as a whole; check the path"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError:  # a NUL or half a surrogate pair
        raise InputError(f"{str(path)!r} cannot be the name of a file; check the path") from None


def join_limited(chunks: Iterable[bytes], where: str) -> bytes:
    """Return the chunks as one text, of which nobody knows the size before it is unpacked or downloaded.

    Args:
        where: what they are, for the message.

    Raises:
        InputError: they are more than a file may have that is read as a whole.
    """
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > _MOST_BYTES:
            raise InputError(f"{where} has more than {_MOST_BYTES >> 30} GiB, too many for one file; split it")
    return bytes(content)


def refuse_pipe(path: Path) -> None:
    """Raise InputError for a pipe, a device or a socket, which may never end.

    A pipe that the shell has made, as in `--config <(...)`, is read.
    """
    mode = path.stat().st_mode
    from_shell = stat.S_ISFIFO(mode) and Path("/dev/fd") in path.parents
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or from_shell):
        raise InputError(f"{path} is a pipe, a socket or a device; name a file")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file to be read. Raises InputError for what is no file (`refuse_pipe`), and OSError as `open` does."""
    refuse_pipe(path)
    return open(path, "rb")


def read_jsonl(path: Path, on_damage: Callable[[Damaged], object] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line, without its checksum. Only one line is in memory at a time.

    Args:
        on_damage: called for each line that differs from its checksum; the line is then left out.

    Raises:
        InputError: a line is not a JSON object, or differs from its checksum; the message names file and line.
    """
    try:
        with open_bytes(Path(path)) as file:
            yield from (row for _, row in enumerate_rows(file, path, on_damage=on_damage))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None


def enumerate_rows(
    file: Iterable[bytes],
    path: Path,
    skip_torn: bool = False,
    on_damage: Callable[[Damaged], object] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, JSON object without its checksum) for each line of a binary file that is not blank.

    Lines end at newlines only. str.splitlines would also split at U+2028 and similar characters, which texts contain.

    Args:
        file: the lines as bytes, for example a file opened in mode "rb".
        path: the name of the file in error messages.
        skip_torn: ignore a last line without a newline; its writer is still writing it or has died.
        on_damage: called for each line that differs from its checksum; the line is then left out.

    Raises:
        InputError: a line is not a JSON object, or differs from its checksum; the message names file and line.
    """
    checker, offset = LineChecker(path, on_damage=on_damage), 0
    for raw in file:
        if skip_torn and not raw.endswith(b"\n"):
            return
        text = checker.open(raw)
        offset += len(raw)
        if text and checker.matched:
            yield checker.number, json.loads(text)
            continue
        for part, line in enumerate(decode_text(text or b"", path, offset - len(raw)).split("\r")):
            checker.number += part > 0
            if line.strip():
                yield checker.number, _parse_row(line, path, checker.number)


def decode_text(raw: bytes, path: Path, offset: int = 0) -> str:
    """Return the text of the bytes at `offset`, without the byte order mark that Windows writes before the first.

    Raises:
        InputError: the bytes are not UTF-8, or those of a compressed file; the message names the file.
    """
    if not offset:
        for start, program in _COMPRESSED.items():
            if raw.startswith(start):
                raise InputError(f"{path} is compressed; unpack it with {program}")
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        where = offset + error.start
        advice = "convert it from the encoding it has, e.g. iconv -f WINDOWS-1252 -t UTF-8"
        raise InputError(f"{path} is not UTF-8 (byte {where}); {advice}") from None


def _parse_row(line: str, path: Path, number: int) -> dict[str, Any]:
    row = parse_json(line, f"{path} line {number}")
    if not isinstance(row, dict):
        raise InputError(f"{path} line {number} is a {type(row).__name__}, not a JSON object")
    return row


class JsonlLedger:
    """A JSONL file that rows are appended to, safe against a crash in the middle of a write.

    A torn last line (without a newline, because its writer died) is removed when the file is opened, so that the next
    row starts on a new line. Only one process may write at a time; others may read meanwhile.

    Attributes:
        size: length of the file, bytes.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.size = cut_torn_tail(self.path)
        # Unbuffered: on a full disk, closing a file with a buffer would fail a second time.
        handle = open_private(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._file = open(handle, "ab", buffering=0)  # noqa: SIM115
        if not self.size:
            sync_folder(self.path.parent)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Append rows and flush them to disk.

        Raises:
            InputError: the disk is full; none of the rows is written.
        """
        texts = (json.dumps(row, ensure_ascii=False) for row in rows)
        # An API's reply may hold half a surrogate pair.
        self.write(seal_lines(text.encode("utf-8", "replace") for text in texts))

    def write(self, lines: bytes) -> None:
        """Append complete lines, which have their checksums, and flush them to disk.

        Raises:
            InputError: the disk is full; none of the lines is written.
        """
        append_whole(self._file, self.path, self.size, lines, flush=True)
        self.size += len(lines)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlLedger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a JSONL file with checksums, atomically. Raises InputError if the disk is full."""
    texts = (json.dumps(row, ensure_ascii=False) for row in rows)
    write_atomic(path, seal_lines(text.encode("utf-8", "replace") for text in texts).decode())


def append_whole(file: io.FileIO, path: Path, size: int, content: bytes, flush: bool = False) -> None:
    """Append `content` to an unbuffered file of `size` bytes; after an error, the file is as it was.

    Args:
        flush: wait until the content is on the disk.

    Raises:
        InputError: the disk is full.
    """
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
        if flush:
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, size)
        raise_if_disk_full(error, path)
        raise


def cut_torn_tail(path: Path) -> int:
    """Remove the text after the last newline of `path`. Return the size of the rest, bytes; 0 if there is no file."""
    if not path.exists():
        return 0
    with open(open_private(path, os.O_RDWR), "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = _last_newline(file, size) + 1
        if end != size:
            file.truncate(end)
    return end


def _last_newline(file: BinaryIO, size: int) -> int:
    """Return the offset of the last newline in the first `size` bytes, or -1. Reads the file backwards."""
    while size:
        start = max(0, size - _CHUNK)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found
        size = start
    return -1


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, so that a new or renamed file survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def raise_if_disk_full(error: OSError, path: Path) -> None:
    """Raise an InputError that names `path` if `error` is 'no space left' or 'quota exceeded'."""
    # numpy.save reports a short write without a number, as "15360 requested and 10208 written".
    is_short_write = error.errno is None and re.search(r"\d+ requested and \d+ written", str(error)) is not None
    if is_short_write or error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InputError(
            f"no space left while writing {path}; free some space and run the same command again: nothing is lost"
        ) from None
