"""`medssr bench method`: does the method teach the policy something, and does each of its parts help?

Each arm is a run of `medssr` with the mini policy (docs/evidence.md): synthesis, vote, training on the real stack, and
evaluation on the same questions as all other arms of its seed. Two arms are controls: labels that belong to other
questions, and a reward that does not read the answer. The runs lie beside the result, in a folder with its name; the
same command resumes them after a kill.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medssr_dist.bench.aims import format_aims
from medssr_dist.bench.method.arm_runs import METHOD_CONFIG, ArmRun, call_medssr, write_config
from medssr_dist.bench.method.arms import ARMS, BASE, QUICK_ARMS, Arm
from medssr_dist.bench.method.method_figures import AlphaFigures, MethodFigures, read_arms, read_precision
from medssr_dist.bench.method.method_report import draw_method_plot, format_method_table, list_aims
from medssr_dist.bench.result_file import write_result
from medssr_dist.config.load import load_config
from medssr_dist.errors import InputError
from medssr_dist.evaluation.scores import read_scores
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


def bench_method(json_path: Path, quick: bool = False, parallel: int = 1) -> None:
    """Run all arms, write `json_path` and a figure into the same folder, print the tables.

    Args:
        parallel: runs at the same time; one with this small policy leaves much of two cores idle.

    Raises:
        InputError: a run has failed; the message names its log. `parallel` is below 1.
    """
    if parallel < 1:
        raise InputError(f"--parallel is {parallel}; give the number of runs at the same time, at least 1")
    json_path, scale = Path(json_path), QUICK if quick else FULL
    folder = json_path.with_suffix(".runs")
    runs = {arm.name: [ArmRun(arm, seed, folder, scale.steps) for seed in scale.seeds] for arm in scale.arms}
    alphas = tuple(_measure_alpha(folder, alpha, scale.alpha_questions) for alpha in scale.alphas)
    pool = ThreadPoolExecutor(parallel)
    try:
        list(pool.map(lambda run: run.finish(scale.settings), runs[BASE]))  # the others take over some of its results
        started = {
            name: [pool.submit(run.finish, scale.settings) for run in runs[name]] for name in runs if name != BASE
        }
        for number, arm in enumerate(scale.arms, 1):
            for run in started.get(arm.name, []):
                run.result()
            finished = {one.name: runs[one.name] for one in scale.arms[:number]}
            figures = _write(json_path, finished, alphas, quick)
    finally:
        pool.shutdown(cancel_futures=True)
    print(format_method_table(figures))
    print("\n".join(["", *format_aims(list_aims(figures), figures)]))


def _write(
    json_path: Path, runs: dict[str, list[ArmRun]], alphas: tuple[AlphaFigures, ...], quick: bool
) -> MethodFigures:
    """Write the figures of the arms that have finished."""
    base = runs[BASE]
    scores = read_scores(base[0].run.evaluation.scores)
    figures = MethodFigures(
        seeds=tuple(one.seed for one in base),
        questions=sum(facts.questions for facts in scores.benchmarks.values()),
        generations=scores.protocol.generations,
        steps=base[0].steps,
        samples=load_config(METHOD_CONFIG).training.stage1.sequences,
        arms=read_arms(runs),
        precision=read_precision(base[0]),
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
