"""A vLLM engine as a Ray actor, and the handle by which the pool uses it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from medssr_dist.errors import InputError
from medssr_dist.inference.engine_slot import EngineOutput
from medssr_dist.inference.requests import Completion, SampleRequest, find_choice_ids, make_empty_completions
from medssr_dist.runtime.models import model_fingerprint

_STREAM_TOKENS = 32  # an unfinished sample tells of its tokens this often
_QUIET_S = 1.0  # tokens without a finished sample are told this often
_PLACE_S = 60
_START_S = 1800.0
_END_S = 30.0


class VllmActor:
    """Ray actor: one vLLM engine. Leases in; each sample out as it finishes, its answer already extracted.

    Args:
        kwargs: vLLM's AsyncEngineArgs.
        fingerprint: of the policy; the weights on disk must be those the run began with.
        linger: seconds to gather samples before they are handed over.
    """

    async def __init__(self, kwargs: dict, fingerprint: str, linger: float):
        import vllm

        self._guard = end_children_with_this_process()
        self._llm = vllm.AsyncLLMEngine.from_engine_args(vllm.AsyncEngineArgs(**kwargs))
        _refuse_other_weights(Path(kwargs["model"]), fingerprint)
        self._tokenizer = await _tokenizer_of(self._llm)
        self._max_model_len, self._linger = kwargs["max_model_len"], linger
        self._tasks: dict[int, asyncio.Task] = {}
        self._taken = EngineOutput()
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    async def ready(self) -> tuple[str, int, str]:
        """Its node, process id and time of birth, once it can be asked."""
        return ray.get_runtime_context().get_node_id(), os.getpid(), _birth(os.getpid())

    async def submit(self, requests: list[tuple[int, SampleRequest]], aborted: list[int]) -> None:
        for lease, request in requests:
            self._tasks[lease] = asyncio.create_task(self._answer(lease, request))
        for lease in aborted:
            if task := self._tasks.pop(lease, None):
                task.cancel()  # vLLM's generator then aborts the request

    async def collect(self) -> EngineOutput:
        """Samples finished since the last call, waited for; without any, the tokens of a second."""
        while not (self._taken.samples or self._taken.failed or self._error):
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), _QUIET_S)
            except asyncio.TimeoutError:
                if self._taken.tokens:
                    break
        if self._taken.samples:
            await asyncio.sleep(self._linger)
        if self._error:
            raise self._error
        taken, self._taken = self._taken, EngineOutput()
        return taken

    async def _answer(self, lease: int, request: SampleRequest) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._generate(lease, request)
        except EngineDeadError as error:
            self._error = error
        except Exception as error:  # this request's fault: the pool decides what becomes of it
            self._taken.failed.append((lease, f"{type(error).__name__}: {error}"[:500]))
        self._tasks.pop(lease, None)
        self._news.set()

    async def _generate(self, lease: int, request: SampleRequest) -> None:
        from vllm.inputs import TokensPrompt

        ids = self._ids(request.prompt)
        room = self._max_model_len - len(ids)
        if room < 1:  # a prompt that fills the context gets empty, truncated samples
            self._taken.samples += [(lease, sample) for sample in make_empty_completions(request)]
            return
        params = self._sampling_params(request, room)
        tokens = [0] * request.n
        async for output in self._llm.generate(TokensPrompt(prompt_token_ids=ids), params, os.urandom(8).hex()):
            for sample in output.outputs:
                self._taken.tokens += len(sample.token_ids) - tokens[sample.index]
                tokens[sample.index] = len(sample.token_ids)
                if sample.finish_reason is not None:
                    self._finish(lease, request, sample)

    def _finish(self, lease: int, request: SampleRequest, sample) -> None:
        truncated = sample.finish_reason == "length"
        seed = request.seed + sample.index  # vLLM draws sample i of a request with its seed + i
        done = Completion.from_text(request, seed, sample.text, len(sample.token_ids), truncated)
        self._taken.samples.append((lease, done))
        self._news.set()

    def _sampling_params(self, request: SampleRequest, room: int):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Cumulative, so that a sample is seen as it finishes and not with the last of its request.
        common = {
            "n": request.n,
            "seed": request.seed,
            "output_kind": RequestOutputKind.CUMULATIVE,
            "stream_interval": _STREAM_TOKENS,
        }
        if request.choices:
            return SamplingParams(
                temperature=0.0, max_tokens=1, allowed_token_ids=find_choice_ids(request.choices, self._ids), **common
            )
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=min(request.max_tokens, room),
            **common,
        )

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def end_children_with_this_process() -> subprocess.Popen:
    """A guard that ends this process' group once it is gone, however it went.

    Else vLLM's processes would outlive an engine that is killed, and hold its GPU's memory. The guard waits for the end
    of a pipe that only this process holds; vLLM spawns its processes, which inherit the group and not the pipe.
    """
    if os.getpgrp() != os.getpid():
        os.setpgrp()
    script = f"cat > /dev/null; kill -s KILL -- -{os.getpid()}"
    return subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)


def _refuse_other_weights(model: Path, fingerprint: str) -> None:
    """After loading, so that a directory replaced meanwhile is noticed too."""
    if (found := model_fingerprint(model)) != fingerprint:
        raise InputError(
            f"{model} holds other weights ({found}) than the run began with ({fingerprint}): put them back and run the "
            "same command again, or give a new --run-dir"
        )


def _birth(pid: int) -> str:
    """When a process was started, in the kernel's ticks: a process id alone may be another's by now."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


@ray.remote(num_cpus=0, max_retries=0)
def _end_process(pid: int, birth: str) -> None:
    """SIGKILL: one that is stopped, or busy in a driver call, does not hear what Ray says."""
    with suppress(FileNotFoundError, ProcessLookupError):
        if _birth(pid) == birth:
            os.kill(pid, signal.SIGKILL)


async def _tokenizer_of(llm):
    tokenizer = llm.get_tokenizer()
    return await tokenizer if asyncio.iscoroutine(tokenizer) else tokenizer


class RayEngine:
    """A VllmActor in a placement group of its own; a new actor, in a new group, each time that it is started.

    Args:
        place: gives a placement group of one bundle, which may still be waiting for room.
        gpus: of the bundle.
        env: of the actor's process.
    """

    def __init__(
        self,
        name: str,
        place: Callable[[], PlacementGroup],
        gpus: int,
        kwargs: dict,
        fingerprint: str,
        env: dict[str, str],
        linger: float,
    ):
        self.name = name
        self._place, self._gpus, self._env = place, gpus, env
        self._arguments = (kwargs, fingerprint, linger)
        self._group: PlacementGroup | None = None
        self._actor = None
        self._process: tuple[str, int, str] | None = None

    async def start(self) -> None:
        """Raises what vLLM raises, InputError for other weights, TimeoutError without a place or an answer."""
        self._group = self._place()
        await _placed(self._group)
        self._actor = (
            ray.remote(VllmActor)
            .options(
                num_gpus=self._gpus,
                num_cpus=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, 0),
                runtime_env={"env_vars": self._env},
            )
            .remote(*self._arguments)
        )
        try:
            self._process = await asyncio.wait_for(self._actor.ready.remote(), _START_S)
        except ray.exceptions.RayActorError as error:
            if "InputError" in str(error):
                raise InputError(str(error).rsplit("InputError: ", 1)[1].strip()) from None
            raise

    def submit(self, requests: list[tuple[int, SampleRequest]], aborted: list[int]) -> None:
        self._actor.submit.remote(requests, aborted)

    async def collect(self) -> EngineOutput:
        return await self._actor.collect.remote()

    async def stop(self) -> None:
        """vLLM's own processes end with the actor's; the place is free again, or gone with its node."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None
        if self._process is not None:
            (node, pid, birth), self._process = self._process, None
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            with suppress(ray.exceptions.RayError, asyncio.TimeoutError):  # the node may be gone, and it with it
                await asyncio.wait_for(_end_process.options(scheduling_strategy=there).remote(pid, birth), _END_S)
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


async def _placed(group: PlacementGroup) -> None:
    for _ in range(_PLACE_S):
        if placement_group_table(group)["state"] == "CREATED":
            return
        await asyncio.sleep(1)
    raise TimeoutError(f"no room for {group.bundle_specs[0]} on the cluster within {_PLACE_S} s")
