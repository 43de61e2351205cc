"""A pool of vLLM engines on Ray: voting and evaluation send requests, completions stream back."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import ray
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medssr_dist.config import Policy, Runtime
from medssr_dist.runtime.cluster import reserve
from medssr_dist.runtime.device import engine_env, engine_kwargs
from medssr_dist.runtime.requests import Completion, Request

_SHARDS_IN_FLIGHT = 2  # one being generated, one waiting at the engine, so that it never runs dry


class VoteEngine:
    """Ray actor: one vLLM engine. A shard of requests in, one result a request out as it finishes."""

    async def __init__(self, kwargs: dict):
        import vllm

        self.llm = vllm.AsyncLLMEngine.from_engine_args(vllm.AsyncEngineArgs(**kwargs))
        self.tokenizer = await _tokenizer_of(self.llm)
        self.max_model_len = kwargs["max_model_len"]

    async def generate(self, shard: list[Request]) -> AsyncIterator[tuple[str, list[Completion]]]:
        tasks = [asyncio.create_task(self._complete(request)) for request in shard]
        for task in asyncio.as_completed(tasks):
            yield await task

    async def _complete(self, request: Request) -> tuple[str, list[Completion]]:
        from vllm.inputs import TokensPrompt

        ids = self.tokenizer(request.prompt, add_special_tokens=False)["input_ids"]
        room = self.max_model_len - len(ids)
        if room < 1:
            return request.key, [Completion("", 0, True, request.seed + index) for index in range(request.n)]
        params = self._sampling_params(request, room)
        final = None
        request_id = os.urandom(8).hex()
        async for output in self.llm.generate(TokensPrompt(prompt_token_ids=ids), params, request_id=request_id):
            final = output
        completions = [
            Completion(
                text=sample.text,
                tokens=len(sample.token_ids),
                truncated=sample.finish_reason == "length",
                seed=request.seed + sample.index,
            )
            for sample in sorted(final.outputs, key=lambda sample: sample.index)
        ]
        return request.key, completions

    def _sampling_params(self, request: Request, room: int):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        common = {"n": request.n, "seed": request.seed, "output_kind": RequestOutputKind.FINAL_ONLY}
        if request.choices:
            return SamplingParams(
                temperature=0.0, max_tokens=1, allowed_token_ids=self._choice_ids(request.choices), **common
            )
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=min(request.max_tokens, room),
            **common,
        )

    def _choice_ids(self, choices: tuple[str, ...]) -> list[int]:
        ids = [self.tokenizer.encode(choice, add_special_tokens=False) for choice in choices]
        if any(len(tokens) != 1 for tokens in ids):
            raise ValueError(f"choices must be single tokens of this tokenizer, got {choices}")
        return [tokens[0] for tokens in ids]


async def _tokenizer_of(llm):
    tokenizer = llm.get_tokenizer()
    return await tokenizer if asyncio.iscoroutine(tokenizer) else tokenizer


class EnginePool:
    """`engines` vLLM engines of one model, each with `tensor_parallel_size` GPUs (CPU: one slot).

    Engines start with the first request. Use as a context manager; leaving it frees their slots.
    """

    def __init__(
        self,
        model: Path,
        policy: Policy,
        runtime: Runtime,
        engines: int = 1,
        tensor_parallel_size: int = 1,
        shard_size: int = 64,
    ):
        self.shard_size = shard_size
        self._kwargs = engine_kwargs(model, policy, runtime, tensor_parallel_size)
        self._env = engine_env(runtime, max(1, (os.cpu_count() or 1) // engines))
        self._engine_gpus = [tensor_parallel_size] * engines
        self._bundles = None
        self._engines: list = []

    def _start(self) -> None:
        self._bundles = reserve([{"GPU": gpus, "CPU": 1} for gpus in self._engine_gpus], "the vLLM engines")
        actor = ray.remote(VoteEngine)
        self._engines = [
            actor.options(
                num_gpus=gpus,
                num_cpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._bundles, index),
                runtime_env={"env_vars": self._env},
            ).remote(self._kwargs)
            for index, gpus in enumerate(self._engine_gpus)
        ]

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[str, list[Completion]]]:
        """Send requests in shards to whichever engine has room; yield (key, completions) as they finish.

        `requests` may be a generator that waits for its own input: a shard is cut when an engine has room.
        A prompt that fills the context gets empty, truncated completions.
        An engine that dies raises ray.exceptions.RayActorError.
        """
        shards = _shards(requests, self.shard_size)
        streams: dict = {}
        while True:
            while len(streams) < _SHARDS_IN_FLIGHT * len(self._engine_gpus) and (shard := next(shards, None)):
                self._dispatch(shard, streams)
            if not streams:
                return
            ready, _ = ray.wait(list(streams), num_returns=1)
            for stream in ready:
                try:
                    yield ray.get(next(stream))
                except StopIteration:
                    del streams[stream]

    def _dispatch(self, shard: list[Request], streams: dict) -> None:
        """Send a shard to the engine with fewest of them; its results come through a new entry of `streams`."""
        if not self._engines:
            self._start()
        busy = list(streams.values())
        engine = min(self._engines, key=busy.count)
        streams[engine.generate.options(num_returns="streaming").remote(shard)] = engine

    def close(self) -> None:
        for engine in self._engines:
            ray.kill(engine)
        if self._bundles is not None:
            remove_placement_group(self._bundles)

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _shards(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    requests = iter(requests)
    while shard := list(itertools.islice(requests, size)):
        yield shard
