"""Every reader of files, fed with valid files of which some bytes are changed: the same content, or an InputError.

`slow` runs each for ten minutes of examples; Hypothesis keeps the failing ones as seeds.
"""

from __future__ import annotations

import json
import os

import pytest
import yaml
from config_builder import config_tree, make_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_entries import provenance, reply
from ledger_writer import fill

from medssr_dist.config.base import DataSource
from medssr_dist.config.load import load_config
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import read_questions
from medssr_dist.run.directory import RunDir, open_run
from medssr_dist.run.stream import QuestionFeed, read_kept_labels
from medssr_dist.synthesis.journal import Journal
from medssr_dist.voting.ledger import VoteLedger

ROWS = [{"question": f"Which vitamin {n}?", "options": {"A": "C", "B": "D"}, "answer": "A"} for n in range(3)]
TOKENS = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"\n",
        b"\0",
        b"null",
        b"1e999",
        b"9" * 5000,
        b"\\ud800",
        b"\xff",
        b"NaN",
    ]
)
EDIT = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), TOKENS | st.binary(min_size=1, max_size=3))


class Reader:
    """A file, and how it is read. `read` returns what a user of the file gets of it."""

    def __init__(self, file, read, checked):
        self.file, self.read, self.checked = file, read, checked
        self.whole, self.content = file.read_bytes(), read()

    def check(self, edits) -> None:
        data = self.whole
        for share, dropped, added in edits:
            place = int(share * len(data))
            data = data[:place] + added + data[place + dropped :]
        self.file.write_bytes(data)
        try:
            found = self.read()
        except InputError as error:
            assert len(str(error)) <= 500 and str(error).isprintable()
        else:
            assert not self.checked or found == self.content or is_shortened(found, self.content)


def is_shortened(found, content) -> bool:
    """A file that lost whole lines at its end, or its last newline, is a file that was being written."""
    return isinstance(found, list) and found == content[: len(found)]


def make_reader(name: str, folder) -> Reader:
    if name == "config":
        file = folder / "c.yaml"
        file.write_text(yaml.safe_dump(config_tree()))
        return Reader(file, lambda: load_config(file).model_dump(mode="json"), False)
    if name == "questions of a user":
        file = folder / "q.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return Reader(
            file, lambda: [question.model_dump() for question in read_questions(DataSource(path=str(file)))], False
        )
    if name == "manifest":
        config = make_config()
        with open_run(folder / "run", config) as run:
            run.begin_step("vote", config, {"model": "0"})
        return Reader(run.manifest_file, lambda: RunDir(run.root).read_manifest().model_dump(), True)
    if name == "journal":
        with Journal(folder / "journal.jsonl") as journal:
            for index in range(3):
                journal.append(provenance(index), reply())
        return Reader(journal.path, lambda: read_journal(journal.path), True)
    fill(folder, 3)
    if name == "labels":
        file = folder / "labeled.jsonl"
        (folder / "labeled.end.json").write_text('{"count": 3}')
        return Reader(file, lambda: [label.model_dump() for label in read_kept_labels(file)], True)
    if name == "ledger":
        return Reader(folder / "ledger.json", lambda: open_ledger(folder), True)
    file = folder / "questions.jsonl"
    from medssr_dist.data.jsonl import JsonlLedger

    with JsonlLedger(file) as ledger:
        ledger.append(*(Question.make(f"Q{n}?", ["a", "b"], source="synthetic").model_dump() for n in range(3)))
    return Reader(file, lambda: read_feed(file), True)


def read_journal(path) -> list:
    found = []
    Journal(path, lambda entry: found.append(entry.model_dump())).close()
    return found


def read_feed(path) -> list:
    feed, found = QuestionFeed(path), []
    while (question := feed.next()) is not None:
        found.append(question.model_dump())
    return found


def open_ledger(folder) -> int:
    with VoteLedger(folder, "p", "s") as ledger:
        return ledger.num_labels


NAMES = ["config", "questions of a user", "questions", "labels", "ledger", "journal", "manifest"]
EDITS = st.lists(EDIT, min_size=1, max_size=3)
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.mark.parametrize("name", NAMES)
def test_changed_files_are_read_or_refused(tmp_path, name):
    reader = make_reader(name, tmp_path)

    @given(EDITS)
    @settings(max_examples=40, deadline=None, suppress_health_check=QUIET)
    def run(edits):
        reader.check(edits)

    run()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_changed_files_are_read_or_refused_for_long(tmp_path, name):
    reader = make_reader(name, tmp_path)

    @given(EDITS)
    @settings(max_examples=int(os.environ.get("MEDSSR_FUZZ", "20000")), deadline=None, suppress_health_check=QUIET)
    def run(edits):
        reader.check(edits)

    run()
