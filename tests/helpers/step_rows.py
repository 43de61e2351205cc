"""Lines of a stage's metrics.jsonl, made by the record that training writes."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.training.step_metrics import StepMetrics


def make_metrics(step: int, **given: float) -> StepMetrics:
    """The metrics of a step; what is not given is 0."""
    required = {field.name: 0 for field in fields(StepMetrics) if field.default is MISSING}
    return StepMetrics(**required | {"step": step} | given)


def append_steps(file: Path, *steps: StepMetrics) -> None:
    with JsonlLedger(file) as ledger:
        ledger.append(*(step.as_row() for step in steps))
