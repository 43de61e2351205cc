"""Where each value of a config comes from: a file, an override, or the default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssr_dist.config.load import Tree, apply_override, dump_config, load_config, read_layers
from medssr_dist.config.shipped import find_config_file

DEFAULT = "default"
_NAMES = {"knowledge.corpus": "knowledge.corpora"}  # short forms of earlier versions


@dataclass(frozen=True)
class ConfigValue:
    """A value of a resolved config. Example: ConfigValue("voting.samples", 16, "configs/demo_cpu.yaml")."""

    key: str
    value: Any
    origin: str


def trace_config(path: Path, overrides: list[str]) -> list[ConfigValue]:
    """Return all values of a resolved config, in the order of the schema, each with its origin.

    Secrets are shown as '**********'. A list is one value, and comes from where it was set last.

    Raises:
        InputError: see `config.load.load_config`.
    """
    config = load_config(path, overrides)
    origins: dict[str, str] = {}
    for layer in read_layers(find_config_file(path)):
        _set_origins(origins, layer.tree, str(layer.file))
    for override in overrides:
        tree: Tree = {}
        key = override.partition("=")[0]
        apply_override(tree, override if not _names_item(key) else f"{_cut_at_item(key)}=")
        _set_origins(origins, tree, f"override {key}")
    return [
        ConfigValue(key, value, _find_origin(origins, key)) for key, value in _list_leaves(dump_config(config)).items()
    ]


def _names_item(key: str) -> bool:
    return any(part.isdecimal() for part in key.split("."))


def _cut_at_item(key: str) -> str:
    """Return the key of the list that an item is in. Example: 'synthesis.seeds.0.path' -> 'synthesis.seeds'."""
    parts = key.split(".")
    return ".".join(parts[: next(place for place, part in enumerate(parts) if part.isdecimal())])


def _set_origins(origins: dict[str, str], tree: Tree, origin: str) -> None:
    for key, value in _list_leaves(tree).items():
        name = next((new for old, new in _NAMES.items() if key.startswith(old + ".") or key == old), key)
        variables = " with ${...}" if "${" in str(value) else ""
        origins[name] = origin + variables


def _find_origin(origins: dict[str, str], key: str) -> str:
    """Return the origin of a key, or of the section that was given as a whole (`policy.prompt: direct`)."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return DEFAULT


def _list_leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= _list_leaves(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
