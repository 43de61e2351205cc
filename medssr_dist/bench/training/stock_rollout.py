"""OpenRLHF's own sample generator with the methods that our loop calls, for `medssr bench training`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medssr_dist.config.training import Stage
from medssr_dist.training.backend import openrlhf  # noqa: F401 - applies its patches before OpenRLHF is imported
from medssr_dist.training.rollout.examples import PromptLoader
from medssr_dist.training.rollout.sampler import StepSamples

from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # isort: skip


class StockPrompts:
    """The prompts of a stage with a fixed number of steps, for OpenRLHF: (sources, prompts, labels, images)."""

    def __init__(self, loader: PromptLoader, stage: Stage):
        self._loader, self._total = loader, stage.steps * stage.prompts_per_step

    def __len__(self) -> int:
        return self._total

    def __iter__(self) -> Iterator[tuple[list, list, list, list]]:
        for _ in range(self._total):
            drawn = self._loader.draw(wrap=True)
            yield ["medssr"], [drawn.text], [drawn.label], [None]

    def state_dict(self) -> dict[str, Any]:
        return self._loader.state_dict()


class StockSampler(SamplesGenerator):
    """Samples with one request per sample and without seeds; the attributes are those of Sampler."""

    def __init__(self, strategy, prompts: StockPrompts, tokenizer, engines: list, loader: PromptLoader):
        super().__init__(strategy, prompts, None, tokenizer, engines)
        self.returned = 0
        self.ranks_free = threading.RLock()
        self._loader = loader

    @property
    def waited_s(self) -> float:
        return self._loader.waited_s

    def next_step(self) -> StepSamples | None:
        samples, _, drawn, _ = self.generate_samples(**make_generate_options(self.args))
        self.returned += bool(samples)
        return StepSamples(samples, drawn) if samples else None

    @contextmanager
    def new_weights(self) -> Iterator[int]:
        """Yield the version of the policy's weights; no batch is made ahead."""
        yield self.returned

    def state_dict(self) -> dict[str, Any]:
        return {"batches": {"given": self.returned}, "prompts": self._loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returned = state["batches"]["given"]


def make_generate_options(args) -> dict[str, Any]:
    """Return the sampling options of OpenRLHF's generator."""
    return {
        "do_sample": True,
        "max_len": args.data.max_len,
        "max_new_tokens": args.rollout.max_new_tokens,
        "temperature": args.rollout.temperature,
        "top_p": args.rollout.top_p,
    }
