"""The rollout engine: OpenRLHF's Ray actor around vLLM, with our groups, rewards and weight transfer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from medssr_dist.data.thoughts import find_opening
from medssr_dist.inference.requests import CompletedRequest, Completion, SampleRequest
from medssr_dist.inference.vllm_args import drop_seed_warning
from medssr_dist.inference.vllm_engine import end_children_with_this_process
from medssr_dist.training.backend.openrlhf import RolloutActor
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample, Sampling
from medssr_dist.training.rollout.reward import load_reward, score
from medssr_dist.training.rollout.token_versions import SampleVersions, count_tokens, receive_outputs
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
        drop_seed_warning()
        self._heartbeat = Heartbeat(board, name)
        self._version = 0
        self._open: dict[str, SampleVersions] = {}  # by the id of the request
        self._syncing = self._is_interrupted = self._is_asleep = False
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
        versions = SampleVersions(request.sampling.n, self._version)
        outputs = await self._generate(request.prompt_ids, make_sampling_params(request), versions)
        samples = [self._grade(request, versions, place, output) for place, output in enumerate(outputs)]
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)

    async def complete(self, request: SampleRequest) -> CompletedRequest:
        """Answer a request of a vote with the current weights, as the engines of the vote do."""
        params = _make_params(request, request.n, request.seed)
        outputs = await self._generate(list(request.prompt), params, SampleVersions(request.n, self._version))
        samples = [
            Completion.from_text(
                request, request.seed + place, output.text, len(output.token_ids), output.finish_reason == "length"
            )
            for place, output in enumerate(outputs)
        ]
        return CompletedRequest(request.key, samples)

    async def _generate(self, prompt_ids: list[int], params: SamplingParams, versions: SampleVersions) -> list[Any]:
        """Return vLLM's finished CompletionOutputs, in the order of the samples; `versions` follows new weights."""
        from vllm.inputs import TokensPrompt

        done = {}
        prompt, request_id = TokensPrompt(prompt_token_ids=prompt_ids), os.urandom(8).hex()
        self._open[request_id] = versions
        self._beat()  # an engine that hangs before its first token is busy too
        if self._is_interrupted:
            versions.interrupt({})
        try:
            async for output in self.llm.generate(prompt, params, request_id):
                self._beat()
                for sample in output.outputs:
                    if sample.finish_reason is not None:
                        done[sample.index] = sample
                        versions.finish(sample.index)
        finally:
            del self._open[request_id]
            self._beat()
        return [done[index] for index in range(params.n)]

    def _beat(self) -> None:
        prompts = f"{len(self._open)} prompts" if self._open else ""
        self._heartbeat.beat("weight sync" if self._syncing else prompts)

    def _grade(self, request: GroupRequest, versions: SampleVersions, place: int, output: Any) -> Sample:
        token_ids, logprobs = list(output.token_ids), None
        if request.sampling.logprobs:
            logprobs = [step[token].logprob for token, step in zip(token_ids, output.logprobs, strict=True)]
        truncated = output.finish_reason == "length"
        text = find_opening(request.prompt) + output.text
        reward, letter = score(text, request.label, truncated, self._reward, request.seed + place)
        version, switches = versions.find(place, len(token_ids))
        return Sample(token_ids, logprobs, reward, letter is None, truncated, version, letter, switches=switches)

    async def set_version(self, version: int) -> None:
        """Set the version of the engine's current weights."""
        self._version = version
        await self.llm.update_weight_version(str(version))

    async def sleep(self, level: int = 1) -> None:
        """Free the GPU for the ranks; requests wait. Level 1 keeps the weights on the host, level 2 drops them."""
        self._is_asleep = True
        await super().sleep(level)

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Take memory of the GPU back: `weights`, and last `kv_cache`, with which requests continue; None: both."""
        await super().wake_up(tags)
        self._is_asleep = tags == ["weights"]

    # EngineClient (weights/sync.py) calls these, in this order.

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info))

    async def start_weight_update(self) -> None:
        """Stop at the end of a forward pass: running samples keep their tokens, and continue with the new weights."""
        self._syncing = True
        self._beat()
        await self.llm.pause_generation(mode="keep", clear_cache=True)  # the cache is the old weights'
        await receive_outputs(self.llm)
        lengths = count_tokens(self.llm)
        for request_id, versions in self._open.items():
            versions.interrupt(lengths.get(request_id, {}))
        self._is_interrupted = True
        await self.llm.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.update_weights(WeightTransferUpdateRequest(update_info))

    async def finish_weight_update(self, version: int) -> None:
        await self.llm.finish_weight_update()
        await self.set_version(version)
        for versions in self._open.values():
            versions.go_on(version)
        self._is_interrupted = False
        if not self._is_asleep:
            await self.llm.resume_generation()
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
