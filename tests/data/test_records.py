"""Records and JSONL files: ids, validation, and files after a crash."""

import errno
import json
import os
import socket
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medssr_dist.data.jsonl import (
    JsonlLedger,
    raise_if_disk_full,
    read_json,
    read_jsonl,
    read_text,
    write_atomic,
    write_json,
)
from medssr_dist.data.records import Provenance, Question, Vote, hash_content, parse_record
from medssr_dist.errors import InputError

TEXT = st.text(max_size=40)
ROWS = st.lists(st.dictionaries(TEXT, st.one_of(TEXT, st.integers(), st.none(), st.lists(TEXT))), max_size=6)


def test_the_id_depends_on_the_content_alone():
    first = Question.make("Stem", ["x", "y"], source="one", truth="A")
    assert first.id == Question.make("Stem", ["x", "y"], source="two", source_id="9").id
    assert first.id != Question.make("Stem", ["y", "x"], source="one").id
    assert len(first.id) == 16
    assert hash_content({"b": 1, "a": 2}) == hash_content({"a": 2, "b": 1})


def test_known_hash_does_not_drift():
    assert Question.make("Which vitamin prevents scurvy?", ["A", "C"], source="demo").id == "92a2d57545201e49"


def test_questions_round_trip_through_json():
    provenance = Provenance(
        index=1, prompt_hash="9f", seed_ids=("a", "b"), rho=0.3, teacher="t", random_seed=42, commit="0c1d"
    )
    question = Question.make("Stem é", ["x", "y"], source="synthetic", truth="B", provenance=provenance)
    row = json.loads(json.dumps(question.model_dump()))
    assert parse_record(Question, row, "here") == question


@pytest.mark.parametrize("count", [0, 1, 11])
def test_two_to_ten_options(count):
    with pytest.raises(InputError, match=f"2-10 options, got {count}"):
        Question.make("Stem", [f"o{i}" for i in range(count)], source="x")


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"options": {"A": "x", "C": "y"}}, "consecutive letters"),
        ({"options": {"B": "x", "A": "y"}}, "consecutive letters"),
        ({"options": {"A": "x", "B": "X "}}, "not distinct"),
        ({"options": {"A": "x", "B": " "}}, "must not be empty"),
        ({"stem": "\n"}, "must not be empty"),
        ({"truth": "C"}, "not one of the options"),
        ({"schema_version": 2}, "schema_version"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_invalid_question_is_refused_with_the_reason(change, needle):
    row = Question.make("Stem", ["x", "y"], source="synthetic").model_dump() | change
    with pytest.raises(InputError, match=needle) as error:
        parse_record(Question, row, "file line 3")
    assert str(error.value).startswith("file line 3: ")


def test_equal_options_are_allowed_in_published_sets():
    assert Question.make("Stem", ["x", "X"], source="medmcqa").options == {"A": "x", "B": "X"}


def test_records_are_frozen_and_votes_have_a_key():
    vote = Vote(
        question_id="q",
        policy="p",
        sampling="s",
        seed=3,
        answer="B",
        method="bare",
        text="B",
        tokens=1,
        truncated=False,
    )
    assert vote.key == ("q", "p", "s", 3)
    with pytest.raises(ValidationError):
        vote.answer = "C"


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_appended_rows_are_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("ledger") / "a.jsonl"
    with JsonlLedger(path) as ledger:
        for row in rows:
            ledger.append(row)
    assert list(read_jsonl(path)) == rows


@given(ROWS, st.data())
@settings(max_examples=120, deadline=None)
def test_torn_tail_loses_only_the_torn_row(tmp_path_factory, rows, data):
    """At whatever byte the writer dies, complete lines stay, the rest is removed, and the next row is readable."""
    path = tmp_path_factory.mktemp("ledger") / "a.jsonl"
    with JsonlLedger(path) as ledger:
        ledger.append(*rows)
    written = path.read_bytes()
    cut = data.draw(st.integers(0, len(written)))
    path.write_bytes(written[:cut])
    whole = written[:cut].count(b"\n")
    with JsonlLedger(path) as ledger:
        ledger.append({"next": 1})
    assert list(read_jsonl(path)) == [*rows[:whole], {"next": 1}]


def test_line_separators_in_a_text_do_not_end_a_line(tmp_path):
    row = {"text": "a\u2028b\u2029c\x85d\x0be"}
    with JsonlLedger(tmp_path / "a.jsonl") as ledger:
        ledger.append(row)
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [row]


def test_appending_reaches_the_file_before_closing(tmp_path):
    ledger = JsonlLedger(tmp_path / "deep" / "a.jsonl")
    ledger.append({"a": 1}, {"a": 2})
    assert [row["a"] for row in read_jsonl(ledger.path)] == [1, 2]
    ledger.close()


def test_full_disk_is_an_input_error():
    for code in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(InputError, match="no space left while writing x"):
            raise_if_disk_full(OSError(code, "full"), "x")
    with pytest.raises(InputError, match="no space left while writing x"):
        raise_if_disk_full(OSError("15360 requested and 10208 written"), "x")  # numpy's short write
    for other in (OSError(errno.EACCES, "other"), OSError("something else")):
        raise_if_disk_full(other, "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_under_a_ledger_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no space left"), JsonlLedger(tmp_path / "a.jsonl") as ledger:
        ledger.append({"a": 1})
        with open("/dev/full", "wb") as full:
            os.dup2(full.fileno(), ledger._file.fileno())
        ledger.append({"a": 2})
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [{"a": 1}]


def test_half_a_surrogate_pair_is_kept_as_a_question_mark(tmp_path):
    with JsonlLedger(tmp_path / "a.jsonl") as ledger:
        ledger.append({"reply": "x\ud83d"})
    assert list(read_jsonl(tmp_path / "a.jsonl")) == [{"reply": "x?"}]
    assert hash_content("x\ud83d") == hash_content("x?")


def test_directory_in_place_of_a_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: socket.socket(socket.AF_UNIX).bind(str(file))])
def test_a_pipe_or_socket_in_place_of_a_file_is_refused(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)  # paths of sockets are short
    make(Path("file"))
    for read in (read_text, read_json, lambda file: list(read_jsonl(file))):
        with pytest.raises(InputError, match="file is a pipe, a socket or a device; name a file"):
            read(Path("file"))


def test_a_huge_file_is_not_read_as_a_document(tmp_path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(2**33)
    with pytest.raises(InputError, match="has 8 GiB"):
        read_json(tmp_path / "a.json")


def test_a_pipe_of_the_shell_is_read():
    source, sink = os.pipe()
    os.write(sink, b"voting: {samples: 4}\n")
    os.close(sink)
    assert read_text(Path(f"/dev/fd/{source}")) == "voting: {samples: 4}\n"
    os.close(source)


def test_atomic_write_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": "é"})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_failed_atomic_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b'{"a": 1}\n[2]\n', "line 2 is a list"),
        (b'{"a": 1}\n\n{"b"\n', "line 3 is not valid JSON"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, needle):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=needle):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_absent_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_text(tmp_path / "none")
    (tmp_path / "a.json").write_text('{\n"a": }')
    with pytest.raises(InputError, match=r"a.json is not valid JSON \(line 2"):
        read_json(tmp_path / "a.json")


def test_a_torn_line_longer_than_a_chunk_is_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    for head, torn in (('{"a": 1}\n', 2**20 - 1), ('{"a": 1}\n', 3 * 2**20), ("", 2**21), ("\n" * 2**20, 1), ("", 0)):
        path.write_text(head + "x" * torn)
        JsonlLedger(path).close()
        assert path.read_text() == head


def test_reading_rows_holds_one_line_at_a_time(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text((json.dumps({"text": "x" * 1000}) + "\n") * 5000)
    tracemalloc.start()
    assert sum(1 for _ in read_jsonl(path)) == 5000
    JsonlLedger(path).close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 2**20 < path.stat().st_size


def test_the_byte_that_is_not_utf8_is_counted_from_the_start(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert next(rows) == {"a": 1}
    with pytest.raises(InputError, match=r"is not UTF-8 \(byte 16\)"):
        next(rows)


def test_any_line_end_ends_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\r\n{"a": 2}\r{"a": 3}\n\r\n[4]')
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert [next(rows)["a"] for _ in range(3)] == [1, 2, 3]
    with pytest.raises(InputError, match="line 5 is a list"):
        next(rows)
