"""How far each step of a run is, read from the files of the run directory alone."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medssr_dist.config.schema import Evaluation
from medssr_dist.config.training import Stage1
from medssr_dist.data.jsonl import open_bytes
from medssr_dist.data.records import parse_record
from medssr_dist.errors import InputError
from medssr_dist.estimates.workload import count_benchmark_questions, count_stage_steps
from medssr_dist.launch.attempts import list_attempts
from medssr_dist.run.clock import read_clock
from medssr_dist.run.directory import RunDir, StepRecord
from medssr_dist.run.paths import StagePaths
from medssr_dist.run.recorded_config import RecordedConfig, read_recorded_config
from medssr_dist.run.stream import follow, read_kept_count
from medssr_dist.synthesis.synthesis_summary import SynthesisProgress, read_synthesis_progress
from medssr_dist.training.collapse_guard import read_alarms
from medssr_dist.training.stage_job import read_stage_summary
from medssr_dist.training.step_metrics import read_metrics
from medssr_dist.training.validation_log import find_best, read_validations
from medssr_dist.voting.ledger import read_ledger_counts

_CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class StepProgress:
    """How far a step is that has begun.

    Example:
        StepProgress(done=3, total=40, unit="questions", note="24 votes, 2 labels kept", seconds_per_unit=20.0)

    Attributes:
        done: finished units of work.
        total: units of work in the whole step; None if not known yet.
        unit: the unit in words, plural.
        note: further counts in words.
        seconds_per_unit: mean seconds of one unit over all attempts; None if not known yet.
        finished: timestamp of the end of the step; None if the step has not finished.
    """

    done: int
    total: int | None
    unit: str
    note: str = ""
    seconds_per_unit: float | None = None
    finished: str | None = None


def read_progress(run: RunDir) -> dict[str, StepProgress]:
    """Return the progress of each step that has begun, by the name of the step. Empty before the first step."""
    if not run.manifest_file.exists():
        return {}
    config, steps = read_recorded_config(run.root), run.read_manifest().steps
    return {step: _read_step(run, step, config, begun) for step, begun in steps.items()}


def read_newest_metrics(run: RunDir, stage: str) -> dict[str, Any] | None:
    """Return the metrics of the newest training step of a stage, by name; None before the first step."""
    newest = deque(_read_rows(run.stage(stage).metrics), maxlen=1)
    return newest[0] if newest else None


def read_startup_seconds(run: RunDir) -> float:
    """Return the seconds from start to first result of the newest attempt that had a result; 0 if there is none."""
    known = [attempt.startup_seconds for attempt in list_attempts(run.root)]
    return next((seconds for seconds in reversed(known) if seconds is not None), 0.0)


def count_lines(path: Path) -> int:
    """Return the number of whole lines of a file, or 0 if it does not exist. Reads in chunks, in constant memory."""
    if not path.exists():
        return 0
    with open_bytes(path) as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))


@dataclass(frozen=True)
class _AnswerKey:
    """The fields of a line of answers.jsonl that are counted."""

    policy: str
    question_id: str
    generation: int


def _read_step(run: RunDir, step: str, config: RecordedConfig, begun: StepRecord) -> StepProgress:
    progress = _READERS[step](run, config, begun)
    seconds = read_clock(run.root).get(step)
    by_clock = seconds / progress.done if seconds and progress.done else None
    return replace(progress, seconds_per_unit=progress.seconds_per_unit or by_clock, finished=begun.finished)


def _read_synthesis(run: RunDir, config: RecordedConfig, begun: StepRecord) -> StepProgress:
    accepted, rejected = count_lines(run.synthesis.questions), count_lines(run.synthesis.rejected)
    replies = count_lines(run.synthesis.journal)
    note = f"{replies:,} replies, {rejected:,} rejected"
    live = run.synthesis.progress
    if live.exists():
        note += _describe_client(read_synthesis_progress(live), running=not begun.finished)
    total = config.synthesis.accepted
    if config.voting.kept and live.exists():  # the estimate of how many the kept labels need
        total = read_synthesis_progress(live).wanted
    return StepProgress(accepted, total, "accepted questions", note)


def _describe_client(live: SynthesisProgress, running: bool) -> str:
    """Describe the last state that the chat client wrote.

    The state holds tokens and cost; while the step is running also the rate, the requests in flight, and the endpoints
    that are paused after failures.
    """
    cost = f"cost unknown (no price of {', '.join(live.unpriced)})" if live.unpriced else f"${live.usd:.2f}"
    text = f", {live.tokens:,} tokens, {cost}"
    if not running:
        return text
    rate = "" if live.replies_per_s is None else f", {live.replies_per_s:.1f} replies/s"
    problems = [f", {each.name} {each.in_words} ({each.reason})" for each in live.endpoints if each.reason]
    return text + f"{rate}, {live.in_flight} in flight" + "".join(problems)


def _read_vote(run: RunDir, config: RecordedConfig, begun: StepRecord) -> StepProgress:
    found = read_ledger_counts(run.voting.folder)
    questions = count_lines(run.synthesis.questions)
    wanted = config.voting.kept
    kept = f"{found.kept:,} of {wanted:,} labels kept" if wanted else f"{found.kept:,} labels kept"
    return StepProgress(found.labels, questions, "questions", f"{found.votes:,} votes, {kept}")


def _read_stage1(run: RunDir, config: RecordedConfig, begun: StepRecord) -> StepProgress:
    stage = config.training.stage1
    kept = read_kept_count(run.voting.labels)
    total = stage.steps or None
    if total is None and kept is not None:
        total = count_stage_steps(parse_record(Stage1, stage.model_dump(), str(run.config_file)), kept)
    return _read_stage(run, "stage1", total, begun)


def _read_stage2(run: RunDir, config: RecordedConfig, begun: StepRecord) -> StepProgress:
    return _read_stage(run, "stage2", config.training.stage2.steps or None, begun)


def _read_stage(run: RunDir, stage: str, total: int | None, begun: StepRecord) -> StepProgress:
    steps = read_metrics(run.stage(stage).metrics)
    seconds = [step.seconds for step in steps if math.isfinite(step.seconds)]
    each = sum(seconds) / len(seconds) if seconds else None
    note = _describe_checks(run.stage(stage), begun)
    return StepProgress(len(steps), total, "steps", note, seconds_per_unit=each)


def _describe_checks(paths: StagePaths, begun: StepRecord) -> str:
    """Describe the newest and the best validation of a stage, and its end or the alarms of its guard; "" if none."""
    results, notes = read_validations(paths.validation), []
    if results:
        notes.append(f"held-out accuracy {results[-1].accuracy:.3f} after step {results[-1].step}")
    if best := find_best(results):
        notes.append(f"best {best.accuracy:.3f} after step {best.step}")
    if begun.finished:
        notes += read_stage_summary(paths.summary).describe_end()
    else:
        notes += [f"collapse guard: {alarm.describe()}" for alarm in read_alarms(paths.guard)]
    return ", ".join(notes)


def _read_evaluation(run: RunDir, config: RecordedConfig, begun: StepRecord) -> StepProgress:
    names = {value: name for name, value in begun.inputs.items() if not name.startswith("benchmark ")}
    answers = (parse_record(_AnswerKey, row, str(run.evaluation.answers)) for row in _read_rows(run.evaluation.answers))
    keys = {(key.policy, key.question_id, key.generation) for key in answers if key.policy in names}
    by_policy = Counter(names[policy] for policy, _, _ in keys)
    note = ", ".join(f"{name} {by_policy[name]:,}" for name in names.values())
    questions = None if begun.finished else _count_questions(config)
    total = questions and questions * config.evaluation.generations * len(names)
    return StepProgress(len(keys), total, "answers", note)


def _count_questions(config: RecordedConfig) -> int | None:
    """Return the number of distinct benchmark questions, or None if the benchmarks cannot be read on this machine."""
    try:
        evaluation = parse_record(Evaluation, config.evaluation.model_dump(), "evaluation")
        return count_benchmark_questions(evaluation, config.runtime.random_seed)
    except InputError:
        return None


# Step -> reader(run, resolved config, the step's entry in the manifest).
_READERS: dict[str, Callable[[RunDir, RecordedConfig, StepRecord], StepProgress]] = {
    "synthesize": _read_synthesis,
    "vote": _read_vote,
    "stage1": _read_stage1,
    "stage2": _read_stage2,
    "evaluate": _read_evaluation,
}


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a JSONL file that another process may be writing."""
    return follow(path, ended=lambda: True)
