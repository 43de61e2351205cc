"""Step 3: start a GRPO stage on Ray, show its progress, publish its checkpoint."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.data.jsonl import write_atomic, write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import Diverged, InputError, Stopped
from medssr_dist.readers import name_source
from medssr_dist.run.clock import format_duration
from medssr_dist.run.paths import StagePaths
from medssr_dist.run.stream import follow, follow_kept_labels, publish_taken, read_kept_count, read_kept_labels
from medssr_dist.runtime.device import build_device_env
from medssr_dist.runtime.models import publish_folder
from medssr_dist.training.deadline import end_time
from medssr_dist.training.rollout.examples import Example, from_labels, from_questions, of_label, shuffled
from medssr_dist.training.stage_actor import StageRunner
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.stall_watch import StallWatch, start_board
from medssr_dist.training.trackers import Trackers
from medssr_dist.training.weights.checkpoints import settle

_FULL_DISK_BYTES = 2**28
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"
_PACE_STEPS = 5


class RunningStage:
    """A stage that trains in its own Ray actors while the caller does something else.

    Args:
        job: what it is to do; its `checkpoint` is found here.
        examples: see StageRunner.run; called inside the stage's actor.
        on_taken: told how many examples the stage has taken.
        should_stop: whether the run was asked to stop; the stage then ends after the step it is in, saved.
    """

    def __init__(self, job: StageJob, examples: Callable, on_taken, should_stop: Callable[[], bool]):
        import ray

        if should_stop():
            raise Stopped(f"stopped before {job.name}; the same command goes on")
        _clear_partial(job.folder)
        checkpoint = settle(job.paths.checkpoints)
        done = checkpoint.step if checkpoint else 0
        if job.end is not None and time.time() > job.end:  # before minutes are spent on starting it
            raise Stopped(f"{job.name} stopped after step {done}, its end time is over; the same command goes on")
        _drop_steps_after(job.folder, done)
        self._job, self._should_stop, self._started = replace(job, checkpoint=checkpoint), should_stop, time.monotonic()
        self._actor = ray.remote(num_cpus=1, runtime_env={"env_vars": build_device_env()})(StageRunner).remote()
        board = start_board()
        self._watch = StallWatch(board, job.config.training.stall_s)
        self._result = self._actor.run.remote(self._job, examples, on_taken, board)
        self._trackers = Trackers(self._job)
        self._bar = tqdm(total=job.expected_steps, desc=job.name, initial=done, bar_format=_BAR)

    def check(self) -> bool:
        """Whether the stage is done; then `folder`/hf and its summary are there. Raises what the stage raised.

        Once the run is asked to stop, so is the stage.
        """
        import ray

        self._show()
        if self._should_stop():
            self._ask_to_stop()
        self._watch.check()
        done, _ = ray.wait([self._result], timeout=0)
        if not done:
            return False
        self._close()
        try:
            counts = ray.get(self._result)
        except ray.exceptions.RayTaskError as error:
            raise _explained(error, self._job.folder) from None
        _publish(self._job.folder, counts | {"seconds": round(time.monotonic() - self._started, 1)})
        ray.kill(self._actor)
        return True

    def wait(self) -> None:
        """Wait for the end. Raises what ended the stage before: Stopped where it was asked to."""
        while not self.check():
            time.sleep(1)

    def kill(self) -> None:
        """End the stage: after the step it is in and saved where the run was asked to stop, else at once."""
        import ray

        if self._should_stop():
            self._end_in_order()
        self._close()
        ray.kill(self._actor)

    def _end_in_order(self) -> None:
        """Wait for the end it was asked for; how it ended is told here, for something else has ended the run."""
        try:
            self.wait()
        except Exception as error:
            tqdm.write(str(error))

    def _ask_to_stop(self) -> None:
        file = self._job.paths.stop_request
        if not file.exists():
            tqdm.write(f"{self._job.name}: stops after this step, when it is saved")
            file.touch()

    def _close(self) -> None:
        self._show()
        self._trackers.close()
        self._bar.close()

    def _show(self) -> None:
        rows = _metrics(self._job.folder)
        if rows and rows[-1]["step"] > self._bar.n:
            self._bar.n = rows[-1]["step"]
            self._bar.set_postfix(_told(rows, self._job.expected_steps))


def _told(rows: list[dict], total: int) -> dict[str, str]:
    """What the bar says of the newest step; the time to go is by the pace of the last ones, not of the start-up."""
    pace = sum(row["seconds"] for row in rows[-_PACE_STEPS:]) / len(rows[-_PACE_STEPS:])
    to_go = format_duration(pace * max(0, total - rows[-1]["step"]))
    return {"reward": f"{rows[-1]['reward']:.2f}", "kl": f"{rows[-1].get('kl', 0):.1e}", "ETA": to_go}


def _explained(error, folder: Path) -> Exception:
    """What ended a stage: its own Stopped, Diverged or InputError; bad input too where memory or disk were full.

    torch and DeepSpeed tell of a full disk in several ways, so the disk itself is asked.
    """
    import ray

    if isinstance(error.cause, Stopped):
        return Stopped(f"{folder.name} {error.cause}")
    if isinstance(error.cause, (Diverged, InputError)):
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


def start_stage1(
    config: Config, model: Path, labels: Path, folder: Path, most_examples: int, should_stop: Callable[[], bool]
) -> RunningStage:
    """Stage 1: self-supervised GRPO on the kept pseudo-labels, as they come (paper section 3.3).

    Args:
        labels: the label stream, `labeled.jsonl`.
        most_examples: how many labels there can be at most, for the learning-rate schedule.
    """
    stage = config.training.stage1
    known = read_kept_count(labels)
    publish_taken(labels, 0)  # what an earlier attempt said holds no more
    steps = _expected_steps(stage, most_examples if known is None else known)
    job = _job("stage1", config, model, model, folder, _pseudo_labels(config), steps)
    return RunningStage(job, partial(_label_examples, labels), partial(publish_taken, labels), should_stop)


def start_stage2(
    config: Config,
    model: Path,
    reference: Path,
    questions: list[Question],
    labels: Path,
    folder: Path,
    should_stop: Callable[[], bool],
) -> RunningStage:
    """Stage 2: supervised GRPO on human-annotated questions (paper section 3.4).

    Args:
        model: stage 1's checkpoint, or the base model where stage 1 is off.
        labels: kept pseudo-labels that join in when `stage2.mix_pseudo_labels` is set.
    """
    stage = config.training.stage2
    examples = from_questions(questions)
    data = f"{len(examples):,} human-annotated questions: {', '.join(map(name_source, stage.data)) or 'none'}."
    if stage.mix_pseudo_labels:
        examples += from_labels(read_kept_labels(labels))
        data += f" Mixed with {_pseudo_labels(config)}"
    examples = shuffled(examples, config.runtime.random_seed)
    job = _job("stage2", config, model, reference, folder, data, _expected_steps(stage, len(examples)))
    return RunningStage(job, partial(_listed, examples), _ignore, should_stop)


def _job(
    name: str, config: Config, model: Path, reference: Path, folder: Path, data: str, expected_steps: int
) -> StageJob:
    return StageJob(
        name,
        config.without_secrets(),
        getattr(config.training, name),
        model,
        reference,
        folder,
        data,
        expected_steps,
        checkpoint=None,
        end=end_time(config.runtime),
    )


def _pseudo_labels(config: Config) -> str:
    voting, synthesis = config.voting, config.synthesis
    return (
        f"synthetic questions (alpha = {synthesis.alpha:g} of the requests with a rare disease and its passages), each "
        f"labelled by the majority of up to {voting.samples} answers of the base model and kept with a share of "
        f"{voting.threshold:g} of the {voting.confidence} votes or more."
    )


def _label_examples(labels: Path, start: int, watch: Callable[[], object]) -> Iterable[tuple[int, Example]]:
    """A place is a number of lines of the ledger."""
    return ((place, of_label(label)) for place, label in follow_kept_labels(labels, start, watch))


def _listed(examples: list[Example], start: int, watch: Callable[[], object]) -> Iterable[tuple[int, Example]]:
    """All are there: nothing is waited for, and nothing to `watch`."""
    return enumerate(examples[start:], start=start + 1)


def _ignore(taken: int) -> None:
    """Nobody waits for stage 2 to take its examples."""


def _expected_steps(stage: Stage, examples: int) -> int:
    return stage.steps or max(1, -(-examples // stage.prompts_per_step))


def _clear_partial(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    paths = StagePaths(folder)
    paths.stop_request.unlink(missing_ok=True)
    for export in paths.partial_exports():
        shutil.rmtree(export)


def _drop_steps_after(folder: Path, step: int) -> None:
    """Take back what was told of steps that will be taken again."""
    paths = StagePaths(folder)
    for file in (paths.metrics, paths.samples):
        rows = list(follow(file, ended=lambda: True))
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))


def _metrics(folder: Path) -> list[dict]:
    """Whole lines of metrics.jsonl; the stage may be writing the next."""
    return list(follow(StagePaths(folder).metrics, ended=lambda: True))


def _publish(folder: Path, counts: dict) -> None:
    paths = StagePaths(folder)
    publish_folder(paths.hf_partial, paths.hf)
    rows = _metrics(folder)
    summary = counts | {
        "steps": len(rows),
        "reward_by_step": [row["reward"] for row in rows],
        "tokens": sum(row["tokens"] for row in rows),
    }
    write_json(paths.summary, summary)
