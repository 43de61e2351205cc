"""The files that come with the project beside its code: configs, sets of benchmarks, Slurm scripts.

In a checkout they lie beside `medssr_dist/`; an installed package has them inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parents[1]


def find_shipped(folder: Literal["configs", "slurm"]) -> Path:
    """Return the folder `configs` or `slurm` of this installation."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def list_shipped_configs() -> list[str]:
    """Return the names of the configs that come with the project. Example: ["demo_cpu", "qwen3_8b"]."""
    return sorted(file.stem for file in find_shipped("configs").glob("*.yaml"))


def find_config_file(path: Path) -> Path:
    """Return `path` if it exists; else the config of that name that comes with the project, if there is one.

    Example: `demo_cpu` and `configs/demo_cpu.yaml` are that config, in any folder.
    """
    if path.exists():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    shipped = find_shipped("configs").joinpath(*parts)
    for file in (shipped, shipped.with_name(f"{shipped.name}.yaml")):
        if parts and not path.is_absolute() and ".." not in parts and file.is_file():
            return file
    return path
