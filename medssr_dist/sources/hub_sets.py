"""Data sets on the Hugging Face hub: which of them a path names, and the folder of its files in the local cache.

A data set is taken from the local cache if it is there, else downloaded. With HF_HUB_OFFLINE=1 nothing is downloaded;
`medssr prefetch` brings what is needed beforehand.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config.base import PathSource
from medssr_dist.errors import InputError
from medssr_dist.sources.file_bytes import PACKED_SUFFIXES, SUFFIXES, has_data_suffix

CONVERTED = "refs/convert/parquet"  # branch in which the hub keeps Parquet copies of all of its data sets
_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_URL = re.compile(r"(?:hf://(?:datasets/)?|https://huggingface\.co/datasets/)(?P<repo>[^/@]+/[^/@]+)(?P<rest>.*)")
_REVISION_AND_FILE = re.compile(r"(?:@(?P<revision>refs/[^/]+/[^/]+|[^/]+))?(?:/(?:resolve/[^/]+/)?(?P<file>.+))?/?")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=[.-])")
_FETCHED = ["README.md", *(f"*{kind}{packed}" for kind in SUFFIXES for packed in ("", *PACKED_SUFFIXES))]


@dataclass(frozen=True)
class HubPlace:
    """A data set on the hub. Example: HubPlace(repo="openlifescienceai/medmcqa", revision="", file="").

    Attributes:
        revision: commit, tag or branch; "" for the one in the local cache, else the newest.
        file: one file in it; "" for all data files.
    """

    repo: str
    revision: str = ""
    file: str = ""

    @property
    def label(self) -> str:
        """How messages name it."""
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f"/{self.file}" if self.file else "")


def find_hub_place(source: PathSource, revision: str = "") -> HubPlace | None:
    """Return the data set on the hub that `source.path` names; None if it is a path on this machine.

    `hf://...` is always one; owner/name is one if no such file or folder exists here and it has no suffix of a file.

    Raises:
        InputError: an hf:// address is not of a known form, or names another revision than `revision`.
    """
    path = source.path
    if match := _URL.fullmatch(path):
        rest = _REVISION_AND_FILE.fullmatch(match["rest"])
        if rest is None:
            raise InputError(f"{path!r} is not of the form hf://datasets/OWNER/NAME[@REVISION][/FILE]")
        if revision and rest["revision"] and revision != rest["revision"]:
            raise InputError(f"{path!r} names another revision than `revision` = {revision!r}; keep one of the two")
        return HubPlace(match["repo"], revision or rest["revision"] or "", rest["file"] or "")
    if path.startswith("hf:"):
        raise InputError(f"{path!r} is not of the form hf://datasets/OWNER/NAME[@REVISION][/FILE]")
    if _ID.fullmatch(path) and not has_data_suffix(path) and not os.path.lexists(path):
        return HubPlace(path, revision)
    return None


def locate_hub_set(place: HubPlace) -> Path:
    """Return the folder of a data set's files, or its file if `place` names one; it is downloaded if it is not there.

    Raises:
        InputError: it is not in the local cache and cannot be downloaded; the message says why.
    """
    return _find_cached(place) or fetch_hub_set(place)


def is_cached(place: HubPlace) -> bool:
    """Return whether the local cache has a data set, complete as far as one can see."""
    return _find_cached(place) is not None


def fetch_hub_set(place: HubPlace) -> Path:
    """Download a data set from the hub, or complete what the local cache has of it. Return its folder or file.

    Raises:
        InputError: it cannot be downloaded; the message says why.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if is_offline():
        raise InputError(
            f"{place.label!r} is neither a file or folder here nor a data set in the local Hugging Face cache, and "
            "HF_HUB_OFFLINE is set; run `medssr prefetch` where there is internet, or correct the path"
        )
    patterns = [place.file] if place.file else _FETCHED
    try:
        folder = Path(
            snapshot_download(place.repo, repo_type="dataset", revision=place.revision or None, allow_patterns=patterns)
        )
    except HFValidationError:
        raise InputError(f"{place.repo!r} is neither a path here nor a Hugging Face id such as owner/name") from None
    except (OSError, HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise InputError(
            f"{place.label!r} is neither a file or folder here nor a data set that can be downloaded ({reason}); "
            "correct the path or id, `hf auth login` if it is gated, or run `medssr prefetch` where there is internet"
        ) from None
    found = folder / place.file if place.file else folder
    if not found.exists():
        raise InputError(f"{place.repo!r} has no file {place.file!r}; correct the path")
    return found


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")


def _find_cached(place: HubPlace) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(place.repo, repo_type="dataset", revision=place.revision or None, local_files_only=True)
        )
    except (OSError, ValueError):
        return None
    if place.file:
        return folder / place.file if (folder / place.file).exists() else None
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Return whether a folder of the cache has data, no file of a download that broke off, and all shards."""
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    shards: dict[str, set[int]] = {}
    for name in files:
        if match := _SHARD.search(name):
            shards.setdefault(_SHARD.sub(f"-of-{match[2]}", name), set()).add(int(match[1]))
    whole = all(len(found) == int(key.rpartition("-of-")[2][:5]) for key, found in shards.items())
    broken = next((folder.parents[1] / "blobs").glob("*.incomplete"), None)
    return whole and broken is None and any(has_data_suffix(name) for name in files)
