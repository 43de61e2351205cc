"""Write report.html of a run: one file of at most 20 MB that needs no network.

The page holds figures and tables, the facts of all questions, and as much detail as there is room for; a run of a
few thousand questions is in it whole. What is left out is named with the file of the run directory that has it.
"""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medssr_dist.data.figures import name_policy
from medssr_dist.data.jsonl import write_atomic
from medssr_dist.errors import InputError
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.report.detail_store import DetailStore
from medssr_dist.report.evaluation_details import EvaluationShares, add_evaluation
from medssr_dist.report.passage_details import add_passages
from medssr_dist.report.question_details import (
    ReportQuestion,
    add_facts,
    add_questions,
    add_rejected,
    add_rollouts,
    add_votes,
    name_vote_file,
    order_questions,
    read_letters_and_texts,
    read_report_questions,
    read_rollouts,
)
from medssr_dist.report.report_facts import (
    build_attempt_table,
    build_cost_table,
    build_difference_table,
    build_score_table,
    build_setting_table,
    describe_certificate,
    list_headlines,
    list_training_notes,
)
from medssr_dist.report.report_figures import draw_report_figures
from medssr_dist.run.directory import RunDir
from medssr_dist.run.recorded_config import read_recorded_config
from medssr_dist.secret_registry import scrub
from medssr_dist.summary.closing_table import RunSummary, build_summary
from medssr_dist.voting.segments import SEGMENT_QUESTIONS

MAX_BYTES = 20_000_000
_MEGABYTE = 1_000_000
_FRAME = 2 * _MEGABYTE  # of figures, tables, style and script
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Shares:
    """Bytes of the page for each kind of detail; votes take what is left."""

    wordings: int = 10 * _MEGABYTE
    rollouts: int = _MEGABYTE
    rejected: int = 700_000
    passages: int = 500_000
    evaluation: EvaluationShares = EvaluationShares(500_000, 700_000, _MEGABYTE)


def write_report(run_folder: Path) -> Path:
    """Write report.html in the run directory and return its path.

    Raises:
        InputError: `run_folder` is no run directory, or one of its files is damaged.
    """
    run = RunDir(run_folder)
    if not run.manifest_file.exists():
        raise InputError(f"{run.root} is no run directory: it has no manifest.json; name a run, e.g. runs/demo")
    summary = build_summary(run.root)
    store = DetailStore(MAX_BYTES - _FRAME)
    votes = _collect(run, summary, store)
    write_atomic(run.report, _render(run, summary, store, votes))
    return run.report


def _collect(run: RunDir, summary: RunSummary, store: DetailStore) -> dict[str, str]:
    """Fill the store; return the files of votes by number of their segment."""
    shares, config = _Shares(), read_recorded_config(run.root)
    questions, rollouts = read_report_questions(run, find_hpo_truth), read_rollouts(run)
    ordered = order_questions(questions, {row.question_id for row in rollouts})
    texts = read_letters_and_texts(run, ordered, store.left // 2)
    add_facts(store, ordered)
    add_questions(store, ordered, shares.wordings)
    add_rollouts(store, rollouts, shares.rollouts)
    add_rejected(store, run, shares.rejected)
    add_passages(store, config, _list_passages(store, ordered), shares.passages)
    if summary.steps.evaluate:
        add_evaluation(store, run, config, summary.steps.evaluate, shares.evaluation)
    add_votes(store, ordered, texts, store.left)
    segments = range(0, len(questions), SEGMENT_QUESTIONS)
    return {str(first // SEGMENT_QUESTIONS): name_vote_file(run, first) for first in segments}


def _list_passages(store: DetailStore, ordered: list[ReportQuestion]) -> list[str]:
    """Return the ids of the passages of the questions whose wording is in the page, each once."""
    shown = ordered[: store.kinds["wordings"].rows]
    origins = (entry.question.provenance for entry in shown if entry.question.provenance)
    return list(dict.fromkeys(passage for origin in origins for passage in origin.passage_ids))


def _render(run: RunDir, summary: RunSummary, store: DetailStore, votes: dict[str, str]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    steps = summary.steps
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        name=run.root.name,
        written=time.strftime("%Y-%m-%d %H:%M %z"),
        finished=all(getattr(steps, name) for name in ("synthesize", "vote", "evaluate")),
        policy=scrub(str(read_recorded_config(run.root).policy.get("model", ""))),
        headlines=list_headlines(summary),
        figures=draw_report_figures(run, steps),
        steps=steps,
        cost=build_cost_table(run, summary),
        scores=build_score_table(steps.evaluate) if steps.evaluate else None,
        differences=build_difference_table(steps.evaluate) if steps.evaluate else None,
        certificate=describe_certificate(run),
        training=list_training_notes(summary),
        settings=build_setting_table(run),
        attempts=build_attempt_table(run),
        store=store,
        meta=_describe_page(run, summary, store, votes),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=f"sha256-{digest}",
    )


def _describe_page(run: RunDir, summary: RunSummary, store: DetailStore, votes: dict[str, str]) -> dict[str, Any]:
    """Return what the page's script needs in addition to the blocks."""
    scores = summary.steps.evaluate
    return {
        "kinds": {name: asdict(kind) for name, kind in store.kinds.items()},
        "voteFiles": votes,
        "perSegment": SEGMENT_QUESTIONS,
        "policies": [{"name": name, "title": name_policy(name)} for name in (scores.policies if scores else [])],
        "benchmarks": list(scores.benchmarks) if scores else [],
        "questionFile": str(run.synthesis.questions.relative_to(run.root)),
    }
