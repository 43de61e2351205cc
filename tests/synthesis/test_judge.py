"""The judge on the real client: verdicts are journaled once, counted by reason, and decide what is kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from config_builder import make_config
from places import HELPERS
from synthesis_run import config, files, journaled, run, stats

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError, Stopped
from medssr_dist.offline_teacher import start_teacher
from medssr_dist.offline_teacher.replies import read_request
from medssr_dist.offline_teacher.verdicts import compose_verdict, read_judged_question
from medssr_dist.synthesis.judge import CRITERIA, NotJudged, VerdictScores, build_verdict_messages, read_verdict

JUDGE = {"reasoning": 4, "answerability": 3, "plausibility": 5}


def verdict_indices(folder):
    return [row["provenance"]["index"] for row in read_jsonl(folder / "verdicts.jsonl")]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The summary and the folder of a run with a judge."""
    folder = tmp_path_factory.mktemp("judged")
    return run(config(accepted=25, candidates=200, judge=JUDGE), folder), folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"reasoning": 4, "answerability": 5, "plausibility": 3}', VerdictScores(4, 5, 3)),
        (
            'Here it is:\n```json\n{"reasoning": "4", "answerability": 5,\n "plausibility": 3}\n```',
            VerdictScores(4, 5, 3),
        ),
        (
            '<think>{"reasoning": 1, "answerability": 1, "plausibility": 1}</think>\n'
            '{"plausibility": 3, "reasoning": 4, "answerability": 5, "note": "good"}',
            VerdictScores(4, 5, 3),
        ),
        (
            '{"reasoning": 1, "answerability": 1, "plausibility": 1} No: '
            '{"reasoning": 4, "answerability": 5, "plausibility": 3}',
            VerdictScores(4, 5, 3),
        ),
    ],
)
def test_verdicts_are_read(text, expected):
    assert read_verdict(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would give 4, 5 and 3.",
        '{"reasoning": 4, "answerability": 5}',
        '{"reasoning": 4, "answerability": 5, "plausibility": 6}',
        '{"reasoning": 4, "answerability": 5, "plausibility": 2.5}',
        '{"reasoning": true, "answerability": 5, "plausibility": 3}',
        '{"reasoning": [4], "answerability": 5, "plausibility": 3}',
        '{"reasoning": 4, "answerability": 5, "plausi',
        '<think>{"reasoning": 4, "answerability": 5, "plausibility": 3}',
    ],
)
def test_nonsense_is_no_verdict(text):
    assert isinstance(read_verdict(text), NotJudged)


def test_the_offline_judge_scores_by_what_it_can_check():
    def scores(stem, options, passages=()):
        messages = build_verdict_messages(Question.make(stem, options, source="t"), passages)
        return json.loads(compose_verdict(read_judged_question(messages)))

    about = "Gouty arthritis is a disease. Frequent features are pain; swelling; fever."
    recall = scores(
        "Which gene causes gouty arthritis?", ["HPRT1", "a very long option that is no gene at all"], [about]
    )
    case = "A 40-year-old man has pain, swelling and fever of the toe. What is the most likely diagnosis?"
    sound = scores(case, ["Gouty arthritis", "Septic arthritis", "Osteoarthritis"], [about])
    assert sound == {"reasoning": 5, "answerability": 5, "plausibility": 5}
    assert recall["reasoning"] <= 2 and recall["answerability"] == 1 and recall["plausibility"] == 1
    assert scores(case, ["Gouty arthritis", "Septic arthritis"])["answerability"] == 3
    assert read_request({"messages": [{"role": "user", "content": "[Question]\nWhich?\nA. x\nB. y"}]}, True)


def test_questions_are_kept_and_refused_by_their_verdicts(judged):
    summary, folder = judged
    questions, rejected = list(read_jsonl(folder / "questions.jsonl")), list(read_jsonl(folder / "rejected.jsonl"))
    verdicts = {row["provenance"]["index"]: read_verdict(row["reply"]) for row in read_jsonl(folder / "verdicts.jsonl")}
    assert len(verdict_indices(folder)) == len(verdicts)
    assert summary.accepted == len(questions) == 25
    kept = [verdicts[row["provenance"]["index"]] for row in questions]
    assert all(score >= JUDGE[name] for scores in kept for name, score in scores._asdict().items())
    refused = [(row["index"], row["reason"].removeprefix("judge_")) for row in rejected if "judge" in row["reason"]]
    assert refused and all(getattr(verdicts[index], name) < JUDGE[name] for index, name in refused)
    assert sum(count for reason, count in summary.rejected_by_reason.items() if "judge" in reason) == len(refused)
    assert (summary.judge.judged, summary.judge.not_judged) == (25 + len(refused), 0)
    assert all(sum(summary.judge.scores[name].values()) == summary.judge.judged for name in CRITERIA)
    paid = [*read_jsonl(folder / "journal.jsonl"), *read_jsonl(folder / "verdicts.jsonl")]
    assert summary.prompt_tokens == sum(row["prompt_tokens"] for row in paid)  # verdicts cost too
    card = (folder / "README.md").read_text()
    assert f"scored {summary.judge.judged} questions" in card and "| reasoning | 4 |" in card


def test_a_finished_folder_asks_nothing_again(judged):
    summary, folder = judged
    before = files(folder), (folder / "verdicts.jsonl").read_bytes()
    again = run(config(base_url="http://127.0.0.1:1/v1", accepted=25, candidates=200, judge=JUDGE), folder)
    assert again == summary and (files(folder), (folder / "verdicts.jsonl").read_bytes()) == before


def test_a_changed_judge_is_refused(judged):
    with pytest.raises(InputError, match="holds verdicts on other questions, or of another judge"):
        run(config(accepted=30, candidates=200, judge=JUDGE | {"max_tokens": 100}), judged[1])


@pytest.mark.parametrize("policy", ["keep", "refuse"])
def test_nonsense_is_counted_and_kept_or_refused(tmp_path, policy):
    with (
        start_teacher(tmp_path / "log") as url,
        start_teacher(tmp_path / "judge.log", options=["--rate-bad-question", "0.5"]) as bad,
    ):
        judge = {"endpoints": [{"base_url": bad, "model": "judge", "json_schema": True}], "not_judged": policy}
        judge |= dict.fromkeys(CRITERIA, 0)
        summary = run(config(url, accepted=20, candidates=200, judge=judge), tmp_path / "run")
    assert summary.judge.models == ["judge"] and summary.judge.not_judged > 0
    assert summary.accepted == 20
    refused = summary.rejected_by_reason.get("not_judged", 0)
    assert refused == (summary.judge.not_judged if policy == "refuse" else 0)


def test_a_judge_that_is_down_loses_nothing(tmp_path):
    with start_teacher(tmp_path / "log") as url:
        judge = {"endpoints": [{"base_url": "http://127.0.0.1:1/v1", "model": "teacher"}]} | JUDGE
        with pytest.raises(InputError, match="127.0.0.1:1"):
            run(config(url, accepted=10, candidates=100, judge=judge), tmp_path / "run")
        paid = journaled(tmp_path / "run")
        assert paid
        run(config(url, accepted=10, candidates=100, judge=JUDGE), tmp_path / "run")
    assert journaled(tmp_path / "run")[: len(paid)] == paid


def test_the_budget_counts_verdicts(tmp_path):
    with start_teacher(tmp_path / "log") as url:
        summary = run(config(url, budget={"tokens": 20_000}, judge=JUDGE), tmp_path / "run")
    assert summary.stopped_by == "budget" and summary.prompt_tokens + summary.completion_tokens <= 20_000
    assert verdict_indices(tmp_path / "run")
    with pytest.raises(ValueError, match="budget.usd needs the price of 'other'"):
        judge = {"endpoints": [{"base_url": "http://h/v1", "model": "other"}]}
        make_config(synthesis={"budget": {"usd": 1}, "prices": {"m": {"prompt": 1, "completion": 1}}, "judge": judge})


def test_questions_in_batches_are_judged_in_chat_mode(judged, tmp_path):
    with start_teacher(tmp_path / "log") as url:
        settings = config(url, accepted=25, candidates=200, judge=JUDGE, transport="batch", batch_size=20, poll_s=0.05)
        run(settings, tmp_path / "run")
    assert files(tmp_path / "run") == files(judged[1])


def test_a_stopped_run_pays_no_verdict_twice(judged, tmp_path):
    verdicts = tmp_path / "run" / "verdicts.jsonl"
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.05"]) as url:
        settings = config(url, accepted=25, candidates=200, judge=JUDGE)
        with pytest.raises(Stopped):
            run(settings, tmp_path / "run", should_stop=lambda: verdicts.exists() and verdicts.stat().st_size > 0)
        run(settings, tmp_path / "run")
        assert set(stats(url)["replies"].values()) == {1}
    assert files(tmp_path / "run") == files(judged[1])


def test_kill_9_gives_the_same_questions(judged, tmp_path):
    folder = tmp_path / "run"
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from synthesis_run import config, run\n"
        "run(config(sys.argv[2], accepted=25, candidates=200, judge=eval(sys.argv[4])), Path(sys.argv[3]))"
    )
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.05"]) as url:
        for lines in (1, 8):
            child = subprocess.Popen(
                [sys.executable, "-c", program, str(HELPERS), url, str(folder), repr(JUDGE)], stderr=subprocess.DEVNULL
            )
            verdicts = folder / "verdicts.jsonl"
            while child.poll() is None and not (verdicts.exists() and verdicts.read_bytes().count(b"\n") >= lines):
                time.sleep(0.01)
            assert child.poll() is None, "the run ended before it was killed"
            child.send_signal(signal.SIGKILL)
            child.wait()
        run(config(url, accepted=25, candidates=200, judge=JUDGE), folder)
        again = sum(count - 1 for count in stats(url)["replies"].values())
    assert len(set(verdict_indices(folder))) == len(verdict_indices(folder))
    assert again <= 2 * 2 * 8  # only requests in flight at the two kills
    assert files(folder) == files(judged[1])
