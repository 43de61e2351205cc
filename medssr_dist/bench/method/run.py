"""`medssr bench method`: does the method teach the policy something, and does each of its parts help?

Each arm is a run of `medssr` with the mini policy (docs/evidence.md): synthesis, vote, training on the real stack, and
evaluation on the same questions as all other arms of its seed. Two arms are controls: labels that belong to other
questions, and a reward that does not read the answer. For a result NAME.json, the runs lie in NAME.runs, and the
answers of finished runs in NAME.answers. The same command resumes after a kill. If NAME.runs is lost, it resumes from
NAME.answers, on any machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medssr_dist.bench.aims import format_aims
from medssr_dist.bench.copied_runs import call_medssr, check_parallel
from medssr_dist.bench.method.arm_runs import METHOD_CONFIG, ArmRun, write_config
from medssr_dist.bench.method.arms import ARMS, BASE, QUICK_ARMS, Arm
from medssr_dist.bench.method.method_figures import AlphaFigures, MethodFigures, compute_arms
from medssr_dist.bench.method.method_report import draw_method_plot, format_method_table, list_aims
from medssr_dist.bench.result_file import write_result
from medssr_dist.config.load import load_config
from medssr_dist.errors import InputError
from medssr_dist.run.directory import RunDir
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MethodScale:
    """Sizes of the comparison. `settings`: dotted keys, for all arms."""

    arms: Sequence[Arm]
    seeds: tuple[int, ...]
    steps: int
    alphas: tuple[float, ...]
    alpha_questions: int
    settings: dict[str, Any]


FULL = MethodScale(ARMS, (1, 2, 3), 40, (0.0, 0.25, 0.5, 0.75, 1.0), 400, {})
QUICK = MethodScale(
    QUICK_ARMS,
    (1,),
    40,
    (0.5,),
    60,
    {
        "synthesis.accepted": 240,
        "training.stage2.data": [{"path": "hpo:mini-supervised", "limit": 240}],
        "evaluation.benchmarks": [{"path": "hpo:mini-evaluation", "limit": 1000}],
    },
)


def bench_method(json_path: Path, quick: bool = False, parallel: int = 1, arms: str = "") -> None:
    """Run the arms, write `json_path` and a figure into the same folder, print the tables.

    The figures are of all arms of which every seed has finished, now or earlier.

    Args:
        parallel: runs at the same time; one with this small policy leaves much of two cores idle.
        arms: names of the arms to run, with commas; "" for all of them.

    Raises:
        InputError: a run has failed; the message names its log. `parallel` is below 1, an arm is not known, or kept
            answers are of a run with other settings.
    """
    check_parallel(parallel)
    json_path, scale = Path(json_path), QUICK if quick else FULL
    folder = json_path.with_suffix(".runs")
    chosen = _choose_arms(arms, scale)
    runs = {
        arm.name: [ArmRun(arm, seed, folder, scale.steps, scale.settings) for seed in scale.seeds] for arm in scale.arms
    }
    alphas = tuple(_measure_alpha(folder, alpha, scale.alpha_questions) for alpha in scale.alphas)
    pool = ThreadPoolExecutor(parallel)
    try:
        list(pool.map(ArmRun.finish, runs[BASE]))
        left = [run for name in chosen for run in runs[name] if not run.read_answers()]
        first = {run.seed: run for run in left if run.arm.shares}  # the others take over some of the base arm's results
        list(pool.map(ArmRun.prepare, first.values()))
        for done in as_completed([pool.submit(run.finish) for run in left]):
            done.result()
            _write(json_path, runs, alphas, quick)
    finally:
        pool.shutdown(cancel_futures=True)
    figures = _write(json_path, runs, alphas, quick)
    print(format_method_table(figures))
    print("\n".join(["", *format_aims(list_aims(figures), figures)]))


def _choose_arms(arms: str, scale: MethodScale) -> list[str]:
    known = [arm.name for arm in scale.arms]
    chosen = arms.split(",") if arms else known
    for name in chosen:
        if name not in known:
            raise InputError(f"--arms names {name!r}; the arms are {', '.join(known)}")
    return [name for name in chosen if name != BASE]


def _write(
    json_path: Path, runs: dict[str, list[ArmRun]], alphas: tuple[AlphaFigures, ...], quick: bool
) -> MethodFigures:
    """Write the figures of the arms of which every seed has finished."""
    found = {name: [run.read_answers() for run in by_seed] for name, by_seed in runs.items()}
    answers = {name: [one for one in by_seed if one] for name, by_seed in found.items() if all(by_seed)}
    base = answers[BASE]
    figures = MethodFigures(
        seeds=tuple(one.seed for one in base),
        questions=len(base[0].truth),
        generations=len(base[0].letters),
        steps=runs[BASE][0].steps,
        samples=load_config(METHOD_CONFIG).training.stage1.sequences,
        arms=compute_arms(answers),
        measured={name: tuple(one.measured for one in by_seed) for name, by_seed in answers.items()},
        precision=base[0].precision,
        alphas=alphas,
        quick=quick,
    )
    write_result(json_path, asdict(figures) | {"precision": [point.model_dump() for point in figures.precision]})
    draw_method_plot(figures, json_path.with_suffix(".png"))
    return figures


def _measure_alpha(folder: Path, alpha: float, accepted: int) -> AlphaFigures:
    """Synthesise questions with this alpha, and return the share of requests with a rare disease."""
    run = RunDir(folder / "alpha" / f"{alpha:g}")
    if not run.is_finished("synthesize"):
        _log.info("synthesis with alpha %g", alpha)
        settings = {"synthesis.alpha": alpha, "synthesis.accepted": accepted}
        config = write_config(run.root.with_name(f"{alpha:g}.yaml"), settings)
        call_medssr("synthesize", config, run.root)
    return AlphaFigures(alpha, read_synthesis_summary(run.synthesis.summary).alpha.requests)
