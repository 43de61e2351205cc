"""The items of a data source as JSON objects: of a file, of a folder, or of a data set on the Hugging Face hub.

A folder with one data file is read like that file. Other folders are read by `datasets`, which knows splits, subsets
and shards from the names of files and from the head of README.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssr_dist.config.base import SplitSource
from medssr_dist.errors import InputError
from medssr_dist.sources.file_bytes import PACKED_SUFFIXES, find_kind_by_name
from medssr_dist.sources.file_rows import read_rows
from medssr_dist.sources.hub_sets import CONVERTED, HubPlace, find_hub_place, locate_hub_set
from medssr_dist.sources.table_rows import Row, list_table_rows, stream_parquet

_BATCH_ROWS = 1000  # read at once

_FACTS_OF_A_SET = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of `datasets`
_MOST_ENTRIES = 20_000  # of a folder that is one data set; the hub advises at most 10,000 files


@dataclass(frozen=True)
class SourceRows:
    """The items of a source, and how messages name it. Example: SourceRows(rows=[{...}], where="data/test.jsonl")."""

    rows: list[Row]
    where: str


def read_source_rows(source: SplitSource) -> SourceRows:
    """Return all items of a data source, in its order.

    Raises:
        InputError: it is absent or damaged, has several splits or subsets of which none is named, or lacks the named
            one.
    """
    found = locate_source(source)
    named = " ".join(part for part in (source.subset, source.split) if part)
    return SourceRows(list(_iterate_rows(found, source)), f"{found.where} ({named})" if named else found.where)


def stream_source_rows(source: SplitSource) -> Iterator[Row]:
    """Yield all items of a source, in its order; of Parquet and of folders, a part at a time is in memory.

    Raises:
        InputError: see `read_source_rows`.
    """
    found = locate_source(source)
    is_parquet = found.path.is_file() and find_kind_by_name(found.path) == "parquet"
    yield from stream_parquet(found.path) if is_parquet else _iterate_rows(found, source)


@dataclass(frozen=True)
class SourcePlace:
    """Where a source lies on this machine.

    Example: SourcePlace(path=Path("/home/me/.cache/huggingface/hub/..."), where="lab/set", hub=HubPlace("lab/set"))

    Attributes:
        where: how messages name it.
        hub: its place on the Hugging Face hub; None for a path.
    """

    path: Path
    where: str
    hub: HubPlace | None


def locate_source(source: SplitSource) -> SourcePlace:
    """Return the file or folder of a source; a data set of the hub is downloaded if it is not in the local cache.

    Raises:
        InputError: it cannot be downloaded, or `revision` is set for a path.
    """
    hub = find_hub_place(source, source.revision)
    if not hub and "://" in source.path:
        raise InputError(f"{source.path} is an address, not a path or a Hugging Face id; download the file")
    path = locate_hub_set(hub) if hub else Path(source.path).expanduser()
    where = hub.label if hub else str(path)
    if source.revision and not hub:
        raise InputError(f"{where}: revision = {source.revision!r} is for Hugging Face ids, not for paths; remove it")
    return SourcePlace(path, where, hub)


def _iterate_rows(found: SourcePlace, source: SplitSource) -> Iterable[Row]:
    if _is_folder(found.path):
        return _read_folder(found.path, source, found.where, found.hub)
    _refuse_parts_of_a_file(source, found.where)
    return read_rows(found.path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the name is too long
        return False


def _refuse_parts_of_a_file(source: SplitSource, where: str) -> None:
    for key in ("split", "subset"):
        if value := getattr(source, key):
            raise InputError(f"{where}: {key} = {value!r}, but it is one file, which has no {key}s; remove {key}")


def _read_folder(folder: Path, source: SplitSource, where: str, place: HubPlace | None) -> Iterable[Row]:
    files = list_data_files(folder, where)
    is_saved = any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))
    if not files:
        advice = f"; try revision: {CONVERTED}" if place and place.revision != CONVERTED else ""
        raise InputError(f"{where} has no data files (JSON, CSV, Parquet, Arrow){advice}")
    if not place:
        refuse_several_kinds(files, folder)
    if len(files) == 1 and not (source.split or source.subset or is_saved):
        return read_rows(files[0])
    if place and place.revision == CONVERTED:
        folder = _choose_converted(folder, source, where)
        source = source.model_copy(update={"subset": ""})
    return _load_with_datasets(folder, source, where, is_saved)


def list_data_files(folder: Path, where: str) -> list[Path]:
    """Return the data files below a folder, sorted, without hidden ones.

    Raises:
        InputError: the folder has too many entries to be one data set, for example because it is a home folder.
    """
    found: list[Path] = []
    entries = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        entries += len(folders) + len(names)
        if entries > _MOST_ENTRIES:
            raise InputError(
                f"{where} has more than {_MOST_ENTRIES:,} files and folders, so it is not one data set; name the "
                "folder that holds the data set alone"
            )
        found += [Path(place, name) for name in names if _is_data(name)]
    return sorted(found)


def _is_data(name: str) -> bool:
    packed = name.lower().endswith(PACKED_SUFFIXES)
    return (packed or find_kind_by_name(Path(name)) is not None) and not name.startswith((".", "__"))


def refuse_several_kinds(files: list[Path], folder: Path) -> None:
    """Raise InputError if a folder has files of several kinds, of which `datasets` would read the commonest alone.

    A folder whose README.md says which files belong to it may have others.
    """
    card = folder / "README.md"
    if card.is_file() and "data_files:" in card.read_text(encoding="utf-8", errors="replace"):
        return
    kinds: dict[str, Path] = {}
    for file in files:
        if file.name not in _FACTS_OF_A_SET:
            kinds.setdefault(find_kind_by_name(file) or "packed", file)
    if len(kinds) > 1:
        shown = " and ".join(str(file.relative_to(folder)) for file in list(kinds.values())[:2])
        raise InputError(
            f"{folder} has files of several kinds, such as {shown}, and only one kind would be read; give one file, or "
            "a folder of one kind"
        )


def _choose_converted(folder: Path, source: SplitSource, where: str) -> Path:
    """Return the folder of the subset in the hub's own Parquet copies: SUBSET/SPLIT/0000.parquet."""
    names = sorted(part.name for part in folder.iterdir() if part.is_dir())
    return folder / _choose(names, source.subset, "subset", where)


def _choose(names: list[str], wanted: str, kind: str, where: str) -> str:
    """Return the wanted name, or the only one."""
    if wanted and wanted in names:
        return wanted
    shown = ", ".join(names[:12]) or "none"
    if wanted:
        raise InputError(f"{where} has no {kind} {wanted!r}; its {kind}s: {shown}")
    if len(names) != 1:
        raise InputError(f"{where} has {len(names)} {kind}s: {shown}; name one with `{kind}`")
    return names[0]


def _load_with_datasets(folder: Path, source: SplitSource, where: str, is_saved: bool) -> Iterator[Row]:
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_from_disk(str(folder)) if is_saved else _load_files(folder, source, where)
    except (DatasetsError, OSError, ValueError, TypeError, RuntimeError) as error:
        cause = error.__cause__ or error
        reason = next(iter(str(cause).strip().splitlines()), type(cause).__name__).rstrip(".")
        raise InputError(
            f"{where} cannot be read as one data set ({reason[:240]}); give one of its files, or correct `split` and "
            "`subset`"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_choose(list(map(str, loaded)), source.split, "split", where)]
    elif is_saved and source.split:
        raise InputError(f"{where} has no splits; remove split = {source.split!r}")
    for table in loaded.with_format("arrow").iter(_BATCH_ROWS):
        yield from _name_classes(list_table_rows(table), loaded.features)


def _load_files(folder: Path, source: SplitSource, where: str) -> Any:
    """Return the dataset of `source.split`, or the DatasetDict of all splits."""
    import datasets

    subsets = datasets.get_dataset_config_names(str(folder))
    if source.subset or len(subsets) > 1:
        subset = _choose([str(name) for name in subsets], source.subset, "subset", where)
    else:
        subset = None
    return datasets.load_dataset(str(folder), subset, split=source.split or None)


def _name_classes(rows: list[Row], features: Any) -> list[Row]:
    """Return the rows with names in place of the numbers of class labels: 1 -> 'b'."""
    import datasets

    for column, feature in features.items():
        if isinstance(feature, datasets.ClassLabel) and feature.names:
            for row in rows:
                number = row[column]
                if isinstance(number, int) and 0 <= number < len(feature.names):
                    row[column] = feature.names[number]
    return rows
