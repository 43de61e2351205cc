"""The forecast of the wall time, compared with numbers calculated by hand; rates of a run."""

import functools
import json
import operator
from dataclasses import asdict
from typing import Any

import pytest
from config_builder import make_config
from step_rows import append_steps, make_metrics
from synthesis_examples import summary

from medssr_dist.commands.dry_run import dry_run
from medssr_dist.commands.plan_rows import describe_forecast
from medssr_dist.config.load import merge_sections
from medssr_dist.config.removed_keys import REMOVED_KEYS
from medssr_dist.config.schema import Config, Evaluation
from medssr_dist.data.jsonl import JsonlLedger, read_json, write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.estimates.rates import Rates, StageRate, VoteRate, read_rates
from medssr_dist.estimates.walltime import DataCounts, forecast_walltime
from medssr_dist.evaluation.policy_answers import Answer, PolicyAnswers
from medssr_dist.evaluation.reading_rules import list_rules
from medssr_dist.evaluation.score_report import write_report
from medssr_dist.evaluation.scoring import build_scores, collect_letters
from medssr_dist.inference.event_log import EngineEvent
from medssr_dist.run.directory import open_run
from medssr_dist.run.paths import STEPS, RunPaths
from medssr_dist.synthesis.synthesis_summary import SynthesisProgress
from medssr_dist.voting.quality import measure_quality
from medssr_dist.voting.quality_records import VoteSummary

SLOTS = {"voting engines": 2, "training ranks": 4, "reference ranks": 0, "rollout engines": 2}


def config(mode="stream", **changes) -> Config:
    """Make a config: 1,000 questions, 16 votes; one pass of stage 1, 10 steps of stage 2; 2 + 6 GPUs."""
    training = {
        "ranks_per_node": 4,
        "engines": 1,
        "tensor_parallel_size": 2,
        "stage1": {"prompts_per_step": 32, "samples_per_prompt": 8},
        "stage2": {
            "enabled": True,
            "steps": 10,
            "prompts_per_step": 32,
            "samples_per_prompt": 8,
            "data": ["gold.jsonl"],
        },
    }
    sections = {
        "synthesis": {"accepted": 1000},
        "voting": {"samples": 16, "engines": 2},
        "training": training,
        "evaluation": {"benchmarks": ["b"]},
        "runtime": {"mode": mode},
    }
    return make_config(**merge_sections(sections, changes))


def rates(**changes) -> Rates:
    found = {
        "source": "run",
        "mode": "sequential",
        "slots": SLOTS,
        "questions_per_s": 2.0,
        "vote": VoteRate(tokens_per_s=1000.0, tokens_per_question=800.0, kept_share=0.64, samples=16, start_s=60.0),
        "stages": {"stage1": StageRate(generate_s=12.0, learn_s=24.0, sync_s=2.0, sequences=256, start_s=90.0)},
        "answers_per_s": 4.0,
    }
    return Rates(**found | changes)


TODO = DataCounts(gold_examples=500, answers=1200)


def test_forecast_on_the_measured_gpus():
    """synthesize 1000 / 2 = 500; vote 1000 x 800 / 1000 = 800; stage 1 20 steps x 38 = 760 (640 kept / 32)."""
    found = forecast_walltime(config("sequential"), rates(), TODO, on_gpu=True)
    assert {name: time.work for name, time in found.stream.steps.items()} == {
        "synthesize": 500,
        "vote": 800,
        "stage1": 760,
        "stage2": 380,
        "evaluate": 300,
    }
    assert found.stream.steps == found.sequential.steps and found.stream.unknown == ()
    assert found.stream.seconds == 90 + 800 + (90 + 380) + 300
    assert found.sequential.seconds == 500 + (60 + 800) + (90 + 760) + (90 + 380) + 300


def test_sequential_uses_all_gpus_of_a_stream_config():
    """The vote gets 8 GPUs instead of 2 (x 4), training 8 instead of 6 (x 4/3)."""
    found = forecast_walltime(config("stream"), rates(), TODO, on_gpu=True)
    assert found.stream.seconds == 90 + 800 + (90 + 380) + 300
    step = (12 + 24) / (8 / 6) + 2
    whole = 500 + (60 + 800 / 4) + (90 + 20 * step) + (90 + 10 * step) + 300 / 4
    assert found.sequential.seconds == pytest.approx(whole)


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({"voting": {"engines": 4}}, "vote", 400),
        ({"voting": {"tensor_parallel_size": 2}}, "evaluate", 150),
        ({"voting": {"samples": 4}}, "vote", 200),
        ({"training": {"engines": 2}}, "stage1", 20 * (6 + 24 + 2)),
        ({"training": {"nodes": 2}}, "stage1", 20 * (12 + 12 + 2)),
        ({"training": {"stage1": {"prompts_per_step": 64, "samples_per_prompt": 8}}}, "stage1", 10 * (24 + 48 + 2)),
        ({"training": {"stage1": {"steps": 3, "prompts_per_step": 32, "samples_per_prompt": 8}}}, "stage1", 3 * 38),
        (
            {"training": {"stage2": {"steps": 0, "mix_pseudo_labels": True}}},
            "stage2",
            36 * 38,  # (500 + 640) / 32, the last step filled up
        ),
    ],
)
def test_forecast_scales_with_gpus_votes_and_examples(changes, step, expected):
    found = forecast_walltime(config("sequential", **changes), rates(), TODO, on_gpu=True)
    assert found.sequential.steps[step].work == pytest.approx(expected)


def test_on_cpu_vote_and_training_share_the_cores():
    found = forecast_walltime(config("stream", voting={"engines": 8}), rates(), TODO, on_gpu=False)
    assert found.stream.seconds == 90 + (800 + 760) + (90 + 380) + 300
    assert found.sequential.seconds == 500 + (60 + 800) + (90 + 760) + (90 + 380) + 300


def test_the_slowest_step_decides_in_stream():
    slow_api = forecast_walltime(config("sequential"), rates(questions_per_s=0.5), TODO, on_gpu=True).stream
    assert slow_api.seconds == 90 + 2000 + 470 + 300


def test_steps_that_were_not_measured_are_unknown():
    found = forecast_walltime(config("sequential"), rates(vote=None, answers_per_s=None), TODO, on_gpu=True)
    assert found.sequential.unknown == ("vote", "stage1", "evaluate")  # the steps of one pass depend on the kept share
    assert found.sequential.seconds == 500 + 470
    text = dict(describe_forecast(config("sequential"), rates(vote=None), TODO, on_gpu=True))["sequential"]
    assert text.endswith("without vote, stage1, not measured")


def test_a_stage_that_is_off_is_not_in_the_forecast():
    training = {"stage2": {"enabled": False}}
    found = forecast_walltime(config("sequential", training=training), rates(), TODO, on_gpu=True)
    assert "stage2" not in found.stream.steps and found.stream.unknown == ()


def test_rows_of_the_forecast():
    label_and_text = describe_forecast(config("stream"), rates(), TODO, on_gpu=True)
    rows = dict(label_and_text)
    assert rows["rates"] == "of run, runtime.mode=sequential"
    assert "vote: 1,000.0 tokens/s, 800 tokens a question of 16 votes, 64% kept" in [text for _, text in label_and_text]
    assert rows["stream"] == (
        "28 min on 8 GPUs = start-up 90 s + longest of (synthesize 8 min, vote 13 min, stage1 13 min) + stage2 8 min"
        " + evaluate 5 min"
    )
    assert rows["sequential"].startswith("31 min on 8 GPUs = synthesize 8 min + vote 4 min + stage1 11 min")
    alone = dict(describe_forecast(config("sequential"), rates(), TODO, on_gpu=True))
    assert " on 8 GPUs = " in alone["stream"] and " on 6 GPUs = " in alone["sequential"]


# --- rates of a run directory ----------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path):
    """The directory of a run, and a function that writes one more file with invented numbers."""
    root = tmp_path / "measured"
    with open_run(root, config("sequential")) as run:
        pass

    def write(name, value):
        if isinstance(value, list):
            with JsonlLedger(run.root / name) as ledger:
                ledger.append(*value)
        else:
            write_json(run.root / name, value)

    return root, write


BENCHMARKS = {"b": range(3), "c": range(3, 8)}


def question(number: int) -> Question:
    return Question.make(f"Sign {number}?", ["W", "X"], source="t", source_id=f"q{number}", truth="A")


def answer(item: Question) -> Answer:
    found = {"text": "The answer is A.", "tokens": 5, "truncated": False}
    return Answer(question_id=item.id, policy="p", sampling="s", generation=0, seed=0, **found)


def vote_summary(questions: int, kept: int, tokens: int, seconds: float) -> VoteSummary:
    nothing = measure_quality([], config("sequential").voting, dict)
    quality = nothing.model_copy(update={"questions": questions, "kept": kept, "tokens": tokens})
    return VoteSummary(votes_taken_now=0, seconds=seconds, tokens=tokens, quality=quality)


def synthesis_progress(replies_per_s: float, accepted_share: float) -> dict[str, Any]:
    counts = dict.fromkeys(("accepted", "wanted", "judged", "in_flight", "usd", "tokens", "attempts", "lost"), 0)
    rates = {"replies_per_s": replies_per_s, "accepted_share": accepted_share, "eta_s": None}
    return SynthesisProgress(time=0.0, endpoints=(), **counts, **rates).model_dump(mode="json")


def test_rates_of_a_run(measured):
    root, write = measured
    write("clock.json", {"synthesize": 99, "vote": 100.0, "stage1": 130.0})
    synthesis = summary(seconds=60, held_s=10, requests_sent=200, accepted=150, requested=300)
    write("synthesis/summary.json", synthesis.model_dump(mode="json"))
    write("voting/summary.json", vote_summary(questions=50, kept=20, tokens=36000, seconds=7).model_dump(mode="json"))
    events = [(5.0, "a", "start"), (5.5, "b", "start"), (15.0, "b", "ready"), (17.0, "a", "ready")]
    write("voting/engines.jsonl", [asdict(EngineEvent(*event, detail="")) for event in events])
    times = {"seconds_generate": 20.0, "seconds_experience": 3.0, "seconds_update": 6.0, "seconds_sync": 1.0}
    steps = [make_metrics(number, **times, seconds=30.0, seconds_wait=wait) for number, wait in ((1, 12.0), (2, 0.0))]
    append_steps(RunPaths(root).stage("stage1").metrics, *steps)
    questions = {name: [question(number) for number in numbers] for name, numbers in BENCHMARKS.items()}
    given = PolicyAnswers(list_rules("tiny"), generations=1)
    given.first |= {(item.id, 0): answer(item) for items in questions.values() for item in items}
    answers = {"base": given, "stage1": given}
    letters, seconds = collect_letters(questions, answers), dict.fromkeys(answers, 2.0)
    scores = build_scores(questions, answers, letters, Evaluation(benchmarks=["b"], generations=1), 0, seconds)
    write_report(scores, letters, RunPaths(root).evaluation)
    found = read_rates(root)
    assert (found.source, found.mode, found.slots) == (root.resolve(), "sequential", SLOTS)
    assert found.questions_per_s == 200 / 50 * 0.5
    assert found.vote == VoteRate(36000 / 90, 720.0, 0.4, 16, 10.0)
    assert found.stages == {"stage1": StageRate(14.0, 9.0, 1.0, 256, 70.0)}
    assert found.answers_per_s == 4.0


def test_rates_of_a_running_synthesis(measured):
    root, write = measured
    write("synthesis/progress.json", synthesis_progress(8.0, 0.75))
    found = read_rates(root)
    assert found.questions_per_s == 6.0 and found.vote is None and found.stages == {}


def test_no_rates(measured, tmp_path):
    assert read_rates(tmp_path / "nothing") is None
    assert read_rates(measured[0]) is None


def test_removed_keys_of_an_earlier_version_are_ignored(measured):
    root, _ = measured
    file = root / "config.resolved.json"
    expected, tree = read_rates(root), read_json(file)
    for key, removed in REMOVED_KEYS.items():
        *sections, name = key.split(".")
        functools.reduce(operator.getitem, sections, tree)[name] = removed.value
    file.write_text(json.dumps(tree))
    assert read_rates(root) == expected


def test_settings_of_another_version_are_refused(measured):
    root, _ = measured
    file = root / "config.resolved.json"
    tree = read_json(file)
    tree["voting"]["shard_size"] = 64
    file.write_text(json.dumps(tree))
    with pytest.raises(InputError, match="by another version"):
        read_rates(root)


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A config that a dry run can read."""
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")

    def file(name, first):
        path = tmp_path / name
        path.write_text("".join(question(number).model_dump_json() + "\n" for number in range(first, first + 6)))
        return str(path)

    return config(
        "sequential",
        policy={"model": "embedded:smollm2-135m"},
        synthesis={"seeds": [file("seeds.jsonl", 0)], "alpha": 0.0},
        training={"stage2": {"data": [file("gold.jsonl", 10)]}},
        evaluation={"benchmarks": [file("bench.jsonl", 20)]},
    )


def test_a_dry_run_without_rates_explains_how_to_get_them(planned, tmp_path, capsys):
    dry_run(planned, tmp_path / "run", STEPS)
    out = capsys.readouterr().out
    assert "rates             none known" in out and "--rates RUN_DIR" in out
    times = out.partition("wall time:")[2]
    for name in ("synthesize", "vote", "stage1", "stage2", "evaluate"):  # each has a row, and none has a guess
        assert f"  {name:<18}unknown, not measured: " in times
    with pytest.raises(InputError, match="no step of a run was measured there"):
        dry_run(planned, tmp_path / "run", STEPS, tmp_path / "nothing")


def test_a_dry_run_uses_its_own_rates_or_those_of_a_run(planned, measured, tmp_path, capsys):
    root, write = measured
    write("synthesis/progress.json", synthesis_progress(10.0, 1.0))
    dry_run(planned, tmp_path / "run", STEPS, root)
    out = capsys.readouterr().out
    assert f"of {root.resolve()}" in out
    assert "sequential        2 min on these cores = synthesize 2 min; without vote, stage1, stage2, evaluate" in out
    with open_run(tmp_path / "run", planned):
        pass
    write_json(RunPaths(tmp_path / "run").synthesis.progress, synthesis_progress(50.0, 1.0))
    dry_run(planned, tmp_path / "run", STEPS)
    assert "sequential        20 s on these cores = synthesize 20 s; without" in capsys.readouterr().out


def test_a_single_step_has_its_time_and_no_forecast_of_the_run(planned, tmp_path, capsys):
    dry_run(planned, tmp_path / "run", ("synthesize",))
    out = capsys.readouterr().out
    assert "  synthesize        unknown, not measured: " in out and "stream   " not in out
