"""The streams: a follower reads whole lines in order, stops at the end mark, and holds its writer back."""

import itertools
import json
import threading
import time

import pytest
from stream_parts import label as label_of

from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import Label, Question
from medssr_dist.errors import InputError
from medssr_dist.run import stream
from medssr_dist.run.stream import (
    ALL_TAKEN,
    QuestionFeed,
    clear_end,
    follow,
    follow_kept_labels,
    has_ended,
    has_room,
    mark_end,
    publish_taken,
    read_kept_count,
    read_kept_labels,
)

TIMEOUT_S = 20


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(stream, "_POLL_S", 0.005)


@pytest.fixture
def labels_file(tmp_path):
    return tmp_path / "labeled.jsonl"


def label(number: int, kept: bool = True) -> Label:
    return label_of(Question.make(f"Naïve “question” {number}", ["yes", "no"], source="set"), kept)


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def eventually(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.002)


class Followed:
    """The rows that a follower has read so far, in a separate thread."""

    def __init__(self, rows):
        self.rows, self.error = [], None
        self.thread = in_thread(lambda: self._read(rows))

    def _read(self, rows):
        try:
            for row in rows:
                self.rows.append(row)
        except Exception as error:
            self.error = error

    def end(self) -> list:
        self.thread.join(TIMEOUT_S)
        assert not self.thread.is_alive()
        assert self.error is None, self.error
        return self.rows


# --- follow -----------------------------------------------------------------------------------------


def test_a_finished_file_is_read_once_in_order(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"n": {n}}}\n' for n in range(5)))
    assert [row["n"] for row in follow(file, lambda: True)] == [0, 1, 2, 3, 4]


def test_an_absent_file_is_an_empty_stream_once_ended(tmp_path):
    assert list(follow(tmp_path / "none.jsonl", lambda: True)) == []


def test_rows_are_read_as_they_are_written(tmp_path):
    file, ended = tmp_path / "rows.jsonl", threading.Event()
    seen = Followed(follow(file, ended.is_set))
    with JsonlLedger(file) as ledger:
        for n in range(20):
            ledger.append({"n": n}, {"n": n + 0.5})
            if n % 7 == 0:
                eventually(lambda n=n: len(seen.rows) == 2 * n + 2)
    assert seen.thread.is_alive()
    ended.set()
    assert [row["n"] for row in seen.end()] == [n / 2 for n in range(40)]


def test_a_row_written_just_before_the_end_is_not_missed(tmp_path):
    """The end mark is read before the file, so every row written before the mark is read."""
    file, calls = tmp_path / "rows.jsonl", itertools.count()

    def ended():
        if next(calls) == 2:
            file.write_text('{"n": 1}\n')
            return True
        return False

    assert list(follow(file, ended)) == [{"n": 1}]


@pytest.mark.parametrize("cut", [1, 8, 9, 11])
def test_a_torn_last_line_waits_until_it_is_whole(tmp_path, cut):
    """Even if it is torn within a character: byte 9 is the first of the two bytes of é."""
    file, ended = tmp_path / "rows.jsonl", threading.Event()
    line = '{"t": "né"}\n'.encode()
    with open(file, "wb", buffering=0) as handle:
        handle.write(b'{"t": "one"}\n' + line[:cut])
        seen = Followed(follow(file, ended.is_set))
        eventually(lambda: len(seen.rows) == 1 or seen.error)
        time.sleep(0.05)
        assert len(seen.rows) == 1
        handle.write(line[cut:])
        eventually(lambda: len(seen.rows) == 2 or seen.error)
    ended.set()
    assert seen.end() == [{"t": "one"}, {"t": "né"}]


def test_a_torn_line_that_its_restarted_writer_cuts_off(tmp_path):
    file, ended = tmp_path / "rows.jsonl", threading.Event()
    file.write_bytes(b'{"n": 0}\n{"n": 1')
    seen = Followed(follow(file, ended.is_set))
    eventually(lambda: len(seen.rows) == 1)
    with JsonlLedger(file) as ledger:
        ledger.append({"n": 2})
    ended.set()
    assert seen.end() == [{"n": 0}, {"n": 2}]


def test_a_torn_last_line_of_an_ended_file_is_left_out(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"n": 0}\n{"n": 1}')
    assert list(follow(tmp_path / "rows.jsonl", lambda: True)) == [{"n": 0}]


def test_line_separators_inside_a_text_do_not_cut_it(tmp_path):
    text = "a\u2028b\u0085c\x0bd\re"
    with JsonlLedger(tmp_path / "rows.jsonl") as ledger:
        ledger.append({"t": text})
    assert list(follow(tmp_path / "rows.jsonl", lambda: True)) == [{"t": text}]


# --- kept labels ------------------------------------------------------------------------------------


def test_kept_labels_of_a_finished_file(labels_file):
    with JsonlLedger(labels_file) as ledger:
        ledger.append(*(label(n, kept=n % 2 == 0).model_dump() for n in range(6)))
    assert read_kept_count(labels_file) is None
    mark_end(labels_file, 3)
    assert read_kept_count(labels_file) == 3
    assert list(read_kept_labels(labels_file)) == [label(0), label(2), label(4)]


def test_kept_labels_of_a_growing_file_end_with_the_mark(labels_file):
    seen = Followed(read_kept_labels(labels_file))
    with JsonlLedger(labels_file) as ledger:
        for n in range(10):
            ledger.append(label(n, kept=n % 3 == 0).model_dump())
        eventually(lambda: len(seen.rows) == 4)
        assert seen.thread.is_alive()
        ledger.append(label(10).model_dump())
        mark_end(labels_file, 5)
    assert seen.end() == [label(0), label(3), label(6), label(9), label(10)]


def test_a_restarted_reader_sees_the_same_labels(labels_file):
    with JsonlLedger(labels_file) as ledger:
        ledger.append(*(label(n).model_dump() for n in range(5)))
        first = list(itertools.islice(read_kept_labels(labels_file), 3))
        ledger.append(label(5).model_dump())
    mark_end(labels_file, 6)
    again = list(read_kept_labels(labels_file))
    assert again[:3] == first
    assert again == [label(n) for n in range(6)]


def test_a_row_that_is_no_label_names_the_file(labels_file):
    labels_file.write_text(json.dumps(label(0).model_dump() | {"outcome": "maybe"}) + "\n")
    mark_end(labels_file, 1)
    with pytest.raises(InputError, match="labeled.jsonl line 1: outcome"):
        list(read_kept_labels(labels_file))


@pytest.mark.parametrize("start", range(8))
def test_a_reader_that_starts_after_some_lines_reads_the_rest(labels_file, start):
    with JsonlLedger(labels_file) as ledger:
        ledger.append(*(label(n, kept=n % 3 != 1).model_dump() for n in range(7)))
    mark_end(labels_file, 5)
    expected = [(n + 1, label(n)) for n in range(start, 7) if n % 3 != 1]
    assert list(follow_kept_labels(labels_file, start)) == expected


def test_a_reader_waits_until_its_position_is_written(labels_file):
    """A power failure may lose labels that the trainer has read; the vote then writes them again."""
    with JsonlLedger(labels_file) as ledger:
        ledger.append(label(0).model_dump())
        seen = Followed(follow_kept_labels(labels_file, 3))
        ledger.append(*(label(n).model_dump() for n in range(1, 5)))
        mark_end(labels_file, 5)
    assert seen.end() == [(4, label(3)), (5, label(4))]


def test_an_end_mark_can_be_removed(labels_file):
    mark_end(labels_file, 3)
    assert has_ended(labels_file)
    clear_end(labels_file)
    clear_end(labels_file)
    assert not has_ended(labels_file) and read_kept_count(labels_file) is None


# --- the feed of questions --------------------------------------------------------------------------


@pytest.fixture
def questions_file(tmp_path):
    return tmp_path / "questions.jsonl"


def question(number: int) -> Question:
    return Question.make(f"Naïve “question” {number}\u2028?", ["yes", "no"], source="set")


def rows(*numbers: int) -> list[dict]:
    return [question(number).model_dump() for number in numbers]


def drained(feed: QuestionFeed) -> list[Question]:
    return list(iter(feed.next, None))


def test_a_feed_never_waits(questions_file):
    feed = QuestionFeed(questions_file, lambda: has_ended(questions_file))
    assert feed.next() is None and not feed.ended
    with JsonlLedger(questions_file) as ledger:
        ledger.append(*rows(0, 1))
        time.sleep(0.006)
        assert drained(feed) == [question(0), question(1)] and feed.given == 2 and not feed.ended
        ledger.append(*rows(2))
        mark_end(questions_file, 3)
    time.sleep(0.006)
    assert feed.next() == question(2) and not feed.ended
    assert feed.next() is None and feed.ended and feed.given == 3


def test_a_feed_of_a_finished_file_ends_with_it(questions_file):
    with JsonlLedger(questions_file) as ledger:
        ledger.append(*rows(*range(200)))
    feed = QuestionFeed(questions_file)
    assert drained(feed) == [question(n) for n in range(200)] and feed.ended
    assert feed.next() is None and feed.given == 200


def test_a_feed_reads_the_disk_only_now_and_then(questions_file, monkeypatch):
    monkeypatch.setattr(stream, "_POLL_S", 1000)
    looks = []
    feed = QuestionFeed(questions_file, lambda: looks.append(1))
    assert [feed.next() for _ in range(50)] == [None] * 50
    assert len(looks) == 1


def test_a_feed_holds_one_chunk_of_lines_at_most(questions_file, monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK", 1000)
    with JsonlLedger(questions_file) as ledger:
        ledger.append(*rows(*range(500)))
    feed, most = QuestionFeed(questions_file), 0
    while feed.next():
        most = max(most, len(feed._lines))
    assert feed.given == 500 and most <= 10


def test_a_feed_continues_when_its_file_is_replaced(questions_file):
    """A restarted synthesis writes the file again from its journal, and replaces the old one."""
    with JsonlLedger(questions_file) as ledger:
        ledger.append(*rows(0, 1, 2))
    feed = QuestionFeed(questions_file, lambda: has_ended(questions_file))
    assert drained(feed) == [question(0), question(1), question(2)]
    with JsonlLedger(questions_file.with_name(".partial")) as ledger:
        ledger.append(*rows(0, 1, 2, 3))
        ledger.path = ledger.path.replace(questions_file)
        ledger.append(*rows(4))
    mark_end(questions_file, 5)
    time.sleep(0.006)
    assert drained(feed) == [question(3), question(4)] and feed.ended


def test_a_half_written_question_waits(questions_file):
    line = json.dumps(rows(0)[0], ensure_ascii=False).encode() + b"\n"
    feed = QuestionFeed(questions_file, lambda: False)
    with open(questions_file, "wb", buffering=0) as file:
        file.write(line[:16])
        assert feed.next() is None
        file.write(line[16:])
    time.sleep(0.006)
    assert feed.next() == question(0)


def test_a_row_that_is_no_question_names_the_file(questions_file):
    questions_file.write_text(json.dumps(rows(0)[0] | {"stem": ""}) + "\n")
    with pytest.raises(InputError, match="questions.jsonl line 1: .*must not be empty"):
        QuestionFeed(questions_file).next()


# --- back-pressure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "taken", "expected"),
    [
        (0, None, True),
        (4, None, True),
        (5, None, False),
        (7, 3, True),
        (8, 3, False),
        (2, 9, True),
        (10**9, ALL_TAKEN, True),
    ],
)
def test_there_is_room_up_to_the_buffer(labels_file, kept, taken, expected):
    if taken is not None:
        publish_taken(labels_file, taken)
    assert has_room(labels_file, kept, 4) is expected


def test_a_published_number_is_read_at_once(labels_file):
    for taken in (0, 3, 5, 6, 0):
        publish_taken(labels_file, taken)
        assert has_room(labels_file, 10, 4) is (taken == 6)
    assert [file.name for file in labels_file.parent.iterdir()] == ["labeled.taken.json"]
