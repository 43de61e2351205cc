"""The arms of the comparison, and in what each of them differs from the others.

All arms take the same number of GRPO steps with the same number of samples. An arm with one stage takes all of them in
this stage, an arm with two takes half of them in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BASE, TWO_STAGE, SHUFFLED, STAGE1_ONLY = "base", "two_stage", "shuffled_labels", "stage1_only"
RANDOM_REWARD = "medssr_dist.bench.method.controls:draw_reward"
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        title: for table and figure.
        policy: that is scored: base, stage1 or stage2.
        stages: stage -> its share of the GRPO steps; a stage that is not named is left out.
        settings: dotted keys in which the arm differs from method.yaml.
        shares: steps whose results it takes over from the arm `base`.
        shuffles: whether the kept labels are given to other questions.
    """

    name: str
    title: str
    policy: str
    stages: Mapping[str, float]
    settings: Settings = field(default_factory=dict)
    shares: tuple[str, ...] = ("synthesize", "vote")
    shuffles: bool = False

    def make_settings(self, steps: int) -> dict[str, Any]:
        """Return dotted keys for this arm. `steps`: GRPO steps of every arm."""
        made = dict(self.settings) | {"evaluation.policies": [self.policy]}
        for stage in ("stage1", "stage2"):
            share = self.stages.get(stage, 0.0)
            made[f"training.{stage}.enabled"] = share > 0
            made[f"training.{stage}.steps"] = round(share * steps)
        return made


BASE_ARM = Arm(BASE, "base policy", "base", {}, shares=())
ARMS = (
    BASE_ARM,
    Arm(TWO_STAGE, "two stages", "stage2", {"stage1": 0.5, "stage2": 0.5}),
    Arm(SHUFFLED, "stage 1, shuffled labels", "stage1", {"stage1": 1.0}, shuffles=True),
    Arm(STAGE1_ONLY, "stage 1 only", "stage1", {"stage1": 1.0}),
    Arm("stage2_only", "stage 2 only", "stage2", {"stage2": 1.0}),
    Arm("mix", "one stage, mixed", "stage2", {"stage2": 1.0}, {"training.stage2.mix_pseudo_labels": True}),
    Arm(
        "no_filter",
        "two stages, no filter",
        "stage2",
        {"stage1": 0.5, "stage2": 0.5},
        {"voting.threshold": 0.0},
        shares=("synthesize",),
    ),
    Arm(
        "no_knowledge",
        "two stages, no knowledge",
        "stage2",
        {"stage1": 0.5, "stage2": 0.5},
        {"synthesis.alpha": 0.0},
        shares=(),
    ),
    Arm("random_reward", "stage 1, random reward", "stage1", {"stage1": 1.0}, {"training.reward": RANDOM_REWARD}),
)
# The controls take all steps in stage 1, so stage 1 only is the arm that differs in nothing else.
CONTROLS = tuple(arm.name for arm in ARMS if tuple(arm.stages) == ("stage1",) and arm.name != STAGE1_ONLY)
QUICK_ARMS = tuple(arm for arm in ARMS if arm.name in (BASE, TWO_STAGE, SHUFFLED))
