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
from medssr_dist.inference.vllm_engine import RayEngine, ServedModel
from medssr_dist.inference.vllm_server import ServerEngine
from medssr_dist.inference.weight_reload import WeightReload
from medssr_dist.runtime.alike_models import differ_in_weights_alone
from medssr_dist.runtime.cluster import reserve_each
from medssr_dist.runtime.device import count_threads, on_gpu
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LINGER_S = 0.02  # plus a millisecond per engine, so that many engines send fewer messages each


logger = logging.getLogger(__name__)


class PolicyEngines:
    """The engines that answer for one policy after another. A context manager.

    Where the next policy differs from the last one in its weights alone, the running engines load these. This takes
    seconds, while a new engine takes half a minute or more to start.

    Args:
        events: see `open_engine_pool`.
    """

    def __init__(self, events: Path | None = None):
        self._events, self._stack = events, ExitStack()
        self._open: tuple[EnginePool, EnginePlacement, Config] | None = None

    def serve(self, config: Config, model: Path, with_servers: bool) -> EnginePool:
        """Return the pool of this policy, whose engines start or load its weights. See `open_engine_pool`."""
        if self._open and not with_servers:
            pool, placement, last = self._open
            if _start_alike(last, config) and differ_in_weights_alone(placement.model.folder, model, config.policy):
                logger.info("the vLLM engines load the weights of %s", model)
                placement.model = ServedModel(model, fingerprint_model(model))
                pool.change_engines(RayEngine.load_model)
                return pool
        self._stack.close()
        pool, placement = self._stack.enter_context(_open_engines(config, model, self._events, with_servers))
        self._open = None if with_servers else (pool, placement, config)
        return pool

    def __enter__(self) -> PolicyEngines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()


def _start_alike(first: Config, second: Config) -> bool:
    """Whether the engines of two configs differ in their model at most."""
    no_model = {"model": "", "revision": ""}
    policies = [config.policy.model_copy(update=no_model) for config in (first, second)]
    return policies[0] == policies[1] and (first.voting, first.runtime) == (second.voting, second.runtime)


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
    with _open_engines(config, model, events, with_servers) as (pool, _):
        yield pool


@contextmanager
def _open_engines(
    config: Config, model: Path, events: Path | None, with_servers: bool
) -> Iterator[tuple[EnginePool, EnginePlacement]]:
    voting = config.voting
    servers = voting.servers if with_servers else []
    count = voting.engines if servers else max(1, voting.engines)
    with ExitStack() as stack:
        placement = EnginePlacement(config, model, count)
        stack.callback(placement.release)
        about = "a minute" if on_gpu() else "half a minute"
        logger.info("starting %d vLLM engine%s; this takes about %s", count, "s" * (count > 1), about)
        engines: list[Engine] = [placement.make_engine() for _ in range(count)]
        if servers:
            tokenize = partial(_tokenize, load_tokenizer(model, config.policy))
            engines += [ServerEngine(server, config.policy, *placement.model, tokenize=tokenize) for server in servers]
        if events:
            on_event = stack.enter_context(EventLog(events))
            pool = EnginePool(engines, voting, placement.grow, on_event=on_event)
        else:
            pool = EnginePool(engines, voting, placement.grow)
        yield stack.enter_context(pool), placement


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class EnginePlacement:
    """Places a pool's engines: reserves room for the first ones all at once, for later ones one by one.

    Attributes:
        model: the model that engines load when they start.
    """

    def __init__(self, config: Config, model: Path, engines: int):
        self._voting, self._first = config.voting, engines
        size = config.voting.tensor_parallel_size
        self._kwargs = build_engine_kwargs(model, config.policy, config.runtime, size)
        self._kwargs["worker_extension_cls"] = f"{WeightReload.__module__}.{WeightReload.__qualname__}"
        self._kwargs["max_num_seqs"] = config.voting.in_flight  # vLLM's own default is lower behind AsyncLLMEngine
        threads = count_threads(engines)
        self._env = build_engine_env(config.runtime, threads)
        self._linger_s = _LINGER_S + engines / 1000
        self.model = ServedModel(model, fingerprint_model(model))
        self._reserved: list[PlacementGroup] | None = None
        self._made = 0

    @property
    def _bundle(self) -> dict[str, float]:
        return {"GPU": self._voting.tensor_parallel_size, "CPU": 1}

    def make_engine(self) -> RayEngine:
        """Return a new engine, which takes its place when it starts."""
        name, self._made = f"engine {self._made}", self._made + 1
        gpus = self._voting.tensor_parallel_size
        return RayEngine(name, self._place, gpus, lambda: self.model, self._kwargs, self._env, self._linger_s)

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
