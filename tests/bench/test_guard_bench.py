"""The benchmark of the collapse guard: planted labels, and the judgement of a finished run by questions not seen."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from step_rows import append_steps, make_metrics
from stream_parts import label

from medssr_dist.bench.guard import run as guard_run
from medssr_dist.bench.guard.guard_verdict import GuardVerdict, judge_run
from medssr_dist.bench.guard.planted_labels import plant_wrong_majorities
from medssr_dist.bench.guard.run import FIRST_SEED, GUARD_CONFIG, SOUND, WRONG, GuardBench, bench_guard, summarize
from medssr_dist.bench.result_file import write_result
from medssr_dist.config.load import load_config
from medssr_dist.config.shipped import find_config_file
from medssr_dist.config.stage_checks import Guard
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.knowledge.vignettes import find_hpo_truth
from medssr_dist.run.directory import RunDir, open_run
from medssr_dist.run.paths import StagePaths
from medssr_dist.run.stream import read_kept_labels
from medssr_dist.training.validation_log import append_validation, make_result


def make_labels(count: int) -> list[Label]:
    """Labels with answer A and three votes for B; every fourth is not kept."""
    found = []
    for number in range(count):
        asked = Question.make(f"Question {number}?", ["w", "x", "y", "z"], source="synthetic")
        made = label(asked, kept=number % 4 > 0)
        found.append(made.model_copy(update={"counts": {"A": 5, "B": 3}, "valid": 8, "taken": 8, "requested": 8}))
    return found


def test_a_third_of_the_kept_labels_is_planted():
    planted = plant_wrong_majorities(make_labels(120), 1 / 3, 7, lambda asked: None)
    assert len(planted) == 90 and all(found.kept for found in planted)
    wrong = [found for found in planted if found.answer != "A"]
    assert len(wrong) == 30
    assert all((found.answer, found.counts) == ("B", {"B": 5, "A": 3}) for found in wrong)
    assert planted == plant_wrong_majorities(make_labels(120), 1 / 3, 7, lambda asked: None)
    assert planted != plant_wrong_majorities(make_labels(120), 1 / 3, 8, lambda asked: None)


def test_right_majorities_alone_are_replaced():
    labels = make_labels(40)
    right = {found.question.id for found in labels[:20]}
    planted = plant_wrong_majorities(labels, 1 / 3, 1, lambda asked: "A" if asked.id in right else "B")
    wrong = [found for found in planted if found.answer != "A"]
    assert len(wrong) == 10 and {found.answer for found in wrong} == {"B"}
    assert {found.question.id for found in wrong} <= right


def test_too_few_right_majorities_are_refused():
    with pytest.raises(InputError, match="0 of 30 labels are right; wrong ones cannot be planted on 10"):
        plant_wrong_majorities(make_labels(40), 1 / 3, 1, lambda asked: "B")


def test_without_a_share_the_labels_are_as_voted():
    assert {found.answer for found in plant_wrong_majorities(make_labels(40), 0.0, 1, lambda asked: "C")} == {"A"}


def write_run(folder: Path, accuracies: list[float], seed: int = 0, questions: int = 2000) -> Path:
    """A run with a validation after every 5 steps, of questions of equal difficulty."""
    paths, rng = StagePaths(folder), random.Random(seed)
    append_steps(paths.metrics, *(make_metrics(step) for step in range(1, 5 * len(accuracies))))
    for number, accuracy in enumerate(accuracies):
        right = [sum(rng.random() < accuracy for _ in range(4)) for _ in range(questions)]
        append_validation(paths.validation, make_result(5 * number, right, 4, 0.0, 0.0, 1.0))
    return folder


def test_a_run_that_falls_is_stopped_near_its_peak(tmp_path):
    found = judge_run(write_run(tmp_path, [0.4, 0.5, 0.55, 0.45, 0.4, 0.35]), WRONG, 0, Guard())
    assert (found.stop_step, found.signal, found.published_step) == (20, "validation_fall", 10)
    assert found.is_near_peak and found.published == found.peak
    assert [step for step, _ in found.accuracies] == [0, 5, 10, 15, 20, 25]
    assert (found.start, found.last) == (found.accuracies[0][1], found.accuracies[-1][1])


def test_a_run_that_rises_is_not_stopped(tmp_path):
    found = judge_run(write_run(tmp_path, [0.4, 0.45, 0.5, 0.55]), SOUND, 0, Guard())
    assert (found.stop_step, found.signal, found.published_step) == (None, None, 15)


def test_a_run_that_only_falls_publishes_its_start(tmp_path):
    found = judge_run(write_run(tmp_path, [0.5, 0.49, 0.35, 0.3]), WRONG, 0, Guard())
    assert (found.stop_step, found.published_step, found.peak_step) == (15, 0, 0)
    assert found.is_near_peak and found.published == found.start


def test_runs_are_counted_by_kind(tmp_path):
    falls = judge_run(write_run(tmp_path / "a", [0.4, 0.55, 0.4, 0.4]), WRONG, 0, Guard())
    rises = judge_run(write_run(tmp_path / "b", [0.4, 0.55]), SOUND, 0, Guard())
    past_its_peak = judge_run(write_run(tmp_path / "c", [0.4, 0.55, 0.4, 0.4]), SOUND, 1, Guard())
    stopped_falsely = judge_run(write_run(tmp_path / "d", [0.4, 0.55, 0.4, 0.4, 0.7]), SOUND, 2, Guard())
    found = summarize([falls, rises, past_its_peak, stopped_falsely])
    assert (found.near_peak.count, found.stopped_wrong.count, found.stopped_sound.count) == (1, 1, 2)
    assert (found.near_peak.of, found.stopped_sound.of) == (1, 3)
    assert (found.falsely_stopped.count, found.falsely_stopped.of) == (1, 3)


def write_result_of(bench: GuardBench, path: Path, *verdicts: GuardVerdict) -> None:
    write_result(path, {"settings": bench.settings, **asdict(summarize(verdicts))})


def test_the_benchmark_goes_on_with_its_result_alone(tmp_path, monkeypatch, capsys):
    result, begun = tmp_path / "guard.json", []
    sound = judge_run(write_run(tmp_path / "a", [0.4, 0.55]), SOUND, FIRST_SEED, Guard())
    write_result_of(GuardBench(GUARD_CONFIG, tmp_path), result, sound)

    def judge(bench, kind, seed, labels):
        begun.append((kind, seed))
        return replace(sound, kind=kind, seed=seed)

    monkeypatch.setattr(GuardBench, "label_once", lambda bench: make_labels(4))
    monkeypatch.setattr(GuardBench, "judge", judge)
    bench_guard(result, quick=True)
    one, two = FIRST_SEED, FIRST_SEED + 1
    assert begun == [(WRONG, one), (SOUND, two), (WRONG, two)]
    first, written = capsys.readouterr().out, read_json(result)
    found = [(verdict["kind"], verdict["seed"]) for verdict in written["verdicts"]]
    assert found == [(SOUND, one), (WRONG, one), (SOUND, two), (WRONG, two)]
    assert (written["near_peak"]["count"], written["near_peak"]["of"]) == (0, 2)  # near the peak, but not stopped
    assert "wrong labels: 0 of 2 stopped within 1 point of the peak" in first
    monkeypatch.setattr(GuardBench, "label_once", lambda bench: pytest.fail("nothing is left to train"))
    bench_guard(result, quick=True)
    assert capsys.readouterr().out == first


def test_runs_with_other_settings_are_not_mixed(tmp_path):
    result = tmp_path / "guard.json"
    write_result_of(GuardBench(find_config_file(Path("demo_cpu")), tmp_path), result)
    with pytest.raises(InputError, match=r"guard\.json has runs with other settings; give another --json"):
        bench_guard(result)


@pytest.mark.parametrize("content", [[], {}, 7, {"settings": {}}, {"settings": {}, "verdicts": [{"kind": "sound"}]}])
def test_a_file_that_is_no_result_is_refused(tmp_path, content):
    result = tmp_path / "guard.json"
    result.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"guard\.json: .*; it is no whole result of this benchmark; give"):
        bench_guard(result)


def test_a_run_gets_its_labels_and_its_seed(tmp_path, monkeypatch):
    bench, calls, config = GuardBench(GUARD_CONFIG, tmp_path), [], load_config(GUARD_CONFIG)
    with open_run(bench.folder / "base", config) as base:
        for step in ("synthesize", "vote"):
            base.begin_step(step, config, {})
            base.finish_step(step)
            base.step(step).folder.mkdir()
    labels = make_labels(120)
    left_by_a_killed_call = bench.folder / "wrong-labels-7" / "clock.json"
    left_by_a_killed_call.parent.mkdir()
    left_by_a_killed_call.write_text("{}", encoding="utf-8")

    def call(command, file, run_dir, overrides):
        calls.append((command, file, overrides))
        RunDir(run_dir).adopt_config(load_config(file, list(overrides)))
        write_run(RunDir(run_dir).stage("stage1").folder, [0.4, 0.55, 0.4, 0.4])

    monkeypatch.setattr(guard_run, "call_medssr", call)
    found = bench.judge(WRONG, 7, labels)
    [(command, file, overrides)] = calls
    assert (command, file) == ("train", GUARD_CONFIG) and "runtime.random_seed=7" in overrides
    assert (found.kind, found.seed, found.stop_step) == (WRONG, 7, 15)
    run = RunDir(bench.folder / "wrong-labels-7")
    assert not left_by_a_killed_call.exists()
    assert run.is_finished("vote") and run.read_manifest().steps["vote"].settings["runtime.random_seed"] == 7
    assert list(read_kept_labels(run.voting.labels)) == plant_wrong_majorities(labels, 1 / 3, 7, find_hpo_truth)


def test_a_config_without_checks_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"demo_cpu\.yaml: the benchmark needs training\.validate and training\.guard"):
        bench_guard(tmp_path / "out.json", config=Path("demo_cpu"))


def test_a_config_with_stage_2_is_refused(tmp_path):
    config = tmp_path / "two.yaml"
    config.write_text(f"extends: {GUARD_CONFIG}\ntraining: {{stage2: {{enabled: true}}}}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"two\.yaml: the benchmark trains stage 1 alone"):
        bench_guard(tmp_path / "out.json", config=config)
