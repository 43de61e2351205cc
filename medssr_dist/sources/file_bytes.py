"""The bytes of a data file, unpacked if it is compressed, and what kind of file they are."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from medssr_dist.data.jsonl import decode_text, join_limited, read_bytes
from medssr_dist.errors import InputError

FileKind = Literal["json", "csv", "tsv", "parquet", "arrow"]
SUFFIXES: dict[str, FileKind] = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
PACKED_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")
_STARTS: dict[bytes, FileKind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_ARCHIVE, _EXCEL = b"PK\x03\x04", (".xlsx", ".xlsm")
_PICKLE = "is a Python pickle, which may run code; write it as Parquet"
_REFUSED = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "is an Excel file; save its sheet as CSV (UTF-8)",
    b"version https://git-lfs.github.com/": "is a pointer of Git LFS, not the file itself; run `git lfs pull` there",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it, and give the file in it",
    b"Rar!": "is a RAR archive; unpack it, and give the file in it",
    b"%PDF-": "is a PDF; give its questions as CSV or JSONL",
    b"SQLite format 3": "is an SQLite database; export its table as CSV",
    b"\x89HDF": "is an HDF5 file; write it as Parquet or JSONL",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLE),
}  # first bytes of a file -> what it is and what to do
_WEB_PAGES = (b"<!doctype html", b"<html")
_CHUNK = 2**20  # bytes
_TAR, _TAR_PLACE = b"ustar", 257
_TEXT_MARKS = {  # byte order marks; that of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def strip_suffixes(name: str) -> str:
    """Return a file name without its known suffixes. Example: 'test.jsonl.gz' -> 'test'."""
    stem = Path(name)
    while stem.suffix.lower() in (*PACKED_SUFFIXES, *SUFFIXES):
        stem = stem.with_suffix("")
    return stem.name


def has_data_suffix(name: str) -> bool:
    """Return whether a path is named like a data file, whether or not it exists."""
    return Path(name).suffix.lower() in (*PACKED_SUFFIXES, *SUFFIXES, *_EXCEL, ".txt", ".zip")


def read_unpacked(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is compressed (gzip, Zstandard, xz, bzip2).

    Raises:
        InputError: the file is absent or unreadable, damaged, an archive of files, or of a kind that is not read.
    """
    content = _unpack(path, read_bytes(path))
    if content.startswith(_ARCHIVE):
        if path.suffix.lower() in _EXCEL:
            raise InputError(f"{path} is an Excel file; save its sheet as CSV (UTF-8)")
        raise InputError(f"{path} is a zip archive; unpack it with unzip, and give the file in it")
    if content[_TAR_PLACE:].startswith(_TAR):
        raise InputError(f"{path} is a tar archive; unpack it with tar -xf, and give the file in it")
    if content[:1000].lstrip().lower().startswith(_WEB_PAGES):
        raise InputError(f"{path} is a web page, perhaps one that asks for a login; download the data file itself")
    if problem := next((problem for start, problem in _REFUSED.items() if content.startswith(start)), ""):
        raise InputError(f"{path} {problem}")
    return content


def _unpack(path: Path, content: bytes) -> bytes:
    for start, unpack in _UNPACKERS.items():
        if content.startswith(start):
            try:
                with unpack(io.BytesIO(content)) as stream:
                    return join_limited(iter(lambda: stream.read(_CHUNK), b""), f"{path}, unpacked,")
            except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
                reason = str(error).strip() or type(error).__name__
                raise InputError(f"{path} is compressed, and damaged or cut off ({reason}); copy it again") from None
    return content


def find_kind(path: Path, content: bytes) -> FileKind:
    """Return what kind of data `content` is: by its first bytes, then by the name of the file.

    Raises:
        InputError: it is text, but neither named as a table nor JSON.
    """
    for start, kind in _STARTS.items():
        if content.startswith(start):
            return kind
    named = find_kind_by_name(path)
    if named in ("parquet", "arrow"):
        suffix = next(suffix for suffix in reversed(path.suffixes) if suffix.lower() in SUFFIXES)
        raise InputError(f"{path} is named {suffix}, but is no such file; copy it again, or rename it")
    return named or "json"


def find_kind_by_name(path: Path) -> FileKind | None:
    """Return what kind of data a file is named for, compressed or not; None if its name does not say."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in PACKED_SUFFIXES]
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def read_data_text(path: Path, content: bytes) -> str:
    """Return the text of a file with newlines as \\n, without a byte order mark.

    It is UTF-8, or what its byte order mark says: Excel writes UTF-16 as "Unicode text".

    Raises:
        InputError: the bytes are no such text.
    """
    encoding = next((name for mark, name in _TEXT_MARKS.items() if content.startswith(mark)), "")
    try:
        text = content.decode(encoding) if encoding else decode_text(content, path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is {encoding.upper()}, but damaged at byte {error.start}; write it again") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _open_zstd(packed: io.BytesIO) -> Any:
    import pyarrow

    return pyarrow.input_stream(packed, compression="zstd")


_UNPACKERS: dict[bytes, Callable[[io.BytesIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"\xfd7zXZ": lzma.open,
    b"BZh": bz2.open,
}
