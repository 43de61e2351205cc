"""The rollout engine: OpenRLHF's Ray actor around vLLM, with our groups, rewards and weight transfer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from medssr_dist.data.thoughts import find_opening
from medssr_dist.inference.requests import CompletedRequest, Completion, SampleRequest
from medssr_dist.inference.vllm_engine import end_children_with_this_process
from medssr_dist.training.backend.openrlhf import RolloutActor
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample, Sampling
from medssr_dist.training.rollout.reward import load_reward, score
from medssr_dist.training.stall_watch import Heartbeat, HeartbeatBoard

if TYPE_CHECKING:
    from vllm import SamplingParams

_STREAM_TOKENS = 32  # an unfinished sample reports progress after this many tokens


class RolloutEngine(RolloutActor):
    """Ray actor: one vLLM engine.

    Args:
        name: name of the engine in messages.
        board: receives its heartbeats.
        reward: value of `training.reward`.
        args, kwargs: arguments of OpenRLHF's actor and of vLLM.
    """

    async def __init__(self, *args: Any, name: str, board: HeartbeatBoard, reward: str, **kwargs: Any):
        self._guard = end_children_with_this_process()
        self._heartbeat = Heartbeat(board, name)
        self._version = self._open = 0
        self._syncing = False
        self._reward = load_reward(reward)
        await super().__init__(*args, **kwargs)

    def ready(self) -> int:
        """Return the process id, once the engine takes requests."""
        return os.getpid()

    async def check_health(self) -> None:
        """Raise vLLM's EngineDeadError if vLLM's process has died."""
        await self.llm.check_health()

    async def sample_group(self, request: GroupRequest) -> Group:
        """Sample and grade a group. It is one request to vLLM, so that its prompt is computed once.

        Raises:
            RewardError: a sample could not be graded.
        """
        outputs = await self._generate(request.prompt_ids, make_sampling_params(request))
        samples = [self._grade(request, output, request.seed + place) for place, output in enumerate(outputs)]
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)

    async def complete(self, request: SampleRequest) -> CompletedRequest:
        """Answer a request of a vote with the current weights, as the engines of the vote do."""
        outputs = await self._generate(list(request.prompt), _make_params(request, request.n, request.seed))
        samples = [
            Completion.from_text(
                request, request.seed + place, output.text, len(output.token_ids), output.finish_reason == "length"
            )
            for place, output in enumerate(outputs)
        ]
        return CompletedRequest(request.key, samples)

    async def _generate(self, prompt_ids: list[int], params: SamplingParams) -> list[Any]:
        """Return vLLM's finished CompletionOutputs, in the order of the samples."""
        from vllm.inputs import TokensPrompt

        done = {}
        prompt = TokensPrompt(prompt_token_ids=prompt_ids)
        self._open += 1
        try:
            async for output in self.llm.generate(prompt, params, os.urandom(8).hex()):
                self._beat()
                done |= {sample.index: sample for sample in output.outputs if sample.finish_reason is not None}
        finally:
            self._open -= 1
            self._beat()
        return [done[index] for index in range(params.n)]

    def _beat(self) -> None:
        prompts = f"{self._open} prompts" if self._open else ""
        self._heartbeat.beat("weight sync" if self._syncing else prompts)

    def _grade(self, request: GroupRequest, output: Any, seed: int) -> Sample:
        token_ids, logprobs = list(output.token_ids), None
        if request.sampling.logprobs:
            logprobs = [step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True)]
        truncated = output.finish_reason == "length"
        text = find_opening(request.prompt) + output.text
        reward, letter = score(text, request.label, truncated, self._reward, seed)
        return Sample(token_ids, logprobs, reward, letter is None, truncated, self._version, letter)

    async def set_version(self, version: int) -> None:
        """Set the version of the engine's current weights."""
        self._version = version
        await self.llm.update_weight_version(str(version))

    # EngineClient (weights/sync.py) calls these, in this order.

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def start_weight_update(self) -> None:
        self._syncing = True
        self._beat()
        await self.llm.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.update_weights(WeightTransferUpdateRequest(update_info))

    async def finish_weight_update(self, version: int) -> None:
        await self.llm.finish_weight_update()
        await self.llm.reset_prefix_cache()  # it holds what the previous weights have computed
        await self.set_version(version)
        self._syncing = False
        self._beat()


def make_sampling_params(request: GroupRequest) -> SamplingParams:
    """Return vLLM's SamplingParams of a request. vLLM uses seed + i for sample i.

    The graded text ends before a stop string; the tokens go on to the one that completes it. All of them were sampled,
    so all are trained on: the policy learns to go on to the string that ends its answer.
    """
    sampling = request.sampling
    return _make_params(sampling, sampling.n, request.seed, sampling.logprobs)


def _make_params(settings: Sampling | SampleRequest, n: int, seed: int, logprobs: bool = False) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=n,
        seed=seed,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        stop=list(settings.stop),
        logprobs=0 if logprobs else None,  # 0: only that of the sampled token
        output_kind=RequestOutputKind.CUMULATIVE,  # each sample is returned when it is finished
        stream_interval=_STREAM_TOKENS,
    )
