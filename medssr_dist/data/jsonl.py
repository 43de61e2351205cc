"""JSONL files and atomic writes: after a crash, a file holds complete lines or its old content, nothing in between."""

from __future__ import annotations

import codecs
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from medssr_dist.errors import InputError

_CHUNK = 2**20  # bytes read at once in the search for the last newline
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"PK\x03\x04": "unzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}  # first bytes of a file -> the program that unpacks it


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to a temporary file and rename it to `path`; readers see the old file or the new one.

    Raises:
        InputError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise_if_disk_full(error, path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        InputError: the file is absent, not UTF-8 or not JSON; the message names it.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON (line {error.lineno}: {error.msg}); repair or replace it") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        InputError: the file is absent, unreadable, compressed or not UTF-8; the message names the file and the wrong
            byte.
    """
    try:
        text = decode_text(Path(path).read_bytes(), Path(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError:  # a NUL or half a surrogate pair
        raise InputError(f"{str(path)!r} cannot be the name of a file; check the path") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each line. Only one line is in memory at a time.

    Raises:
        InputError: a line is not a JSON object; the message names file and line.
    """
    try:
        with open(path, "rb") as file:
            yield from (row for _, row in enumerate_rows(file, path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None


def enumerate_rows(file: Iterable[bytes], path: Path, skip_torn: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, JSON object) for each line of a binary file, without the blank lines.

    Lines end at newlines only. str.splitlines would also split at U+2028 and similar characters, which texts contain.

    Args:
        file: the lines as bytes, for example a file opened in mode "rb".
        path: the name of the file in error messages.
        skip_torn: ignore a last line without a newline; its writer is still writing it or has died.

    Raises:
        InputError: a line is not a JSON object; the message names file and line.
    """
    number = offset = 0
    for raw in file:
        if skip_torn and not raw.endswith(b"\n"):
            return
        for line in decode_text(raw, path, offset).removesuffix("\n").removesuffix("\r").split("\r"):
            number += 1
            if line.strip():
                yield number, _parse_row(line, path, number)
        offset += len(raw)


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
        raise InputError(f"{path} is not UTF-8 (byte {where}); convert it, e.g. iconv -t UTF-8") from None


def _parse_row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {number} is not JSON ({error.msg}); repair or drop the line") from None
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
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        if not self.size:
            sync_folder(self.path.parent)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Append rows and flush them to disk.

        Raises:
            InputError: the disk is full; none of the rows is written.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.write(text.encode("utf-8", "replace"))  # an API's reply may hold half a surrogate pair

    def write(self, lines: bytes) -> None:
        """Append complete lines and flush them to disk.

        Raises:
            InputError: the disk is full; none of the lines is written.
        """
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            os.truncate(self.path, self.size)
            raise_if_disk_full(error, self.path)
            raise
        self.size += len(lines)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlLedger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def cut_torn_tail(path: Path) -> int:
    """Remove the text after the last newline of `path`. Return the size of the rest, bytes; 0 if there is no file."""
    if not path.exists():
        return 0
    with open(path, "rb+") as file:
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
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InputError(
            f"no space left while writing {path}; free some space and run the same command again: nothing is lost"
        ) from None
