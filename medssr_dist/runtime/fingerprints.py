"""The fingerprint of a model directory: by it votes, answers and checkpoints say which model they are of.

It covers every file that decides what the model answers: all weights, config, tokenizer, chat template and generation
config. A large file is read once; its hash is kept in the cache of this user, by path, size, inode and times. A file in
the cache of the Hugging Face hub bears its hash as its name and is not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection
from pathlib import Path

from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.runtime.cache import make_cache_dir

logger = logging.getLogger(__name__)

_SUFFIXES = (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", ".gguf", ".pt", ".pth")
_HUB_HASH = re.compile(r"[0-9a-f]{64}")
_READ_EACH_TIME = 2**22  # bytes; the hashes of larger files are kept
_OLDER_SAMPLES, _OLDER_BYTES = 256, 2**16


def fingerprint_model(folder: Path, known: Collection[str] = ()) -> str:
    """Return the fingerprint of a model directory, 16 hex digits.

    Args:
        known: fingerprints that the run has recorded. If the one of an earlier version is among them, which covers
            samples of the weights alone, and still fits, the run keeps it.
    """
    if known and (older := _fingerprint_samples(folder)) in known:
        return older
    digest, hashes = hashlib.sha256(), _HashCache()
    for file in sorted(folder.iterdir()):
        if file.suffix in _SUFFIXES and file.is_file():
            digest.update(json.dumps([file.name, hashes.find(file)]).encode())
    hashes.save()
    return digest.hexdigest()[:16]


def has_fingerprint(folder: Path, fingerprint: str) -> bool:
    """Return whether a model directory has this fingerprint, of this version or an earlier one."""
    return fingerprint_model(folder, (fingerprint,)) == fingerprint


class _HashCache:
    """SHA-256 of files, kept from one process to the next: path -> [size, inode, mtime, ctime, hash]."""

    def __init__(self) -> None:
        self._file = make_cache_dir() / "hashes.json"
        self._known: dict[str, list[str]] = {}
        self._changed = False
        if self._file.exists():
            try:
                self._known = read_record(dict[str, list[str]], self._file)
            except InputError as error:
                logger.warning("%s; the files of models are read again", error)

    def find(self, file: Path) -> str:
        real = file.resolve()
        if real.parent.name == "blobs" and _HUB_HASH.fullmatch(real.name):
            return real.name
        info = real.stat()
        key = [str(number) for number in (info.st_size, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)]
        *found, known = self._known.get(str(real), [""])
        if found == key:
            return known
        with open(real, "rb") as handle:
            value = hashlib.file_digest(handle, "sha256").hexdigest()
        if info.st_size > _READ_EACH_TIME:
            self._known[str(real)] = [*key, value]
            self._changed = True
        return value

    def save(self) -> None:
        if self._changed:
            write_json(self._file, {path: row for path, row in self._known.items() if Path(path).exists()})


def _fingerprint_samples(folder: Path) -> str:
    """Return the fingerprint of earlier versions: of evenly spaced samples of config and weight files."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".safetensors", ".bin") and file.name != "config.json":
            continue
        size = file.stat().st_size
        digest.update(json.dumps([file.name, size]).encode())
        with open(file, "rb") as handle:
            for offset in range(0, size, max(size // _OLDER_SAMPLES, _OLDER_BYTES)):
                handle.seek(offset)
                digest.update(handle.read(_OLDER_BYTES))
    return digest.hexdigest()[:16]
