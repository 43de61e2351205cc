"""What happens between two steps of a stage: a look for NaN, metrics line, checkpoint, export, and whether to go on."""

from __future__ import annotations

import json
from pathlib import Path

import ray

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.errors import Diverged, Stopped
from medssr_dist.run.paths import partial_export
from medssr_dist.runtime.models import publish_folder
from medssr_dist.training.deadline import StopSign
from medssr_dist.training.finite import bad_metrics, told
from medssr_dist.training.model_card import write_model_card
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.weights.checkpoints import CheckpointKeeper

_FRESH = {"episode": 0, "global_step": 0, "total_consumed_prompts": 0, "data_loader_state_dict": {}}


class Boundary:
    """Takes each finished step's row and state. The state saved is always that of a finished step.

    Args:
        job: what the stage is to do, and where.
        policy: RayActorGroup of PolicyRanks.
        stop: asked after every step.
    """

    def __init__(self, job: StageJob, policy, stop: StopSign):
        self._job, self._policy, self._stop = job, policy, stop
        self._keeper = CheckpointKeeper(
            job.paths.checkpoints, job.stage.keep_checkpoints, self._bytes_needed, self._write
        )
        self._saved = self._step = job.checkpoint.step if job.checkpoint else 0
        self._state: dict = {}
        self._rewards: list[float] = []

    def resumed_state(self) -> dict:
        """The state of the step that the ranks have taken up, or of the beginning."""
        return self._all("get_checkpoint_states")[0] or dict(_FRESH)

    def updated(self, step: int, status: dict) -> None:
        """The weights are those after step number `step`: before an engine or a checkpoint gets them, look at them.

        Args:
            status: the update's metrics, by OpenRLHF's names.
        Raises:
            Diverged: they, or the metrics, hold NaN or an infinity.
        """
        self._refuse(step, bad_metrics(status), self._bad_weights())

    def passed(self, step: int, row: dict, state: dict) -> None:
        """Step number `step` has ended: write `row`, and save, export and stop as is due.

        Args:
            row: the step's line of metrics.jsonl.
            state: what a restart needs to go on after it.
        Raises:
            Stopped: the stage has to end; what it has done is not saved yet.
        """
        # First: a restart drops the rows of steps after the checkpoint, but cannot make one that is missing.
        with JsonlLedger(self._job.paths.metrics) as ledger:
            ledger.append(row)
        self._step, self._state = step, state
        self._rewards.append(row["reward"])
        self._stop.took_step(row["seconds"] - row["seconds_wait"])
        if step % self._job.stage.save_steps == 0:
            self._save()
        if self._job.stage.export_steps and step % self._job.stage.export_steps == 0:
            folder = self._job.paths.hf_at(step)
            publish_folder(self.export(partial_export(folder)), folder)
        self.go_on()

    def go_on(self) -> None:
        """Raise Stopped where no other step is to be begun."""
        self._stop.check()

    def stopped(self, reason: Stopped) -> Stopped:
        """Save what has been done since the last checkpoint; returns what to tell."""
        if self._step > self._saved:
            self._save()
        return Stopped(f"stopped after step {self._step}, {reason}; the same command goes on from there")

    def export(self, folder: Path) -> Path:
        """Write the policy as a Hugging Face checkpoint with its card into `folder`. Raises Diverged."""
        self._refuse(self._step, {}, self._bad_weights())  # a stage that was taken up may have had no step to take
        self._all("export", str(folder))
        write_model_card(folder, self._job, self._step)
        return folder

    def _bad_weights(self) -> dict[str, float]:
        return {name: value for found in self._all("bad_weights") for name, value in found.items()}

    def _refuse(self, step: int, metrics: dict[str, float], weights: dict[str, float]) -> None:
        if not (metrics or weights):
            return
        name, stage = self._job.name, self._job.stage
        go_on = f"the same command goes on from the checkpoint of step {self._saved}, which is whole"
        raise Diverged(
            f"{name} step {step}: {told(metrics, weights)}; nothing of this step is saved or exported, and "
            f"{go_on if self._saved else 'there is no checkpoint yet'}; if it comes again, lower "
            f"training.{name}.learning_rate ({stage.learning_rate:g}) or clip gradients more (max_grad_norm = "
            f"{stage.max_grad_norm:g}, 0 is off), with a new --run-dir"
        )

    def _save(self) -> None:
        checkpoint = self._keeper.save(self._step, self._state, sum(self._rewards) / len(self._rewards))
        self._stop.took_save(checkpoint.seconds)
        self._saved, self._rewards = self._step, []

    def _bytes_needed(self) -> int:
        return sum(self._all("checkpoint_bytes"))

    def _write(self, folder: Path, tag: str, state: dict) -> list[dict[str, int]]:
        return self._all("write_checkpoint", folder, tag, state)

    def _all(self, method: str, *args) -> list:
        return ray.get(self._policy.async_run_method(method, *args))


class SampleBook:
    """Appends rollouts of a step to `file`, evenly spread over its prompts.

    Args:
        count: rollouts of a step that are kept; 0 = none.
    """

    def __init__(self, file: Path, tokenizer, count: int):
        self._file, self._tokenizer, self._count = file, tokenizer, count

    def keep(self, rollouts: list, step: int) -> None:
        """Write down some of the Experiences of `step`, each of one sequence [1, T] and its mask [1, T - 1]."""
        kept = rollouts[:: max(1, len(rollouts) // self._count)][: self._count] if self._count else []
        if kept:
            with JsonlLedger(self._file) as ledger:
                ledger.append(*(self._row(rollout, step) for rollout in kept))

    def _row(self, rollout, step: int) -> dict:
        label = json.loads(rollout.labels[0])
        actions = rollout.sequences[0, 1:][rollout.action_mask[0].bool()]
        row = {
            "step": step,
            "question_id": label["id"],
            "prompt": rollout.prompts[0],
            "response": self._tokenizer.decode(actions, skip_special_tokens=True),
            "label": label["answer"],
            "reward": float(rollout.rewards[0]),
            "truncated": bool(rollout.truncated[0]),
        }
        if "policy_lag" in rollout.info:  # OpenRLHF's own generator does not know it
            row["policy_lag"] = int(rollout.info["policy_lag"][0])
        return row
