"""A vLLM engine as a Ray actor, and the engine of the pool that talks to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from medssr_dist.errors import InputError
from medssr_dist.inference.engine_protocol import EngineOutput, FailedLease, LeasedCompletion, LeasedRequest
from medssr_dist.inference.requests import Completion, SampleRequest, find_choice_ids, make_empty_completions
from medssr_dist.inference.vllm_args import drop_seed_warning
from medssr_dist.runtime.fingerprints import fingerprint_model, has_fingerprint

if TYPE_CHECKING:
    from vllm import CompletionOutput, SamplingParams

_STREAM_TOKENS = 32  # an unfinished sample reports its tokens after so many more
_REPORT_S = 1.0  # interval between two reports of tokens while no sample finishes
_PLACE_S = 60  # longest wait for a place on the cluster
_START_S = 1800.0  # longest wait for the model to load
_STOP_S = 30.0  # longest wait for the end of the actor's process


class ActorProcess(NamedTuple):
    """The process of an actor. `started`: its start time in clock ticks, as process ids are reused."""

    node_id: str
    pid: int
    started: str


class VllmActor:
    """Ray actor with one vLLM engine. It returns each sample as it finishes, with its answer extracted.

    Args:
        kwargs: keyword arguments of vLLM's AsyncEngineArgs.
        fingerprint: of the policy; the weights on disk must be those that the run began with.
        linger_s: seconds for which samples are gathered before they are returned together.
    """

    def __init__(self, kwargs: dict[str, Any], fingerprint: str, linger_s: float):
        import vllm

        self._guard = end_children_with_this_process()
        drop_seed_warning()
        self._llm = vllm.AsyncLLMEngine.from_engine_args(vllm.AsyncEngineArgs(**kwargs))
        _check_weights(Path(kwargs["model"]), fingerprint)
        self._tokenizer = self._llm.get_tokenizer()
        self._max_model_len, self._linger_s = kwargs["max_model_len"], linger_s
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._output = EngineOutput()
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    async def ready(self) -> ActorProcess:
        """Return the actor's process, once the engine is up."""
        return ActorProcess(ray.get_runtime_context().get_node_id(), os.getpid(), _read_start_time(os.getpid()))

    async def load(self, model: Path, fingerprint: str) -> None:
        """Replace the weights by those of `model`, which differs in nothing else. What is in flight is dropped.

        Raises:
            InputError: the weights are not those of `fingerprint`.
        """
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        await self._llm.pause_generation(mode="abort", clear_cache=True)  # the cache is the old weights'
        await self._llm.collective_rpc("load_weights_from", args=(str(model),))
        await self._llm.resume_generation()
        _check_weights(model, fingerprint)

    async def submit(self, requests: list[LeasedRequest], aborted: list[int]) -> None:
        """Start new requests and abort leases. See `Engine.submit`."""
        for lease_id, request in requests:
            self._tasks[lease_id] = asyncio.create_task(self._answer(lease_id, request))
        for lease_id in aborted:
            if task := self._tasks.pop(lease_id, None):
                task.cancel()  # vLLM's generator then aborts the request

    async def collect(self) -> EngineOutput:
        """Wait for finished samples; without any, return the tokens of a second. See `Engine.collect`."""
        while not (self._output.samples or self._output.failed or self._error):
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), _REPORT_S)
            except TimeoutError:
                if self._output.tokens:
                    break
        if self._output.samples:
            await asyncio.sleep(self._linger_s)
        if self._error:
            raise self._error
        output, self._output = self._output, EngineOutput()
        return output

    async def _answer(self, lease_id: int, request: SampleRequest) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._generate(lease_id, request)
        except EngineDeadError as error:
            self._error = error
        except Exception as error:  # caused by this request alone: the pool decides whether to retry it
            self._output.failed.append(FailedLease(lease_id, f"{type(error).__name__}: {error}"[:500]))
        self._tasks.pop(lease_id, None)
        self._news.set()

    async def _generate(self, lease_id: int, request: SampleRequest) -> None:
        from vllm.inputs import TokensPrompt

        room = self._max_model_len - len(request.prompt)
        if room < 1:  # a prompt that fills the context gets empty, truncated samples
            self._output.samples += [LeasedCompletion(lease_id, sample) for sample in make_empty_completions(request)]
            return
        params = self._make_sampling_params(request, room)
        tokens = [0] * request.n
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt))
        async for output in self._llm.generate(prompt, params, os.urandom(8).hex()):
            for sample in output.outputs:
                self._output.tokens += len(sample.token_ids) - tokens[sample.index]
                tokens[sample.index] = len(sample.token_ids)
                if sample.finish_reason is not None:
                    self._finish(lease_id, request, sample)

    def _finish(self, lease_id: int, request: SampleRequest, sample: CompletionOutput) -> None:
        truncated = sample.finish_reason == "length"
        seed = request.seed + sample.index  # vLLM draws sample i of a request with its seed + i
        tokens, total = len(sample.token_ids), sample.cumulative_logprob
        logprob = total / tokens if request.logprobs and tokens and total is not None else None
        completion = Completion.from_text(request, seed, sample.text, tokens, truncated, logprob)
        if request.keep_tokens:
            completion = replace(completion, token_ids=tuple(sample.token_ids))
        self._output.samples.append(LeasedCompletion(lease_id, completion))
        self._news.set()

    def _make_sampling_params(self, request: SampleRequest, room: int) -> SamplingParams:
        """`room`: tokens that the prompt leaves free in the context."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        greedy = bool(request.choices)
        return SamplingParams(
            n=request.n,
            seed=request.seed,
            temperature=0.0 if greedy else request.temperature,
            top_p=1.0 if greedy else request.top_p,
            top_k=0 if greedy else request.top_k,
            max_tokens=1 if greedy else min(request.max_tokens, room),
            stop=list(request.stop),
            logprobs=0 if request.logprobs else None,  # 0: of the sampled token alone
            allowed_token_ids=find_choice_ids(request.choices, self._tokenize) if greedy else None,
            # Cumulative: a sample is seen as it finishes, not with the last one of its request.
            output_kind=RequestOutputKind.CUMULATIVE,
            stream_interval=_STREAM_TOKENS,
        )

    def _tokenize(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def end_children_with_this_process() -> subprocess.Popen[bytes]:
    """Start a guard that kills this process' group once this process is gone, however it ended.

    Otherwise vLLM's processes would outlive an engine that is killed, and keep its GPU memory. The guard waits for the
    end of a pipe that only this process holds: the processes that vLLM spawns inherit the group, but not the pipe.
    """
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    script = f"cat > /dev/null; kill -s KILL -- -{os.getpid()}"
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


def _check_weights(model: Path, fingerprint: str) -> None:
    """Raise InputError where the weights have changed. Called after loading, to see a directory replaced meanwhile."""
    if not has_fingerprint(model, fingerprint):
        raise InputError(
            f"{model} holds other weights ({fingerprint_model(model)}) than the run began with ({fingerprint}): put "
            "them back and run the same command again, or give a new --run-dir"
        )


def _read_start_time(pid: int) -> str:
    """Return the start time of a process, in clock ticks since boot. Raises FileNotFoundError where it has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


@ray.remote(num_cpus=0, max_retries=0)
def _kill_process(pid: int, started: str) -> None:
    """Send SIGKILL: a process that is stopped, or inside a driver call, does not react to Ray's messages."""
    with suppress(FileNotFoundError, ProcessLookupError):
        if _read_start_time(pid) == started:
            os.kill(pid, signal.SIGKILL)


class ServedModel(NamedTuple):
    """The model that engines serve. fingerprint: of its directory when they were to serve it (`fingerprint_model`)."""

    folder: Path
    fingerprint: str


class RayEngine:
    """A VllmActor in a placement group of its own. Each start creates a new actor in a new group.

    Args:
        place: returns a placement group of one bundle, which may still be waiting for room.
        gpus: of the bundle.
        find_model: returns the model to serve.
        kwargs: see VllmActor, without the model.
        env: environment variables of the actor's process.
        linger_s: see VllmActor.
    """

    def __init__(
        self,
        name: str,
        place: Callable[[], PlacementGroup],
        gpus: int,
        find_model: Callable[[], ServedModel],
        kwargs: dict[str, Any],
        env: dict[str, str],
        linger_s: float,
    ):
        self.name = name
        self._place, self._gpus, self._find_model = place, gpus, find_model
        self._kwargs, self._env, self._linger_s = kwargs, env, linger_s
        self._group: PlacementGroup | None = None
        self._actor: Any = None  # Ray builds the handle's methods at run time
        self._process: ActorProcess | None = None

    async def start(self) -> None:
        """Start the actor and wait for its engine.

        Raises:
            InputError: the weights are not those that the run began with.
            TimeoutError: no place on the cluster, or the engine does not come up.
            RuntimeError: the model to serve has changed meanwhile.
            Exception: what vLLM raises.
        """
        model = self._find_model()
        self._group = self._place()
        await _wait_until_placed(self._group)
        self._actor = (
            ray.remote(VllmActor)
            .options(
                num_gpus=self._gpus,
                num_cpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, 0),
                runtime_env={"env_vars": self._env},
            )
            .remote(self._kwargs | {"model": str(model.folder)}, model.fingerprint, self._linger_s)
        )
        try:
            self._process = await asyncio.wait_for(self._actor.ready.remote(), _START_S)
        except ray.exceptions.RayActorError as error:
            if "InputError" in str(error):
                raise InputError(str(error).rsplit("InputError: ", 1)[1].strip()) from None
            raise
        if self._find_model() != model:
            raise RuntimeError(f"it started with {model.folder}, which is no longer the model to serve")

    async def load_model(self) -> None:
        """Let the running engine load the weights of the model that it is to serve now. Raises what vLLM raises."""
        await asyncio.wait_for(self._actor.load.remote(*self._find_model()), _START_S)

    def submit(self, requests: list[LeasedRequest], aborted: list[int]) -> None:
        """See `Engine.submit`."""
        self._actor.submit.remote(requests, aborted)

    async def collect(self) -> EngineOutput:
        """See `Engine.collect`. Raises Ray's error when the actor is dead."""
        output: EngineOutput = await self._actor.collect.remote()
        return output

    async def stop(self) -> None:
        """Kill the actor and its process, and remove its placement group. vLLM's processes end with the actor's."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None
        if self._process is not None:
            process, self._process = self._process, None
            same_node = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
            with suppress(ray.exceptions.RayError, asyncio.TimeoutError):  # the process may be gone with its node
                kill = _kill_process.options(scheduling_strategy=same_node).remote(process.pid, process.started)
                await asyncio.wait_for(kill, _STOP_S)
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


async def _wait_until_placed(group: PlacementGroup) -> None:
    for _ in range(_PLACE_S):
        if placement_group_table(group)["state"] == "CREATED":
            return
        await asyncio.sleep(1)
    raise TimeoutError(f"no room for {group.bundle_specs[0]} on the cluster within {_PLACE_S} s")
