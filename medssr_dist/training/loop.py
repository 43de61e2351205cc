"""The GRPO loop of a stage, written out: sample, reward and advantage, update, weights to the engines, save or stop.

For each step, with the policy pi_theta, the policy that sampled pi_old, and the reference pi_ref:

    1. Sample. B prompts q; for each, G answers o_1..o_G ~ pi_old(. | q). The engines that sample also grade:
       r = 1 if the answer extracted from o equals the label, else 0 (MedSSR, arXiv 2604.11547, sections 3.3 and 3.4).
    2. Advantage within a group (GRPO, arXiv 2402.03300, section 4.1.2), the same for all tokens of an answer:
           A_i = (r_i - mean(r_1..r_G)) / (std(r_1..r_G) + epsilon)
    3. Update: minimise, over the n generated tokens of all N = B x G answers,
           L = -1/n sum_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t) + kl_coef KL(pi_theta || pi_ref)
           rho_t = pi_theta(o_t | q, o_<t) / pi_old(o_t | q, o_<t)
       in `updates_per_rollout` optimizer steps (AdamW, ZeRO-3), micro-batch by micro-batch.
    4. Send the new weights to the rollout engines. Colocated engines (`training.placement`) sleep from 2 on, and are
       woken here, with their GPUs, before anything is sampled.
    5. If it is due, let the engines answer held-out questions (`training.validate`).
    6. If it is due, let the policy vote again on the questions that come next (`voting.online`).
    7. After the step: metrics line, checkpoint, export, and whether to stop.

Deviations from the papers, each an option of the stage (`config/objective.py`, `config/training.py`):
- the mean over tokens is taken over all answers of the step (`aggregation`), not first within each answer;
- groups whose rewards are all equal have no gradient; the next prompts replace them (`drop_zero_variance`);
- with one update per rollout rho = 1 exactly, and the old log-probs need no separate forward pass (`old_logprobs`).

Shapes, as suffixes of names: B prompts of a step (of a micro-batch: sequences), G samples of a prompt, N = B x G
samples, T tokens of a sequence, A = T - 1 actions, R rows that predict an action, H hidden size, V vocabulary. For
example: reward_BG, logp_BA. As a suffix, A, R and N are these sizes, not the advantage, the reward or a token count.

    medssr train --config configs/qwen3_8b.yaml --run-dir runs/first
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import ray
import torch

from medssr_dist.config.training import Stage
from medssr_dist.errors import Stopped
from medssr_dist.training.after_step import AfterStep, LoopState, SampleLog
from medssr_dist.training.backend.openrlhf import RayActorGroup
from medssr_dist.training.rollout.revoter import Revoter
from medssr_dist.training.rollout.sampler import StepSamples
from medssr_dist.training.rollout.validator import Validator
from medssr_dist.training.step_metrics import StepMetrics, rollout_means
from medssr_dist.training.update.experience import ExperienceMaker
from medssr_dist.training.update.grpo_terms import compute_advantages


class SampleSource(Protocol):
    """The methods of a Sampler that the loop calls."""

    waited_s: float

    def next_step(self) -> StepSamples | None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def end(self) -> None: ...


class WeightSender(Protocol):
    """The methods of RolloutWorkers that the loop calls."""

    def begin_training(self) -> None: ...
    def sync_weights(self, compare_all: bool = False) -> None: ...


@dataclass(frozen=True)
class LoopParts:
    """The objects that the loop uses; `StageActor` makes them."""

    stage: Stage
    sampler: SampleSource
    experience: ExperienceMaker
    policy: RayActorGroup  # of PolicyRanks
    engines: WeightSender
    after_step: AfterStep
    sample_log: SampleLog
    validator: Validator | None = None
    revoter: Revoter | None = None


def run_grpo(parts: LoopParts) -> None:
    """Train until the sampler has no more samples, or a validation or the guard ends the stage.

    Raises:
        Stopped: the stage must end early; all finished steps are saved.
        Diverged: a step has produced NaN or an infinity.
    """
    state = parts.after_step.resume()
    try:
        parts.after_step.check_stop()
        if state.sampler is not None:
            parts.sampler.load_state_dict(state.sampler)
            parts.engines.sync_weights()  # the engines started with the weights of step 0
        if not state.step:
            if parts.validator:
                parts.validator.measure(0)
            parts.after_step.keep_start()
        clock = StepClock(parts.sampler)
        while not parts.after_step.ended_by and (rollout := parts.sampler.next_step()) is not None:
            clock.lap("generate")
            state = take_step(parts, rollout, state, clock)
            clock = StepClock(parts.sampler)
        if parts.after_step.ended_by:
            parts.sampler.end()
        elif parts.validator:
            parts.validator.measure(state.step)
    except Stopped as reason:
        raise parts.after_step.save_and_stop(reason) from None


def take_step(parts: LoopParts, rollout: StepSamples, state: LoopState, clock: StepClock) -> LoopState:
    """Train on the samples of one step; return the state after the step."""
    stage, samples, step = parts.stage, rollout.samples, state.step + 1
    parts.sample_log.keep(samples, step)

    reward_BG = torch.cat([sample.rewards for sample in samples]).view(-1, stage.samples_per_prompt)
    groups = compute_advantages(reward_BG, stage)
    advantage_N = groups.advantage
    if rollout.weights is not None:  # of votes
        advantage_N = advantage_N * torch.tensor(rollout.weights)
    parts.engines.begin_training()
    work = parts.experience.plan(samples, advantage_N, state.step)
    parts.experience.add_log_probs(work)
    kl_in_reward = parts.experience.subtract_kl(work)
    ray.get(parts.policy.async_run_method_batch(method_name="load_update", updates=work.shares))
    clock.lap("experience")

    update = ray.get(parts.policy.async_run_method("update"))[0]
    parts.after_step.check_finite(step, update)
    clock.lap("update")

    is_far = parts.after_step.check_rollouts(step, update | rollout.metrics)
    parts.engines.sync_weights(compare_all=is_far)
    clock.lap("sync")
    validation = parts.validator.measure_if_due(step) if parts.validator else None
    if validation:
        clock.lap("validate")
    revotes = parts.revoter.vote_if_due(step, rollout.drawn) if parts.revoter else None
    if revotes:
        clock.lap("revote")

    found = update | rollout_means(samples) | rollout.metrics | clock.seconds()
    found |= {
        "advantage_abs": groups.advantage.abs().mean().item(),
        "group_reward_std": groups.std.mean().item(),
        "zero_variance": groups.zero_variance.float().mean().item(),
    }
    if kl_in_reward is not None:
        found["kl"] = kl_in_reward
    if validation:
        found["validation_accuracy"] = validation.accuracy
    if revotes:
        found |= asdict(revotes)
    state = LoopState(step, state.prompts + rollout.drawn, parts.sampler.state_dict())
    tokens = int(found["response_length"] * found["samples"])
    now = round(time.time(), 3)
    metrics = StepMetrics(**found, step=step, prompts=state.prompts, tokens=tokens, time=now)
    parts.after_step.finish_step(metrics, state)
    return state


class StepClock:
    """Measures the seconds of each phase of one step, and the seconds spent waiting for examples."""

    def __init__(self, sampler: SampleSource):
        self._sampler, self._waited_s = sampler, sampler.waited_s
        self._last = time.monotonic()
        self._seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Record the time since the previous lap as the time of `phase`."""
        now = time.monotonic()
        self._seconds[f"seconds_{phase}"] = now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Return the times by field name of StepMetrics."""
        waited = round(self._sampler.waited_s - self._waited_s, 6)
        return self._seconds | {"seconds": sum(self._seconds.values()), "seconds_wait": waited}
