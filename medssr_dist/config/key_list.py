"""The list of all keys of a config, from its schema: meaning, kind of value, default; and docs/config.md."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from medssr_dist.config.base import Section
from medssr_dist.config.schema import Config

ITEM = "N"  # in the path of a key: the number of an item of a list, from 0, or a name of your own
_LIMITS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", SecretStr: "secret"}


@dataclass(frozen=True)
class ConfigKey:
    """One key of the config.

    Example: ConfigKey(path="voting.samples", kind="integer >= 1", default="16", description="K, answers per question",
    section="Voting")

    Attributes:
        path: dotted; N stands for the number of an item of a list, or for a name of your own.
        default: as YAML; "" if the key must be set.
        section: the class of the section that has it.
    """

    path: str
    kind: str
    default: str
    description: str
    section: str


def list_keys_of_config() -> list[ConfigKey]:
    """Return all keys of the config, section by section, in the order of the schema."""
    return list(_walk(Config, ""))


def read_defaults() -> dict[str, Any]:
    """Return the default values of all keys that have one of their own, by path."""
    defaults = {}
    for key in list_keys_of_config():
        with suppress(ValueError):  # "": it must be set; "as below": a section
            defaults[key.path] = json.loads(key.default)
    return defaults


def find_keys(pattern: str) -> list[ConfigKey]:
    """Return the keys whose path or description matches: a part of it, or a pattern with *; '' matches all."""
    wanted = pattern.casefold()
    found = list_keys_of_config()
    if "*" in wanted:
        return [key for key in found if fnmatch(key.path.casefold(), wanted)]
    by_path = [key for key in found if wanted in key.path.casefold()]
    return by_path or [key for key in found if wanted in key.description.casefold()]


def suggest_paths(path: str) -> list[str]:
    """Return the full paths of at most three keys that may be meant by an unknown one, the likeliest first.

    Example: 'samples' and 'voting.sample' give 'voting.samples' first.
    """
    known = _list_paths()
    number_free = ".".join(ITEM if part.isdecimal() else part for part in path.split("."))
    parent, _, leaf = number_free.rpartition(".")
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    near = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)]
    similar = set(difflib.get_close_matches(leaf, [name.rpartition(".")[2] for name in known], n=1, cutoff=0.75))
    like_leaf = [name for name in known if name.rpartition(".")[2] in similar]
    return list(dict.fromkeys([*near, *same_leaf] or like_leaf))[:3]


def list_siblings(path: str) -> list[str]:
    """Return the full paths of the keys and sections beside `path`, in the order of the schema."""
    parent = ".".join(ITEM if part.isdecimal() else part for part in path.split(".")[:-1])
    return [name for name in _list_paths() if name.rpartition(".")[0] == parent]


def _list_paths() -> list[str]:
    """Return the paths of all keys and of the sections that hold them."""
    paths = [key.path.split(".") for key in list_keys_of_config()]
    return list(dict.fromkeys(".".join(parts[:length]) for parts in paths for length in range(1, len(parts) + 1)))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[ConfigKey]:
    for name, field in section.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        inner = find_section(field.annotation)
        if inner and not _is_container(field.annotation):
            if type(None) in get_args(field.annotation):  # a section that may be left out
                yield _describe(section, path, field)
            yield from _walk(inner, f"{path}.")
        else:
            yield _describe(section, path, field)
            if inner:
                yield from _walk(inner, f"{path}.{ITEM}.")


def _describe(section: type[BaseModel], path: str, field: FieldInfo) -> ConfigKey:
    limits = [
        f"{sign} {f'{value:,}' if isinstance(value, int) else f'{value:g}'}"
        for metadata in field.metadata
        for name, sign in _LIMITS.items()
        if isinstance(value := getattr(metadata, name, None), int | float)
    ]
    kind = " ".join([_name_kind(field.annotation), " and ".join(limits)]).strip()
    return ConfigKey(path, kind, _show_default(field), field.description or "", section.__name__)


def _show_default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return getattr(value, "name", "") or "as below"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        value = [item.model_dump(mode="json", exclude_defaults=True) for item in value]
    return json.dumps(value, ensure_ascii=False)


def _name_kind(annotation: Any) -> str:
    """Return the kind of a value in words. Example: Literal["a", "b"] -> 'a | b', list[str] -> 'list of text'."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section" if issubclass(annotation, Section) else "name or YAML file"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is list:
        return f"list of {_name_kind(arguments[0])}" + ("s" if find_section(arguments[0]) else "")
    if origin is dict:
        return f"names with {_name_kind(arguments[1])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_name_kind(part) for part in arguments)
    if arguments:  # Annotated
        return _name_kind(arguments[0])
    return getattr(annotation, "__name__", str(annotation))


def _is_container(annotation: Any) -> bool:
    return get_origin(annotation) in (list, dict)


def find_section(annotation: Any) -> type[BaseModel] | None:
    """Return the section class in an annotation such as list[Annotated[DataSource, ...]], or None."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    return next(filter(None, map(find_section, get_args(annotation))), None)


_INTRODUCTION = """# Config

Generated from the schema by `medssr config keys --markdown`; a test compares the two.

A config is a YAML file with the sections below. An override on the command line has the form `voting.samples=16`;
`N` in a key is the number of an item of a list, from 0 (`synthesis.endpoints.0.model=...`), or a name of your own. A
file may start with `extends: OTHER.yaml` and hold only what differs. `${NAME}` in a path or a secret is replaced by an
environment variable.

`medssr config show --config FILE` prints every value with where it comes from, `medssr config keys PATTERN` searches
this list, and `medssr config init FILE` writes a first config. The keys of a data set are listed once, under
`synthesis.seeds.N`; `training.stage2.data.N`, `training.validate.data.N` and `evaluation.benchmarks.N` have the same
ones.
"""


def render_markdown() -> str:
    """Return docs/config.md."""
    parts = [_INTRODUCTION]
    for name, field in Config.model_fields.items():
        section = find_section(field.annotation)
        assert section is not None, name
        parts.append(f"## {name}\n\n{(section.__doc__ or '').strip().splitlines()[0]}\n")
        parts.append(_render_table([key for key in _walk(section, f"{name}.") if not _repeats(key)]))
    return "\n".join(parts)


def _repeats(key: ConfigKey) -> bool:
    """Return whether it is a data set's key, beside those of the seeds: benchmarks and stage 2 have the same ones."""
    return key.section in ("DataSource", "Columns") and not key.path.startswith("synthesis.seeds.")


def _render_table(keys: list[ConfigKey]) -> str:
    rows = [
        f"| `{key.path}` | {_escape(key.kind)} | {_show_cell(key.default)} | {_escape(key.description)} |"
        for key in keys
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _show_cell(default: str) -> str:
    return f"`{_escape(default)}`" if default else "must be set"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
