"""Where engines run: on bundles of the Ray cluster reserved for them, and on nodes that join later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from medssr_dist.config.schema import Config
from medssr_dist.inference.engine_protocol import Engine
from medssr_dist.inference.event_log import EventLog
from medssr_dist.inference.pool import EnginePool
from medssr_dist.inference.vllm_args import build_engine_env, build_engine_kwargs
from medssr_dist.inference.vllm_engine import RayEngine
from medssr_dist.inference.vllm_server import ServerEngine
from medssr_dist.runtime.cluster import reserve_each
from medssr_dist.runtime.device import count_threads
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LINGER_S = 0.02  # plus a millisecond per engine, so that many engines send fewer messages each


logger = logging.getLogger(__name__)


@contextmanager
def open_engine_pool(
    config: Config, model: Path, events: Path | None = None, with_servers: bool = True
) -> Iterator[EnginePool]:
    """Open a pool of `voting.engines` vLLM engines on the connected Ray cluster, and of `voting.servers`.

    Args:
        model: directory of the model that the engines load.
        events: JSONL file for the events in the engines' lives (`EngineEvent`); None = not recorded.
        with_servers: false where `model` is not the base policy, which is the model that the servers have.

    Raises:
        InputError: from the pool's `run`, when the engines cannot be placed (with what was asked for and what is free).
    """
    voting = config.voting
    servers = voting.servers if with_servers else []
    count = voting.engines if servers else max(1, voting.engines)
    with ExitStack() as stack:
        placement = EnginePlacement(config, model, count)
        stack.callback(placement.release)
        logger.info("starting %d vLLM engine%s; on CPU this takes about half a minute", count, "s" * (count > 1))
        engines: list[Engine] = [placement.make_engine() for _ in range(count)]
        if servers:
            tokenize = partial(_tokenize, load_tokenizer(model, config.policy))
            engines += [
                ServerEngine(server, config.policy, model, placement.fingerprint, tokenize) for server in servers
            ]
        if events:
            on_event = stack.enter_context(EventLog(events))
            pool = EnginePool(engines, voting, placement.grow, on_event=on_event)
        else:
            pool = EnginePool(engines, voting, placement.grow)
        yield stack.enter_context(pool)


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class EnginePlacement:
    """Places a pool's engines: reserves room for the first ones all at once, for later ones one by one.

    Attributes:
        fingerprint: of the model when the run began.
    """

    def __init__(self, config: Config, model: Path, engines: int):
        self._voting, self._first = config.voting, engines
        size = config.voting.tensor_parallel_size
        self._kwargs = build_engine_kwargs(model, config.policy, config.runtime, size)
        self._kwargs["max_num_seqs"] = config.voting.in_flight  # vLLM's own default is lower behind AsyncLLMEngine
        threads = count_threads(engines)
        self._env = build_engine_env(config.runtime, threads)
        self._linger_s = _LINGER_S + engines / 1000
        self.fingerprint = fingerprint_model(model)
        self._reserved: list[PlacementGroup] | None = None
        self._made = 0

    @property
    def _bundle(self) -> dict[str, float]:
        return {"GPU": self._voting.tensor_parallel_size, "CPU": 1}

    def make_engine(self) -> RayEngine:
        """Return a new engine, which takes its place when it starts."""
        name, self._made = f"engine {self._made}", self._made + 1
        gpus = self._voting.tensor_parallel_size
        return RayEngine(name, self._place, gpus, self._kwargs, self.fingerprint, self._env, self._linger_s)

    def grow(self) -> RayEngine | None:
        """Return one more engine where `max_engines` and the cluster allow it, else None."""
        if self._reserved is None or self._made >= self._voting.max_engines:
            return None
        free = ray.available_resources()
        has_room = all(free.get(kind, 0) >= amount for kind, amount in self._bundle.items())
        return self.make_engine() if has_room else None

    def release(self) -> None:
        """Remove the reservations that no engine has taken; each engine removes its own."""
        for group in self._reserved or []:
            remove_placement_group(group)

    def _place(self) -> PlacementGroup:
        if self._reserved is None:
            self._reserved = reserve_each(self._bundle, self._first, "the vLLM engines")
        return self._reserved.pop(0) if self._reserved else placement_group([self._bundle])
