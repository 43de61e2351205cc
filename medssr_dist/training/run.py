"""Step 3: start a GRPO stage on Ray, show its progress, publish its checkpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from medssr_dist.config import Config, Stage
from medssr_dist.errors import InputError, Stopped
from medssr_dist.jsonl import write_json
from medssr_dist.records import Question
from medssr_dist.runtime.device import device_env
from medssr_dist.runtime.models import publish_folder
from medssr_dist.stream import follow, kept_at_end, kept_labels, kept_labels_from, publish_taken
from medssr_dist.training.checkpoints import drop_torn
from medssr_dist.training.prompts import Example, from_labels, from_questions, shuffled
from medssr_dist.training.stage import StageJob, StageRunner
from medssr_dist.training.watch import StallWatch, start_board

_FULL_DISK_BYTES = 2**28


class RunningStage:
    """A stage that trains in its own Ray actors while the caller does something else.

    Args:
        examples: see PromptLoader; called inside the stage's actor.
        on_taken: told how many examples the stage has taken.
    """

    def __init__(self, name: str, job: StageJob, examples: Callable[[int], Iterable[tuple[int, Example]]], on_taken):
        import ray

        self._job, self._started = job, time.monotonic()
        _clear_partial(job.folder)
        drop_torn(job.folder / "checkpoints")
        self._actor = ray.remote(num_cpus=1, runtime_env={"env_vars": device_env()})(StageRunner).remote()
        board = start_board()
        self._watch = StallWatch(board, job.config.training.stall_s)
        self._result = self._actor.run.remote(job, examples, on_taken, board)
        self._bar = tqdm(total=job.expected_steps, desc=name, unit="step", initial=0)

    def check(self) -> bool:
        """Whether the stage is done; then `folder`/hf and its summary are there. Raises what the stage raised."""
        import ray

        self._show()
        self._watch.check()
        done, _ = ray.wait([self._result], timeout=0)
        if not done:
            return False
        try:
            counts = ray.get(self._result)
        except ray.exceptions.RayTaskError as error:
            raise _explained(error, self._job.folder) from None
        self.kill()
        _publish(self._job.folder, counts | {"seconds": round(time.monotonic() - self._started, 1)})
        return True

    def wait(self, should_stop: Callable[[], bool]) -> None:
        """Wait for the end. Raises Stopped if asked to."""
        while not self.check():
            if should_stop():
                self.kill()
                raise Stopped("training stopped; the same command goes on from the last checkpoint")
            time.sleep(1)

    def kill(self) -> None:
        """End the stage's actors; its checkpoints stay."""
        import ray

        self._bar.close()
        ray.kill(self._actor)

    def _show(self) -> None:
        rows = _metrics(self._job.folder)
        if rows:
            self._bar.set_postfix(reward=f"{rows[-1]['reward']:.2f}", kl=f"{rows[-1].get('kl', 0):.1e}")
            self._bar.n = rows[-1]["step"]
            self._bar.refresh()


def _explained(error, folder: Path) -> Exception:
    """What ended a stage, as bad input where it is that: its own InputError, too little memory, or a full disk.

    torch and DeepSpeed tell of a full disk in several ways, so the disk itself is asked.
    """
    import ray

    if isinstance(error.cause, InputError):
        return error.cause
    if isinstance(error.cause, ray.exceptions.OutOfMemoryError):
        return InputError(
            "the machine ran out of memory while training, and Ray ended a worker; lower micro_batch_size, set "
            "runtime.mode=sequential or end other programs, and run the same command again: it goes on from the "
            "last whole checkpoint"
        )
    free = shutil.disk_usage(folder).free
    if free < _FULL_DISK_BYTES:
        return InputError(
            f"training ended with {free / 2**20:.0f} MiB free in {folder}: the disk is full; free some space and run "
            "the same command again, it goes on from the last whole checkpoint"
        )
    return error


def start_stage1(config: Config, model: Path, labels: Path, folder: Path, most_examples: int) -> RunningStage:
    """Stage 1: self-supervised GRPO on the kept pseudo-labels, as they come (paper section 3.3).

    Args:
        labels: the label stream, `labeled.jsonl`.
        most_examples: how many labels there can be at most, for the learning-rate schedule.
    """
    stage = config.training.stage1
    known = kept_at_end(labels)
    publish_taken(labels, 0)  # what an earlier attempt said holds no more
    steps = _expected_steps(stage, most_examples if known is None else known)
    job = StageJob(config.without_secrets(), stage, model, model, folder, steps)
    return RunningStage("stage 1", job, partial(_label_examples, labels), partial(publish_taken, labels))


def start_stage2(
    config: Config, model: Path, reference: Path, questions: list[Question], labels: Path, folder: Path
) -> RunningStage:
    """Stage 2: supervised GRPO on human-annotated questions (paper section 3.4).

    Args:
        model: stage 1's checkpoint, or the base model where stage 1 is off.
        labels: kept pseudo-labels that join in when `stage2.mix_pseudo_labels` is set.
    """
    stage = config.training.stage2
    examples = from_questions(questions)
    if stage.mix_pseudo_labels:
        examples += from_labels(kept_labels(labels))
    examples = shuffled(examples, config.runtime.random_seed)
    job = StageJob(config.without_secrets(), stage, model, reference, folder, _expected_steps(stage, len(examples)))
    return RunningStage("stage 2", job, partial(_listed, examples), _ignore)


def _label_examples(labels: Path, start: int) -> Iterable[tuple[int, Example]]:
    """A place is a number of lines of the ledger."""
    return ((place, Example(label.question, label.answer)) for place, label in kept_labels_from(labels, start))


def _listed(examples: list[Example], start: int) -> Iterable[tuple[int, Example]]:
    return enumerate(examples[start:], start=start + 1)


def _ignore(taken: int) -> None:
    """Nobody waits for stage 2 to take its examples."""


def _expected_steps(stage: Stage, examples: int) -> int:
    return stage.steps or max(1, -(-examples // stage.prompts_per_step))


def _clear_partial(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "hf.partial", ignore_errors=True)


def _metrics(folder: Path) -> list[dict]:
    """Whole lines of metrics.jsonl; the stage may be writing the next."""
    return list(follow(folder / "metrics.jsonl", ended=lambda: True))


def _publish(folder: Path, counts: dict) -> None:
    publish_folder(folder / "hf.partial", folder / "hf")
    rows = _metrics(folder)
    summary = counts | {
        "steps": len(rows),
        "reward_by_step": [row["reward"] for row in rows],
        "tokens": sum(row["tokens"] for row in rows),
    }
    write_json(folder / "summary.json", summary)
