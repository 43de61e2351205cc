import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import namedtuple

import pytest

from medssr_dist.config import Config
from medssr_dist.errors import InputError, Stopped
from medssr_dist.jsonl import read_jsonl
from medssr_dist.records import Question, content_hash
from medssr_dist.synthesis import client as client_module
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.outputs import Outputs
from medssr_dist.synthesis.parse import parse_reply
from medssr_dist.synthesis.run import Plan, synthesize
from medssr_dist.synthesis.teacher import start_teacher

Passage = namedtuple("Passage", "id title content source")
Entity = namedtuple("Entity", "id name")
ENTITIES = [Entity(f"X:{n}", f"Morbus {chr(65 + n)}lpha") for n in range(20)]
SEEDS = [
    Question.make(
        f"A {20 + n}-year-old man has sign {n}, sign {n + 1} and sign {n + 2}. What is the most likely diagnosis?",
        [f"Disease {chr(65 + (n + m) % 26)}{m}" for m in range(4)],
        source="t",
        truth="A",
    )
    for n in range(40)
]


def retrieve(name):
    features = "; ".join(f"{name[7].lower()} finding {n}" for n in range(8))
    own = Passage(f"p-{name}", name, f"{name} is a rare disease. Very frequent features are {features}.", "t")
    return [own, Passage("p-o", "Other disease", "Other disease. Frequent features are pallor; cough; fever.", "t")]


def config(base_url="offline-teacher", questions=40, alpha=0.5, **endpoint):
    return Config.model_validate(
        {
            "policy": {"model": "x"},
            "synthesis": {
                "questions": questions,
                "alpha": alpha,
                "seeds": ["x"],
                "endpoint": {"base_url": base_url, "model": "teacher", "concurrency": 8, "timeout_s": 2, **endpoint},
            },
            "training": {"stage2": {"enabled": False}},
        }
    )


def run(cfg, folder, **options):
    return synthesize(cfg, folder, SEEDS, retrieve, ENTITIES, "c0ffee", **options)


def stats(base_url):
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats", timeout=5) as response:
        return json.load(response)


def journaled(folder):
    lines = (folder / "journal.jsonl").read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    return [json.loads(line)["provenance"]["index"] for line in lines]


def files(folder):
    return [(folder / name).read_bytes() for name in ("questions.jsonl", "rejected.jsonl")]


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.02)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An undisturbed run and its folder."""
    folder = tmp_path_factory.mktemp("plain")
    return run(config(), folder), folder


def test_run_writes_questions_in_order_with_provenance(plain):
    summary, folder = plain
    questions = [Question.model_validate(row) for row in read_jsonl(folder / "questions.jsonl")]
    rejected = list(read_jsonl(folder / "rejected.jsonl"))
    indices = [question.provenance.index for question in questions]
    assert sorted(indices + [row["index"] for row in rejected]) == list(range(40)) and indices == sorted(indices)
    assert summary["accepted"] == len(questions) and sum(summary["rejected_by_reason"].values()) == len(rejected)
    assert summary["requests_sent"] == summary["http_attempts"] == 40 and summary["requests_replayed"] == 0
    rare = [question for question in questions if question.rare]
    assert summary["alpha"]["asked"] == 0.5
    assert summary["alpha"]["achieved_accepted"] == pytest.approx(len(rare) / len(questions))
    for question in rare:
        provenance = question.provenance
        assert provenance.rho < 0.5 and provenance.passage_ids == (f"p-{provenance.entity}", "p-o")
        assert provenance.commit == "c0ffee" and provenance.entity_id.startswith("X:")
    paid = list(read_jsonl(folder / "journal.jsonl"))
    assert summary["prompt_tokens"] == sum(row["prompt_tokens"] for row in paid)
    assert summary["tokens"] == summary["completion_tokens"] == sum(row["completion_tokens"] for row in paid)
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_finished_folder_asks_nothing_and_changes_nothing(plain):
    summary, folder = plain
    before = files(folder)
    again = run(config(base_url="http://127.0.0.1:1/v1"), folder)  # nobody answers there
    assert again == summary and files(folder) == before


def test_changed_prompts_are_refused_before_anything_is_sent(plain):
    _, folder = plain
    with pytest.raises(InputError, match="replies to other prompts .first at request"):
        run(config(alpha=1.0), folder)
    with pytest.raises(InputError, match="another --run-dir"):
        run(config(temperature=0.5), folder)


def test_faults_change_nothing_but_the_tries(plain, tmp_path):
    options = [f"--rate-{kind}=0.07" for kind in ("429", "500", "hang", "reset", "truncated", "nonjson")]
    with start_teacher(tmp_path / "log", options=options) as url:
        summary = run(config(url, timeout_s=0.5, retries=10), tmp_path / "run")
    assert summary["http_attempts"] > 40
    texts = [
        [(row["stem"], row["options"]) for row in read_jsonl(folder / "questions.jsonl")]
        for folder in (plain[1], tmp_path / "run")
    ]
    assert texts[0] == texts[1]


def test_bad_questions_are_rejected_with_reasons(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-bad-question", "0.5"]) as url:
        summary = run(config(url, questions=60), tmp_path / "run")
    assert set(summary["rejected_by_reason"]) >= {"option_count", "duplicate_options", "answer_leaked", "not_parsable"}
    assert 10 < sum(summary["rejected_by_reason"].values()) < 50


def test_torn_journal_tail_is_asked_again_only_for_that_request(plain, tmp_path):
    _, folder = plain
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    torn = json.loads(lines[-1])["provenance"]["index"]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines)[:-30])
    summary = run(config(), tmp_path)
    assert (summary["requests_sent"], summary["requests_replayed"]) == (1, 39)
    assert journaled(tmp_path)[-1] == torn
    assert files(tmp_path) == files(folder)


def test_stop_keeps_what_is_on_the_wire_and_goes_on_later(plain, tmp_path):
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.1"]) as url:
        started = time.monotonic()
        with pytest.raises(Stopped):
            run(config(url), tmp_path / "run", should_stop=lambda: time.monotonic() - started > 0.3)
        kept = len(list(read_jsonl(tmp_path / "run" / "journal.jsonl")))
        assert 0 < kept < 40 and not (tmp_path / "run" / "summary.json").exists()
        summary = run(config(url), tmp_path / "run")
        assert summary["requests_replayed"] == kept
        assert set(stats(url)["replies"].values()) == {1}  # none was paid for twice, not even those in flight
    assert files(tmp_path / "run") == files(plain[1])


_CHILD = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("case", sys.argv[1])
case = importlib.util.module_from_spec(spec); spec.loader.exec_module(case)
case.run(case.config(sys.argv[3]), Path(sys.argv[2]))
"""


def test_kill_9_loses_no_reply_and_pays_none_twice(plain, tmp_path):
    folder = tmp_path / "run"
    journal = folder / "journal.jsonl"
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.1"]) as url:
        plan = Plan(config(url), SEEDS, retrieve, ENTITIES, "c0ffee")
        for share in (1, 12):
            command = [sys.executable, "-c", _CHILD, __file__, str(folder), url]
            child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while child.poll() is None and (not journal.exists() or journal.read_bytes().count(b"\n") < share):
                time.sleep(0.01)
            assert child.poll() is None, "the run ended before it was killed"
            child.send_signal(signal.SIGKILL)
            child.wait()
        kept, before = journaled(folder), stats(url)["replies"]
        assert 12 <= len(kept) < 40
        summary = run(config(url), folder)
        after = stats(url)["replies"]
    assert summary["requests_replayed"] == len(kept)
    assert sorted(journaled(folder)) == list(range(40))
    for index in kept:  # what was on disk was never asked for again
        key = content_hash(plan.request(index).messages)
        assert after[key] == before[key]
    assert sum(after.values()) - 40 <= 2 * 8  # only what was in flight at the two kills
    assert files(folder) == files(plain[1])


def test_outputs_grow_as_complete_prefixes(tmp_path):
    plan = Plan(config(questions=3), SEEDS, retrieve, ENTITIES, "c")
    replies = [json.dumps({"question": f"Q{n}?", "options": ["x", "y"]}) for n in range(3)]
    path = tmp_path / "questions.jsonl"
    with Journal(tmp_path / "journal.jsonl") as journal:
        outputs = Outputs(tmp_path, journal, 3, [])
        for index, lines in ((1, 0), (0, 2), (2, 3)):
            provenance = plan.request(index).provenance
            assert parse_reply(replies[index], provenance).stem == f"Q{index}?"
            journal.append(
                JournalEntry(
                    provenance=provenance, reply=replies[index], model="m", prompt_tokens=1, completion_tokens=1
                )
            )
            outputs.advance()
            assert len(path.read_bytes().splitlines()) == lines
        outputs.close()


def test_dead_endpoint_mid_run_ends_with_the_reason_and_keeps_replies(tmp_path):
    with start_teacher(tmp_path / "log") as url:
        run(config(url, questions=5), tmp_path / "run")
    refused = pytest.raises(InputError, match=r"keeps failing .* HTTP 500.*; 5 replies are kept")
    with start_teacher(tmp_path / "log", options=["--rate-500", "1"]) as url, refused:
        run(config(url, questions=40, retries=1), tmp_path / "run")


def test_unusable_inputs(tmp_path):
    with pytest.raises(InputError, match="at least 2"):
        synthesize(config(), tmp_path, SEEDS[:1], retrieve, ENTITIES, "c")
    with pytest.raises(InputError, match="synthesis.alpha=0"):
        synthesize(config(), tmp_path, SEEDS, retrieve, [], "c")
    with pytest.raises(InputError, match="is down"):
        run(config("http://127.0.0.1:1/v1", retries=1), tmp_path)


def test_key_is_in_no_file_and_no_message(tmp_path, capfd):
    key = "sk-very-secret-0123456789"
    with start_teacher(tmp_path / "log", options=["--rate-500", "0.2"]) as url:
        run(config(url, questions=10, api_key=key), tmp_path / "run")
    with start_teacher(tmp_path / "log", options=["--rate-401", "1"]) as url, pytest.raises(InputError) as error:
        run(config(url, questions=12, api_key=key), tmp_path / "run")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    captured = capfd.readouterr()
    assert key.encode() not in written and key not in captured.out + captured.err + repr(error.value)


def test_light_imports():
    code = (
        "import sys, medssr_dist.synthesis.run, medssr_dist.synthesis.teacher.cli\n"
        "print([name for name in ('torch', 'vllm', 'ray', 'pyhpo', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
