"""The vote ledger with broken files, random kills and a full disk: no vote is lost, doubled or mixed."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_writer import K, fill, keep_lines, label, names, question, vote
from places import HELPERS, REPO
from stored_votes import stored_labels, stored_votes

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.run.paths import VotingPaths, vote_segment
from medssr_dist.voting import segments
from medssr_dist.voting.ledger import VoteLedger, read_ledger_counts

WRITER = HELPERS / "ledger_writer.py"


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_QUESTIONS", 4)


# --- broken files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [b"{broken\n", b"[1]\n", b'{"seed": 1}\n', b"\xff\n", b"\x00\x00\n"])
def test_a_broken_vote_without_checksums_is_named(tmp_path, line):
    """As in a file of an earlier version."""
    fill(tmp_path, 1, labels=0)
    file = tmp_path / "votes" / "00000.jsonl"
    rows = [json.dumps(row).encode() + b"\n" for row in read_jsonl(file)]
    file.write_bytes(b"".join([*rows[:2], line, *rows[2:]]))
    with pytest.raises(InputError, match=r"00000\.jsonl (line 3|is not UTF-8)"):
        VoteLedger(tmp_path, "p", "s")


@pytest.mark.parametrize("line", [b"{broken\n", b"[1]\n", b'{"seed": 1}\n', b"\xff\n", b"\x00\x00\n"])
def test_a_damaged_vote_is_dropped_and_taken_again(tmp_path, caplog, line):
    fill(tmp_path, 1, labels=0)
    file = tmp_path / "votes" / "00000.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*rows[:2], line, *rows[3:]]))
    with VoteLedger(tmp_path, "p", "s") as ledger:
        known = ledger.known_votes(0, question(0))
        assert len(known) == K - 1 and "00000.jsonl line 3 does not match its checksum" in caplog.text
        ledger.add_votes(0, [vote(0, seed) for seed in range(K)])
    assert sorted(vote.seed for vote in stored_votes(tmp_path)) == list(range(K))
    assert len(file.read_bytes().splitlines()) == K


@pytest.mark.parametrize("line", [b"{broken\n", b"[1]\n", b'{"kept": true}\n', b"\xff\n", b"\n"])
def test_a_broken_label_is_named(tmp_path, line):
    fill(tmp_path, 3)
    file = tmp_path / "labeled.jsonl"
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*rows[:2], line, *rows[2:]]))
    with pytest.raises(
        InputError, match=r"labeled\.jsonl line 3 (is not a label|does not match) .* the votes are kept"
    ):
        VoteLedger(tmp_path, "p", "s")


def test_a_torn_gzip_file_is_named(tmp_path):
    fill(tmp_path, 4)
    packed = tmp_path / "votes" / "00000.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-20])
    keep_lines(tmp_path / "labeled.jsonl", 1)
    with pytest.raises(InputError, match=r"00000\.jsonl\.gz is not a whole gzip file"):
        VoteLedger(tmp_path, "p", "s")
    with pytest.raises(InputError, match=r"00000\.jsonl\.gz is not a whole gzip file"):
        stored_votes(tmp_path)
    assert names(tmp_path) == ["00000.jsonl.gz"]


@given(st.data())
@settings(max_examples=60)
def test_a_torn_tail_loses_only_the_torn_vote(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("ledger")
    fill(folder, 2, labels=0)
    file = folder / "votes" / "00000.jsonl"
    written = file.read_bytes()
    cut = data.draw(st.integers(0, len(written)))
    file.write_bytes(written[:cut])
    whole = written[:cut].count(b"\n")
    with VoteLedger(folder, "p", "s") as ledger:
        assert len(ledger.known_votes(0, question(0))) + len(ledger.known_votes(1, question(1))) == whole
        for position in (0, 1):
            ledger.add_votes(position, [vote(position, seed) for seed in range(K)])
    assert sorted(vote.key for vote in stored_votes(folder)) == sorted(vote(i, s).key for i in (0, 1) for s in range(K))


# --- faults -----------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("vote"), st.integers(0, 9), st.integers(0, 3)),
        st.tuples(st.sampled_from(["label", "commit", "reopen"]), st.just(0), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 40), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=80)
def test_committed_votes_are_there_once_after_any_steps(tmp_path_factory, steps):
    """Compared with a set: votes in any order and twice, labels, commits, and crashes that leave half a line."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger, taken, committed = VoteLedger(folder, "p", "s"), set(), set()
    decided = committed_labels = 0
    for kind, number, seed in [*steps, ("reopen", 0, 0)]:
        if kind == "vote":
            ledger.add_votes(number, [vote(number, seed)])
            taken |= {vote(number, seed).key} if number >= decided else set()
        elif kind == "label":
            ledger.add_label(decided, label(decided))
            decided += 1
        elif kind == "crash":
            ledger._packer.shutdown()
            torn = vote_segment(VotingPaths(folder).votes, segments.find_segment(committed_labels))
            with open(torn, "ab") as file:
                file.write(b'{"question_id": "torn'[:number])
            ledger, taken, decided = VoteLedger(folder, "p", "s"), set(committed), committed_labels
        else:
            ledger.commit()
            committed, committed_labels = set(taken), decided
            if kind == "reopen":
                ledger.close()
                ledger = VoteLedger(folder, "p", "s")
    ledger.close()
    keys = [vote.key for vote in stored_votes(folder)]
    assert len(keys) == len(set(keys))
    assert set(keys) == committed
    kept = sum(label(position).kept for position in range(committed_labels))
    assert read_ledger_counts(folder) == (committed_labels, kept, len(committed))


def start_writer(folder, questions, seed):
    command = [sys.executable, str(WRITER), "write", str(folder), str(questions), str(seed)]
    environment = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)


def test_random_kills_lose_and_double_nothing(tmp_path):
    """Each attempt resumes where the last one was killed; what it reported as written is on disk."""
    rng, reported, questions, kills = random.Random(5), set(), 320, 0
    while True:
        lines = []
        with start_writer(tmp_path, questions, kills) as writer:
            for _ in range(rng.randrange(1, 14)):
                lines.append(writer.stdout.readline())
            for _ in range(rng.randrange(3000)):  # a moment, to be within the next commit
                pass
            if kills < 10:
                writer.kill()
            lines += writer.stdout.read().splitlines(keepends=True)
        for words in (line.split() for line in lines if line.endswith(b"\n")):
            reported |= {tuple(map(int, word.split(b":"))) for word in words[:-1]}
            decided = int(words[-1])
        found = [(vote.question_id, vote.seed) for vote in stored_votes(tmp_path)]
        assert len(found) == len(set(found))
        assert {(question(position).id, seed) for position, seed in reported} <= set(found)
        labels = [label.question.id for label in stored_labels(tmp_path)][:decided]
        assert labels == [question(position).id for position in range(decided)]
        if writer.returncode == 0:
            break
        kills += 1
    assert kills == 10
    assert set(found) == {(question(position).id, seed) for position in range(questions) for seed in range(K)}
    assert names(tmp_path) == [f"{number:05d}.jsonl.gz" for number in range(questions // 8)]
    assert read_ledger_counts(tmp_path) == (questions, 107, questions * K)


def own_mounts() -> bool:
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not Path("/usr/bin/unshare").exists() or not own_mounts(), reason="no mount namespace here")
def test_after_a_full_disk_the_ledger_resumes(tmp_path):
    script = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} {WRITER} fill {tmp_path} 150 0"
    environment = {"PYTHONPATH": str(REPO), "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    command = ["unshare", "-rm", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"error: no space left while writing {tmp_path}/" in done.stdout
    assert f"votes: {150 * K}, distinct: {150 * K}" in done.stdout


def test_after_a_failed_commit_nothing_more_is_written(tmp_path, monkeypatch):
    ledger = VoteLedger(tmp_path, "p", "s")
    ledger.add_votes(0, [vote(0, 0)])
    ledger.add_label(0, label(0))

    def full(segment):
        raise InputError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(segments.Segment, "write", full)
        with pytest.raises(InputError, match="no space left"):
            ledger.commit()
    with pytest.raises(ValueError, match="open the ledger again"):
        ledger.commit()
    ledger.close()
    assert stored_votes(tmp_path) == stored_labels(tmp_path) == []
    with VoteLedger(tmp_path, "p", "s") as again:
        assert again.num_labels == 0


def test_an_error_of_the_packer_is_raised(tmp_path, monkeypatch):
    def full(folder, number):
        raise InputError("no space left while packing")

    monkeypatch.setattr("medssr_dist.voting.ledger.pack_segment", full)
    with pytest.raises(InputError, match="while packing"):
        fill(tmp_path, 4)
    monkeypatch.undo()
    with VoteLedger(tmp_path, "p", "s") as again:
        assert again.num_labels == 4
    assert len(stored_votes(tmp_path)) == 16
