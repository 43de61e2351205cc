"""`medssr bench guard`: does the collapse guard end stage 1 near its peak where labels are wrong, and spare sound runs?

    medssr bench guard --json benchmarks/results/guard_cpu.json

First `medssr synthesize` and `medssr vote` run once. Then `medssr train` trains stage 1 20 times on these labels in
another order and with other seeds, and as often on the same labels with wrong majorities planted on a third of them
(`planted_labels.py` says where).
Each run goes to its last step, and `guard_verdict.py` finds afterwards where the guard would have stopped it. For a
result NAME.json, the runs lie in NAME.runs. The same command resumes; it skips the runs whose verdict the result has.

Aims: of the runs with wrong labels, at least 95% are stopped and publish a policy within 1 point of the held-out peak;
of the sound ones, at most 5% are stopped falsely, that is, although a later policy is more than 1 point better than the
published one. A sound run may have passed its peak, since its last steps repeat labels; to stop it there is right.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medssr_dist.bench.copied_runs import call_medssr, check_parallel, copy_steps, replace_labels
from medssr_dist.bench.guard.guard_verdict import GuardVerdict, judge_run
from medssr_dist.bench.guard.planted_labels import plant_wrong_majorities
from medssr_dist.bench.result_file import write_result
from medssr_dist.config.load import load_config, merge_layers, read_layers
from medssr_dist.config.shipped import find_config_file
from medssr_dist.config.training import Training
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import Label, parse_record
from medssr_dist.data.wilson import Share, measure_share
from medssr_dist.errors import InputError
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.run.directory import RunDir
from medssr_dist.run.stream import mark_end, read_kept_labels

GUARD_CONFIG = Path(__file__).with_name("guard.yaml")
RUNS = 20
FIRST_SEED = 200  # the settings were chosen by looking at runs with smaller seeds
SOUND, WRONG = "sound", "wrong labels"
_SHARE = {SOUND: 0.0, WRONG: 1 / 3}


@dataclass(frozen=True)
class GuardFigures:
    """What the guard did in all runs.

    near_peak: runs with wrong labels that are stopped and publish a policy within 1 point of the held-out peak.
    stopped_wrong, stopped_sound: runs that are stopped. falsely_stopped: sound runs that are stopped, and whose best
    policy of all steps is more than 1 point better than the published one.

    Example: GuardFigures(near_peak=Share(...), stopped_wrong=Share(...), stopped_sound=Share(...),
        falsely_stopped=Share(...), verdicts=[...])
    """

    near_peak: Share
    stopped_wrong: Share
    stopped_sound: Share
    falsely_stopped: Share
    verdicts: list[GuardVerdict]


@dataclass(frozen=True)
class _KnownRuns:
    """What is read of a result. settings: of its runs."""

    settings: dict[str, Any]
    verdicts: list[GuardVerdict]


@dataclass(frozen=True)
class GuardBench:
    """The runs of the benchmark. file: their config. folder: of all runs."""

    file: Path
    folder: Path

    @cached_property
    def training(self) -> Training:
        """The settings of the training.

        Raises:
            InputError: the config has no validation or no guard, or not stage 1 alone.
        """
        training = load_config(self.file).training
        if training.validation is None or training.guard is None:
            raise InputError(f"{self.file}: the benchmark needs training.validate and training.guard")
        if training.stage2.enabled or not training.stage1.enabled:
            raise InputError(f"{self.file}: the benchmark trains stage 1 alone; set training.stage2.enabled to false")
        return training

    @property
    def settings(self) -> dict[str, Any]:
        """What the runs set, as in the config and in those that it extends."""
        return merge_layers(read_layers(self.file))

    def label_once(self) -> list[Label]:
        """Write and label the questions in `folder`/base; return the kept labels."""
        base = RunDir(self.folder / "base")
        for command in ("synthesize", "vote"):
            if not base.is_finished(command):
                call_medssr(command, self.file, base.root)
        labels = list(read_kept_labels(base.voting.labels))
        if not labels:
            raise InputError(f"{base.root}: no label is kept; lower voting.threshold, or write more questions")
        return labels

    def judge(self, kind: str, seed: int, labels: Sequence[Label]) -> GuardVerdict:
        """Train stage 1 on `labels`, planted for this run, to its last step, and judge it. Its models are deleted."""
        run = RunDir(self.folder / f"{kind.replace(' ', '-')}-{seed}")
        paths, guard = run.stage("stage1"), self.training.guard
        assert guard is not None
        planted = plant_wrong_majorities(labels, _SHARE[kind], seed, find_hpo_truth)
        if not run.manifest_file.exists():
            settings = {"runtime.random_seed": seed}
            steps = ("synthesize", "vote")
            copy_steps(RunDir(self.folder / "base"), run, steps, lambda copy: _write_labels(copy, planted), settings)
        if not paths.summary.exists():
            call_medssr("train", self.file, run.root, _list_overrides(seed))
        for large in (paths.hf, paths.checkpoints):
            shutil.rmtree(large, ignore_errors=True)
        return judge_run(paths.folder, kind, seed, guard)


def _list_overrides(seed: int) -> list[str]:
    """Return the settings of a run, which neither guard nor validation ends."""
    return [f"runtime.random_seed={seed}", "training.guard.action=warn", "training.validate.patience=0"]


def _write_labels(copy: RunDir, labels: Sequence[Label]) -> None:
    """Replace the stream of labels by another whole one."""
    replace_labels(copy.voting.labels, labels)
    mark_end(copy.voting.labels, len(labels))


def bench_guard(
    json_path: Path, quick: bool = False, parallel: int = 1, config: Path = GUARD_CONFIG, runs: int = RUNS
) -> None:
    """Train and judge the runs of both kinds, write the figures to `json_path`, print them.

    Args:
        quick: two runs of each kind.
        parallel: runs at the same time.
        config: of the runs; its stage 2 must be off.
        runs: of each kind.

    Raises:
        InputError: the config has no validation, no guard or not stage 1 alone, no label is kept, a run has failed, or
            `json_path` has runs with other settings.
    """
    check_parallel(parallel)
    json_path = Path(json_path)
    bench = GuardBench(find_config_file(config), json_path.with_suffix(".runs"))
    verdicts, settings = _read_verdicts(json_path, bench.settings), {"settings": bench.settings}
    known = {(verdict.kind, verdict.seed) for verdict in verdicts}
    seeds = range(FIRST_SEED, FIRST_SEED + (2 if quick else runs))
    left = [(kind, seed) for seed in seeds for kind in (SOUND, WRONG) if (kind, seed) not in known]
    labels = bench.label_once() if bench.training and left else []
    pool = ThreadPoolExecutor(parallel)
    try:
        for done in as_completed([pool.submit(bench.judge, kind, seed, labels) for kind, seed in left]):
            verdicts.append(done.result())
            write_result(json_path, settings | asdict(summarize(verdicts)))
    finally:
        pool.shutdown(cancel_futures=True)
    print(format_figures(summarize(verdicts)))


def _read_verdicts(result: Path, settings: dict[str, Any]) -> list[GuardVerdict]:
    """Return the verdicts that `result` has; [] if there is no such file."""
    if not result.exists():
        return []
    try:
        found = parse_record(_KnownRuns, read_json(result), str(result))
    except InputError as error:
        raise InputError(f"{error}; it is no whole result of this benchmark; give another --json") from None
    if found.settings != settings:
        raise InputError(f"{result} has runs with other settings; give another --json")
    return found.verdicts


def summarize(verdicts: Sequence[GuardVerdict]) -> GuardFigures:
    """Count the runs that were stopped, and those that publish a policy near the peak."""
    ordered = sorted(verdicts, key=lambda verdict: (verdict.seed, verdict.kind))
    wrong, sound = ([verdict for verdict in ordered if verdict.kind == kind] for kind in (WRONG, SOUND))
    stopped_wrong, stopped_sound = ([verdict for verdict in kind if verdict.stop_step] for kind in (wrong, sound))
    near = [verdict for verdict in stopped_wrong if verdict.is_near_peak]
    false = [verdict for verdict in stopped_sound if not verdict.is_near_peak]
    return GuardFigures(
        near_peak=measure_share(len(near), len(wrong)),
        stopped_wrong=measure_share(len(stopped_wrong), len(wrong)),
        stopped_sound=measure_share(len(stopped_sound), len(sound)),
        falsely_stopped=measure_share(len(false), len(sound)),
        verdicts=ordered,
    )


def format_figures(figures: GuardFigures) -> str:
    """Return a line about each run, then the counts."""
    near, sound, false = figures.near_peak, figures.stopped_sound, figures.falsely_stopped
    return "\n".join(
        [
            *map(_format_verdict, figures.verdicts),
            f"wrong labels: {near.count} of {near.of} stopped within 1 point of the peak",
            f"sound: {sound.count} of {sound.of} stopped, {false.count} of them falsely (a later policy is better by "
            "more than 1 point)",
        ]
    )


def _format_verdict(verdict: GuardVerdict) -> str:
    stop = f"stopped after step {verdict.stop_step} by {verdict.signal}" if verdict.stop_step else "not stopped"
    return (
        f"{verdict.kind}, seed {verdict.seed}: {stop}; published step {verdict.published_step} with "
        f"{verdict.published:.3f}; start {verdict.start:.3f}, peak {verdict.peak:.3f}, last {verdict.last:.3f}"
    )
