"""The collapse guard shown on real runs of stage 1: with wrong majorities planted on a third of the labels, and sound.

    python -m medssr_dist.bench.guard.run --config configs/demo_cpu.yaml --run-dir runs/guard \\
        --json benchmarks/results/guard_cpu.json training.validate.data='[{path: hpo:mini-check, limit: 1000}]' \\
        training.validate.every=5 training.stage1.steps=60 'training.guard={}'

First `synthesize` and `vote` run once, in RUN_DIR/base. Then stage 1 is trained `--runs` times on its labels in another
order and with other seeds, and as often on the same labels with the planted ones. Each run goes to its last step, and
`guard_verdict.py` finds afterwards where the guard would have stopped it. The same command resumes: it skips finished
runs.

Aims: of the runs with wrong labels, at least 95% publish a policy within 1 point of the held-out peak; of the sound
ones, at most 5% are stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medssr_dist.bench.guard.guard_verdict import GuardVerdict, judge_run
from medssr_dist.bench.guard.planted_labels import plant_wrong_majorities
from medssr_dist.bench.result_file import write_result
from medssr_dist.config.load import dump_config, load_config
from medssr_dist.config.schema import Config
from medssr_dist.config.stage_checks import Guard
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import Label
from medssr_dist.data.wilson import Share, measure_share
from medssr_dist.errors import EXIT_BAD_INPUT, EXIT_STOPPED, InputError, Stopped
from medssr_dist.estimates.memory import refuse_too_little_memory
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.readers import read_validation_questions
from medssr_dist.run.paths import RunPaths
from medssr_dist.run.session import open_session
from medssr_dist.run.stream import mark_end, read_kept_labels
from medssr_dist.runtime.logs import set_up_logging

SOUND, WRONG = "sound", "wrong labels"
_SHARE = 1 / 3


@dataclass(frozen=True)
class GuardFigures:
    """What the guard did in all runs.

    near_peak: runs with wrong labels that publish a policy within 1 point of the held-out peak. stopped_wrong,
    stopped_sound: runs that are stopped.

    Example: GuardFigures(near_peak=Share(...), stopped_wrong=Share(...), stopped_sound=Share(...), verdicts=[...])
    """

    near_peak: Share
    stopped_wrong: Share
    stopped_sound: Share
    verdicts: list[GuardVerdict]


def bench_guard(config: Config, folder: Path, result: Path, runs: int) -> GuardFigures:
    """Train and judge `runs` runs of each kind below `folder`; write the figures to `result`.

    Raises:
        InputError: the config has no validation or no guard, or no label is kept.
    """
    guard = _require_checks(config)
    labels = _take_labels(config, folder / "base")
    verdicts = []
    for seed in range(runs):
        for kind, share in ((SOUND, 0.0), (WRONG, _SHARE)):
            planted = plant_wrong_majorities(labels, share, seed, find_hpo_truth)
            stage = _train(config, folder / f"{kind.replace(' ', '-')}-{seed}", planted, seed)
            verdicts.append(judge_run(stage, kind, seed, guard))
            print(format_verdict(verdicts[-1]), flush=True)
    figures = summarize(verdicts)
    settings = {"validate": dump_config(config)["training"]["validate"], "guard": guard.model_dump(mode="json")}
    write_result(result, settings | asdict(figures))
    return figures


def summarize(verdicts: Sequence[GuardVerdict]) -> GuardFigures:
    """Count the runs that were stopped, and those that publish a policy near the peak."""
    wrong = [verdict for verdict in verdicts if verdict.kind == WRONG]
    sound = [verdict for verdict in verdicts if verdict.kind == SOUND]
    return GuardFigures(
        near_peak=measure_share(sum(verdict.is_near_peak for verdict in wrong), len(wrong)),
        stopped_wrong=measure_share(sum(verdict.stop_step is not None for verdict in wrong), len(wrong)),
        stopped_sound=measure_share(sum(verdict.stop_step is not None for verdict in sound), len(sound)),
        verdicts=list(verdicts),
    )


def format_verdict(verdict: GuardVerdict) -> str:
    """Return one line about a run."""
    stop = f"stopped after step {verdict.stop_step} by {verdict.signal}" if verdict.stop_step else "not stopped"
    return (
        f"{verdict.kind}, seed {verdict.seed}: {stop}; published step {verdict.published_step} with "
        f"{verdict.published:.3f}; start {verdict.start:.3f}, peak {verdict.peak:.3f}, last {verdict.last:.3f}"
    )


def _require_checks(config: Config) -> Guard:
    training = config.training
    if training.validation is None or training.guard is None:
        raise InputError("the benchmark needs training.validate and training.guard; see its example for both")
    return training.guard


def _take_labels(config: Config, folder: Path) -> list[Label]:
    """Write and label the questions once; return the kept labels."""
    from medssr_dist.steps.synthesis_step import open_finished_questions, synthesize
    from medssr_dist.steps.vote_step import vote

    with open_session(config, folder, before_ray=refuse_too_little_memory) as session:
        synthesize(session)
        vote(session, open_finished_questions(session))
    labels = list(read_kept_labels(RunPaths(folder).voting.labels))
    if not labels:
        raise InputError(f"{folder}: no label is kept; lower voting.threshold, or write more questions")
    return labels


def _train(config: Config, folder: Path, labels: list[Label], seed: int) -> Path:
    """Train stage 1 on `labels` to its last step, unless it has been; return its folder, without its models."""
    from medssr_dist.runtime.models import resolve_model
    from medssr_dist.training.train_stage import start_stage1

    run = RunPaths(folder)
    paths = run.stage("stage1")
    if paths.summary.exists():
        return paths.folder
    config = _change_for_run(config, seed)
    with open_session(config, folder, before_ray=refuse_too_little_memory) as session:
        _write_labels(run.voting.labels, labels)
        session.start_ray()
        held_out, model = read_validation_questions(config), resolve_model(config.policy)
        stage = start_stage1(config, model, run.voting.labels, paths.folder, len(labels), session.should_stop, held_out)
        stage.wait()
    for large in (paths.hf, paths.checkpoints, *map(paths.hf_candidate, paths.candidates())):
        shutil.rmtree(large, ignore_errors=True)
    return paths.folder


def _change_for_run(config: Config, seed: int) -> Config:
    """Return the config with this seed, in which neither guard nor validation ends the stage."""
    training = config.training
    assert training.guard is not None and training.validation is not None
    checks = {
        "guard": training.guard.model_copy(update={"action": "warn"}),
        "validation": training.validation.model_copy(update={"patience": 0}),
    }
    runtime = config.runtime.model_copy(update={"random_seed": seed})
    return config.model_copy(update={"training": training.model_copy(update=checks), "runtime": runtime})


def _write_labels(file: Path, labels: list[Label]) -> None:
    """Write the whole stream of labels, as the vote leaves it."""
    file.unlink(missing_ok=True)
    with JsonlLedger(file) as ledger:
        ledger.append(*(label.model_dump(mode="json") for label in labels))
    mark_end(file, len(labels))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medssr_dist.bench.guard.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="config of the policy and of stage 1")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--runs", type=int, default=20, help="runs of each kind (default: 20)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.stage1.steps=60")
    args = parser.parse_args()
    set_up_logging()
    try:
        figures = bench_guard(load_config(args.config, args.overrides), args.run_dir, args.json, args.runs)
    except InputError as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Stopped as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_STOPPED
    near, sound = figures.near_peak, figures.stopped_sound
    print(f"wrong labels: {near.count} of {near.of} within 1 point of the peak")
    print(f"sound: {sound.count} of {sound.of} stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
