"""The closing table of a run, built from what each step left on disk.

`build_summary` gathers, `render_summary` prints. summary.json: `run` (folder), `steps` (synthesize, vote,
stage1, stage2, evaluate -> what that step's own summary holds, or null if it has not run), `time`
(step -> seconds, tokens, tokens_per_second), `wall_seconds` (of the run, over all attempts) and `files`
(step -> paths within the run folder).
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from medssr_dist.data.jsonl import read_json
from medssr_dist.data.wilson import part
from medssr_dist.run.clock import read_clock
from medssr_dist.run.paths import RECORDED_STEPS, STAGES, RunPaths
from medssr_dist.voting.quality_records import VoteSummary
from medssr_dist.voting.quality_text import format_quality

WIDTH = 100
_LABEL = 12
_SHOWN_STEPS = 10


def build_summary(run_folder: Path) -> dict:
    """Read the steps' summaries in `run_folder`; a step that has not run is None.

    Raises:
        InputError: a summary is there but is not valid JSON.
    """
    run = RunPaths(Path(run_folder))
    clock = read_clock(run.root)
    sources = {step: run.step(step).summary for step in RECORDED_STEPS}
    steps = {step: read_json(source) if source.exists() else None for step, source in sources.items()}
    return {
        "schema_version": 1,
        "run": str(run.root),
        "steps": steps,
        "wall_seconds": clock.get("run"),
        "time": {step: _time(step, found, clock) for step, found in steps.items() if found is not None},
        "files": {
            step: [str(file.relative_to(run.root)) for file in run.step(step).results if file.exists()]
            for step, found in steps.items()
            if found is not None
        },
    }


def _time(step: str, found: dict, clock: dict[str, float]) -> dict:
    """Seconds over all attempts (of the last one, where no clock was kept) and tokens, of one step."""
    parts = list(found["policies"].values()) if step == "evaluate" else [found]
    tokens = sum(part["tokens"] for part in parts)
    seconds = clock.get(step, sum(part["seconds"] for part in parts))
    rate = round(tokens / seconds, 1) if seconds > 0 else None
    return {"seconds": round(seconds, 1), "tokens": tokens, "tokens_per_second": rate}


def render_summary(summary: dict) -> str:
    """One plain-text table, at most 100 columns wide (long paths apart): a block a step, then times."""
    steps = summary["steps"]
    training = [*_stage("stage 1", steps["stage1"]), *_stage("stage 2", steps["stage2"])]
    blocks = [
        ("1 synthesize", _rows(_synthesis(steps["synthesize"])), ("synthesize",)),
        ("2 vote", _rows(_voting(steps["vote"])), ("vote",)),
        ("3 train", _rows(training), STAGES),
        ("4 evaluate", _evaluation(steps["evaluate"]), ("evaluate",)),
    ]
    lines = ["=" * WIDTH, f"run {summary['run']}"]
    for title, block, names in blocks:
        files = [file for name in names for file in summary["files"].get(name, [])]
        lines += [f"--- {title} ".ljust(WIDTH, "-"), *block, *_rows([("files", "  ".join(files))] if files else [])]
    lines += ["--- time ".ljust(WIDTH, "-"), *_times(summary["time"], summary["wall_seconds"]), "=" * WIDTH]
    return "\n".join(lines) + "\n"


def _rows(rows: list[tuple[str, str]]) -> list[str]:
    """(label, text) as lines of at most WIDTH columns, the text in a column of its own."""
    lines = []
    for label, text in rows:
        parts = textwrap.wrap(text, WIDTH - _LABEL - 2, break_long_words=False, break_on_hyphens=False)
        labels = [label] + [""] * (len(parts) - 1)
        lines += [f"  {name:<{_LABEL}}{part}" for name, part in zip(labels, parts, strict=True)]
    return lines


def _synthesis(found: dict | None) -> list[tuple[str, str]]:
    if found is None:
        return [("", "not run")]
    reasons = found["rejected_by_reason"]
    by_reason = [f"{name} {reasons[name]:,}" for name in sorted(reasons, key=lambda name: (-reasons[name], name))]
    alpha = found["alpha"]
    return [
        (
            "questions",
            f"requests {found['requested']:,}, accepted {part(found['accepted'], found['requested'])}; ended by "
            f"{found['stopped_by']}",
        ),
        ("rejected", f"{sum(reasons.values()):,}{': ' if by_reason else ''}{', '.join(by_reason)}"),
        (
            "alpha",
            f"asked {_decimal(alpha['asked'])}, achieved {_interval(alpha['requests'])} of requests, "
            f"{_interval(alpha['accepted'])} of accepted",
        ),
    ]


def _voting(found: dict | None) -> list[tuple[str, str]]:
    if found is None:
        return [("", "not run")]
    return format_quality(VoteSummary.model_validate(found).quality)


def _stage(name: str, found: dict | None) -> list[tuple[str, str]]:
    if found is None:
        return [(name, "not run")]
    rewards = list(enumerate(found["reward_by_step"], start=1))
    if len(rewards) > _SHOWN_STEPS:
        last = len(rewards) - 1
        rewards = [rewards[round(i * last / (_SHOWN_STEPS - 1))] for i in range(_SHOWN_STEPS)]
    shown = "  ".join(f"{step}:{reward:.3f}" for step, reward in rewards) or "none"
    return [(name, f"{found['steps']:,} steps"), ("", f"mean reward by step  {shown}")]


def _evaluation(found: dict | None) -> list[str]:
    """A row a benchmark, a column a policy; then the second pass's counts over all benchmarks."""
    if found is None:
        return _rows([("", "not run")])
    policies = list(found["policies"].values())
    names = list(policies[0]["benchmarks"])
    rows = [("accuracy, %", list(found["policies"]))]
    rows += [(name, [_percent(policy["benchmarks"][name]) for policy in policies]) for name in names]
    if len(names) > 1:
        rows.append(("macro average", [_percent(policy["macro"]) for policy in policies]))
    if policies[0]["rare"]:
        rows.append(("rare diseases", [_percent(policy["rare"]) for policy in policies]))
    for count in ("recovered", "invalid"):
        rows.append((count, [f"{sum(s[count] for s in policy['benchmarks'].values()):,}" for policy in policies]))
    width = max(_LABEL, 2 + max(len(label) for label, _ in rows))
    lines = [f"  {label:<{width}}" + "".join(f"{cell:<15}" for cell in cells).rstrip() for label, cells in rows]
    return [*lines, f"  (mean ± sample standard deviation over {found['protocol']['generations']} generations)"]


def _times(times: dict, wall_seconds: float | None) -> list[str]:
    lines = [f"  {'step':<{_LABEL}}{'seconds':>12}{'tokens':>14}{'tokens/s':>12}"]
    for step, time in times.items():
        rate = "-" if time["tokens_per_second"] is None else f"{time['tokens_per_second']:,.1f}"
        lines.append(f"  {step:<{_LABEL}}{time['seconds']:>12,.1f}{time['tokens']:>14,}{rate:>12}")
    if wall_seconds is not None:
        overlap = "synthesis, vote and stage 1 overlap in stream mode"
        lines.append(f"  {'wall time':<{_LABEL}}{wall_seconds:>12,.1f}   ({overlap})")
    return lines


def _interval(share: dict) -> str:
    """A share with its 95% interval."""
    return "-" if share["share"] is None else f"{share['share']:.3f} ({share['low']:.3f} to {share['high']:.3f})"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(score: dict) -> str:
    return f"{100 * score['accuracy']:.1f} ± {100 * score['std']:.1f}"
