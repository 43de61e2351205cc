"""Step 3 of the pipeline: start a GRPO stage on Ray, show its progress, publish its checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from medssr_dist.config.label_settings import MAJORITY
from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.data.checksums import seal_line
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.data.private_files import replace_private
from medssr_dist.data.records import Question, parse_record
from medssr_dist.errors import Stopped
from medssr_dist.readers import name_source
from medssr_dist.run.clock import format_duration
from medssr_dist.run.paths import StagePaths
from medssr_dist.run.stream import follow, follow_kept_labels, publish_taken, read_kept_count, read_kept_labels
from medssr_dist.runtime.device import build_device_env
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import publish_folder
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.training.collapse_guard import read_alarms
from medssr_dist.training.deadline import find_end_time
from medssr_dist.training.rollout.examples import (
    Example,
    make_annotated_examples,
    make_labeled_example,
    make_labeled_examples,
    shuffle,
)
from medssr_dist.training.stage_actor import Examples, StageActor
from medssr_dist.training.stage_errors import explain_stage_error
from medssr_dist.training.stage_job import StageCounts, StageJob, StageSummary
from medssr_dist.training.stall_watch import StallWatch, start_board
from medssr_dist.training.step_metrics import StepMetrics, read_metrics
from medssr_dist.training.trackers import Trackers
from medssr_dist.training.validation_log import find_best, read_validations
from medssr_dist.training.vote_access import VoteFunction, VoteSource
from medssr_dist.training.weights.checkpoints import recover_checkpoint

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"
_PACE_STEPS = 5  # the time left is estimated from this many last steps

logger = logging.getLogger(__name__)


class RunningStage:
    """A stage that trains in its own Ray actors while the caller does other work.

    Args:
        job: the stage; its `checkpoint` is set here.
        examples, on_taken: see StageActor.run; both are called inside the stage's actor.
        should_stop: whether the run was asked to stop; the stage then saves and ends after its current step.
    """

    def __init__(
        self, job: StageJob, examples: Examples, on_taken: Callable[[int], None], should_stop: Callable[[], bool]
    ):
        import ray

        if should_stop():
            raise Stopped(f"stopped before {job.name}; the same command resumes")
        _clear_partial(job.paths)
        checkpoint = recover_checkpoint(job.paths.checkpoints)
        done = checkpoint.step if checkpoint else 0
        if job.end is not None and time.time() > job.end:  # check this before the start, which takes minutes
            raise Stopped(f"{job.name} stopped after step {done}, its end time is over; the same command resumes")
        _drop_steps_after(job.paths, done)
        self._alarms = len(read_alarms(job.paths.guard))  # those of an earlier attempt have been shown
        self._job, self._should_stop, self._started = replace(job, checkpoint=checkpoint), should_stop, time.monotonic()
        training = job.config.training
        logger.info("%s: starting %d ranks, vLLM engines: %d", job.name, training.ranks, training.engines)
        self._actor = ray.remote(num_cpus=1, runtime_env={"env_vars": build_device_env()})(StageActor).remote()
        board = start_board()
        self._watch = StallWatch(board, job.config.training.stall_s)
        self._result = self._actor.run.remote(self._job, examples, on_taken, board)
        self._trackers = Trackers(self._job)
        self._bar = ProgressBar(total=job.expected_steps, desc=job.name, initial=done, bar_format=_BAR)

    def check(self) -> bool:
        """Return whether the stage is done; then `folder`/hf and its summary are published.

        If the run was asked to stop, the stage is asked to stop. Errors of the stage are raised.
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
        except ray.exceptions.RayError as error:
            raise explain_stage_error(error, self._job) from None
        _publish(self._job.paths, counts, round(time.monotonic() - self._started, 1))
        _tell_end(self._job, counts)
        ray.kill(self._actor)
        return True

    def wait(self) -> None:
        """Wait for the end of the stage. Raises the error that ended it early, for instance Stopped."""
        while not self.check():
            time.sleep(1)

    def kill(self) -> None:
        """End the stage: after its current step, with a save, if the run was asked to stop; otherwise at once."""
        import ray

        if self._should_stop():
            self._end_in_order()
        self._close()
        ray.kill(self._actor)

    def _end_in_order(self) -> None:
        """Wait for the requested end; only show its error, because another error has already ended the run."""
        try:
            self.wait()
        except Exception as error:
            logger.info("%s", error)

    def _ask_to_stop(self) -> None:
        file = self._job.paths.stop_request
        if not file.exists():
            logger.info("%s: will stop after this step, once it is saved", self._job.name)
            file.touch()

    def _close(self) -> None:
        self._show()
        self._trackers.close()
        self._bar.close()

    def _show(self) -> None:
        steps = read_metrics(self._job.paths.metrics)
        if steps and steps[-1].step > self._bar.n:
            self._bar.n = steps[-1].step
            self._bar.set_postfix(_make_bar_text(steps, self._job.expected_steps))
        alarms = read_alarms(self._job.paths.guard)
        for alarm in alarms[self._alarms :]:
            logger.warning("%s: collapse guard: %s", self._job.name, alarm.describe())
        self._alarms = len(alarms)


def _make_bar_text(steps: list[StepMetrics], total: int) -> dict[str, str]:
    """Describe the newest step; the time left is estimated from the pace of the last steps, without the start-up."""
    recent = steps[-_PACE_STEPS:]
    pace = sum(step.seconds for step in recent) / len(recent)
    time_left = format_duration(pace * max(0, total - steps[-1].step))
    accuracies = [step.validation_accuracy for step in steps if step.validation_accuracy is not None]
    validated = {"held-out": f"{accuracies[-1]:.3f}"} if accuracies else {}
    return {"reward": f"{steps[-1].reward:.2f}", "kl": f"{steps[-1].kl:.1e}", **validated, "ETA": time_left}


def start_stage1(
    config: Config,
    model: Path,
    labels: Path,
    folder: Path,
    most_examples: int,
    should_stop: Callable[[], bool],
    validation: Sequence[Question] = (),
    votes: VoteSource | None = None,
    revote: VoteFunction | None = None,
) -> RunningStage:
    """Start stage 1: self-supervised GRPO on the kept pseudo-labels, as they arrive (paper section 3.3).

    Args:
        labels: the label stream, `labeled.jsonl`.
        most_examples: upper limit of the number of labels, for the learning-rate schedule.
        validation: the questions of `training.validate`, also of `start_stage2`.
        votes: the votes on the questions, if they are its first rollouts.
        revote: takes the votes of the policy in training.
    """
    stage = config.training.stage1
    known = read_kept_count(labels)
    publish_taken(labels, 0)  # an earlier attempt's count is no longer valid
    if known is None and not config.voting.kept:
        _warn_of_open_schedule(stage)
    steps = fix_schedule(StagePaths(folder), _count_expected_steps(stage, most_examples if known is None else known))
    job = _make_job("stage1", config, model, model, folder, _describe_pseudo_labels(config), steps)
    job = replace(job, validation=tuple(validation), votes=votes, revote=revote)
    return RunningStage(job, partial(_iter_label_examples, labels), partial(publish_taken, labels), should_stop)


def start_stage2(
    config: Config,
    model: Path,
    reference: Path,
    questions: list[Question],
    labels: Path,
    folder: Path,
    should_stop: Callable[[], bool],
    validation: Sequence[Question] = (),
) -> RunningStage:
    """Start stage 2: supervised GRPO on human-annotated questions (paper section 3.4); see `plan_stage2`."""
    plan = plan_stage2(config, model, reference, questions, labels, folder)
    job = replace(plan.job, validation=tuple(validation))
    return RunningStage(job, plan.examples, ignore_taken, should_stop)


class Stage2Plan(NamedTuple):
    """The task of stage 2, and its examples (see StageActor.run)."""

    job: StageJob
    examples: Examples


def plan_stage2(
    config: Config, model: Path, reference: Path, questions: list[Question], labels: Path, folder: Path
) -> Stage2Plan:
    """Return the task of stage 2, and the examples that it trains on.

    Args:
        model: stage 1's checkpoint, or the base model if stage 1 is off.
        labels: kept pseudo-labels, used too when `stage2.mix_pseudo_labels` is set.
    """
    stage = config.training.stage2
    examples = make_annotated_examples(questions)
    data = f"{len(examples):,} human-annotated questions: {', '.join(map(name_source, stage.data)) or 'none'}."
    if stage.mix_pseudo_labels:
        examples += make_labeled_examples(read_kept_labels(labels))
        data += f" Mixed with {_describe_pseudo_labels(config)}"
    examples = shuffle(examples, config.runtime.random_seed)
    job = _make_job("stage2", config, model, reference, folder, data, _count_expected_steps(stage, len(examples)))
    return Stage2Plan(job, partial(_iter_examples, examples))


def _make_job(
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
        end=find_end_time(config.runtime),
    )


def _describe_pseudo_labels(config: Config) -> str:
    voting, synthesis = config.voting, config.synthesis
    rule = "the majority" if voting.rule == MAJORITY else f"the rule {voting.rule}"
    least = "the calibrated threshold" if voting.calibrate else f"{voting.threshold:g}"
    return (
        f"synthetic questions (alpha = {synthesis.alpha:g} of the requests with a rare disease and its passages), each "
        f"labelled by {rule} of up to {voting.samples} answers of the base model and kept if its share of the "
        f"{voting.confidence} votes is at least {least}."
    )


def _iter_label_examples(labels: Path, start: int, watch: Callable[[], object]) -> Iterable[tuple[int, Example]]:
    """Yield (place, Example) of the kept labels; a place is the number of ledger lines up to here."""
    return ((place, make_labeled_example(label)) for place, label in follow_kept_labels(labels, start, watch))


def _iter_examples(examples: list[Example], start: int, watch: Callable[[], object]) -> Iterable[tuple[int, Example]]:
    """Yield (place, Example) of a list; it never waits, so `watch` is not called."""
    return enumerate(examples[start:], start=start + 1)


def ignore_taken(taken: int) -> None:
    """Do nothing with the number of taken examples: no other step waits for stage 2."""


def _count_expected_steps(stage: Stage, examples: int) -> int:
    return stage.steps or max(1, -(-examples // stage.prompts_per_step))


def fix_schedule(paths: StagePaths, steps: int) -> int:
    """Return the length of the learning-rate schedule, in steps of the stage: the one that the stage was begun with.

    Args:
        steps: the length if the stage begins now. A pass over a stream is planned for the most labels that there may
            be; a restart that knows their number must not change the schedule under way.
    """
    if not paths.schedule.exists():
        paths.folder.mkdir(parents=True, exist_ok=True)
        write_json(paths.schedule, {"steps": steps})
    return int(read_json(paths.schedule)["steps"])


def _warn_of_open_schedule(stage: Stage) -> None:
    if not stage.steps and stage.lr_scheduler != "constant_with_warmup":
        logger.warning(
            "stage1: lr_scheduler = %s is planned for the most labels that there may be; the vote may keep fewer, and "
            "the stage then ends before the learning rate is down; set training.stage1.steps or voting.kept, use "
            "runtime.mode=sequential, or use constant_with_warmup",
            stage.lr_scheduler,
        )


def _clear_partial(paths: StagePaths) -> None:
    paths.folder.mkdir(parents=True, exist_ok=True)
    paths.stop_request.unlink(missing_ok=True)
    for export in paths.partial_exports():
        shutil.rmtree(export)


@dataclass(frozen=True)
class _StepNumber:
    """The field of a line of metrics.jsonl or samples.jsonl that says which step it is of."""

    step: int


def _drop_steps_after(paths: StagePaths, step: int) -> None:
    """Remove the rows, candidates and votes of steps after `step`, which will be taken again."""
    for revoted in paths.revoted_steps():
        if revoted > step:
            shutil.rmtree(paths.revote_at(revoted))
    for candidate in paths.candidates():
        if candidate > step:
            paths.delete_candidate(candidate)
    for file in (paths.metrics, paths.validation, paths.guard, paths.samples, paths.flips):
        rows = list(follow(file, ended=lambda: True))
        kept = [row for row in rows if parse_record(_StepNumber, row, str(file)).step <= step]
        if len(kept) < len(rows):
            with replace_private(file) as target:
                target.writelines(seal_line(json.dumps(row, ensure_ascii=False).encode()) for row in kept)


def _tell_end(job: StageJob, counts: StageCounts) -> None:
    """Log an early end, that the stage publishes the policy that it began with, and that its best one is lost."""
    best, published = find_best(read_validations(job.paths.validation)), counts.describe_published()
    if counts.ended_by:
        logger.warning("%s ended early, %s; published: %s", job.name, counts.ended_by, published)
    elif counts.published_step == 0 and best:
        logger.warning("%s did not raise the held-out accuracy; published: %s", job.name, published)
    if best and best.step != counts.published_step:
        logger.warning(
            "%s: the best policy, after step %d, is no longer on disk; published: %s; to train again, delete %s",
            *(job.name, best.step, published, job.paths.folder),
        )


def _publish(paths: StagePaths, counts: StageCounts, seconds: float) -> None:
    publish_folder(paths.hf_partial, paths.hf)
    steps = read_metrics(paths.metrics)
    summary = StageSummary(
        **asdict(counts),
        seconds=seconds,
        steps=len(steps),
        reward_by_step=[step.reward for step in steps],
        tokens=sum(step.tokens for step in steps),
        model=fingerprint_model(paths.hf),
        accuracy_by_step={result.step: result.accuracy for result in read_validations(paths.validation)},
        alarms=[alarm.describe() for alarm in read_alarms(paths.guard)],
    )
    write_json(paths.summary, asdict(summary))
