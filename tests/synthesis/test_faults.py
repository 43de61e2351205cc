"""The synthesize step under faults: lost replies and replies that are paid twice are counted.

The teacher runs in a separate process and counts the whole replies that it served for each request. A served reply
that is not in the journal is lost; each reply after the first one to a request is paid twice.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
from config_builder import make_config
from tqdm import tqdm

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import Question, hash_content
from medssr_dist.errors import InputError
from medssr_dist.knowledge.entities import Entity
from medssr_dist.offline_teacher import start_teacher
from medssr_dist.synthesis.client import backoff, rate_limits
from medssr_dist.synthesis.request_plan import RequestPlan
from medssr_dist.synthesis.synthesize import SynthesisInputs, synthesize

ACCEPTED = 60
CONCURRENCY = 8
BILLED_UNSEEN = ("hang", "reset", "truncated", "wrong_schema")  # faults after the request was received
BATCH = {"transport": "batch", "batch_size": 25, "poll_s": 0.02}
PATIENT = {"first_byte_s": 0.3, "whole_s": 0.5, "tries": 20, "patience_s": 30}

Passage = namedtuple("Passage", "id title content source")
OTHER = Passage("p-o", "Other disease", "Other disease. Frequent features are pallor; cough; fever.", "t")
ENTITIES = [Entity(f"X:{n}", f"Morbus {chr(65 + n)}lpha") for n in range(20)]
SEEDS = [
    Question.make(
        f"A {20 + n % 60}-year-old man has sign {n}, sign {n + 1} and sign {n + 2}. What is the most likely diagnosis?",
        [f"Disease {chr(65 + (n + m) % 26)}{m}" for m in range(4)],
        source="t",
    )
    for n in range(400)  # so many that no two requests are equal: a request is identified by the hash of its messages
]


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch):
    monkeypatch.setattr(backoff, "BACKOFF_FIRST_S", 0.02)
    monkeypatch.setattr(backoff, "BACKOFF_LAST_S", 0.2)
    monkeypatch.setattr(rate_limits, "FIRST_COOLDOWN_S", 0.1)


def settings(url, retry=PATIENT, accepted=ACCEPTED, more_urls=(), **more):
    """Return a config. The invented seeds are near-duplicates of each other, so that check is off."""
    endpoints = [{"base_url": each, "model": "teacher", "concurrency": CONCURRENCY} for each in (url, *more_urls)]
    synthesis = {"accepted": accepted, "endpoints": endpoints, "retry": retry, "checks": {"near_duplicate": 0}}
    return make_config(synthesis=synthesis | more)


def retrieve(name):
    features = "; ".join(f"{name.split()[1].lower()} finding {n}" for n in range(8))
    own = Passage(f"p-{name}", name, f"{name} is a rare disease. Very frequent features are {features}.", "t")
    return [own, OTHER]


def text_of(passage_id):
    return OTHER.content if passage_id == OTHER.id else retrieve(passage_id.removeprefix("p-"))[0].content


def run(config, folder):
    return synthesize(config, folder, SynthesisInputs(SEEDS, {}, ENTITIES, retrieve, text_of), "c0ffee")


def stats(base_url):
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats", timeout=5) as response:
        return json.load(response)


@dataclass(frozen=True)
class Counts:
    """Counts from the servers and the journal together."""

    served: int
    lost: int
    twice: int


def key_of(index, plan=[]):  # noqa: B006 - built once
    plan = plan or plan.append(RequestPlan(settings("http://h/v1"), SEEDS, ENTITIES, retrieve, "c0ffee")) or plan
    return hash_content(plan[0].build_request(index).messages)


def held(folder):
    """Return the requests whose reply is in the journal; text after its last newline is torn."""
    whole = (folder / "journal.jsonl").read_bytes().rpartition(b"\n")[0]
    (folder / "whole.jsonl").write_bytes(whole + b"\n")
    indices = [row["provenance"]["index"] for row in read_jsonl(folder / "whole.jsonl") if row["reply"] is not None]
    assert len(indices) == len(set(indices))
    return set(indices)


def count(name, folder, *seen):
    """Return the counts of a run, from the /stats of its servers."""
    served = sum((Counter(each["replies"]) for each in seen), Counter())
    known = {key_of(index) for index in held(folder)}
    result = Counts(served.total(), len(served.keys() - known), sum(times - 1 for times in served.values()))
    print(
        f"\n| {name} | {sum(sum(each['tries'].values()) for each in seen)} | {served.total()} | "
        f"{result.lost} | {result.twice} |"
    )
    return result


def accepted(folder):
    return [(row["stem"], row["options"]) for row in read_jsonl(folder / "questions.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The accepted questions of a run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with start_teacher(folder / "log") as url:
        run(settings(url), folder / "run")
    return accepted(folder / "run")


PASSING = {
    "1% 429": {"429": 0.01},
    "30% 429": {"429": 0.3},
    "30% 500": {"500": 0.3},
    "5% hang": {"hang": 0.05},
    "20% reset": {"reset": 0.2},
    "20% cut short": {"truncated": 0.2},
    "10% not JSON": {"nonjson": 0.1},
    "20% wrong schema": {"wrong_schema": 0.2},
    "7% of each": dict.fromkeys(("429", "500", "reset", "truncated", "nonjson", "wrong_schema"), 0.07),
}


@pytest.mark.parametrize(
    "name, transport", [*((name, "chat") for name in PASSING), ("30% 429", "batch"), ("7% of each", "batch")]
)
def test_temporary_faults_lose_nothing_and_pay_nothing_twice(undisturbed, tmp_path, name, transport):
    options = [f"--rate-{kind.replace('_', '-')}={rate}" for kind, rate in PASSING[name].items()]
    with start_teacher(tmp_path / "log", options=options) as url:
        summary = run(settings(url, **(BATCH if transport == "batch" else {})), tmp_path / "run")
        seen = stats(url)
    counts = count(f"{name}, {transport}", tmp_path / "run", seen)
    assert (counts.lost, counts.twice) == (0, 0)
    assert accepted(tmp_path / "run") == undisturbed
    assert summary.http_attempts == sum(seen["tries"].values()) and "no_reply" not in summary.rejected_by_reason
    if transport == "chat":
        assert summary.lost == sum(seen["outcomes"].get(kind, 0) for kind in BILLED_UNSEEN)


def test_faults_of_batch_calls_and_expiry(undisturbed, tmp_path):
    options = ["--rate-bad-call=0.3", "--rate-created-500=0.5", "--rate-batch-expired=0.3", "--rate-500=0.1"]
    with start_teacher(tmp_path / "log", options=options) as url:
        run(settings(url, **BATCH), tmp_path / "run")
        counts = count("batch: 30% bad calls, 50% created but 500, 30% expired", tmp_path / "run", stats(url))
    assert (counts.lost, counts.twice) == (0, 0) and accepted(tmp_path / "run") == undisturbed


ENDLESS = {
    "100% 429": (["--rate-429=1"], {"patience_s": 1}, "no endpoint has replied for patience_s = 1"),
    "100% 500": (["--rate-500=1"], {"patience_s": 1}, "no endpoint has replied for patience_s = 1"),
    "HTML from all": (["--rate-nonjson=1"], {"patience_s": 30}, "is no OpenAI-compatible API .it answers HTML"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_faults_that_do_not_pass_end_the_run_with_the_reason(undisturbed, tmp_path, name):
    options, retry, reason = ENDLESS[name]
    with start_teacher(tmp_path / "well") as well, start_teacher(tmp_path / "ill", options=options) as ill:
        run(settings(well, accepted=10), tmp_path / "run")
        with pytest.raises(InputError, match=reason):
            run(settings(ill, retry=PATIENT | retry), tmp_path / "run")
        run(settings(well), tmp_path / "run")
        counts = count(name, tmp_path / "run", stats(well), stats(ill))
        assert sum(stats(ill)["tries"].values()) < 600  # no flood of requests, although the waits are shortened here
    assert (counts.lost, counts.twice) == (0, 0) and accepted(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("transport", ["chat", "batch"])
def test_key_that_expires_midway_stops_at_once_with_the_reason(undisturbed, tmp_path, transport):
    more = BATCH if transport == "batch" else {}
    options = ["--expire-key-after", "25", "--latency-s", "0.02"]
    with start_teacher(tmp_path / "a", options=options) as expiring, start_teacher(tmp_path / "b") as valid:
        with pytest.raises(InputError, match="refuses the key"):
            run(settings(expiring, **more), tmp_path / "run")
        seen = stats(expiring)
        assert seen["outcomes"].get("401", 0) + seen["calls"].get("poll 401", 0) <= CONCURRENCY  # no flood of requests
        if transport == "batch":  # its batch can be fetched only with a valid key of the same account
            return
        run(settings(valid), tmp_path / "run")
        counts = count("key expires after 25", tmp_path / "run", seen, stats(valid))
    assert (counts.lost, counts.twice) == (0, 0) and accepted(tmp_path / "run") == undisturbed


def test_work_of_a_server_that_dies_moves_to_another(undisturbed, tmp_path):
    options = ["--die-after", "15", "--latency-s", "0.02"]
    slow = ["--latency-s", "0.02"]
    with start_teacher(tmp_path / "a", options=options) as dying, start_teacher(tmp_path / "b", options=slow) as living:
        summary = run(settings(dying, more_urls=[living]), tmp_path / "run")
        seen = stats(living)
    counts = count("server dies after 15, another continues", tmp_path / "run", seen)
    assert (counts.lost, counts.twice) == (0, 0) and accepted(tmp_path / "run") == undisturbed
    by_the_dead = len(held(tmp_path / "run")) - counts.served  # it exits at a try after its 15th reply
    assert 15 - CONCURRENCY <= by_the_dead <= 15 + CONCURRENCY and summary.lost <= CONCURRENCY


# ---- kills


def _run_in_child(url, folder, more):
    tqdm.set_lock(threading.RLock())  # the inherited lock is shared with the parent, and a kill would leave it locked
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    run(settings(url, accepted=120, **more), folder)


def _kill_at_random(url, folder, more, rng):
    """Start the run in a separate process and kill it with -9 at a random moment. Return whether it was killed."""
    moment = _seen(url) + rng.randint(0, 15)
    child = multiprocessing.get_context("fork").Process(target=_run_in_child, args=(url, folder, more))
    child.start()
    deadline = time.monotonic() + 20
    while child.is_alive() and _seen(url) < moment and time.monotonic() < deadline:
        time.sleep(0.005)
    child.join(rng.uniform(0, 0.06))
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode == -signal.SIGKILL


def _seen(url):
    """Return the number of tries and calls that the server has received."""
    seen = stats(url)
    return sum(seen["tries"].values()) + sum(seen["calls"].values())


def _settled(url):
    """Return /stats as soon as nothing is in flight."""
    while (seen := stats(url))["in_flight"]:
        time.sleep(0.01)
    return seen


def exposed(folder):
    """Return the requests that the run itself counts as possibly billed without a reply."""
    path = folder / "exposure.bin"
    return set(np.flatnonzero(np.fromfile(path, np.int32) > 0).tolist()) if path.exists() else set()


@pytest.mark.parametrize("transport", ["chat", "batch"])
def test_ten_kills_at_random_moments(tmp_path, transport):
    rng = random.Random(7)
    more = BATCH if transport == "batch" else {}
    options = ["--latency-s", "0.06", "--batch-delay-s", "0.15", "--rate-429", "0.05"]
    folder, unseen, kills = tmp_path / "run", 0, 0
    with start_teacher(tmp_path / "log", options=options) as url:
        for _ in range(10):
            kills += _kill_at_random(url, folder, more, rng)
            if transport == "chat":
                unseen += _check_kill(url, folder)
        summary = run(settings(url, accepted=120, **more), folder)
        seen = _settled(url)
    counts = count(f"10 x SIGKILL, {transport} ({unseen} in flight)", folder, seen)
    assert kills == 10 and counts.lost == 0 and summary.accepted == 120
    assert counts.twice == unseen  # only replies in flight at a kill were requested again, each once
    with start_teacher(tmp_path / "log2") as url:
        run(settings(url, accepted=120), tmp_path / "whole")
    assert accepted(folder) == accepted(tmp_path / "whole")


def _check_kill(url, folder, known={}):  # noqa: B006 - replies already seen without a journal line, by folder
    """Return the number of replies that this kill cost: served, but not in the journal. The run counts each of them."""
    served = Counter(_settled(url)["replies"])
    journal = held(folder) if (folder / "journal.jsonl").exists() else set()
    keys = {key_of(index): index for index in range(300)}
    cost = Counter({keys[key]: times - (keys[key] in journal) for key, times in served.items()})
    before = known.setdefault(folder, Counter())
    fresh = cost - before
    assert set(fresh) <= exposed(folder) | journal
    known[folder] = cost
    return fresh.total()


# ---- the machine


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 96 KiB, and a function that enlarges it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_the_same_command_resumes(undisturbed, tmp_path, small_disk):
    folder, enlarge = small_disk
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.02"]) as url:
        with pytest.raises(InputError, match="no space left"):
            run(settings(url), folder / "run")
        enlarge()
        kept = held(folder / "run")
        in_flight = exposed(folder / "run")
        run(settings(url), folder / "run")
        counts = count(f"disk full ({len(in_flight)} in flight)", folder / "run", stats(url))
    assert kept and counts.lost == 0 and counts.twice <= len(in_flight) <= 2 * CONCURRENCY
    assert accepted(folder / "run") == undisturbed


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
def test_a_jump_of_the_clock_changes_nothing(undisturbed, tmp_path, monkeypatch, jump_s):
    options = ["--latency-s", "0.03", "--rate-429", "0.1", "--retry-after", "1", "--retry-after-date"]
    began, real = time.monotonic(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + (jump_s if time.monotonic() - began > 1.0 else 0))
    with start_teacher(tmp_path / "log", options=options) as url:
        run(settings(url), tmp_path / "run")
        counts = count(f"clock jumps {jump_s:+} s", tmp_path / "run", stats(url))
    assert (counts.lost, counts.twice) == (0, 0) and accepted(tmp_path / "run") == undisturbed
