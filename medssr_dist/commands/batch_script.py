"""`--sbatch`: the batch script of a Slurm job, as one file that `sbatch` takes as it is."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.config.shipped import find_config_file, find_shipped
from medssr_dist.data.jsonl import read_text
from medssr_dist.errors import InputError
from medssr_dist.runtime.cluster import count_slots_at_once

_SCRIPTS = {"run": "medssr_ssl.sh"}  # of the other steps: STEP.sh
_OPTION = "#SBATCH "


def render_batch_script(config: Config, step: str, file: Path, run_dir: Path, overrides: Sequence[str]) -> str:
    """Return the project's script of a step with this config, run directory and overrides written into it.

    The numbers of nodes and GPUs follow from the config: as many nodes as training has, and as many GPUs as run at the
    same time. Time, partition and account are the site's and are left to the user.

    Raises:
        InputError: an override holds a secret's environment variable by value (secrets belong in the environment).
    """
    folder = find_shipped("slurm")
    source = folder / _SCRIPTS.get(step, f"{step}.sh")
    if not source.is_file():
        raise InputError(f"there is no batch script of {step!r} in {folder}")
    lines = read_text(source).splitlines()
    last = max(place for place, line in enumerate(lines) if line.startswith(_OPTION))
    own = _list_options(config)
    named = tuple(option.partition("=")[0] + "=" for option in own if option.startswith(_OPTION))
    return (
        "\n".join(
            [
                *(line for line in lines[: last + 1] if not line.startswith(named)),
                *own,
                "",
                *_list_settings(file, run_dir),
                *_call(lines[last + 1 :], overrides),
            ]
        )
        + "\n"
    )


def _list_options(config: Config) -> list[str]:
    nodes = config.training.nodes
    gpus = math.ceil(count_slots_at_once(config) / nodes)
    return [
        f"{_OPTION}--nodes={nodes}",
        f"{_OPTION}--gpus-per-node={gpus}",
        "# Add what your site asks for: --time, --partition, --account.",
    ]


def _list_settings(file: Path, run_dir: Path) -> list[str]:
    python = Path(sys.prefix)
    settings = {
        "MEDSSR_HOME": find_shipped("slurm").parent,
        "VENV": python,
        "CONFIG": find_config_file(file).resolve(),
        "RUN_DIR": run_dir.resolve(),
    }
    return [f"export {name}={shlex.quote(str(value))}" for name, value in settings.items()]


def _call(lines: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Return the rest of the script, with the overrides in place of the arguments that sbatch would pass."""
    words = " ".join(map(shlex.quote, overrides))
    return [line.replace('"$@"', words).rstrip() for line in lines]
