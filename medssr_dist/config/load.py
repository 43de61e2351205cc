"""Read a config: a YAML file and `key=value` overrides become a Config. Errors name the key, the value and the fix."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from medssr_dist.config.benchmark_sets import expand_benchmark_sets
from medssr_dist.config.key_list import list_siblings, suggest_paths
from medssr_dist.config.schema import Config
from medssr_dist.config.shipped import find_config_file
from medssr_dist.config.training import REMOVED_ADVICE, REMOVED_KEYS
from medssr_dist.data.jsonl import read_text
from medssr_dist.errors import InputError

Tree = dict[str, Any]  # the sections and values of a config, as YAML gives them

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET_FILE = "file:"
# ${ENV} is allowed in secrets and paths only. Elsewhere, a run would depend on values that are not recorded.
_VARIABLE_KEYS = re.compile(
    r"(^|\.)(api_key|path|model|prompt|base_url|medcpt_query|medcpt_article|corpus|corpora|corpora_root|entities_file|"
    r"seeds|benchmarks|data|prompt_file)(\.\d+)?$"
)
_SECRET_KEY = re.compile(r"(^|\.)api_key$")


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
    expand_benchmark_sets(tree)  # before the overrides, so that they can change one source of a set
    for override in overrides:
        apply_override(tree, override)
        expand_benchmark_sets(tree)
    _refuse_literal_secrets(tree, "")
    tree = _fill_variables(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{where}: " + "; ".join(_explain(item) for item in error.errors())) from None


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
        if any(layer.file == file for layer in layers):
            raise InputError(f"{file} extends itself; remove its line `extends`")
        tree = _read_yaml(file)
        base = tree.pop("extends", None)
        layers.insert(0, ConfigLayer(file, tree))
        file = _find_base(file, str(base)) if base else None
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


def _read_yaml(path: Path) -> Tree:
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no settings; `medssr config init` writes a first config")
    return tree


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
        raise InputError(f"override {override!r} is not of the form key=value, e.g. voting.samples=16")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: the value is not valid YAML; quote it") from None
    *parents, leaf = key.split(".")
    node: Tree | list[Any] = tree
    for parent in parents:
        node = _enter(node, parent, override)
    if isinstance(node, list):
        node[_parse_index(node, leaf, override)] = value
    else:
        node[leaf] = value


def _enter(node: Tree | list[Any], name: str, override: str) -> Tree | list[Any]:
    """Return the section or list called `name` in a section, or item number `name` of a list."""
    child = node[_parse_index(node, name, override)] if isinstance(node, list) else node.setdefault(name, {})
    if not isinstance(child, dict | list):
        raise InputError(f"override {override!r}: {name} is a value, not a section")
    return child


def _parse_index(items: list[Any], name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise InputError(
            f"override {override!r}: {name} is no item of a list of {len(items)}; items are counted from 0"
        )
    return int(name)


def _refuse_literal_secrets(node: Any, key: str) -> None:
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            _refuse_literal_secrets(value, f"{key}.{name}" if key else str(name))
    elif node is not None and _SECRET_KEY.search(key) and not _names_a_secret(str(node)):
        raise InputError(
            f"{key} must name an environment variable, e.g. ${{MEDSSR_API_KEY}}, or a file of mode 0600, e.g. "
            f"{_SECRET_FILE}~/.medssr_api_key, not hold the key"
        )


def _names_a_secret(text: str) -> bool:
    return bool(_VARIABLE.fullmatch(text)) or text.startswith(_SECRET_FILE)


def _fill_variables(tree: Tree) -> Tree:
    """Return the tree with environment variables and secrets filled in. Raises InputError with all that are not set."""
    missing: dict[str, list[str]] = {}
    filled: Tree = _fill(tree, "", missing)
    if missing:
        told = "; ".join(f"{name}, which is not set, is needed by {_name_few(keys)}" for name, keys in missing.items())
        exports = " ".join(f"{name}=..." for name in missing)
        raise InputError(f"environment variables: {told}; export {exports}")
    return filled


def _name_few(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _fill(node: Any, key: str, missing: dict[str, list[str]]) -> Any:
    """Return `node` filled in; variables that are not set are added to `missing`, with the keys that need them."""
    if isinstance(node, dict):
        return {name: _fill(value, f"{key}.{name}" if key else str(name), missing) for name, value in node.items()}
    if isinstance(node, list):
        return [_fill(value, f"{key}.{index}", missing) for index, value in enumerate(node)]
    if isinstance(node, str) and _SECRET_KEY.search(key) and node.startswith(_SECRET_FILE):
        return _read_secret(Path(node.removeprefix(_SECRET_FILE)).expanduser(), key)
    if isinstance(node, str) and _VARIABLE.search(node):
        if not _VARIABLE_KEYS.search(key):
            raise InputError(f"{key}: ${{...}} is allowed in secrets and paths only; write the value itself")
        for name in _VARIABLE.findall(node):
            if name not in os.environ:
                missing.setdefault(name, []).append(key)
        return _VARIABLE.sub(lambda match: os.environ.get(match.group(1), ""), node)
    return node


def _read_secret(file: Path, key: str) -> str:
    """Return the text of `file`, which must belong to this user and be closed to all others."""
    try:
        with open(file, encoding="utf-8") as handle:
            info = os.fstat(handle.fileno())
            if info.st_uid != os.getuid() or info.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InputError(
                    f"{key}: {file} has mode {stat.S_IMODE(info.st_mode):04o} and owner {info.st_uid}: others may read "
                    f"it; become its owner, then chmod 600 {file}"
                )
            return handle.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{key}: {file} cannot be read ({reason}); write only the key into it, mode 0600") from None


def _explain(item: ErrorDetails) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden" and item["loc"][0] == "training" and item["loc"][-1] in REMOVED_KEYS:
        return f"{key} {REMOVED_ADVICE}"
    if item["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_suggest_key(item['loc'])}"
    if item["type"] == "missing":
        return f"{key} is missing; set it in the file or as an override"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} = {item['input']!r}: {message}"


def _suggest_key(location: tuple[int | str, ...]) -> str:
    key = ".".join(map(str, location))
    if close := suggest_paths(key):
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; valid keys: {', '.join(list_siblings(key)[:20])}"


def dump_config(config: Config) -> Tree:
    """Return the whole config as JSON values, with '**********' in place of secrets."""
    return config.model_dump(mode="json")
