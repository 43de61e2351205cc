"""Where engines stand: on bundles of the Ray cluster reserved for them, and on nodes that join later."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.inference.pool import EnginePool
from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.inference.vllm_engine import RayEngine
from medssr_dist.inference.vllm_server import ServerEngine
from medssr_dist.runtime.cluster import reserve_each
from medssr_dist.runtime.models import load_tokenizer, model_fingerprint

_LINGER_S = 0.02  # and a millisecond an engine: the coordinator is asked less often by each where there are many


@contextmanager
def open_engine_pool(
    config: Config, model: Path, events: Path | None = None, with_servers: bool = True
) -> Iterator[EnginePool]:
    """A pool of `voting.engines` vLLM engines on the cluster Ray is connected to, and of `voting.servers`.

    Args:
        model: directory of the policy that the engines load.
        events: JSONL file that each event in an engine's life is written to.
        with_servers: false where `model` is not the base policy, which is what the servers have.

    Raises:
        InputError: from its `run`, when the engines cannot be placed (with asked and available).
    """
    voting = config.voting
    servers = voting.servers if with_servers else []
    count = voting.engines if servers else max(1, voting.engines)
    with ExitStack() as stack:
        places = EnginePlacement(config, model, count)
        stack.callback(places.give_back)
        engines = [places.engine() for _ in range(count)]
        if servers:
            tokenize = partial(_ids, load_tokenizer(model, config.policy))
            engines += [ServerEngine(server, config.policy, model, places.fingerprint, tokenize) for server in servers]
        tell = stack.enter_context(_Teller(events)) if events else _silent
        yield stack.enter_context(EnginePool(engines, voting, places.more, tell=tell))


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _silent(engine: str, event: str, detail: str) -> None:
    """Nobody is told."""


class EnginePlacement:
    """Gives a pool's engines their places: those it begins with theirs all at once, the others one by one."""

    def __init__(self, config: Config, model: Path, engines: int):
        self._voting, self._first = config.voting, engines
        size = config.voting.tensor_parallel_size
        self._kwargs = build_engine_kwargs(model, config.policy, config.runtime, size)
        self._kwargs["max_num_seqs"] = config.voting.in_flight  # vLLM's own default is lower behind AsyncLLMEngine
        threads = max(1, (os.cpu_count() or 1) // max(1, engines))
        self._env = build_engine_env(config.runtime, threads)
        self._linger = _LINGER_S + engines / 1000
        self.fingerprint = model_fingerprint(model)
        self._reserved: list[PlacementGroup] | None = None
        self._made = 0

    @property
    def _bundle(self) -> dict[str, float]:
        return {"GPU": self._voting.tensor_parallel_size, "CPU": 1}

    def engine(self) -> RayEngine:
        name, self._made = f"engine {self._made}", self._made + 1
        gpus = self._voting.tensor_parallel_size
        return RayEngine(name, self._place, gpus, self._kwargs, self.fingerprint, self._env, self._linger)

    def more(self) -> RayEngine | None:
        """One engine more, where `max_engines` and the cluster allow it."""
        if self._reserved is None or self._made >= self._voting.max_engines:
            return None
        free = ray.available_resources()
        return self.engine() if all(free.get(kind, 0) >= amount for kind, amount in self._bundle.items()) else None

    def give_back(self) -> None:
        """What was reserved and no engine took; an engine gives back its own."""
        for group in self._reserved or []:
            remove_placement_group(group)

    def _place(self) -> PlacementGroup:
        if self._reserved is None:
            self._reserved = reserve_each(self._bundle, self._first, "the vLLM engines")
        return self._reserved.pop(0) if self._reserved else placement_group([self._bundle])


class _Teller(JsonlLedger):
    """Writes events in the engines' lives to a file, for `medssr status` and whoever looks for a cause."""

    def __call__(self, engine: str, event: str, detail: str) -> None:
        self.append({"time": round(time.time(), 3), "engine": engine, "event": event, "detail": detail})
