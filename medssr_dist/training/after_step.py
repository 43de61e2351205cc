"""What follows each step of a stage: check for NaN, metrics line, checkpoint, export, and the decision to stop."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.errors import Diverged, Stopped
from medssr_dist.run.paths import partial_export
from medssr_dist.runtime.models import publish_folder
from medssr_dist.training.backend.openrlhf import Experience, RayActorGroup
from medssr_dist.training.deadline import StopSign
from medssr_dist.training.finite import describe_bad, find_bad_metrics
from medssr_dist.training.mismatch import MismatchWatch
from medssr_dist.training.model_card import write_model_card
from medssr_dist.training.save_interval import choose_save_steps
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.stage_watch import StageWatch, copy_model
from medssr_dist.training.step_metrics import StepMetrics
from medssr_dist.training.weights.checkpoints import CheckpointKeeper, StoredFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoopState:
    """The state that the loop resumes from, besides weights and optimizer.

    step: number of finished steps. prompts: number of prompts drawn. sampler: Sampler.state_dict(); None at the start.

    Example: LoopState(step=20, prompts=1280, sampler={"batches": {...}, "prompts": {...}})
    """

    step: int = 0
    prompts: int = 0
    sampler: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the state as it is stored in a checkpoint."""
        sampler = self.sampler or {}
        return {
            "global_step": self.step,
            "total_consumed_prompts": self.prompts,
            "samples": sampler.get("batches"),
            "data_loader_state_dict": sampler.get("prompts"),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """Read the state of a checkpoint; {} is the state at the beginning."""
        if not values:
            return cls()
        sampler = {"batches": values["samples"], "prompts": values["data_loader_state_dict"]}
        return cls(values["global_step"], values["total_consumed_prompts"], sampler)


class AfterStep:
    """Records each finished step. The state that is saved is always the state after a finished step.

    Args:
        job: the stage.
        policy: group of PolicyRanks.
        stop: checked after every step.
        watch: decides whether the stage ends early, and which policy it publishes.
    """

    def __init__(self, job: StageJob, policy: RayActorGroup, stop: StopSign, watch: StageWatch):
        self._job, self._policy, self._stop, self._watch = job, policy, stop, watch
        quantized = job.config.training.rollout_dtype
        self._mismatch = MismatchWatch(job.name, job.config.policy.dtype if quantized == "policy" else quantized)
        self._keeper = CheckpointKeeper(
            job.paths.checkpoints, job.stage.keep_checkpoints, self._count_bytes, self._write
        )
        self._saved = self._step = job.checkpoint.step if job.checkpoint else 0
        self._state = LoopState()
        self._rewards: list[float] = []

    @property
    def ended_by(self) -> str:
        """Why no further step follows, although there are samples; "" = it does."""
        return self._watch.ended_by

    @cached_property
    def _save_steps(self) -> int:
        return self._job.stage.save_steps or choose_save_steps(self._count_bytes())

    def resume(self) -> LoopState:
        """Return the state of the checkpoint that the ranks have loaded, or of the beginning."""
        return LoopState.from_dict(self._all("get_checkpoint_states")[0])

    def keep_start(self) -> None:
        """Export the policy that the stage begins with, if the stage may publish it. Raises Diverged."""
        if self._watch.keeps_start:
            self._export_to(self._job.paths.hf_candidate(0))

    def check_stop(self) -> None:
        """Raise Stopped if no other step may begin."""
        self._stop.check()

    def check_finite(self, step: int, update: dict[str, float]) -> None:
        """Check the weights and metrics of step number `step`, before an engine or a checkpoint gets these weights.

        Raises:
            Diverged: they hold NaN or an infinity.
        """
        self._refuse(step, find_bad_metrics(update), self._find_bad_weights())

    def check_rollouts(self, step: int, metrics: dict[str, Any]) -> bool:
        """Return whether the rollout engines' probabilities are far from those of the training forward."""
        return self._mismatch.check(step, metrics)

    def finish_step(self, metrics: StepMetrics, state: LoopState) -> None:
        """Write the step's line of metrics.jsonl; save and export if they are due.

        Raises:
            Stopped: the stage must end; steps since the last checkpoint are not saved yet.
        """
        # First the metrics: a restart deletes rows after the checkpoint, but it cannot restore a missing row.
        with JsonlLedger(self._job.paths.metrics) as ledger:
            ledger.append(metrics.as_row())
        self._step, self._state = state.step, state
        self._watch.add_step(metrics)
        self._rewards.append(metrics.reward)
        self._stop.record_step(metrics.seconds - metrics.seconds_wait)
        is_saved = state.step % self._save_steps == 0
        if self._watch.is_candidate(state.step, is_saved):
            self._export_to(self._job.paths.hf_candidate(state.step))
        if is_saved:
            self._save()
        if self._job.stage.export_steps and state.step % self._job.stage.export_steps == 0:
            self._export_to(self._job.paths.hf_at(state.step))
        self.check_stop()

    def save_and_stop(self, reason: Stopped) -> Stopped:
        """Save the steps since the last checkpoint; return the error to raise."""
        if self._step > self._saved:
            self._save()
        return Stopped(f"stopped after step {self._step}, {reason}; the same command resumes from there")

    def export(self, folder: Path) -> Path:
        """Write the policy as a Hugging Face checkpoint with its model card into `folder`. Raises Diverged."""
        self._refuse(self._step, {}, self._find_bad_weights())  # a resumed stage may have no step left
        self._all("export", str(folder))
        write_model_card(folder, self._job, self._step)
        return folder

    def export_published(self) -> int:
        """Write the policy that the stage publishes into `hf.partial`; return the step after which it was so."""
        paths, step = self._job.paths, self._watch.choose(self._step)
        if paths.hf_candidate(step).exists():
            copy_model(paths.hf_candidate(step), paths.hf_partial)
        else:  # the last policy, which was no candidate
            self.export(paths.hf_partial)
        return step

    def _export_to(self, folder: Path) -> None:
        publish_folder(self.export(partial_export(folder)), folder)

    def _find_bad_weights(self) -> dict[str, float]:
        return {name: value for found in self._all("find_bad_weights") for name, value in found.items()}

    def _refuse(self, step: int, metrics: dict[str, float], weights: dict[str, float]) -> None:
        if not (metrics or weights):
            return
        name, stage = self._job.name, self._job.stage
        resume = f"the same command resumes from the checkpoint of step {self._saved}, which is complete"
        raise Diverged(
            f"{name} step {step}: {describe_bad(metrics, weights)}; nothing of this step is saved or exported, and "
            f"{resume if self._saved else 'there is no checkpoint yet'}; if it happens again, lower "
            f"training.{name}.learning_rate ({stage.learning_rate:g}) or clip gradients more (max_grad_norm = "
            f"{stage.max_grad_norm:g}, 0 is off), with a new --run-dir"
        )

    def _save(self) -> None:
        reward = sum(self._rewards) / len(self._rewards)
        accuracy = self._watch.find_accuracy(self._step)
        checkpoint = self._keeper.save(self._step, self._state.as_dict(), reward, accuracy)
        self._stop.record_save(checkpoint.seconds)
        self._watch.delete_candidates(self._step)
        self._saved, self._rewards = self._step, []

    def _count_bytes(self) -> int:
        return sum(self._all("count_checkpoint_bytes"))

    def _write(self, folder: Path, tag: str, state: dict[str, Any]) -> list[dict[str, StoredFile]]:
        return self._all("write_checkpoint", folder, tag, state)

    def _all(self, method: str, *args: object) -> list[Any]:
        return ray.get(self._policy.async_run_method(method, *args))


class SampleLog:
    """Writes a few samples of every step to the stage's samples.jsonl, for readers.

    Args:
        count: number of samples per step, evenly spread over its prompts; 0 = none.
    """

    def __init__(self, file: Path, tokenizer: PreTrainedTokenizerBase, count: int):
        self._file, self._tokenizer, self._count = file, tokenizer, count

    def keep(self, samples: list[Experience], step: int) -> None:
        """Append some of the step's samples; each has sequences [1, T] and action_mask [1, A], A = T - 1."""
        kept = samples[:: max(1, len(samples) // self._count)][: self._count] if self._count else []
        if kept:
            with JsonlLedger(self._file) as ledger:
                ledger.append(*(self._row(sample, step) for sample in kept))

    def _row(self, sample: Experience, step: int) -> dict[str, Any]:
        label = json.loads(sample.labels[0])
        actions = sample.sequences[0, 1:][sample.action_mask[0].bool()]
        row = {
            "step": step,
            "question_id": label["id"],
            "prompt": sample.prompts[0],
            "response": self._tokenizer.decode(actions, skip_special_tokens=True),
            "label": label["answer"],
            "reward": float(sample.rewards[0]),
            "truncated": bool(sample.truncated[0]),
        }
        if "policy_lag" in sample.info:
            row["policy_lag"] = int(sample.info["policy_lag"][0])
        if "versions" in sample.info:
            row["versions"] = sample.info["versions"].tolist()
        return row
