"""Read a config: a YAML file and `key=value` overrides become a Config. Errors name the key, the value and the fix."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medssr_dist.config.benchmark_sets import expand_benchmark_sets
from medssr_dist.config.key_list import list_siblings, suggest_paths
from medssr_dist.config.removed_keys import REMOVED_KEYS
from medssr_dist.config.schema import Config
from medssr_dist.config.shipped import find_config_file
from medssr_dist.config.variables import fill_variables
from medssr_dist.data.yaml_text import parse_yaml, read_yaml
from medssr_dist.errors import InputError

Tree = dict[str, Any]  # the sections and values of a config, as YAML gives them

_MOST_FILES = 20  # that extend each other
_MOST_SHOWN = 80  # characters of a wrong value in a message


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read and validate a config.

    A file may start with `extends: other.yaml` (a path relative to the file) and hold only what differs from it.
    `${NAME}` is replaced by the environment variable NAME, `file:PATH` in an api_key by the text of that file, and the
    name of a set of benchmarks by its files.

    Args:
        overrides: dotted keys and values, for example "voting.samples=16"; they replace the values of the file.

    Raises:
        InputError: a file cannot be read, a key is unknown (the message names the nearest valid key), or a value is
            out of range.
    """
    file = find_config_file(Path(path))
    return validate_tree(merge_layers(read_layers(file)), overrides or [], str(file))


def validate_tree(tree: Tree, overrides: list[str], where: str) -> Config:
    """Return the config of a tree with overrides. `where`: what the tree is called in messages.

    Raises:
        InputError: see `load_config`.
    """
    of_file = copy.deepcopy(tree)
    expand_benchmark_sets(tree)  # before the overrides, so that they can change one source of a set
    for override in overrides:
        apply_override(tree, override)
        expand_benchmark_sets(tree)
    try:
        return Config.model_validate(fill_variables(tree))
    except ValidationError as error:
        raise InputError(_explain_all(error.errors(), overrides, of_file, where)) from None


@dataclass(frozen=True)
class ConfigLayer:
    """What one file sets. Example: ConfigLayer(file=Path("configs/qwen3_8b.yaml"), tree={"policy": {...}})."""

    file: Path
    tree: Tree


def read_layers(path: Path) -> list[ConfigLayer]:
    """Return what a config file sets, behind the files that it extends, the most general first.

    Raises:
        InputError: a file cannot be read or holds no settings, or a file extends itself.
    """
    layers: list[ConfigLayer] = []
    file: Path | None = path
    while file is not None:
        if len(layers) > _MOST_FILES or any(layer.file == file for layer in layers):
            raise InputError(f"{file} extends itself; remove its line `extends`")
        tree = _read_settings(file)
        base = tree.pop("extends", None)
        layers.insert(0, ConfigLayer(file, tree))
        if base and not isinstance(base, str):
            raise InputError(f"{file}: extends is a {_name_type(base)}, but must be the name of one file")
        file = _find_base(file, base) if base else None
    return layers


def merge_layers(layers: list[ConfigLayer]) -> Tree:
    """Return the tree of all layers; a later one replaces what an earlier one sets."""
    tree: Tree = {}
    for layer in layers:
        tree = merge_sections(tree, layer.tree)
    return tree


def _find_base(file: Path, base: str) -> Path:
    """Return the file that `file` extends: beside it, else one that comes with the project."""
    beside = file.parent / base
    return beside if beside.exists() or Path(base).is_absolute() else find_config_file(Path(base))


def _read_settings(path: Path) -> Tree:
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no settings; `medssr config init` writes a first config")
    return tree


def _name_type(value: Any) -> str:
    """Return what a value is, in the words of YAML, for messages that must not repeat it."""
    names = {dict: "section", list: "list", str: "text", bool: "switch (true or false)", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def merge_sections(base: Tree, changes: Tree) -> Tree:
    """Return `base` with the values of `changes`: sections are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both_sections = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge_sections(base[key], value) if both_sections else value
    return merged


def apply_override(tree: Tree, override: str) -> None:
    """Set one key of a tree. Example of `override`: "voting.samples=16".

    Raises:
        InputError: it is not of this form, or goes through a value or past the end of a list.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"override {key!r} is not of the form key=value, e.g. voting.samples=16")
    value = parse_yaml(text, f"the value of override {key}") if text else ""
    *parents, leaf = key.split(".")
    node: Tree | list[Any] = tree
    for parent in parents:
        node = _enter(node, parent, key)
    if isinstance(node, list):
        node[_parse_index(node, leaf, key)] = value
    else:
        node[leaf] = value


def _enter(node: Tree | list[Any], name: str, key: str) -> Tree | list[Any]:
    """Return the section or list called `name` in a section, or item number `name` of a list."""
    if isinstance(node, list):
        child = node[_parse_index(node, name, key)]
    elif (child := node.get(name)) is None:  # a section that is absent, or off with null
        child = node[name] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"override {key!r}: {name} is a value, not a section")
    return child


def _parse_index(items: list[Any], name: str, key: str) -> int:
    if not name.isdecimal() or len(name) > 9 or int(name) >= len(items):
        raise InputError(f"override {key!r}: {name} is no item of a list of {len(items)}; items are counted from 0")
    return int(name)


def _explain_all(items: list[ErrorDetails], overrides: list[str], of_file: Tree, where: str) -> str:
    """Return one line with all errors, each group behind what it is in: overrides, or the file (the tree `of_file`)."""
    given = [override.partition("=")[0] for override in overrides]
    groups: dict[str, list[str]] = {}
    for item in items:
        is_given = any(_is_about(item, key, of_file) for key in given)
        groups.setdefault("override" if is_given else where, []).append(_explain(item))
    return "; ".join(f"{place}: {'; '.join(found)}" for place, found in groups.items())


def _is_about(item: ErrorDetails, key: str, of_file: Tree) -> bool:
    """Return whether an error is about what the override `key` sets.

    An error that a section has as a whole is about those of its keys that its message names. A key that is missing in a
    section which the file does not have is missing because of the override that has made the section.
    """
    place, name = (f"{path}." if path else "" for path in (".".join(map(str, item["loc"])), key))
    if place and place.startswith(name):
        return True
    if item["type"] == "missing":
        *section, _ = item["loc"]
        return name.startswith(".".join([*map(str, section), ""])) and not _has_section(of_file, section)
    if not name.startswith(place):
        return False
    return _is_unknown(item) or bool(re.search(rf"\b{re.escape(key.removeprefix(place))}\b", item["msg"]))


def _has_section(tree: Any, section: Sequence[int | str]) -> bool:
    for name in section:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree is not None


def _is_unknown(item: ErrorDetails) -> bool:
    return item["type"] == "extra_forbidden"


def _explain(item: ErrorDetails) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if _is_unknown(item):
        if removed := REMOVED_KEYS.get(key):
            return removed.explain(key)
        return f"unknown key {key!r}{_suggest_key(item['loc'])}"
    if item["type"] == "missing":
        return f"{key} is missing; set it in the file or as an override"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    value = item["input"]
    message = _explain_shape(item["type"], key) or message
    if isinstance(value, dict | list):  # it may hold anything
        return f"{key} is a {_name_type(value)}: {message}"
    shown = repr(value)
    return f"{key} = {shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + '...'}: {message}"


def _explain_shape(kind: str, key: str) -> str:
    """Return what a key takes that is a section or a list; "" for the other kinds of errors."""
    if kind in ("model_type", "model_attributes_type") and (keys := list_siblings(f"{key}.")):
        return f"it is a section; set its keys, such as {keys[0]}; `medssr config keys {key}` lists them"
    return f"must be a list; write {key}='[...]'" if kind == "list_type" else ""


def _suggest_key(location: tuple[int | str, ...]) -> str:
    key = ".".join(map(str, location))
    if close := suggest_paths(key):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; valid keys: {', '.join(list_siblings(key)[:20])}"


def dump_config(config: Config) -> Tree:
    """Return the whole config as JSON values, with '**********' in place of secrets."""
    return config.model_dump(mode="json")
