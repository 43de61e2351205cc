"""How far each step of a run is, read from its files alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from medssr_dist.config.schema import Evaluation
from medssr_dist.config.training import Stage
from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import InputError
from medssr_dist.estimates.workload import count_benchmark_questions, count_stage_steps
from medssr_dist.launch.attempts import attempts_of
from medssr_dist.run.clock import seconds_by_step
from medssr_dist.run.directory import RunDir
from medssr_dist.run.stream import follow, kept_at_end
from medssr_dist.voting.ledger import read_ledger_counts

_CHUNK = 2**20


@dataclass(frozen=True)
class StepProgress:
    """How far a step is: `done` of `total` units (None: not known before the end), and what else is to be told."""

    done: int
    total: int | None
    unit: str
    note: str = ""
    seconds_per_unit: float | None = None  # None: from the step's clock


def seconds_per_unit(run: RunDir, step: str, progress: StepProgress) -> float | None:
    seconds = seconds_by_step(run.root).get(step)
    return progress.seconds_per_unit or (seconds / progress.done if seconds and progress.done else None)


def _synthesis(run: RunDir, config: dict, begun: dict) -> StepProgress:
    accepted, rejected = map(count_lines, (run.synthesis.questions, run.synthesis.rejected))
    replies = count_lines(run.synthesis.journal)
    note = f"{replies:,} replies, {rejected:,} rejected"
    live = run.synthesis.progress
    if live.exists():
        note += _wire(read_json(live), held=not begun["finished"])
    return StepProgress(accepted, config["synthesis"]["accepted"], "accepted questions", note)


def _wire(live: dict, held: bool) -> str:
    """What the client said last: spend, and while it works rate, requests in flight and endpoints in trouble."""
    text = f", {live['tokens']:,} tokens, ${live['usd']:.2f}"
    if not held:
        return text
    rate = "" if live["replies_per_s"] is None else f", {live['replies_per_s']:.1f} replies/s"
    troubled = [f"{each['name']} {each['breaker']} ({each['reason']})" for each in live["endpoints"] if each["reason"]]
    return text + f"{rate}, {live['in_flight']} in flight" + "".join(f", {trouble}" for trouble in troubled)


def _voting(run: RunDir, config: dict, begun: dict) -> StepProgress:
    found = read_ledger_counts(run.voting.folder)
    questions = count_lines(run.synthesis.questions)
    return StepProgress(found.labels, questions, "questions", f"{found.votes:,} votes, {found.kept:,} labels kept")


def _stage1(run: RunDir, config: dict, begun: dict) -> StepProgress:
    kept = kept_at_end(run.voting.labels)
    stage = config["training"]["stage1"]
    return _stage(
        run,
        "stage1",
        stage["steps"] or (None if kept is None else count_stage_steps(Stage.model_validate(stage), kept)),
    )


def _stage2(run: RunDir, config: dict, begun: dict) -> StepProgress:
    return _stage(run, "stage2", config["training"]["stage2"]["steps"] or None)


def _stage(run: RunDir, stage: str, total: int | None) -> StepProgress:
    rows = read_metrics(run, stage)
    each = sum(row["seconds"] for row in rows) / len(rows) if rows else None
    return StepProgress(len(rows), total, "steps", seconds_per_unit=each)


def _evaluation(run: RunDir, config: dict, begun: dict) -> StepProgress:
    names = {value: name for name, value in begun["inputs"].items() if not name.startswith("benchmark ")}
    keys = {
        (row["policy"], row["question_id"], row["generation"])
        for row in _rows(run.evaluation.answers)
        if row["policy"] in names
    }
    by_policy = Counter(names[policy] for policy, _, _ in keys)
    note = ", ".join(f"{name} {by_policy[name]:,}" for name in names.values())
    asked = None if begun["finished"] else _questions_to_evaluate(config)
    total = asked and asked * config["evaluation"]["generations"] * len(names)
    return StepProgress(len(keys), total, "answers", note)


def _questions_to_evaluate(config: dict) -> int | None:
    """Distinct questions of the benchmarks; None where they cannot be read from here."""
    try:
        evaluation = Evaluation.model_validate(config["evaluation"])
        return count_benchmark_questions(evaluation, config["runtime"]["random_seed"])
    except (InputError, ValidationError):
        return None


READ_PROGRESS = {
    "synthesize": _synthesis,
    "vote": _voting,
    "stage1": _stage1,
    "stage2": _stage2,
    "evaluate": _evaluation,
}


def _rows(path: Path) -> Iterator[dict]:
    """Whole lines of a JSONL file that may be growing."""
    return follow(path, ended=lambda: True)


def read_metrics(run: RunDir, stage: str) -> list[dict]:
    return list(_rows(run.stage(stage).metrics))


def count_lines(path: Path) -> int:
    """Whole lines of a file; 0 where there is none. Reads in chunks: questions grow to gigabytes."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))


def measure_steps(run: RunDir) -> dict[str, tuple[int, float | None]]:
    """Step -> units done and seconds each (None: not known yet), of the steps that were begun."""
    if not run.manifest_file.exists():
        return {}
    config, steps = read_json(run.config_file), run.manifest()["steps"]
    found = {step: READ_PROGRESS[step](run, config, begun) for step, begun in steps.items()}
    return {step: (progress.done, seconds_per_unit(run, step, progress)) for step, progress in found.items()}


def startup_seconds(run: RunDir) -> float:
    """What the newest attempt that had a result took to get it; 0 where none is known."""
    known = [attempt.startup_seconds for attempt in attempts_of(run.root)]
    return next((seconds for seconds in reversed(known) if seconds is not None), 0.0)
