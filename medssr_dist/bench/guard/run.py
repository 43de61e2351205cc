"""The collapse guard shown on real runs of stage 1: with wrong majorities planted on a third of the labels, and sound.

    python -m medssr_dist.bench.guard.run --config configs/demo_cpu.yaml --run-dir runs/guard \\
        --json benchmarks/results/guard_cpu.json training.validate.data='[{path: hpo:mini-check, limit: 1000}]' \\
        training.validate.every=5 training.stage1.steps=60 'training.guard={}'

First `medssr synthesize` and `medssr vote` run once, in RUN_DIR/base. Then `medssr train` trains stage 1 `--runs` times
on these labels in another order and with other seeds, and as often on the same labels with the planted ones. Each run
goes to its last step, and `guard_verdict.py` finds afterwards where the guard would have stopped it. The same command
resumes: it skips the runs that the result file has.

Aims: of the runs with wrong labels, at least 95% are stopped and publish a policy within 1 point of the held-out peak;
of the sound ones, at most 5% are stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medssr_dist.bench.copied_runs import call_medssr, copy_steps
from medssr_dist.bench.guard.guard_verdict import GuardVerdict, judge_run
from medssr_dist.bench.guard.planted_labels import plant_wrong_majorities
from medssr_dist.bench.result_file import write_result
from medssr_dist.config.load import dump_config, load_config
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import JsonlLedger, read_json
from medssr_dist.data.records import Label, parse_record
from medssr_dist.data.wilson import Share, measure_share
from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.run.directory import RunDir
from medssr_dist.run.stream import mark_end, read_kept_labels
from medssr_dist.runtime.logs import set_up_logging

SOUND, WRONG = "sound", "wrong labels"
_SHARE = {SOUND: 0.0, WRONG: 1 / 3}


@dataclass(frozen=True)
class GuardFigures:
    """What the guard did in all runs.

    near_peak: runs with wrong labels that are stopped and publish a policy within 1 point of the held-out peak.
    stopped_wrong, stopped_sound: runs that are stopped.

    Example: GuardFigures(near_peak=Share(...), stopped_wrong=Share(...), stopped_sound=Share(...), verdicts=[...])
    """

    near_peak: Share
    stopped_wrong: Share
    stopped_sound: Share
    verdicts: list[GuardVerdict]


@dataclass(frozen=True)
class GuardBench:
    """The benchmark: `config` with its file and overrides, and the folder of all runs."""

    config: Config
    file: Path
    overrides: tuple[str, ...]
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What the runs depend on."""
        return {"overrides": list(self.overrides), "training": dump_config(self.config)["training"]}

    def label_once(self) -> list[Label]:
        """Write and label the questions in `folder`/base; return the kept labels."""
        base = RunDir(self.folder / "base")
        for command in ("synthesize", "vote"):
            if not base.is_finished(command):
                call_medssr(command, self.file, base.root, self.overrides)
        labels = list(read_kept_labels(base.voting.labels))
        if not labels:
            raise InputError(f"{base.root}: no label is kept; lower voting.threshold, or write more questions")
        return labels

    def judge(self, kind: str, seed: int, labels: Sequence[Label]) -> GuardVerdict:
        """Train stage 1 on `labels`, planted for this run, to its last step, and judge it. Its models are deleted."""
        run = RunDir(self.folder / f"{kind.replace(' ', '-')}-{seed}")
        paths, guard = run.stage("stage1"), self.config.training.guard
        assert guard is not None
        planted = plant_wrong_majorities(labels, _SHARE[kind], seed, find_hpo_truth)
        if not run.manifest_file.exists():
            settings = {"runtime.random_seed": seed}
            steps = ("synthesize", "vote")
            copy_steps(RunDir(self.folder / "base"), run, steps, lambda copy: _write_labels(copy, planted), settings)
        if not paths.summary.exists():
            call_medssr("train", self.file, run.root, (*self.overrides, *_list_overrides(seed)))
        for large in (paths.hf, paths.checkpoints, *map(paths.hf_candidate, paths.candidates())):
            shutil.rmtree(large, ignore_errors=True)
        return judge_run(paths.folder, kind, seed, guard)


def _list_overrides(seed: int) -> list[str]:
    """Return the settings of a run: its seed; stage 1 alone, which neither guard nor validation ends."""
    checks = ["training.guard.action=warn", "training.validate.patience=0", "training.stage2.enabled=false"]
    return [f"runtime.random_seed={seed}", *checks, "evaluation.policies=[stage1]"]


def _write_labels(copy: RunDir, labels: Sequence[Label]) -> None:
    """Replace the stream of labels by another whole one."""
    file = copy.voting.labels
    file.unlink(missing_ok=True)
    with JsonlLedger(file) as ledger:
        ledger.append(*(label.model_dump(mode="json") for label in labels))
    mark_end(file, len(labels))


def bench_guard(bench: GuardBench, result: Path, runs: int, parallel: int = 1) -> GuardFigures:
    """Train and judge `runs` runs of each kind, `parallel` at the same time; write the figures to `result`.

    Raises:
        InputError: the config has no validation or no guard, no label is kept, a run has failed, or `result` has runs
            with other settings.
    """
    if bench.config.training.validation is None or bench.config.training.guard is None:
        raise InputError("the benchmark needs training.validate and training.guard; see its example for both")
    verdicts = _read_verdicts(result, bench.settings)
    known = {(verdict.kind, verdict.seed) for verdict in verdicts}
    left = [(kind, seed) for seed in range(runs) for kind in (SOUND, WRONG) if (kind, seed) not in known]
    labels = bench.label_once() if left else []
    pool = ThreadPoolExecutor(parallel)
    try:
        for done in as_completed([pool.submit(bench.judge, kind, seed, labels) for kind, seed in left]):
            verdicts.append(done.result())
            print(format_verdict(verdicts[-1]), flush=True)
            write_result(result, {"settings": bench.settings, **asdict(summarize(verdicts))})
    finally:
        pool.shutdown(cancel_futures=True)
    return summarize(verdicts)


def _read_verdicts(result: Path, settings: dict[str, Any]) -> list[GuardVerdict]:
    """Return the verdicts that `result` has; [] if there is no such file."""
    if not result.exists():
        return []
    found = read_json(result)
    if found.get("settings") != settings:
        raise InputError(f"{result} has runs with other settings; give another --json")
    return [parse_record(GuardVerdict, row, str(result)) for row in found["verdicts"]]


def summarize(verdicts: Sequence[GuardVerdict]) -> GuardFigures:
    """Count the runs that were stopped, and those that publish a policy near the peak."""
    ordered = sorted(verdicts, key=lambda verdict: (verdict.seed, verdict.kind))
    wrong = [verdict for verdict in ordered if verdict.kind == WRONG]
    sound = [verdict for verdict in ordered if verdict.kind == SOUND]
    near = [verdict for verdict in wrong if verdict.stop_step is not None and verdict.is_near_peak]
    return GuardFigures(
        near_peak=measure_share(len(near), len(wrong)),
        stopped_wrong=measure_share(sum(verdict.stop_step is not None for verdict in wrong), len(wrong)),
        stopped_sound=measure_share(sum(verdict.stop_step is not None for verdict in sound), len(sound)),
        verdicts=ordered,
    )


def format_verdict(verdict: GuardVerdict) -> str:
    """Return one line about a run."""
    stop = f"stopped after step {verdict.stop_step} by {verdict.signal}" if verdict.stop_step else "not stopped"
    return (
        f"{verdict.kind}, seed {verdict.seed}: {stop}; published step {verdict.published_step} with "
        f"{verdict.published:.3f}; start {verdict.start:.3f}, peak {verdict.peak:.3f}, last {verdict.last:.3f}"
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m medssr_dist.bench.guard.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="config of the policy and of stage 1")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--json", type=Path, required=True, help="file for the results; its runs are not run again")
    parser.add_argument("--runs", type=int, default=20, help="runs of each kind (default: 20)")
    parser.add_argument("--parallel", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. training.stage1.steps=60")
    args = parser.parse_args()
    set_up_logging()
    try:
        config = load_config(args.config, args.overrides)
        bench = GuardBench(config, args.config, tuple(args.overrides), args.run_dir)
        figures = bench_guard(bench, args.json, args.runs, args.parallel)
    except InputError as error:
        print(f"medssr: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    near, sound = figures.near_peak, figures.stopped_sound
    print(f"wrong labels: {near.count} of {near.of} stopped within 1 point of the peak")
    print(f"sound: {sound.count} of {sound.of} stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
