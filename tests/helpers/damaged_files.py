"""Readers of files and of an API's replies, and ways to damage what they read (tests and `make fuzz`)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from config_builder import config_tree, make_config
from hypothesis import strategies as st
from journal_entries import provenance, reply
from ledger_writer import fill
from places import REPO

from medssr_dist.config.base import DataSource
from medssr_dist.config.load import load_config
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.readers import read_questions
from medssr_dist.run.directory import RunDir, open_run
from medssr_dist.run.stream import QuestionFeed, read_kept_labels
from medssr_dist.runtime.http.http_answer import HttpAnswer
from medssr_dist.synthesis.checks.parse import read_reply
from medssr_dist.synthesis.client.chat_reply import NoReply, read_chat_reply
from medssr_dist.synthesis.journal import Journal
from medssr_dist.voting.ledger import VoteLedger

READERS = ["config", "questions of a user", "questions", "labels", "ledger", "votes", "journal", "manifest", "replies"]
SEEDS = REPO / "tests" / "fuzz_seeds.jsonl"  # inputs that a reader once failed on
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
        b"\r",
        b"\0",
        b"null",
        b"1e999",
        b"9" * 5000,
        b"\\ud800",
        b"\xff",
        b"NaN",
    ]
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 3), TOKENS | st.binary(min_size=1, max_size=3)),
    min_size=1,
    max_size=3,
)
# Text that stands for JSON which Python does not write.
RAW = {"@huge": "9" * 5000, "@deep": "[" * 5000 + "]" * 5000, "@surrogate": '"\\ud800"', "@infinite": "1e999"}
ODD = st.sampled_from(
    [None, True, [], {}, "", "\0", "\x1b[2J", 0, -1, 10**12, 10**30, 1e308, [[]], {"": {}}, "x" * 10_000, *RAW]
)
SWAPS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), ODD), min_size=1, max_size=3
)
DAMAGE = st.tuples(st.just("edit"), EDITS) | st.tuples(st.just("swap"), SWAPS)


@dataclass
class DamagedFile:
    """A file, and how it is read.

    Attributes:
        read: returns what a user of the file gets of it.
        checked: whether the file has checksums, so that changed bytes must not pass as another content.
        refusals: the errors by which `read` may refuse the file.
        last: the newest damaged content.
    """

    name: str
    file: Path
    read: Callable[[], Any]
    checked: bool
    refusals: tuple[type[Exception], ...] = (InputError,)
    last: bytes = b""
    whole: bytes = field(init=False)
    content: Any = field(init=False)

    def __post_init__(self) -> None:
        self.whole, self.content = self.file.read_bytes(), self.read()

    def check(self, damage: tuple[str, list[tuple]]) -> None:
        """Read the file with this damage: the content is right, or refused in one line."""
        kind, changes = damage
        self.last = self._edit(changes) if kind == "edit" else self._swap(changes)
        found = self.try_read(self.last)
        if kind == "edit" and self.checked and found is not None:
            assert found == self.content or is_shortened(found, self.content)

    def try_read(self, data: bytes) -> Any:
        """Return what is read from `data`; None if it is refused, in one line that can be printed."""
        self.file.write_bytes(data)
        try:
            return self.read()
        except self.refusals as error:
            assert len(str(error)) <= 500 and str(error).isprintable()
            return None

    def _edit(self, edits: list[tuple[float, int, bytes]]) -> bytes:
        data = self.whole
        for share, dropped, added in edits:
            place = int(share * len(data))
            data = data[:place] + added + data[place + dropped :]
        return data

    def _swap(self, swaps: list[tuple[float, float, Any]]) -> bytes:
        """Replace values by others, of other types, in a file without checksums as earlier versions have written it."""
        is_yaml = self.file.suffix == ".yaml"
        text = self.whole.decode()
        whole = is_yaml or self.file.suffix == ".json"
        rows = (
            [yaml.safe_load(text) if is_yaml else json.loads(text)]
            if whole
            else list(map(json.loads, text.splitlines()))
        )
        for row in rows:
            row.pop("crc32", None)
        for line, place, value in swaps:
            row = rows[int(line * len(rows))]
            nodes = list(list_nodes(row))
            if nodes:
                holder, key = nodes[int(place * len(nodes))]
                holder[key] = deepcopy(value)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        for name, raw in RAW.items():
            text = text.replace(f'"{name}"', raw)
        return text.encode()


def list_nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key) of each value within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(items):
        yield value, key
        yield from list_nodes(part)


def is_shortened(found: Any, content: Any) -> bool:
    """Return whether whole lines at the end are missing, as in a file that is being written."""
    return isinstance(found, list) and found == content[: len(found)]


def read_seeds(name: str) -> list[bytes]:
    """Return the inputs that the reader `name` once failed on."""
    rows = map(json.loads, SEEDS.read_text().splitlines()) if SEEDS.exists() else []
    return [base64.b64decode(row["content"]) for row in rows if row["reader"] == name]


def keep_seed(name: str, content: bytes) -> None:
    """Keep an input that a reader has failed on."""
    with open(SEEDS, "a", encoding="utf-8") as file:
        file.write(json.dumps({"reader": name, "content": base64.b64encode(content).decode()}) + "\n")


def make_reader(name: str, folder: Path) -> DamagedFile:
    """Return a whole file of this kind in `folder`, with its reader."""
    return {"config": _config, "questions of a user": _user_questions, "manifest": _manifest, "journal": _journal}.get(
        name, _others
    )(name, folder)


def _config(name: str, folder: Path) -> DamagedFile:
    file = folder / "c.yaml"
    file.write_text(yaml.safe_dump(config_tree()))
    return DamagedFile(name, file, lambda: load_config(file).model_dump(mode="json"), False)


def _user_questions(name: str, folder: Path) -> DamagedFile:
    file = folder / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return DamagedFile(
        name, file, lambda: [question.model_dump() for question in read_questions(DataSource(path=str(file)))], False
    )


def _manifest(name: str, folder: Path) -> DamagedFile:
    config = make_config()
    with open_run(folder / "run", config) as run:
        run.begin_step("vote", config, {"model": "0"})
    return DamagedFile(name, run.manifest_file, lambda: RunDir(run.root).read_manifest().model_dump(), True)


def _journal(name: str, folder: Path) -> DamagedFile:
    with Journal(folder / "journal.jsonl") as journal:
        for index in range(3):
            journal.append(provenance(index), reply())
    return DamagedFile(name, journal.path, lambda: _read_journal(journal.path), True)


def _others(name: str, folder: Path) -> DamagedFile:
    if name == "replies":
        file = folder / "body.json"
        text = json.dumps(ROWS[0] | {"rationale": "It is known."})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 20}
        file.write_text(json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage}))
        return DamagedFile(name, file, lambda: _read_reply(file.read_bytes()), False, (NoReply,))
    if name == "questions":
        file = folder / "questions.jsonl"
        with JsonlLedger(file) as ledger:
            ledger.append(*(Question.make(f"Q{n}?", ["a", "b"], source="synthetic").model_dump() for n in range(3)))
        return DamagedFile(name, file, lambda: _read_feed(file), True)
    fill(folder, 3)
    if name == "labels":
        file = folder / "labeled.jsonl"
        (folder / "labeled.end.json").write_text('{"count": 3}')
        return DamagedFile(name, file, lambda: [label.model_dump() for label in read_kept_labels(file)], True)
    if name == "ledger":
        return DamagedFile(name, folder / "ledger.json", lambda: _open_ledger(folder), True)
    return DamagedFile(name, next((folder / "votes").glob("*.jsonl")), lambda: _open_ledger(folder), False)


def _read_journal(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    Journal(path, lambda entry: found.append(entry.model_dump())).close()
    return found


def _read_feed(path: Path) -> list[dict[str, Any]]:
    feed, found = QuestionFeed(path), []
    while (question := feed.next()) is not None:
        found.append(question.model_dump())
    return found


def _open_ledger(folder: Path) -> int:
    with VoteLedger(folder, "p", "s") as ledger:
        ledger._open_segment(0)
        return ledger.num_labels


def _read_reply(body: bytes) -> object:
    parts = read_chat_reply(HttpAnswer(200, {"Content-Type": "application/json"}, body))
    parts.text.encode()
    assert parts.model.isprintable() and (parts.prompt_tokens or 0) >= 0
    return read_reply(parts.text, parts.finish_reason)
