"""A prompt and its n samples: as asked of an engine, as it answers, and as OpenRLHF's Experience."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medssr_dist.training.backend.openrlhf import Experience


@dataclass(frozen=True)
class Sampling:
    """How a stage samples.

    n: samples a prompt. max_tokens: of a sample. logprobs: keep the engine's log-prob of each generated token.
    random_seed: of the run.
    """

    n: int
    temperature: float
    top_p: float
    max_tokens: int
    logprobs: bool
    random_seed: int


@dataclass(frozen=True)
class GroupRequest:
    """`number` counts the prompts given in the stage, from 0; `label` is what the reward reads."""

    number: int
    prompt: str
    prompt_ids: list[int]
    label: str
    sampling: Sampling

    @property
    def seed(self) -> int:
        """Of sample 0; sample i draws with `seed + i`, whichever engine it is given to, and again after a restart."""
        name = f"{self.sampling.random_seed}/{self.number}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:6], "big")


@dataclass(frozen=True)
class Sample:
    """One generation.

    token_ids: generated tokens, the end token among them. logprobs: one a token, or None where not asked for.
    invalid: the text names no option. truncated: cut off at max_tokens. version: of the weights that drew it.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    reward: float
    invalid: bool
    truncated: bool
    version: int


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
        """Whether the rewards differ: else every advantage is 0 and the group has no policy gradient."""
        return len({sample.reward for sample in self.samples}) > 1

    def as_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Group:
        return cls(**values | {"samples": [Sample(**sample) for sample in values["samples"]]})

    def experiences(self, version: int) -> list[Experience]:
        """One Experience a sample, as OpenRLHF's generator makes them: [1, T] tokens and [1, T - 1] action mask.

        Args:
            version: of the weights that are trained; `policy_lag` in the info is how far a sample's own are behind.
        """
        return [self._experience(sample, version) for sample in self.samples]

    def _experience(self, sample: Sample, version: int) -> Experience:
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
        }
        return Experience(
            sequences=torch.tensor([self.prompt_ids + sample.token_ids]),
            attention_mask=torch.ones(1, total, dtype=torch.long),
            action_mask=action_mask,
            rollout_log_probs=_after_prompt(sample.logprobs, prompt),
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


def _after_prompt(logprobs: list[float] | None, prompt_tokens: int):
    """[1, T - 1] of log-probs, 0 over the prompt; None where there are none."""
    import torch

    return None if logprobs is None else torch.tensor([[0.0] * (prompt_tokens - 1) + logprobs])
