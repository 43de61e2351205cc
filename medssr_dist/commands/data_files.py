"""Download what is absent of a config's data sets: files with a known origin, Hugging Face ids (`medssr prefetch`)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from medssr_dist.config.base import DataSource
from medssr_dist.config.schema import Config
from medssr_dist.data.json_text import parse_json
from medssr_dist.data.jsonl import join_limited, write_atomic
from medssr_dist.data.records import parse_record
from medssr_dist.errors import InputError
from medssr_dist.readers import count_facts, name_source, read_questions
from medssr_dist.sources.hub_sets import fetch_hub_set, find_hub_place, is_cached, is_offline

_HUB = "hf://datasets/"
_TIMEOUT_S = 30.0
_GITHUB = re.compile(r"https://raw\.githubusercontent\.com/([^/]+/[^/]+)/([0-9a-f]{7})[0-9a-f]*/(.+)")


@dataclass(frozen=True)
class FetchResult:
    """What became of the absent files. Example: FetchResult(lines=("medqa: downloaded ...",), absent=("nejm",)).

    Attributes:
        lines: one for each file that was absent, for the user.
        absent: names of the data sets whose file is still absent.
    """

    lines: tuple[str, ...]
    absent: tuple[str, ...]


def list_sources(config: Config) -> list[DataSource]:
    """Return the data sets of seeds, benchmarks and, if they are on, of stage 2 and validation."""
    stage2, validation = config.training.stage2, config.training.validation
    supervised = stage2.data if stage2.enabled else []
    held_out = validation.data if validation else []
    return [*config.synthesis.seeds, *config.evaluation.benchmarks, *supervised, *held_out]


def list_absent(config: Config) -> list[DataSource]:
    """Return the data sets that are not on this machine although it is known where they come from."""
    return [source for source in list_sources(config) if _is_absent(source)]


def _is_absent(source: DataSource) -> bool:
    if place := find_hub_place(source, source.revision):
        return not is_cached(place)
    return bool(source.origin) and not Path(source.path).exists()


def name_origin(source: DataSource) -> str:
    """Return where an absent data set comes from, for the user."""
    place = find_hub_place(source, source.revision)
    return f"huggingface.co/datasets/{place.label}" if place else describe_origin(source.origin)


def describe_origin(origin: str) -> str:
    """Return where a file comes from: 'github.com/tdlhl/MedSSR, data/test_short_medqa.json at commit e560f5a'."""
    if match := _GITHUB.fullmatch(origin):
        return f"github.com/{match.group(1)}, {match.group(3)} at commit {match.group(2)}"
    return origin.replace(_HUB, "huggingface.co/datasets/")


def fetch_absent(config: Config) -> FetchResult:
    """Download the absent files whose origin is known. After a failure for lack of a network, none is tried."""
    lines, absent, offline = [], [], "HF_HUB_OFFLINE is set" if is_offline() else ""
    for source in list_absent(config):
        name, origin = name_source(source), name_origin(source)
        try:
            reason = offline or _fetch(source)
        except _NoNetwork as error:
            reason = offline = str(error)
        except InputError as error:
            reason = str(error)
        if reason:
            absent.append(name)
            lines.append(f"{name}: {source.path} is absent; it comes from {origin} ({reason})")
        else:
            lines.append(f"{name}: {source.path} downloaded from {origin}")
    return FetchResult(tuple(lines), tuple(absent))


def describe_sets(config: Config) -> list[str]:
    """Return a line for each data set: its counts, and a warning if its file is not the published one.

    Raises:
        InputError: a data set cannot be read.
    """
    lines = []
    for source in list_sources(config):
        facts = count_facts(read_questions(source, config.runtime.random_seed)).describe()
        altered = source.git_blob and hash_blob(Path(source.path).read_bytes()) != source.git_blob
        lines.append(f"{name_source(source)}: {facts}" + ("; NOT the published file, by its hash" if altered else ""))
    return lines


def hash_blob(content: bytes) -> str:
    """Return the SHA-1 under which git stores a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _HubFile(BaseModel):
    rfilename: str


class _HubFacts(BaseModel):
    """What the hub says of a data set: its newest commit and its files."""

    sha: str
    siblings: tuple[_HubFile, ...]


class _NoNetwork(Exception):
    """A server cannot be reached."""


def _fetch(source: DataSource) -> str:
    """Download the file of `source`, or all files of its data set on the hub. Return "".

    Raises:
        InputError: the origin does not have it, or it is another file than expected.
        _NoNetwork: the server cannot be reached.
    """
    if place := find_hub_place(source, source.revision):
        fetch_hub_set(place)
        return ""
    content = _read_hub(source.origin) if source.origin.startswith(_HUB) else _read_url(source.origin)
    if source.git_blob and (found := hash_blob(content)) != source.git_blob:
        raise InputError(f"another file was sent: its git hash is {found[:12]}, not {source.git_blob[:12]}")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InputError("the file that was sent is not UTF-8") from None
    write_atomic(Path(source.path), text)
    return ""


def _read_url(url: str) -> bytes:
    import httpx

    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
            response.raise_for_status()
            return join_limited(response.iter_bytes(), f"what {httpx.URL(url).host} sends")
    except httpx.HTTPStatusError as error:
        raise InputError(f"the server answers {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise _NoNetwork(reason) from None


def _read_hub(origin: str) -> bytes:
    """Return the file of hf://datasets/OWNER/NAME/FILE, or without FILE the only JSON file of the repository."""
    from huggingface_hub import constants

    owner, name, *rest = origin.removeprefix(_HUB).split("/", 2)
    where = f"{constants.ENDPOINT}/api/datasets/{owner}/{name}"
    facts = parse_record(_HubFacts, parse_json(_read_url(where).decode("utf-8", "replace"), where), where)
    file = rest[0] if rest else _choose_file([each.rfilename for each in facts.siblings])
    return _read_url(f"{constants.ENDPOINT}/datasets/{owner}/{name}/resolve/{facts.sha}/{file}")


def _choose_file(files: list[str]) -> str:
    found = [file for file in files if file.endswith((".json", ".jsonl"))]
    if len(found) != 1:
        raise InputError(
            f"the repository has {len(found)} JSON files among {', '.join(files[:8])}; name one in `origin`"
        )
    return found[0]
