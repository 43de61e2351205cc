"""The arms of `medssr bench method`: equal steps, honest controls, figures from the letters of the arms."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
from vote_cases import tally_of

from medssr_dist.bench.method import run as method_run
from medssr_dist.bench.method.arm_answers import ArmAnswers, make_answers, write_answers
from medssr_dist.bench.method.arm_runs import METHOD_CONFIG, ArmRun, write_config
from medssr_dist.bench.method.arms import ARMS, BASE, SHUFFLED, STAGE1_ONLY, TWO_STAGE
from medssr_dist.bench.method.controls import draw_reward, shuffle_kept_labels
from medssr_dist.bench.method.method_figures import AlphaFigures, compute_arms
from medssr_dist.config.load import load_config
from medssr_dist.config.voting import Voting
from medssr_dist.data.jsonl import JsonlLedger, read_json, read_jsonl
from medssr_dist.data.records import Label, Question
from medssr_dist.data.wilson import measure_share
from medssr_dist.errors import InputError
from medssr_dist.evaluation.question_letters import FinalLetters, QuestionLetters
from medssr_dist.training.rollout.reward import GradedSample
from medssr_dist.voting.labels import label_question


def arm_config(tmp_path, arm, steps=40):
    return load_config(write_config(tmp_path / f"{arm.name}.yaml", arm.make_settings(steps)))


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_all_arms_but_the_base_take_equal_steps(tmp_path, arm):
    training = arm_config(tmp_path, arm).training
    stages = [stage for stage in (training.stage1, training.stage2) if stage.enabled]
    assert sum(stage.steps for stage in stages) == (0 if arm.name == BASE else 40)
    assert {stage.sequences for stage in stages} <= {256}


def test_arms_differ_in_what_they_say_and_in_nothing_else(tmp_path):
    from medssr_dist.config.load import dump_config
    from medssr_dist.run.directory import flatten_settings

    own = {f"training.{stage}.{key}" for stage in ("stage1", "stage2") for key in ("enabled", "steps")}
    common = flatten_settings(dump_config(load_config(METHOD_CONFIG)))
    for arm in ARMS:
        settings = flatten_settings(dump_config(arm_config(tmp_path, arm)))
        changed = {key for key in settings if settings[key] != common[key]}
        assert changed <= own | set(arm.settings) | {"evaluation.policies"}, arm.name


def make_label(number: int, letter: str, kept: bool) -> Label:
    question = Question.make(f"Question {number}", ["w", "x", "y", "z"], source="made")
    tally = tally_of(letter * 4 if kept else f"{letter}{letter}--")
    voting = Voting(samples=4, threshold=0.9, confidence="requested")
    return label_question(question, tally, voting, tokens=8, truncated=0, policy="p", sampling="s")


def test_shuffled_labels_keep_letters_and_questions(tmp_path):
    file, letters = tmp_path / "labeled.jsonl", "AABBBCCD" * 10
    with JsonlLedger(file) as ledger:
        for number, letter in enumerate(letters):
            ledger.append(make_label(number, letter, kept=number % 4 > 0).model_dump(mode="json"))
    before = [Label.model_validate(row) for row in read_jsonl(file)]
    shuffle_kept_labels(file, 1)
    after = [Label.model_validate(row) for row in read_jsonl(file)]
    assert [label.question for label in after] == [label.question for label in before]
    kept = [(old.answer, new.answer) for old, new in zip(before, after, strict=True) if old.kept]
    assert Counter(old for old, _ in kept) == Counter(new for _, new in kept)
    assert 0.1 < sum(old == new for old, new in kept) / len(kept) < 0.5  # as often as by chance
    assert all(old == new for old, new in zip(before, after, strict=True) if not old.kept)


def test_a_random_reward_does_not_read_the_answer():
    def draw(letter, seed):
        return draw_reward(GradedSample(f"The answer is {letter}", letter, "A", {"A": "x", "B": "y"}, "q", seed=seed))

    rewards = [draw("A", seed) for seed in range(400)]
    assert rewards == [draw("B", seed) for seed in range(400)] and set(rewards) == {0.0, 1.0}
    assert 0.4 < sum(rewards) / 400 < 0.6


def make_rows(shares: list[float], policy: str) -> list[QuestionLetters]:
    """Letters of 4 generations to questions of which every second one is rare; the right letter is B."""
    rows = []
    for number, share in enumerate(shares):
        right = round(4 * share)
        letters = FinalLetters(letters=("B",) * right + ("C", None, "D", "C")[: 4 - right])
        asked = {"benchmark": "mini", "question_id": f"q{number}", "truth": "B", "rare": number % 2 == 1}
        rows.append(QuestionLetters(**asked, policies={policy: {"ours": letters, "paper": letters}}))
    return rows


def make_arm_answers(name: str, *by_seed: list[float]) -> list[ArmAnswers]:
    return [
        make_answers(name, seed, "s", make_rows(shares, "stage2"), "stage2", ()) for seed, shares in enumerate(by_seed)
    ]


def test_figures_pool_the_seeds_and_pair_the_questions():
    found = compute_arms(
        {
            BASE: make_arm_answers(BASE, [0.5, 0.25] * 20, [0.5, 0.0] * 20),
            TWO_STAGE: make_arm_answers(TWO_STAGE, [0.75, 0.75] * 20, [0.75, 0.25] * 20),
            SHUFFLED: make_arm_answers(SHUFFLED, [0.5, 0.25] * 20, [0.25, 0.25] * 20),
        }
    )
    assert found[BASE].to_base is None and found[BASE].scores["rare"].by_seed == (0.25, 0.0)
    gain = found[TWO_STAGE].to_base
    assert gain["all"].by_seed == pytest.approx((0.375, 0.25)) and gain["rare"].by_seed == (0.5, 0.25)
    assert gain["all"].test.difference == pytest.approx(0.3125) and gain["all"].test.questions == 80
    assert gain["common"].test.low < 0.25 < gain["common"].test.high
    assert found[SHUFFLED].two_stage_ahead["common"].by_seed == (0.25, 0.5)
    assert found[TWO_STAGE].two_stage_ahead is None
    assert found[SHUFFLED].stage1_ahead is None  # stage 1 only has not run


def test_controls_are_compared_with_stage_1_only():
    names = (BASE, TWO_STAGE, SHUFFLED, STAGE1_ONLY, "random_reward", "mix")
    shares = ([0.5] * 40, [0.75] * 40, [0.25, 0.5] * 20, [0.75, 0.5] * 20, [0.5, 0.25] * 20, [0.5] * 40)
    found = compute_arms({name: make_arm_answers(name, one) for name, one in zip(names, shares, strict=True)})
    ahead = {name: arm.stage1_ahead for name, arm in found.items() if arm.stage1_ahead}
    gains = {name: (gain["common"].test.difference, gain["rare"].test.difference) for name, gain in ahead.items()}
    assert gains == {SHUFFLED: pytest.approx((0.5, 0.0)), "random_reward": pytest.approx((0.25, 0.25))}


def test_arms_that_answered_other_questions_are_not_compared():
    answers = {BASE: make_arm_answers(BASE, [0.5] * 8), "mix": make_arm_answers("mix", [0.5] * 10)}
    with pytest.raises(InputError, match="seed 0: mix answered other questions than base"):
        compute_arms(answers)


def test_kept_answers_stand_for_a_run_whose_directory_is_lost(tmp_path, monkeypatch):
    run = ArmRun(ARMS[1], 3, tmp_path / "method.runs", 40)
    [answers] = make_arm_answers(run.arm.name, [0.75, 0.0, 1.0])
    write_answers(run.answers_file, answers.model_copy(update={"settings": run.hash_settings()}))
    kept = run.read_answers()
    assert kept.letters == ("BCB", "B-B", "BDB", "CCB") and (kept.truth, kept.rare) == ("BBB", "010")
    monkeypatch.setattr(ArmRun, "call", lambda *given: pytest.fail("the run has started again"))
    run.finish()
    with pytest.raises(InputError, match=r"two_stage_3\.json has the answers of a run with other settings"):
        replace(run, steps=20).read_answers()


def test_an_arm_takes_over_what_it_shares(tmp_path):
    from config_builder import make_config

    from medssr_dist.run.directory import open_run

    arms = {arm.name: arm for arm in ARMS}
    base = ArmRun(arms[BASE], 1, tmp_path, 40).run
    with open_run(base.root, make_config()) as run:
        for step in ("synthesize", "vote"):
            run.begin_step(step, make_config(), {})
            run.finish_step(step)
            run.step(step).folder.mkdir()
        run.synthesis.questions.write_text("{}\n")
        run.voting.labels.write_text("")
    for name, steps in (("no_filter", ["synthesize"]), (TWO_STAGE, ["synthesize", "vote"])):
        arm = ArmRun(arms[name], 1, tmp_path, 40)
        arm.take_over()
        assert list(arm.run.read_manifest().steps) == steps
        assert arm.run.synthesis.questions.read_text() == "{}\n"
        assert arm.run.voting.labels.exists() == ("vote" in steps)


def stand_in_for_runs(monkeypatch, fails: tuple[str, int] | None = None) -> list[tuple[str, int]]:
    """Replace the runs of all arms by answers that are made at once; return the list of those that were begun."""
    begun = []

    def finish(run):
        if run.read_answers():
            return
        begun.append((run.arm.name, run.seed))
        time.sleep(0.1)
        if begun[-1] == fails:
            raise InputError("the run has failed")
        rows = make_rows([0.5, 0.25] * 4, "p")
        write_answers(run.answers_file, make_answers(run.arm.name, run.seed, run.hash_settings(), rows, "p", ()))

    monkeypatch.setattr(ArmRun, "finish", finish)
    monkeypatch.setattr(ArmRun, "prepare", lambda run: begun.append((f"prepare {run.arm.name}", run.seed)))
    alpha = AlphaFigures(0.5, measure_share(5, 10))
    monkeypatch.setattr(method_run, "_measure_alpha", lambda *given: alpha)
    monkeypatch.setattr(method_run, "draw_method_plot", lambda *given: None)  # slower than such a run
    return begun


def test_a_run_that_fails_ends_the_benchmark(tmp_path, monkeypatch):
    begun = stand_in_for_runs(monkeypatch, fails=(TWO_STAGE, 1))
    with pytest.raises(InputError, match="the run has failed"):
        method_run.bench_method(tmp_path / "method.json", parallel=1)
    runs = [run for run in begun if not run[0].startswith("prepare")]
    assert runs[:4] == [(BASE, 1), (BASE, 2), (BASE, 3), (TWO_STAGE, 1)] and len(runs) < 10


def test_the_comparison_goes_on_with_the_answers_alone(tmp_path, monkeypatch, capsys):
    begun, result = stand_in_for_runs(monkeypatch), tmp_path / "method.json"
    method_run.bench_method(result, parallel=2, arms="mix")
    assert list(read_json(result)["arms"]) == [BASE, "mix"]
    begun.clear()
    method_run.bench_method(result, parallel=1, arms=f"mix,{TWO_STAGE}")
    assert begun == [
        *((f"prepare {TWO_STAGE}", seed) for seed in (1, 2, 3)),
        *((TWO_STAGE, seed) for seed in (1, 2, 3)),
    ]
    written = read_json(result)
    assert list(written["arms"]) == [BASE, TWO_STAGE, "mix"] and written["questions"] == 8
    assert written["measured"]["mix"][2].startswith("20")
    assert "two stages - one stage, mixed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method", "--parallel", "0"], "--parallel is 0"),
        (["guard", "--parallel", "-1"], "--parallel is -1"),
        (["method", "--arms", "base,mixed"], "--arms names 'mixed'; the arms are base, two_stage, "),
        (["voting", "--parallel", "2"], "`medssr bench voting` has no --parallel"),
        (["kernels", "--peers-python", "x"], "`medssr bench kernels` has no --peers-python"),
    ],
)
def test_options_that_a_benchmark_lacks_are_refused(tmp_path, capsys, arguments, message):
    from medssr_dist.cli import main

    assert main(["bench", *arguments, "--json", str(tmp_path / "x.json")]) == 2
    assert message in capsys.readouterr().err
