"""The label stream: a follower sees whole lines in order, ends when told to, and holds the writer back."""

import itertools
import json
import threading
import time

import pytest

from medssr_dist import stream
from medssr_dist.errors import InputError
from medssr_dist.jsonl import JsonlLedger, read_json
from medssr_dist.records import Label, Question
from medssr_dist.stream import follow, kept_at_end, kept_labels, mark_end, publish_taken, wait_for_room

NEVER = lambda: False  # noqa: E731
TIMEOUT_S = 20


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(stream, "_POLL_S", 0.005)


@pytest.fixture
def labels_file(tmp_path):
    return tmp_path / "labeled.jsonl"


def label(number: int, kept: bool = True) -> Label:
    question = Question.make(f"Naïve “question” {number}", ["yes", "no"], source="set")
    return Label(
        question=question, outcome="labeled", answer="A", counts={"A": 1}, requested=1, valid=1,
        confidence_requested=1.0, confidence_valid=1.0, kept=kept, policy="p", sampling="s",
    )  # fmt: skip


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
    """What a follower has seen so far, read in a thread of its own."""

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


def test_rows_come_as_they_are_written_even_to_a_file_not_there_yet(tmp_path):
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
    """The end is looked at before the file: what was written before the end was marked is always read."""
    file, calls = tmp_path / "rows.jsonl", itertools.count()

    def ended():
        if next(calls) == 2:
            file.write_text('{"n": 1}\n')
            return True
        return False

    assert list(follow(file, ended)) == [{"n": 1}]


@pytest.mark.parametrize("cut", [1, 8, 9, 11])
def test_a_torn_last_line_waits_until_it_is_whole(tmp_path, cut):
    """Also when the tear goes through a character: byte 9 is the first of é's two."""
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


def test_a_torn_tail_cut_off_by_the_writers_restart(tmp_path):
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
    assert kept_at_end(labels_file) is None
    mark_end(labels_file, 3)
    assert kept_at_end(labels_file) == 3
    assert list(kept_labels(labels_file)) == [label(0), label(2), label(4)]


def test_kept_labels_of_a_growing_file_end_with_the_mark(labels_file):
    seen = Followed(kept_labels(labels_file))
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
        first = list(itertools.islice(kept_labels(labels_file), 3))
        ledger.append(label(5).model_dump())
    mark_end(labels_file, 6)
    again = list(kept_labels(labels_file))
    assert again[:3] == first
    assert again == [label(n) for n in range(6)]


def test_a_row_that_is_no_label_names_the_file(labels_file):
    labels_file.write_text(json.dumps(label(0).model_dump() | {"outcome": "maybe"}) + "\n")
    mark_end(labels_file, 1)
    with pytest.raises(InputError, match="labeled.jsonl: outcome"):
        list(kept_labels(labels_file))


# --- back pressure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "taken"), [(0, None), (4, None), (7, 3), (2, 9)])
def test_there_is_room_up_to_the_buffer(labels_file, kept, taken):
    if taken is not None:
        publish_taken(labels_file, taken)
    waiting = in_thread(lambda: wait_for_room(labels_file, kept, 4, NEVER))
    waiting.join(TIMEOUT_S)
    assert not waiting.is_alive()


def test_the_writer_waits_until_the_trainer_has_taken_enough(labels_file):
    publish_taken(labels_file, 0)
    waiting = in_thread(lambda: wait_for_room(labels_file, 10, 4, NEVER))
    for taken in (3, 5):
        publish_taken(labels_file, taken)
        time.sleep(0.05)
        assert waiting.is_alive()
    publish_taken(labels_file, 6)
    waiting.join(TIMEOUT_S)
    assert not waiting.is_alive()
    assert read_json(labels_file.with_name("labeled.taken.json")) == {"taken": 6}


def test_a_waiting_writer_can_be_stopped(labels_file):
    asked = threading.Event()
    waiting = in_thread(lambda: wait_for_room(labels_file, 10, 4, asked.is_set))
    time.sleep(0.05)
    assert waiting.is_alive()
    asked.set()
    waiting.join(TIMEOUT_S)
    assert not waiting.is_alive()


def test_what_the_stop_check_raises_reaches_the_writer(labels_file):
    def trainer_died():
        raise RuntimeError("trainer died")

    with pytest.raises(RuntimeError, match="trainer died"):
        wait_for_room(labels_file, 10, 4, trainer_died)


def test_writer_and_reader_together_stay_within_the_buffer(labels_file):
    buffer, lags, taken = 3, [], []

    def train():
        for number, found in enumerate(kept_labels(labels_file), start=1):
            taken.append(found)
            publish_taken(labels_file, number)

    trainer = in_thread(train)
    with JsonlLedger(labels_file) as ledger:
        for n in range(25):
            ledger.append(label(n).model_dump())
            lags.append(n + 1 - len(taken))
            wait_for_room(labels_file, n + 1, buffer, NEVER)
    mark_end(labels_file, 25)
    trainer.join(TIMEOUT_S)
    assert [found.question.stem for found in taken] == [label(n).question.stem for n in range(25)]
    assert max(lags) <= buffer + 1
