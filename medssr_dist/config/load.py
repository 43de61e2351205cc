"""Read a config: a YAML file and `key=value` overrides become a Config. Errors name the key, the value and the fix."""

from __future__ import annotations

import difflib
import os
import re
import stat
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from medssr_dist.config.benchmark_sets import expand_benchmark_sets
from medssr_dist.config.schema import Config
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
    tree = _read_yaml(Path(path))
    expand_benchmark_sets(tree)  # before the overrides, so that they can change one source of a set
    for override in overrides or []:
        _apply_override(tree, override)
        expand_benchmark_sets(tree)
    _refuse_literal_secrets(tree, "")
    tree = _fill_variables(tree, "")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_explain(item) for item in error.errors())) from None


def _read_yaml(path: Path) -> Tree:
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no settings; start from configs/demo_cpu.yaml")
    base = tree.pop("extends", None)
    return merge_sections(_read_yaml(path.parent / base), tree) if base else tree


def merge_sections(base: Tree, changes: Tree) -> Tree:
    """Return `base` with the values of `changes`: sections are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both_sections = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge_sections(base[key], value) if both_sections else value
    return merged


def _apply_override(tree: Tree, override: str) -> None:
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


def _fill_variables(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        return {name: _fill_variables(value, f"{key}.{name}" if key else str(name)) for name, value in node.items()}
    if isinstance(node, list):
        return [_fill_variables(value, f"{key}.{index}") for index, value in enumerate(node)]
    if isinstance(node, str) and _SECRET_KEY.search(key) and node.startswith(_SECRET_FILE):
        return _read_secret(Path(node.removeprefix(_SECRET_FILE)).expanduser(), key)
    if isinstance(node, str) and _VARIABLE.search(node):
        if not _VARIABLE_KEYS.search(key):
            raise InputError(f"{key}: ${{...}} is allowed in secrets and paths only; write the value itself")
        return _VARIABLE.sub(lambda match: _read_variable(match.group(1), key), node)
    return node


def _read_variable(name: str, key: str) -> str:
    if name not in os.environ:
        raise InputError(f"{key} needs the environment variable {name}, which is not set; export {name}=...")
    return os.environ[name]


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
    section: Any = Config
    for part in location[:-1]:
        section = _find_section(section, part)
        if section is None:
            return ""
    close = difflib.get_close_matches(str(location[-1]), list(section.model_fields), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid names: {', '.join(section.model_fields)}"


def _find_section(section: type[BaseModel], part: int | str) -> Any:
    if isinstance(part, int):
        return section
    field = section.model_fields.get(part)
    return _find_model(field.annotation) if field else None


def _find_model(annotation: Any) -> Any:
    """Return the section class in an annotation such as list[Annotated[DataSource, ...]]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_find_model, get_args(annotation))), None)


def dump_config(config: Config) -> Tree:
    """Return the whole config as JSON values, with '**********' in place of secrets."""
    return config.model_dump(mode="json")
