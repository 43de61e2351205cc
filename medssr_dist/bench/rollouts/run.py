"""`medssr bench rollouts`: what stage 1 draws, and what that costs.

1. Over-draw: rollout time of a step with a simulated clock, with the real sampler (`over_draw_rounds.py`).
2. Stage 1 of the mini policy from the same votes (`stage_runs.py`): rollouts by the engines; votes as first rollouts;
   these with questions chosen by their votes; over-draw; labels of the policy in training, with their precision.
3. The mismatch meter: the rollouts and the loss of a step with and without the log-probs of sampled tokens
   (`meter_cost.py`).

The runs lie beside the result, in a folder with its name; the same command resumes them after a kill.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medssr_dist.bench.result_file import write_result
from medssr_dist.bench.rollouts.label_precision import RevoteFigures, read_revotes
from medssr_dist.bench.rollouts.meter_cost import MeterCost, format_meter, measure_meter
from medssr_dist.bench.rollouts.over_draw_rounds import FOUR_NODES, ONE_NODE, OverDrawFigures, compare_draws
from medssr_dist.bench.rollouts.stage_runs import (
    ARMS,
    ENGINES,
    ONLINE,
    StageFigures,
    read_figures,
    take_votes,
    train_arm,
)

FULL = {"synthesis.accepted": 600, "training.stage1.steps": 20}
QUICK = {
    "synthesis.accepted": 300,
    "synthesis.seeds": [{"path": "hpo:mini-seeds", "limit": 300}],
    "training.stage1.steps": 10,
}


def bench_rollouts(json_path: Path, quick: bool = False) -> None:
    """Run all parts, write `json_path` after each, print the tables.

    Raises:
        InputError: a run has failed; the message names its log.
    """
    json_path, settings = Path(json_path), QUICK if quick else FULL
    draws = [compare_draws(model) for model in (ONE_NODE, FOUR_NODES)]
    print(format_draws(draws))
    source = take_votes(json_path.with_suffix(".runs"), settings)
    stages: dict[str, StageFigures] = {}
    revotes: list[RevoteFigures] = []
    for arm in ARMS:
        run = train_arm(arm, source, settings)
        stages[arm.name] = read_figures(run)
        if arm is ONLINE:
            revotes = read_revotes(run)
        write_result(json_path, _as_json(draws, stages, revotes, None, quick))
    sampled = stages[ENGINES.name]
    meter = measure_meter(rounds=6 if quick else 20, step_seconds=sampled.seconds / sampled.steps)
    write_result(json_path, _as_json(draws, stages, revotes, meter, quick))
    print(format_stages(stages))
    print(format_revotes(revotes))
    print(format_meter(meter))


def _as_json(
    draws: list[OverDrawFigures],
    stages: dict[str, StageFigures],
    revotes: list[RevoteFigures],
    meter: MeterCost | None,
    quick: bool,
) -> dict[str, Any]:
    return {
        "quick": quick,
        "over_draw_simulated": [asdict(each) for each in draws],
        "stage1": {name: asdict(figures) for name, figures in stages.items()},
        "online": [asdict(each) for each in revotes],
        "meter": meter and asdict(meter) | {"share": round(meter.share, 5)},
    }


def format_draws(draws: list[OverDrawFigures]) -> str:
    """Return the table of the simulated rollouts."""
    lines = ["rollout of a step, simulated        one by one  over-draw  ratio  groups carried"]
    for each in draws:
        one, other = each.one_by_one.seconds_rollout, each.over_draw.seconds_rollout
        carried = each.over_draw.groups_carried
        lines.append(f"{each.model.name:<36}{one:>8.1f} s{other:>9.1f} s{each.speedup:>7.2f}{carried:>16.1f}")
    return "\n".join(lines)


def format_stages(stages: dict[str, StageFigures]) -> str:
    """Return the table of the stages."""
    lines = ["stage 1         tokens drawn  seconds  of rollout  drawn / trained  passed over  votes used"]
    for name, each in stages.items():
        used = sum(each.votes_used) / max(1, each.steps)
        lines.append(
            f"{name:<16}{each.tokens_drawn:>12,}{each.seconds:>9.0f}{each.seconds_rollout:>12.0f}"
            f"{each.drawn_per_trained:>17.2f}{each.prompts_passed_over:>13}{used:>12.2f}"
        )
    return "\n".join(lines)


def format_revotes(revotes: list[RevoteFigures]) -> str:
    """Return the table of the votes of the policy in training."""
    lines = ["after step  questions  votes (of full voting)  right: offline  online  flips (traced)"]
    for each in revotes:
        votes = f"{each.votes:,} ({each.votes / each.full_votes:.2f})"
        right = f"{_format(each.offline.share):>16}{_format(each.online.share):>8}"
        lines.append(f"{each.step:>10}{each.questions:>11}{votes:>24}{right}{each.flips:>8} ({each.traced})")
    return "\n".join(lines)


def _format(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"
