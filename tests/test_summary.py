"""The closing table: complete, partly run, and empty run folders."""

import json

import pytest

from medssr_dist.config.schema import Voting
from medssr_dist.data.wilson import measure_share
from medssr_dist.errors import InputError
from medssr_dist.summary import WIDTH, build_summary, render_summary
from medssr_dist.voting.quality import measure_quality
from medssr_dist.voting.quality_records import VoteRates, VoteSummary

SYNTHESIS = {
    "requested": 40,
    "accepted": 36,
    "rejected_by_reason": {"not_json": 1, "duplicate": 3},
    "alpha": {
        "asked": 0.5,
        "requests": {"share": 0.475, "low": 0.329, "high": 0.625, "count": 19, "of": 40},
        "accepted": {"share": 0.5, "low": 0.345, "high": 0.655, "count": 18, "of": 36},
    },
    "stopped_by": "count",
    "seconds": 10.0,
    "tokens": 5000,
}
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
VOTING = VoteSummary(votes_taken_now=216, seconds=60.0, tokens=9000, quality=QUALITY).model_dump(mode="json")
STAGE = {"steps": 2, "reward_by_step": [0.25, 0.5], "seconds": 100.0, "tokens": 1000}
SCORE = {"accuracy": 0.25, "std": 0.05, "invalid": 2, "recovered": 3}
SCORES = {
    "protocol": {"generations": 4},
    "policies": {
        name: {"benchmarks": {"medqa": SCORE, "pubmedqa": SCORE}, "macro": SCORE, "rare": None}
        | {"tokens": 300, "seconds": 5}
        for name in ("base", "stage1")
    },
}


def fill(folder, **files):
    for name, value in files.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name + ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    return folder


def whole_run(folder, stage=STAGE):
    fill(folder, synthesis__summary=SYNTHESIS, voting__summary=VOTING, training__stage1__summary=stage)
    return fill(folder, training__stage2__summary=stage, evaluation__scores=SCORES)


def test_whole_run(tmp_path):
    (whole_run(tmp_path) / "voting" / "votes").mkdir()
    fill(tmp_path, clock={"run": 280.0, "vote": 75.0})
    summary = build_summary(tmp_path)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["steps"]["vote"] == VOTING
    assert summary["time"]["evaluate"] == {"seconds": 10, "tokens": 600, "tokens_per_second": 60.0}
    assert summary["time"]["vote"]["seconds"] == 75.0, "the clock counts all attempts, the step's summary the last"
    assert summary["files"]["vote"] == ["voting/votes"]
    text = render_summary(summary)
    for part in (
        "requests 40, accepted 36 of 40 (90.0%); ended by count",
        "4: duplicate 3, not_json 1",
        "asked 0.500, achieved 0.475 (0.329 to 0.625) of requests",
        "labeled 30 of 36 (83.3%), ties 4, no valid vote 2",
        "12 of 36 (33.3%)",
        "5 of 10 (50.0%) of the kept labels with a truth agree (95%: 23.7% to 76.3%)",
        "216 taken, 72 of 288 (25.0%) saved; of those taken 12.5% invalid, 6.2% truncated",
        "1:0.250  2:0.500",
        "medqa 25.0 ± 5.0 25.0 ± 5.0",
        "macro average 25.0",
        "accuracy, % base stage1",
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
    text = render_summary(build_summary(fill(tmp_path, synthesis__summary=SYNTHESIS)))
    assert text.count("not run") == 4
    empty = build_summary(tmp_path / "none")
    assert set(empty["steps"].values()) == {None}
    assert render_summary(empty).count("not run") == 5


def test_nothing_accepted_labelled_or_timed(tmp_path):
    none = {"share": None, "low": None, "high": None, "count": 0, "of": 0}
    nothing = SYNTHESIS | {"accepted": 0, "alpha": SYNTHESIS["alpha"] | {"accepted": none}}
    votes = VoteSummary(votes_taken_now=0, seconds=0, tokens=0, quality=EMPTY).model_dump(mode="json")
    text = render_summary(build_summary(fill(tmp_path, synthesis__summary=nothing, voting__summary=votes)))
    assert "accepted 0 of 40 (0.0%)" in text and "- of accepted" in text and "0 of 0" in text


def test_long_training_shows_first_and_last_step(tmp_path):
    stage = STAGE | {"steps": 500, "reward_by_step": [i / 500 for i in range(500)]}
    text = render_summary(build_summary(whole_run(tmp_path, stage)))
    assert "1:0.000" in text and "500:0.998" in text and " 250:" not in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("run ")) <= WIDTH


def test_broken_summary_is_named(tmp_path):
    fill(tmp_path, synthesis__summary=SYNTHESIS)
    (tmp_path / "synthesis" / "summary.json").write_text("{")
    with pytest.raises(InputError, match="synthesis/summary.json"):
        build_summary(tmp_path)
