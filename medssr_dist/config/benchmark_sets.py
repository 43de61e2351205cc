"""Named sets of benchmarks: `evaluation.benchmarks: paper` stands for the sources in configs/benchmarks/paper.yaml.

A set is a YAML list of data sources (config.base.DataSource). It is put in place of its name when a config is loaded,
so that the resolved config of a run holds every file, with its expected number of questions and its origin.
"""

from __future__ import annotations

from typing import Any

from medssr_dist.config.shipped import find_shipped
from medssr_dist.data.yaml_text import read_yaml
from medssr_dist.errors import InputError

SETS_FOLDER = find_shipped("configs") / "benchmarks"
_KEY = "evaluation.benchmarks"
_BESIDE = ("limit", "rare")  # keys that may stand beside `set`; they replace those of every source


def expand_benchmark_sets(tree: dict[str, Any]) -> None:
    """Put the sources of each named set in place of its name, in the section `evaluation` of a config.

    Forms: `benchmarks: paper`, or items of the list: `{set: paper}`, `{set: paper, limit: 50}`.

    Raises:
        InputError: there is no set of that name, or another key than limit and rare stands beside it.
    """
    section = tree.get("evaluation")
    if not isinstance(section, dict):
        return
    given = section.get("benchmarks")
    items = [{"set": given}] if isinstance(given, str) else [given] if isinstance(given, dict) else given
    if isinstance(items, list):
        section["benchmarks"] = [source for item in items for source in _expand(item)]


def list_benchmark_sets() -> list[str]:
    """Return the names of the sets that come with the project."""
    return sorted(file.stem for file in SETS_FOLDER.glob("*.yaml"))


def _expand(item: Any) -> list[Any]:
    if not isinstance(item, dict) or "set" not in item:
        return [item]
    name, beside = item["set"], {key: value for key, value in item.items() if key != "set"}
    if name not in list_benchmark_sets():
        known = ", ".join(list_benchmark_sets()) or f"none in {SETS_FOLDER}"
        raise InputError(
            f"{_KEY} = {name!r}: there is no benchmark set of that name; sets: {known}. A file is an item of a list: "
            f"[{name}]"
        )
    if wrong := sorted(set(beside) - set(_BESIDE)):
        raise InputError(f"{_KEY}: {wrong[0]!r} cannot stand beside `set: {name}`; only {' and '.join(_BESIDE)} can")
    return [source | beside for source in read_yaml(SETS_FOLDER / f"{name}.yaml")]
