"""The entities: rare diseases that questions are written about (paper section 3.1), from the list of Orphanet or a
user's own file.
"""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import HPO_PASSAGES, Knowledge
from medssr_dist.data.json_text import parse_json
from medssr_dist.data.jsonl import read_text, write_json
from medssr_dist.errors import InputError
from medssr_dist.knowledge.hpo import Disease
from medssr_dist.knowledge.hpo_passages import list_corpus_diseases
from medssr_dist.knowledge.identity import find_groups_by_name
from medssr_dist.knowledge.mini_world import MINI_LISTS
from medssr_dist.knowledge.name_finder import list_keys
from medssr_dist.knowledge.rare_diseases import load_rare_list
from medssr_dist.knowledge.splits import EVALUATION, is_evaluation, split_group

logger = logging.getLogger(__name__)

_HELD_OUT = f"reserved for {EVALUATION}"
_FIELDS = ("name", "id", "synonyms")


@dataclass(frozen=True)
class Entity:
    """A rare disease that questions are written about.

    Example: Entity("ORPHA:56", "Alkaptonuria", ("Hereditary ochronosis",))
    """

    id: str
    name: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class EntityList:
    """The entities of a run, in the order in which they are numbered.

    Attributes:
        source: the list and its version.
        left_out: reason -> entries of the source that are no entities.

    Example: EntityList("Orphanet 2025-12, HPO 2025-01-16", (entity, ...), {"reserved for hpo:evaluation": 1814})
    """

    source: str
    entities: tuple[Entity, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    def keep(self, entities: Sequence[Entity], reason: str) -> EntityList:
        """Return the list with these of its entities alone, and the number of the others by `reason`."""
        left_out = self.left_out | {reason: len(self.entities) - len(entities)}
        return EntityList(self.source, tuple(entities), {why: count for why, count in left_out.items() if count})


def draw_run_entities(config: Config) -> EntityList:
    """Return the entities of a run; of a user's own list, those of hpo:evaluation only if it is no benchmark."""
    hold_out = any(source.path == EVALUATION for source in config.evaluation.benchmarks)
    return draw_entities(config.knowledge, config.runtime.random_seed, hold_out)


def draw_entities(knowledge: Knowledge, random_seed: int, hold_out: bool = True) -> EntityList:
    """Return the first `knowledge.entities` (0 = all) of the rare diseases in a seeded random order.

    The diseases of `knowledge.entities_file`, or of the built-in list without those of hpo:evaluation. If hpo is the
    only corpus, only diseases with a passage in it are used.

    Args:
        hold_out: leave the diseases of hpo:evaluation out of a user's own list too, with a warning.

    Raises:
        InputError: there are fewer diseases than `knowledge.entities`, or a line of the file is unusable.
    """
    found = _read_own_list(knowledge, hold_out) if knowledge.entities_file else _take_rare_list(knowledge)
    if knowledge.entities > len(found.entities):
        only_hpo = _find_only_hpo_limit(knowledge)
        fix = f" or raise the limit of the corpus hpo ({only_hpo})" if only_hpo else ""
        raise InputError(
            f"knowledge.entities={knowledge.entities}, but there are {len(found.entities)} rare diseases to draw from; "
            f"lower it to at most that number, set 0 for all{fix}"
        )
    shuffled = list(found.entities)
    random.Random(random_seed).shuffle(shuffled)
    return found.keep(shuffled[: knowledge.entities or None], "beyond knowledge.entities")


def write_entities(file: Path, entities: EntityList) -> None:
    """Write the list as JSON, for a user to read: source with version, counts of what is left out, and all entities."""
    write_json(file, asdict(entities))


def _take_rare_list(knowledge: Knowledge) -> EntityList:
    rare = load_rare_list()
    with_passages = rare.diseases
    if [source.path for source in knowledge.corpora] == [HPO_PASSAGES]:
        with_passages = tuple(list_corpus_diseases(_find_only_hpo_limit(knowledge)))
    usable = [disease for disease in with_passages if not is_evaluation(disease)]
    left_out = rare.left_out | {
        "without a passage in the corpus hpo": len(rare.diseases) - len(with_passages),
        _HELD_OUT: len(with_passages) - len(usable),
    }
    return EntityList(rare.version, tuple(map(_make_entity, usable)), left_out)


def _make_entity(disease: Disease) -> Entity:
    return Entity(disease.id, disease.name, disease.synonyms)


def _find_only_hpo_limit(knowledge: Knowledge) -> int:
    """Return the limit of the corpus hpo if it is the only one, else 0."""
    only = knowledge.corpora[0]
    return only.limit if len(knowledge.corpora) == 1 and only.path == HPO_PASSAGES else 0


def _read_own_list(knowledge: Knowledge, hold_out: bool) -> EntityList:
    file = MINI_LISTS.get(knowledge.entities_file, Path(knowledge.entities_file).expanduser())
    entities = read_entities(file)
    kept = [entity for entity in entities if not (hold_out and _is_held_out(entity))]
    left_out = len(entities) - len(kept)
    if left_out:
        logger.warning(
            "%d of %d entities of %s are diseases of %s, a benchmark of this run; no question is written about them",
            *(left_out, len(entities), file, EVALUATION),
        )
    return EntityList(knowledge.entities_file, tuple(kept), {_HELD_OUT: left_out})


def _is_held_out(entity: Entity) -> bool:
    return any(split_group(group) == EVALUATION for group in find_groups_by_name((entity.name, *entity.synonyms)))


def read_entities(file: Path) -> list[Entity]:
    """Read a user's list of diseases: `name`, and optionally `id` and `synonyms`, a line a disease.

    In JSONL, `synonyms` is a list. CSV and TSV start with a line of the column names; synonyms are separated by '|'.
    Without an id, the name serves as one.

    Raises:
        InputError: the file cannot be read or is empty, a line has no name or an unknown field, or two lines have the
            same id or the same name in any spelling. The message names the line.
    """
    entities: dict[int, Entity] = {}
    for number, row in _read_rows(file):
        entities[number] = _parse_entity(row, f"{file} line {number}")
    if not entities:
        raise InputError(f"knowledge.entities_file {file} has no diseases; write one a line: name, id, synonyms")
    _refuse_repeated(entities, file)
    return list(entities.values())


def _read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, fields) of each line of a JSONL, CSV or TSV file."""
    lines = read_text(file).removeprefix("\ufeff").splitlines()
    if file.suffix == ".jsonl":
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parse_json(line, f"{file} line {number}")
    elif file.suffix in (".csv", ".tsv"):
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", skipinitialspace=True)
        for row in reader:
            if None in row or None in row.values():
                raise InputError(
                    f"{file} line {reader.line_num} has not {len(reader.fieldnames or ())} columns, as the first line; "
                    "quote a name that contains the separator"
                )
            fields = {key.strip(): value.strip() for key, value in row.items()}
            yield reader.line_num, fields | {"synonyms": [*filter(None, fields.get("synonyms", "").split("|"))]}
    else:
        raise InputError(f"knowledge.entities_file {file} is not .jsonl, .csv or .tsv; save the list as one of them")


def _parse_json(line: str, place: str) -> Any:
    try:
        return parse_json(line, place)
    except InputError as error:
        raise InputError(f"{error}; each line is an object with name, id, synonyms") from None


def _parse_entity(row: Any, place: str) -> Entity:
    if not isinstance(row, dict):
        raise InputError(f'{place} is not an object; write {{"name": "...", "id": "...", "synonyms": ["..."]}}')
    if unknown := sorted(row.keys() - set(_FIELDS)):
        raise InputError(f"{place} has the unknown field {unknown[0]!r}; a disease has {', '.join(_FIELDS)}")
    synonyms = row.get("synonyms") or []
    texts = [row.get("name"), row.get("id", ""), *(synonyms if isinstance(synonyms, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: name and id are texts, and synonyms is a list of texts; found {str(row)[:80]!r}")
    name, code, *others = (" ".join(text.split()) for text in texts)
    if not list_keys(name):
        raise InputError(f"{place}: the name {name!r} has fewer than three letters; give the name of the disease")
    return Entity(code or name, name, tuple(dict.fromkeys(other for other in others if other and other != name)))


def _refuse_repeated(entities: dict[int, Entity], file: Path) -> None:
    """Raise InputError if two lines have the same id, or names that are spellings of one name."""
    ids: dict[str, int] = {}
    names: dict[str, int] = {}
    for number, entity in entities.items():
        if entity.id in ids:
            raise InputError(f"{file} line {number}: the id {entity.id!r} is that of line {ids[entity.id]}; remove one")
        same = next((names[key] for key in list_keys(entity.name) if key in names), None)
        if same is not None:
            raise InputError(f"{file} line {number}: {entity.name!r} is named in line {same} already; remove one")
        ids[entity.id] = number
        names |= dict.fromkeys(list_keys(entity.name), number)
