"""JSONL and atomic file I/O: what is on disk is whole lines or whole files, whatever crashed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medssr_dist.errors import InputError


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
    """Yield one dict a line. Raises InputError naming file and line on anything but a JSON object.

    Lines end at newlines only: U+2028 and the like stand in texts, and str.splitlines would cut there.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} line {number} is not JSON ({error.msg}); repair or drop the line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} is a {type(row).__name__}, not a JSON object")
        yield row


class JsonlLedger:
    """Append-only JSONL file, safe against a crash in the middle of a write.

    A torn last line (no newline: the writer died) is cut off on opening, so that the next
    append starts on a fresh line. One writer at a time; readers may follow along.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._repair_tail()
        # Unbuffered: a buffer would fail again on closing a full disk.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def _repair_tail(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb+") as file:
            data = file.read()
            end = data.rfind(b"\n") + 1
            if end != len(data):
                file.truncate(end)

    def append(self, *rows: dict) -> None:
        """Append rows and flush them to disk before returning. A full disk raises InputError."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = text.encode("utf-8", "replace")  # half a surrogate pair in an API's reply must not lose the reply
        try:
            while data:
                data = data[self._file.write(data) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise_if_disk_full(error, self.path)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlLedger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def raise_if_disk_full(error: OSError, path: Path) -> None:
    """Turn 'no space left' and 'quota exceeded' into an InputError that names the path."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise InputError(
            f"no space left while writing {path}; free some space and run the same command again: nothing is lost"
        ) from None
