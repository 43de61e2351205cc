"""The rollout engine: OpenRLHF's Ray actor around vLLM, with our groups, rewards and weight transfer."""

from __future__ import annotations

import os

from medssr_dist.inference.vllm_engine import end_children_with_this_process
from medssr_dist.training.backend.openrlhf import RolloutActor
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample
from medssr_dist.training.rollout.reward import score
from medssr_dist.training.stall_watch import Heartbeat, HeartbeatBoard

_STREAM_TOKENS = 32  # an unfinished sample reports its tokens this often


class RolloutEngine(RolloutActor):
    """Ray actor: one vLLM engine.

    Args:
        name: its name in messages.
        board: gets its heartbeats.
    """

    async def __init__(self, *args, name: str, board: HeartbeatBoard, **kwargs):
        self._guard = end_children_with_this_process()
        self._heartbeat = Heartbeat(board, name)
        self._version = self._open = 0
        self._syncing = False
        await super().__init__(*args, **kwargs)

    def ready(self) -> int:
        """Return its process id, once it can take requests."""
        return os.getpid()

    async def check_health(self) -> None:
        """Raises vLLM's EngineDeadError."""
        await self.llm.check_health()

    async def sample_group(self, request: GroupRequest) -> Group:
        """Sample a group by one request, so that its prompt is computed once, and grade it. Raises RewardError."""
        self._open += 1
        try:
            outputs = await self._generate(request)
        finally:
            self._open -= 1
            self._beat()
        samples = [self._grade(request, output) for output in outputs]
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)

    async def _generate(self, request: GroupRequest) -> list:
        """Return vLLM's finished outputs, in the order of the samples."""
        from vllm.inputs import TokensPrompt

        done = {}
        prompt = TokensPrompt(prompt_token_ids=request.prompt_ids)
        async for output in self.llm.generate(prompt, sampling_params(request), os.urandom(8).hex()):
            self._beat()
            done |= {sample.index: sample for sample in output.outputs if sample.finish_reason is not None}
        return [done[index] for index in range(request.sampling.n)]

    def _beat(self) -> None:
        prompts = f"{self._open} prompts" if self._open else ""
        self._heartbeat.beat("weight sync" if self._syncing else prompts)

    def _grade(self, request: GroupRequest, output) -> Sample:
        token_ids, logprobs = list(output.token_ids), None
        if request.sampling.logprobs:
            logprobs = [step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True)]
        reward, invalid = score(output.text, request.label)
        return Sample(token_ids, logprobs, reward, invalid, output.finish_reason == "length", self._version)

    async def stamp(self, version: int) -> None:
        """From now on the weights are `version`."""
        self._version = version
        await self.llm.update_weight_version(str(version))

    # What EngineClient calls, in this order.

    async def init_weight_transfer_engine(self, init_info: dict) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def start_weight_update(self) -> None:
        self._syncing = True
        self._beat()
        await self.llm.start_weight_update()

    async def update_weights(self, update_info: dict) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.update_weights(WeightTransferUpdateRequest(update_info))

    async def finish_weight_update(self, version: int) -> None:
        await self.llm.finish_weight_update()
        await self.llm.reset_prefix_cache()  # it holds what the weights before have computed
        await self.stamp(version)
        self._syncing = False
        self._beat()


def sampling_params(request: GroupRequest):
    """Return vLLM's SamplingParams of a request; vLLM draws sample i with seed + i."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    wanted = request.sampling
    return SamplingParams(
        n=wanted.n,
        seed=request.seed,
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        max_tokens=wanted.max_tokens,
        min_tokens=1,
        logprobs=0 if wanted.logprobs else None,  # 0: of the sampled token alone
        output_kind=RequestOutputKind.CUMULATIVE,  # a sample is seen as it finishes
        stream_interval=_STREAM_TOKENS,
    )
