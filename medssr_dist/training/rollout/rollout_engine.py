"""The rollout engine: OpenRLHF's Ray actor around vLLM, with groups, rewards and weight transfer of our own."""

from __future__ import annotations

import os

from medssr_dist.inference.vllm_engine import end_children_with_this_process
from medssr_dist.training.backend.openrlhf import plain_class
from medssr_dist.training.ranks import RolloutRayActor
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample
from medssr_dist.training.rollout.reward import score
from medssr_dist.training.stall_watch import Beats, Board

_STREAM_TOKENS = 32  # an unfinished sample tells of its tokens this often


class RolloutEngine(plain_class(RolloutRayActor)):
    """Ray actor: one vLLM engine.

    Args:
        name: as in messages.
        board: told of every advance.
    """

    async def __init__(self, *args, name: str, board: Board, **kwargs):
        self._guard = end_children_with_this_process()
        self._beats = Beats(board, name)
        self._version = self._open = 0
        self._syncing = False
        await super().__init__(*args, **kwargs)

    def ready(self) -> int:
        """Its process id, once it can be asked."""
        return os.getpid()

    async def check_health(self) -> None:
        """Raises vLLM's EngineDeadError."""
        await self.llm.check_health()

    async def sample_group(self, request: GroupRequest) -> Group:
        """All samples of a prompt by one request, so that its prompt is computed once. Raises RewardError."""
        self._open += 1
        try:
            outputs = await self._generate(request)
        finally:
            self._open -= 1
            self._tell()
        samples = [self._graded(request, output) for output in outputs]
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)

    async def _generate(self, request: GroupRequest) -> list:
        """vLLM's finished outputs, by sample."""
        from vllm.inputs import TokensPrompt

        done = {}
        prompt = TokensPrompt(prompt_token_ids=request.prompt_ids)
        async for output in self.llm.generate(prompt, sampling_params(request), os.urandom(8).hex()):
            self._tell()
            done |= {sample.index: sample for sample in output.outputs if sample.finish_reason is not None}
        return [done[index] for index in range(request.sampling.n)]

    def _tell(self) -> None:
        prompts = f"{self._open} prompts" if self._open else ""
        self._beats.beat("weight sync" if self._syncing else prompts)

    def _graded(self, request: GroupRequest, output) -> Sample:
        token_ids, logprobs = list(output.token_ids), None
        if request.sampling.logprobs:
            logprobs = [step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True)]
        reward, invalid = score(output.text, request.label)
        return Sample(token_ids, logprobs, reward, invalid, output.finish_reason == "length", self._version)

    async def stamp(self, version: int) -> None:
        """The weights are from now on `version`."""
        self._version = version
        await self.llm.update_weight_version(str(version))

    # What EngineClient calls, in this order.

    async def init_weight_transfer_engine(self, init_info: dict) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def start_weight_update(self) -> None:
        self._syncing = True
        self._tell()
        await self.llm.start_weight_update()

    async def update_weights(self, update_info: dict) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.update_weights(WeightTransferUpdateRequest(update_info))

    async def finish_weight_update(self, version: int) -> None:
        await self.llm.finish_weight_update()
        await self.llm.reset_prefix_cache()  # it holds what the weights before have computed
        await self.stamp(version)
        self._syncing = False
        self._tell()


def sampling_params(request: GroupRequest):
    """vLLM's SamplingParams of a request: it draws sample i with seed + i."""
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
