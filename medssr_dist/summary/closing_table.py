"""The closing table of a run, made from what each step left in the run directory.

`build_summary` reads the steps' own summaries, and `render_summary` turns them into a table. The pipeline prints the
table and writes the record to summary.json.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from medssr_dist.data.records import Record, read_record
from medssr_dist.data.wilson import Share, format_part
from medssr_dist.evaluation.score_rows import (
    format_accuracy,
    format_difference,
    list_main_differences,
    list_score_rows,
)
from medssr_dist.evaluation.scores import Scores, read_scores
from medssr_dist.run.clock import read_clock
from medssr_dist.run.paths import STAGES, RunPaths
from medssr_dist.synthesis.review_report import ReviewReport, format_review_share, read_review_report
from medssr_dist.synthesis.synthesis_summary import JudgeSummary, SynthesisSummary, read_synthesis_summary
from medssr_dist.training.stage_job import StageSummary, read_stage_summary
from medssr_dist.voting.quality_records import VoteSummary
from medssr_dist.voting.quality_text import TableRow, format_quality

WIDTH = 100  # columns of the table
_LABEL = 12
_SCORE_LABEL = 24
_SHOWN_STEPS = 10
_NOT_RUN = TableRow("", "not run")
Summary = TypeVar("Summary")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepSummaries(_Part):
    """The summaries that the steps wrote, each as in its own file; None for a step that has not finished.

    Example: StepSummaries(synthesize=SynthesisSummary(...), vote=None, stage1=None, stage2=None, evaluate=None)
    """

    synthesize: SynthesisSummary | None
    vote: VoteSummary | None
    stage1: StageSummary | None
    stage2: StageSummary | None
    evaluate: Scores | None


class StepUsage(_Part):
    """Time and tokens of a step.

    Example: StepUsage(seconds=75.0, tokens=9000, tokens_per_second=120.0)
    """

    seconds: float = Field(description="over all attempts; of the last attempt if the run has no clock.json")
    tokens: int = Field(description="generated tokens")
    tokens_per_second: float | None = Field(description="None if the step took no time")


class RunSummary(Record):
    """The content of summary.json.

    Example: RunSummary(run="runs/demo", steps=StepSummaries(...), wall_seconds=280.0,
    time={"vote": StepUsage(seconds=75.0, tokens=9000, tokens_per_second=120.0)}, files={"vote": ["voting/votes"]})
    """

    run: str = Field(description="the run directory")
    steps: StepSummaries
    review: ReviewReport | None = Field(
        None, description="a physician's review of the questions; None if there is none"
    )
    wall_seconds: float | None = Field(description="of the run, over all attempts; None if the run has no clock.json")
    time: dict[str, StepUsage] = Field(description="finished step -> its time and tokens")
    files: dict[str, list[str]] = Field(description="finished step -> its files, relative to the run directory")


def build_summary(run_folder: Path) -> RunSummary:
    """Read the summaries of the steps in `run_folder`.

    Raises:
        InputError: the summary of a step is not valid.
    """
    run = RunPaths(Path(run_folder))
    clock = read_clock(run.root)
    steps = _read_steps(run)
    finished = {step: found for step, found in steps if found is not None}
    return RunSummary(
        run=str(run.root),
        steps=steps,
        review=read_review_report(run.synthesis.review_report),
        wall_seconds=clock.get("run"),
        time={step: _measure_time(step, found, clock) for step, found in finished.items()},
        files={
            step: [str(file.relative_to(run.root)) for file in run.step(step).results if file.exists()]
            for step in finished
        },
    )


def _read_steps(run: RunPaths) -> StepSummaries:
    def read(step: str, reader: Callable[[Path], Summary]) -> Summary | None:
        file = run.step(step).summary
        return reader(file) if file.exists() else None

    return StepSummaries(
        synthesize=read("synthesize", read_synthesis_summary),
        vote=read("vote", lambda file: read_record(VoteSummary, file)),
        stage1=read("stage1", read_stage_summary),
        stage2=read("stage2", read_stage_summary),
        evaluate=read("evaluate", read_scores),
    )


def _measure_time(step: str, found: Any, clock: Mapping[str, float]) -> StepUsage:
    counted = list(found.policies.values()) if isinstance(found, Scores) else [found]
    tokens = sum(each.tokens for each in counted)
    seconds = clock.get(step, sum(each.seconds for each in counted))
    rate = round(tokens / seconds, 1) if seconds > 0 else None
    return StepUsage(seconds=round(seconds, 1), tokens=tokens, tokens_per_second=rate)


def render_summary(summary: RunSummary) -> str:
    """Return the closing table as text: one block for each step, then the times.

    Lines have at most WIDTH columns, apart from long paths.
    """
    steps = summary.steps
    training = [*_describe_stage("stage 1", steps.stage1), *_describe_stage("stage 2", steps.stage2)]
    blocks = [
        ("1 synthesize", _format_rows(_describe_synthesis(steps.synthesize, summary.review)), ("synthesize",)),
        (
            "2 vote",
            _format_rows(format_quality(steps.vote.quality, steps.vote.kept_wanted) if steps.vote else [_NOT_RUN]),
            ("vote",),
        ),
        ("3 train", _format_rows(training), STAGES),
        ("4 evaluate", _format_scores(steps.evaluate), ("evaluate",)),
    ]
    lines = ["=" * WIDTH, f"run {summary.run}"]
    for title, block, names in blocks:
        files = [file for name in names for file in summary.files.get(name, [])]
        block += _format_rows([TableRow("files", "  ".join(files))]) if files else []
        lines += [f"--- {title} ".ljust(WIDTH, "-"), *block]
    lines += ["--- time ".ljust(WIDTH, "-"), *_format_times(summary.time, summary.wall_seconds), "=" * WIDTH]
    return "\n".join(lines) + "\n"


def _format_rows(rows: list[TableRow]) -> list[str]:
    """Return lines of at most WIDTH columns; a long text continues below its own first line, not below the label."""
    lines = []
    for label, text in rows:
        parts = textwrap.wrap(text, WIDTH - _LABEL - 2, break_long_words=False, break_on_hyphens=False)
        labels = [label] + [""] * (len(parts) - 1)
        lines += [f"  {name:<{_LABEL}}{line}" for name, line in zip(labels, parts, strict=True)]
    return lines


def _describe_synthesis(found: SynthesisSummary | None, review: ReviewReport | None) -> list[TableRow]:
    if found is None:
        return [_NOT_RUN]
    reasons, alpha = found.rejected_by_reason, found.alpha
    by_reason = [f"{name} {reasons[name]:,}" for name in sorted(reasons, key=lambda name: (-reasons[name], name))]
    accepted = f"accepted {format_part(found.accepted, found.requested)}"
    achieved = f"{_format_share(alpha.requests)} of requests, {_format_share(alpha.accepted)} of accepted"
    return [
        TableRow("questions", f"requests {found.requested:,}, {accepted}; ended by {found.stopped_by}"),
        TableRow("rejected", f"{sum(reasons.values()):,}{': ' if by_reason else ''}{', '.join(by_reason)}"),
        TableRow("alpha", f"asked {alpha.asked:.3f}, achieved {achieved}"),
        *([TableRow("judge", _describe_judge(found.judge))] if found.judge else []),
        *([TableRow("review", _describe_review(review))] if review else []),
    ]


def _describe_judge(judge: JudgeSummary) -> str:
    means = [
        f"{name} {sum(score * count for score, count in counts.items()) / max(1, judge.judged):.1f}"
        for name, counts in judge.scores.items()
    ]
    kept = "kept" if judge.not_judged_kept else "refused"
    return f"{judge.judged:,} judged, mean of 5: {', '.join(means)}; {judge.not_judged:,} not judged, {kept}"


def _describe_review(review: ReviewReport) -> str:
    kinds = [f"{kind} {format_review_share(found.all_yes)}" for kind, found in review.by_kind.items()]
    return f"{review.used:,} questions judged; yes in all three columns: {'; '.join(kinds)}"


def _describe_stage(name: str, found: StageSummary | None) -> list[TableRow]:
    if found is None:
        return [TableRow(name, "not run")]
    shown = _format_curve(list(enumerate(found.reward_by_step, start=1)))
    rows = [TableRow(name, f"{found.steps:,} steps"), TableRow("", f"mean reward by step  {shown}")]
    if found.accuracy_by_step:
        rows.append(TableRow("", f"held-out accuracy by step  {_format_curve(list(found.accuracy_by_step.items()))}"))
    return rows + [TableRow("", note) for note in found.describe_end()]


def _format_curve(points: list[tuple[int, float]]) -> str:
    """Return up to _SHOWN_STEPS points of a curve, evenly spread, as 'step:value'."""
    if len(points) > _SHOWN_STEPS:
        last = len(points) - 1
        points = [points[round(i * last / (_SHOWN_STEPS - 1))] for i in range(_SHOWN_STEPS)]
    return "  ".join(f"{step}:{value:.3f}" for step, value in points) or "none"


def _format_scores(found: Scores | None) -> list[str]:
    """Return one line for each set of questions, with a column for each policy, then counts and main differences."""
    if found is None:
        return _format_rows([_NOT_RUN])
    rows = [("accuracy, %", ["constant", *found.policies])]
    for row in list_score_rows(found):
        constant = "-" if row.constant is None else f"{100 * row.constant:.1f}"
        rows.append((row.label, [constant, *(format_accuracy(score) for score in row.cells.values())]))
    for count in ("recovered", "invalid"):
        sums = [
            sum(getattr(score, count) for score in policy.benchmarks.values()) for policy in found.headline.values()
        ]
        rows.append((count, ["", *(f"{number:,}" for number in sums)]))
    lines = [line for label, cells in rows for line in _format_score_row(label, cells)]
    for each in list_main_differences(found):
        lines.append(f"  {each.second} - {each.first}, {each.on}: {format_difference(each)}")
    protocol = found.protocol
    note = f"mean over {protocol.generations} generations, 95% interval over questions; protocol: {protocol.headline}"
    return [*lines, f"  ({note})"]


def _format_score_row(label: str, cells: list[str]) -> list[str]:
    """Return one line, or two if the label is too long for its column."""
    constant, *scores = cells
    columns = f"{constant:<10}" + "".join(f"{cell:<20} " for cell in scores).rstrip()
    if len(label) < _SCORE_LABEL:
        return [f"  {label:<{_SCORE_LABEL}}{columns}"]
    return [f"  {label}", f"  {'':<{_SCORE_LABEL}}{columns}"]


def _format_times(times: Mapping[str, StepUsage], wall_seconds: float | None) -> list[str]:
    lines = [f"  {'step':<{_LABEL}}{'seconds':>12}{'tokens':>14}{'tokens/s':>12}"]
    for step, time in times.items():
        rate = "-" if time.tokens_per_second is None else f"{time.tokens_per_second:,.1f}"
        lines.append(f"  {step:<{_LABEL}}{time.seconds:>12,.1f}{time.tokens:>14,}{rate:>12}")
    if wall_seconds is not None:
        overlap = "synthesis, vote and stage 1 overlap in stream mode"
        lines.append(f"  {'wall time':<{_LABEL}}{wall_seconds:>12,.1f}   ({overlap})")
    return lines


def _format_share(share: Share) -> str:
    """Return a share with its 95% interval, for example '0.475 (0.329 to 0.625)'."""
    return "-" if share.share is None else f"{share.share:.3f} ({share.low:.3f} to {share.high:.3f})"
