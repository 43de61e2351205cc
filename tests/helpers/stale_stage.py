"""Stage 2 in which one weight is sent as it was at the start; run as a process by test_rollout_stack.py.

    python stale_stage.py RUN_DIR CONFIG NAME KEY=VALUE ...

NAME: the weight. The first sync sends all weights as they are.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["MEDSSR_DEVICE"] = "cpu"

from medssr_dist.bench.training import stock_stage  # noqa: E402
from medssr_dist.config.load import load_config  # noqa: E402
from medssr_dist.training.ranks import PolicyRank, ReferenceRank  # noqa: E402
from medssr_dist.training.stage_actor import StageActor  # noqa: E402
from medssr_dist.training.weights.sync import ZeroSource  # noqa: E402

NAME = "MEDSSR_TEST_STALE_WEIGHT"


class StaleSource(ZeroSource):
    """Sends the values of the first sync for one weight, for ever."""

    stale = None

    def iter_groups(self):
        for names, tensors in super().iter_groups():
            if tensors and os.environ[NAME] in names:
                place = names.index(os.environ[NAME])
                self.stale = tensors[place].clone() if self.stale is None else self.stale
                tensors = [*tensors[:place], self.stale, *tensors[place + 1 :]]
            yield names, tensors


class StaleRank(PolicyRank):
    """A rank of the policy with a StaleSource."""

    def connect_engines(self, engines, settings) -> None:
        from medssr_dist.training.weights import sync

        sync.ZeroSource = StaleSource
        super().connect_engines(engines, settings)


class StaleStage(StageActor):
    """A stage with StaleRanks."""

    def __init__(self, pieces):
        super().__init__()

    def rank_classes(self):
        return StaleRank, ReferenceRank

    def export(self, after_step) -> None:
        pass


def main() -> None:
    run_dir, config, name, *overrides = sys.argv[1:]
    os.environ[NAME] = name
    stock_stage.StockStage = StaleStage
    stock_stage.run_stage(load_config(Path(config), overrides), Path(run_dir), frozenset())


if __name__ == "__main__":
    main()
