"""The closing table: complete, partly run, and empty run folders."""

from dataclasses import replace

import pytest
from synthesis_examples import summary

from medssr_dist.config.voting import Voting
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.wilson import measure_share
from medssr_dist.errors import InputError
from medssr_dist.evaluation.scores import (
    Accuracy,
    BenchmarkFacts,
    Difference,
    PolicyScores,
    ProtocolScores,
    ProtocolSettings,
    Score,
    Scores,
)
from medssr_dist.run.paths import RunPaths
from medssr_dist.summary.closing_table import WIDTH, RunSummary, StepUsage, build_summary, render_summary
from medssr_dist.synthesis.synthesis_summary import AlphaShares
from medssr_dist.training.stage_job import StageSummary
from medssr_dist.voting.quality import measure_quality
from medssr_dist.voting.quality_records import VoteRates, VoteSummary

SYNTHESIS = summary(
    requested=40,
    accepted=36,
    rejected_by_reason={"not_json": 1, "duplicate": 3},
    alpha=AlphaShares(asked=0.5, requests=measure_share(19, 40), accepted=measure_share(18, 36)),
    seconds=10.0,
    tokens=5000,
)
EMPTY = measure_quality([], Voting(samples=8), lambda question: None)
QUALITY = EMPTY.model_copy(
    update={
        "questions": 36,
        "labeled": 30,
        "kept": 12,
        "ties": 4,
        "all_invalid": 2,
        "agree_with_truth": 5,
        "truth_known": 10,
        "precision": measure_share(5, 10),
        "votes": 216,
        "votes_requested": 288,
        "votes_saved": 72,
        "rates": VoteRates(saved=0.25, invalid=0.125, truncated=0.0625),
        "tokens": 9000,
    }
)
VOTING = VoteSummary(votes_taken_now=216, seconds=60.0, tokens=9000, quality=QUALITY)
STAGE = StageSummary(
    prompts=8, skipped_too_long=0, old_logprobs="", steps=2, reward_by_step=[0.25, 0.5], seconds=100.0, tokens=1000
)
SCORE = Score(
    questions=10,
    answers=40,
    accuracy=0.25,
    std=0.05,
    per_generation=(0.2, 0.3),
    interval=(0.2, 0.31),
    recovered=3,
    invalid=2,
    truncated=0,
    letters={"A": 38, "none": 2},
)
TABLES = {
    "benchmarks": {"medqa": SCORE, "pubmedqa": SCORE},
    "macro": Accuracy(accuracy=0.25, std=0.05, per_generation=(0.2, 0.3), interval=(0.21, 0.3)),
    "rare": SCORE,
}
POLICY = PolicyScores(protocols={"ours": ProtocolScores(**TABLES)}, tokens=300, seconds=5)
FACTS = BenchmarkFacts(questions=10, rare=10, rare_by={"auto": 10}, truth_letters={"A": 6, "B": 4}, constant=0.6)
SCORES = Scores(
    protocol=ProtocolSettings(generations=4, temperature=0.6, top_p=0.95, top_k=20, max_tokens=64, random_seed=42),
    benchmarks=dict.fromkeys(("medqa", "pubmedqa"), FACTS),
    policies={"base": POLICY, "stage1": POLICY},
    differences=(
        Difference(
            protocol="ours",
            first="base",
            second="stage1",
            on="macro average",
            difference=0.021,
            interval=(0.004, 0.038),
            p=0.016,
            questions=20,
        ),
    ),
)


def write_steps(folder, **steps):
    """Write the summaries of `steps` where the steps write them."""
    for name, found in steps.items():
        dump = vars(found) if isinstance(found, StageSummary) else found
        write_json(
            RunPaths(folder).step(name).summary, dump if isinstance(dump, dict) else dump.model_dump(mode="json")
        )
    return folder


def whole_run(folder, stage=STAGE):
    return write_steps(folder, synthesize=SYNTHESIS, vote=VOTING, stage1=stage, stage2=stage, evaluate=SCORES)


def test_whole_run(tmp_path):
    RunPaths(whole_run(tmp_path)).voting.votes.mkdir()
    write_json(RunPaths(tmp_path).clock_file, {"run": 280.0, "vote": 75.0})
    found = build_summary(tmp_path)
    assert RunSummary.model_validate_json(found.model_dump_json()) == found
    assert found.steps.vote == VOTING and found.steps.evaluate == SCORES
    assert found.time["evaluate"] == StepUsage(seconds=10, tokens=600, tokens_per_second=60.0)
    assert found.time["vote"].seconds == 75.0, "the clock counts all attempts, the step's summary the last"
    assert found.files["vote"] == ["voting/votes"]
    text = render_summary(found)
    for part in (
        "requests 40, accepted 36 of 40 (90.0%); ended by count",
        "4: duplicate 3, not_json 1",
        "asked 0.500, achieved 0.475 (0.329 to 0.625) of requests",
        "labeled 30 of 36 (83.3%), ties 4, no valid vote 2",
        "12 of 36 (33.3%)",
        "5 of 10 (50.0%) of the kept labels with a truth agree (95%: 23.7% to 76.3%; by chance -)",
        "216 taken, 72 of 288 (25.0%) saved; of those taken 12.5% invalid, 6.2% truncated",
        "1:0.250  2:0.500",
        "medqa 60.0 25.0 (20.0 to 31.0) 25.0 (20.0 to 31.0)",
        "macro average 60.0 25.0 (21.0 to 30.0) 25.0",
        "rare diseases (auto) - 25.0 (20.0 to 31.0) 25.0",
        "accuracy, % constant base stage1",
        "stage1 - base, macro average: +2.1 (0.4 to 3.8), p 0.016",
        "recovered 6 6",
        "invalid 4 4",
        "voting/votes",
        "500.0",
        "280.0",
    ):
        assert " ".join(part.split()) in " ".join(text.split()), part
    assert "not run" not in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("run ")) <= WIDTH


def test_steps_not_run(tmp_path):
    text = render_summary(build_summary(write_steps(tmp_path, synthesize=SYNTHESIS)))
    assert text.count("not run") == 4
    empty = build_summary(tmp_path / "none")
    assert {found for _, found in empty.steps} == {None}
    assert render_summary(empty).count("not run") == 5


def test_nothing_accepted_labelled_or_timed(tmp_path):
    alpha = SYNTHESIS.alpha.model_copy(update={"accepted": measure_share(0, 0)})
    nothing = SYNTHESIS.model_copy(update={"accepted": 0, "alpha": alpha})
    votes = VoteSummary(votes_taken_now=0, seconds=0, tokens=0, quality=EMPTY)
    text = render_summary(build_summary(write_steps(tmp_path, synthesize=nothing, vote=votes)))
    assert "accepted 0 of 40 (0.0%)" in text and "- of accepted" in text and "0 of 0" in text


def test_long_training_shows_first_and_last_step(tmp_path):
    stage = replace(STAGE, steps=500, reward_by_step=[i / 500 for i in range(500)])
    text = render_summary(build_summary(whole_run(tmp_path, stage)))
    assert "1:0.000" in text and "500:0.998" in text and " 250:" not in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("run ")) <= WIDTH


def test_broken_summary_is_named(tmp_path):
    write_steps(tmp_path, synthesize=SYNTHESIS)
    RunPaths(tmp_path).synthesis.summary.write_text("{")
    with pytest.raises(InputError, match="synthesis/summary.json"):
        build_summary(tmp_path)
