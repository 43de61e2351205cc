"""`medssr review`: read back the review sheet that a physician filled in, and report it with 95% intervals."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.data.jsonl import write_json
from medssr_dist.errors import InputError
from medssr_dist.run.paths import RunPaths
from medssr_dist.summary.closing_table import build_summary
from medssr_dist.synthesis.card import update_review
from medssr_dist.synthesis.review_report import ReviewReport, evaluate_review, format_review_share, list_review_rows


def review_run(root: Path, sheet: Path | None = None) -> None:
    """Evaluate the review of the run `root`, print it, and write it to review.json, the card and the run's summary.

    Args:
        sheet: the filled-in sheet; None = the run's own review.csv.

    Raises:
        InputError: `root` is no run with questions, or `sheet` is no filled-in review sheet.
    """
    run = RunPaths(Path(root))
    paths = run.synthesis
    if not paths.questions.exists():
        raise InputError(f"{root} has no questions ({paths.questions}); name the directory of a run")
    report = evaluate_review(Path(sheet or paths.review), paths.questions, run.voting.labels)
    write_json(paths.review_report, report.model_dump(mode="json"))
    update_review(paths.card, report)
    if run.summary_file.exists():
        write_json(run.summary_file, build_summary(run.root).model_dump(mode="json"))
    print(render_review(report))
    print(f"written to {paths.review_report}")


def render_review(report: ReviewReport) -> str:
    """Return the report as text: counts, rows that were left out, and a table by kind."""
    lines = [f"{report.file}: {report.used:,} of {report.rows:,} rows used, {len(report.empty_rows):,} empty"]
    if report.empty_rows:
        lines.append(f"  empty rows: {', '.join(map(str, report.empty_rows))}")
    lines += [f"  row {each.row}: {each.problem}" for each in report.problems]
    lines.append(f"  {'yes, with 95% interval (Wilson)':<34}" + "".join(f"{kind:<36}" for kind in report.by_kind))
    for row in list_review_rows(report):
        cells = "".join(f"{format_review_share(share):<36}" for share in row.shares.values())
        lines.append(f"  {row.name:<34}{cells}".rstrip())
    return "\n".join(lines)
