"""A group: a prompt and its n samples, as a request to an engine, as its answer, and as OpenRLHF's Experience."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from medssr_dist.training.backend.openrlhf import Experience


@dataclass(frozen=True)
class Sampling:
    """How a stage samples.

    n: samples for each prompt. max_tokens: limit of generated tokens for each sample. logprobs: keep the engine's
    log-prob of each generated token. random_seed: seed of the run. stop: strings that end a sample. top_k: 0 = off.
    series: name of the series of seeds, "" = that of the rollouts.

    Example: Sampling(n=8, temperature=1.0, top_p=1.0, max_tokens=2048, logprobs=False, random_seed=42)
    """

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    logprobs: bool
    random_seed: int
    stop: tuple[str, ...] = ()
    top_k: int = 0
    series: str = ""


@dataclass(frozen=True)
class GroupRequest:
    """A request for the n samples of one prompt.

    number: of the prompt in its series, from 0. prompt_ids: tokens of `prompt`. label: read by the reward.
    """

    number: int
    prompt: str
    prompt_ids: list[int]
    label: str
    sampling: Sampling

    @property
    def seed(self) -> int:
        """Seed of sample 0; sample i uses `seed + i`, on any engine, and again after a restart."""
        series = f"{self.sampling.series}/" if self.sampling.series else ""
        name = f"{self.sampling.random_seed}/{series}{self.number}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:6], "big")


@dataclass(frozen=True)
class Sample:
    """One generation.

    token_ids: generated tokens, including the end token, or those that complete a stop string. logprobs: one for each
    token, or None if not requested. invalid: the text names no option. truncated: it was cut off at max_tokens.
    version: of the weights that its first token was sampled from. letter: the option that it names; None if it names
    none (samples that an earlier version left in a checkpoint have None). vote_weight: of a vote that serves as a
    sample, the weight of its advantage; None for a sample of a rollout engine. The log-probs of a vote are NaN: they
    were not kept. switches: [place, version] of the first token of each newer version, if new weights interrupted it.

    Example: Sample([9, 2], None, reward=1.0, invalid=False, truncated=False, version=3, letter="B", switches=[[1, 4]])
    """

    token_ids: list[int]
    logprobs: list[float] | None
    reward: float
    invalid: bool
    truncated: bool
    version: int
    letter: str | None = None
    vote_weight: float | None = None
    switches: list[list[int]] = field(default_factory=list)

    def mean_lag(self, version: int) -> float:
        """Return how many versions its tokens are older than `version`, on average.

        Example: with 4 tokens, version 3 and switches [[3, 4]], it is 0.75 for version 4.
        """
        if not self.switches:
            return version - self.version
        places = [0, *(place for place, _ in self.switches), len(self.token_ids)]
        versions = [self.version, *(newer for _, newer in self.switches)]
        runs = zip(pairwise(places), versions, strict=True)
        return sum((end - start) * (version - each) for (start, end), each in runs) / len(self.token_ids)


@dataclass(frozen=True)
class Group:
    """The samples of one prompt, in the order of their seeds."""

    number: int
    prompt: str
    prompt_ids: list[int]
    label: str
    samples: list[Sample]

    @property
    def has_variance(self) -> bool:
        """Whether the rewards differ; if not, every advantage is 0 and the group has no policy gradient."""
        return len({sample.reward for sample in self.samples}) > 1

    @property
    def version(self) -> int:
        """The oldest version of the weights that its tokens were sampled from."""
        return min(sample.version for sample in self.samples)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint. Lists are not copied: a group never changes."""
        return vars(self) | {"samples": [dict(vars(sample)) for sample in self.samples]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Group:
        """Read what `as_dict` has returned."""
        return cls(**values | {"samples": [Sample(**sample) for sample in values["samples"]]})

    def make_experiences(self, version: int) -> list[Experience]:
        """Return one Experience for each sample, as OpenRLHF's generator makes them.

        Its shapes are those of one sequence: sequences [1, T], action_mask [1, A] with A = T - 1.

        Args:
            version: version of the weights that are trained. `policy_lag` in the info is this minus the version that
                the sample's first token was drawn from; `versions` has rows [place, version] of its tokens.
        """
        return [self._make_experience(sample, version) for sample in self.samples]

    def _make_experience(self, sample: Sample, version: int) -> Experience:
        import torch

        from medssr_dist.training.backend.openrlhf import Experience

        prompt, total = len(self.prompt_ids), len(self.prompt_ids) + len(sample.token_ids)
        action_mask = torch.zeros(1, total - 1, dtype=torch.long)
        action_mask[:, prompt - 1 :] = 1
        reward = torch.tensor([sample.reward])
        info = {
            "reward": reward,
            "score": reward,
            "invalid_answer": torch.tensor([float(sample.invalid)]),
            "policy_lag": torch.tensor([float(version - sample.version)]),
            "versions": torch.tensor([[0, sample.version], *sample.switches]),
        }
        return Experience(
            sequences=torch.tensor([self.prompt_ids + sample.token_ids]),
            attention_mask=torch.ones(1, total, dtype=torch.long),
            action_mask=action_mask,
            rollout_log_probs=_pad_prompt(sample.logprobs, prompt),
            prompts=[self.prompt],
            labels=[self.label],
            images=[None],
            mm_train_inputs=[None],
            rewards=reward,
            scores=reward,
            response_length=torch.tensor([len(sample.token_ids)]),
            truncated=torch.tensor([sample.truncated]),
            total_length=torch.tensor([float(total)]),
            info=info,
        )


def _pad_prompt(logprobs: list[float] | None, prompt_tokens: int) -> torch.Tensor | None:
    """Return the log-probs [1, A], with 0 for tokens of the prompt; None if there are none."""
    import torch

    return None if logprobs is None else torch.tensor([[0.0] * (prompt_tokens - 1) + logprobs])
