"""The passages that were in the prompts, for a report: those of corpora that can be read quickly on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.records import parse_record
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus import NamedCorpus, find_passage, open_corpora
from medssr_dist.report.detail_store import DetailStore
from medssr_dist.run.recorded_config import RecordedConfig

_PASSAGES = 64  # in a block
_LARGEST_FILE = 200 * 10**6  # bytes of a corpus; opening a larger one takes too long for a report


def add_passages(store: DetailStore, config: RecordedConfig, ids: list[str], share: int) -> None:
    """Add id, title and text of the passages; nothing where their corpora are large, or not on this machine."""
    corpora = _open(config) if ids else []
    rows = ([passage, *found] for passage in ids if (found := _find(corpora, passage)))
    store.add("passages", rows, len(ids), _PASSAGES, share)


def _open(config: RecordedConfig) -> list[NamedCorpus]:
    try:
        knowledge = parse_record(Knowledge, (config.model_extra or {}).get("knowledge"), "knowledge")
        small = [source for source in knowledge.corpora if source.path.startswith("hpo:") or _is_small(source.path)]
        return open_corpora(knowledge.model_copy(update={"corpora": small}))
    except InputError:
        return []


def _is_small(path: str) -> bool:
    place = Path(path).expanduser()
    files: Iterable[Path] = place.rglob("*") if place.is_dir() else [place]
    return bool(path) and sum(file.stat().st_size for file in files if file.is_file()) < _LARGEST_FILE


def _find(corpora: list[NamedCorpus], passage_id: str) -> tuple[str, str] | None:
    try:
        found = find_passage(corpora, passage_id)
    except KeyError:
        return None
    return found.title, found.content
