"""OpenRLHF's own sample generator (`training.rollout: openrlhf`), in the form that our trainer asks."""

from __future__ import annotations

import threading

from medssr_dist.training.ranks import SamplesGenerator


class StockRollout(SamplesGenerator):
    """One request a sample, without seeds, and nothing left between steps. Attributes as of Rollout."""

    def __init__(self, *args):
        super().__init__(*args)
        self.given = 0
        self.metrics: dict[str, float] = {}
        self.ranks_free = threading.Condition()

    def generate_samples(self, **kwargs):
        found = super().generate_samples(**kwargs)
        self.given += bool(found[0])
        return found

    def finish(self) -> None:
        """Nothing is made beside the training."""

    def state_dict(self) -> dict:
        return {"given": self.given}

    def load_state_dict(self, state: dict) -> None:
        self.given = state["given"]
