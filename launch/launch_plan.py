"""What a job has to do, from the command line of `python -m medssr_dist.launch`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class LaunchPlan:
    """What the job has to do, from the command line.

    Example: LaunchPlan(run_dir=Path("runs/demo"), step="run", config=Path("demo.yaml"), overrides=["voting.samples=8"])

    Attributes:
        step: the command of `medssr`: run, synthesize, vote, train or evaluate.
        command: runs on the head node in place of `medssr STEP`.
        slots: logical GPUs of a CPU node, for `command`.
        python: Python on the nodes.
        prefix: words put before each node's command, for a container.
        srun_options: further options of srun.
    """

    run_dir: Path
    step: str = "run"
    config: Path | None = None
    overrides: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    slots: int = 0
    python: str = sys.executable
    prefix: list[str] = field(default_factory=list)
    srun_options: list[str] = field(default_factory=list)

    @property
    def needs_ray(self) -> bool:
        """Whether the driver uses Ray; synthesis alone does not."""
        return self.step != "synthesize"

    def build_command(self, command: str, *options: str) -> list[str]:
        """Return `medssr COMMAND` for this plan's config and run directory, without the overrides."""
        # The console script, not `python -m`, which would put the checkout with its kernels/ on the import path.
        script = str(Path(self.python).with_name("medssr")) if "/" in self.python else "medssr"
        return [script, command, *options, "--config", str(self.config), "--run-dir", str(self.run_dir)]
