"""JSONL and atomic file I/O: what is on disk is whole lines or whole files, whatever crashed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from medssr_dist.errors import InputError

_CHUNK = 2**20  # bytes read at once when the last newline is looked for


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file and a rename; readers see the old or the new file."""
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
    """Read one JSON document. Raises InputError naming the file when it is absent, not UTF-8 or not JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON (line {error.lineno}: {error.msg}); repair or replace it") from None


def read_text(path: Path) -> str:
    """Read a UTF-8 text file. Raises InputError naming the file and the offending byte."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); convert it, e.g. iconv -t UTF-8") from None


def read_jsonl(path: Path) -> Iterator[dict]:
    """Yield one dict a line, holding one line at a time.

    Raises:
        InputError: naming file and line, on anything but a JSON object.
    """
    try:
        with open(path, "rb") as file:
            yield from (row for _, row in numbered_rows(file, path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None


def numbered_rows(file: Iterable[bytes], path: Path, skip_torn: bool = False) -> Iterator[tuple[int, dict]]:
    """Yield (line number, JSON object) from the lines of a binary file; blank lines are passed over.

    Lines end at newlines only: U+2028 and the like stand in texts, and str.splitlines would cut there.

    Args:
        path: what messages call the file.
        skip_torn: leave out a last line without its newline, whose writer is still at it or has died.

    Raises:
        InputError: naming file and line, on anything but a JSON object.
    """
    number = offset = 0
    for raw in file:
        if skip_torn and not raw.endswith(b"\n"):
            return
        for line in _decoded(raw, path, offset).removesuffix("\n").removesuffix("\r").split("\r"):
            number += 1
            if line.strip():
                yield number, _row(line, path, number)
        offset += len(raw)


def _decoded(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        where = offset + error.start
        raise InputError(f"{path} is not UTF-8 (byte {where}); convert it, e.g. iconv -t UTF-8") from None


def _row(line: str, path: Path, number: int) -> dict:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {number} is not JSON ({error.msg}); repair or drop the line") from None
    if not isinstance(row, dict):
        raise InputError(f"{path} line {number} is a {type(row).__name__}, not a JSON object")
    return row


class JsonlLedger:
    """Append-only JSONL file, safe against a crash in the middle of a write.

    A torn last line (no newline: the writer died) is cut off on opening, so that the next
    append starts on a fresh line. One writer at a time; readers may follow along.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.size = cut_torn_tail(self.path)
        # Unbuffered: a buffer would fail again on closing a full disk.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        if not self.size:
            sync_folder(self.path.parent)

    def append(self, *rows: dict) -> None:
        """Append rows and flush them to disk before returning. A full disk raises InputError."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.write(text.encode("utf-8", "replace"))  # half a surrogate pair in an API's reply must not lose the reply

    def write(self, lines: bytes) -> None:
        """Append whole lines and flush them to disk; all of them or, where the disk is full (InputError), none."""
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
    """Cut what stands after the last newline of `path`; returns the bytes that stay, 0 where there is no file."""
    if not path.exists():
        return 0
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        end = _last_newline(file, size) + 1
        if end != size:
            file.truncate(end)
    return end


def _last_newline(file: BinaryIO, size: int) -> int:
    """Offset of the last newline among the first `size` bytes; -1 where there is none. Reads backwards."""
    while size:
        start = max(0, size - _CHUNK)
        file.seek(start)
        found = file.read(size - start).rfind(b"\n")
        if found >= 0:
            return start + found
        size = start
    return -1


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: a new or renamed file is found again after a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def raise_if_disk_full(error: OSError, path: Path) -> None:
    """Turn 'no space left' and 'quota exceeded' into an InputError that names the path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InputError(
            f"no space left while writing {path}; free some space and run the same command again: nothing is lost"
        ) from None
