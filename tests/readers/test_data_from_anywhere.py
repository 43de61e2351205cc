"""Tables, compressed files, folders and Hugging Face ids as data sets; columns that the user names."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from medssr_dist.config.base import DataSource
from medssr_dist.config.synthesis import CorpusSource
from medssr_dist.errors import InputError
from medssr_dist.readers import name_source, read_questions

ROWS = [
    {"id": "q1", "question": "Which vitamin prevents scurvy?", "opa": "Retinol", "opb": "None", "cop": "B"},
    {"id": "q2", "question": "And, say, rickets?", "opa": "Calciferol", "opb": "NA", "cop": "A"},
]
CSV = "id,question,opa,opb,cop\nq1,Which vitamin prevents scurvy?,Retinol,None,B\n" + (
    'q2,"And, say, rickets?",Calciferol,NA,A\n'
)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def pack_zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def make_parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def make_arrow(rows: list[dict]) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def refusal(**keys) -> str:
    with pytest.raises(InputError) as error:
        read_questions(DataSource(**keys))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content: str | bytes) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    return write_file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("set.csv", CSV),
        ("set.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("set.csv", CSV.replace(",", ";").replace("And; say; ", "And, say, ")),
        ("set.tsv", CSV.replace(",", "\t").replace("And\t say\t ", "And, say, ")),
        ("set.parquet", make_parquet(ROWS)),
        ("set.arrow", make_arrow(ROWS)),
        ("data", make_parquet(ROWS)),  # known by its first bytes
        ("set.jsonl.gz", gzip.compress(LINES.encode())),
        ("set.json.xz", lzma.compress(json.dumps(ROWS).encode())),
        ("set.jsonl.zst", pack_zstd(LINES.encode())),
        ("set.csv.bz2", bz2.compress(CSV.encode())),
    ],
)
def test_every_kind_of_file_gives_the_same_questions(write, name, content):
    source = DataSource(path=write(name, content))
    found = read_questions(source)
    assert [question.stem for question in found] == [row["question"] for row in ROWS]
    assert [question.options for question in found] == [{"A": "Retinol", "B": "None"}, {"A": "Calciferol", "B": "NA"}]
    assert [(q.truth, q.source_id) for q in found] == [("B", "q1"), ("A", "q2")]
    assert name_source(source) == name.split(".")[0]


def test_a_table_may_leave_the_fifth_option_empty(write):
    table = "question,opa,opb,opc,opd,ope,cop\nFive?,v,w,x,y,z,E\nFour?,v,w,x,y,,D\n"
    first, second = read_questions(DataSource(path=write("set.csv", table)))
    assert (len(first.options), first.truth, len(second.options), second.truth) == (5, "E", 4, "D")
    assert "'C' is missing or empty" in refusal(path=write("set.csv", table.replace("x,y,,D", ",y,,D")))


def test_a_class_label_is_read_by_its_name(write):
    """MedMCQA of the hub: `cop` is a number from 0 with the names a to d; few rows do not show where it begins."""
    rows = [{"question": "Q?", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": 1}]
    table = pyarrow.Table.from_pylist(rows)
    features = {"cop": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    assert read_questions(DataSource(path=write("set.parquet", sink.getvalue())))[0].truth == "B"
    assert "columns: {answer: cop, answer_from: 0}" in refusal(path=write("plain.parquet", make_parquet(rows)))


@pytest.mark.parametrize("written", ["[]", '"x"', '{"info": 5}', '{"info": {"features": []}}', "[" * 100_000, "\xff"])
def test_a_schema_that_is_none_of_datasets_is_left_out(write, written):
    rows = [{"question": "Q?", "opa": "x", "opb": "y", "opc": "z", "opd": "w", "answer": "B"}]
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata({"huggingface": written})
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    assert read_questions(DataSource(path=write("set.parquet", sink.getvalue())))[0].truth == "B"


KNOWN_SETS = {
    "openlifescienceai/medqa": {
        "id": "7",
        "data": {
            "Question": "Q?",
            "Options": {"A": "x", "B": "y", "C": "z", "D": "w"},
            "Correct Answer": "y",
            "Correct Option": "B",
        },
        "subject_name": "surgery",
    },
    "MedQA as SWAG": {"sent1": "Q?", "sent2": "", "ending0": "x", "ending1": "y", "label": 1},
    "GBaker/MedQA": {"question": "Q?", "options": {"A": "x", "B": "y"}, "answer": "y", "answer_idx": "B"},
    "qiaojin/PubMedQA": {
        "pubid": 1,
        "question": "Q?",
        "context": {"contexts": ["So."], "labels": ["L"], "meshes": []},
        "final_decision": "no",
    },
    "MMLU-Pro": {"question_id": 3, "question": "Q?", "options": ["x", "y"], "answer": "B", "answer_index": 1},
    "MedXpertQA": {"id": "Text-1", "question": "Q?", "options": {"A": "x", "B": "y"}, "label": "B"},
    "CareQA": {"exam_id": 1, "question": "Q?", "op1": "x", "op2": "y", "cop": 2, "unique_id": "u"},
    "HeadQA": {
        "name": "Cuaderno",
        "qid": "1",
        "qtext": "Q?",
        "ra": 2,
        "image": None,
        "answers": [{"aid": 1, "atext": "x"}, {"aid": 2, "atext": "y"}],
    },
}


@pytest.mark.parametrize("name", KNOWN_SETS)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_known_sets_are_recognised_by_their_columns(write, name, kind):
    rows = [KNOWN_SETS[name]]
    if "SWAG" in name:  # numbers show where they begin in the whole set only
        rows = [rows[0], {**rows[0], "label": 0}]
    if name == "CareQA":
        rows = [rows[0], {**rows[0], "cop": 1, "unique_id": "v"}]
    content = make_parquet(rows) if kind == "parquet" else "".join(json.dumps(row) + "\n" for row in rows)
    first = read_questions(DataSource(path=write(f"set.{kind}", content)))[0]
    assert first.stem.endswith("Q?") and first.truth == "B"


OTHER = [
    {"item": {"text": "Q1?"}, "right": "x", "w1": "y", "w2": "z", "n": 1, "dx": "yes", "uid": 5, "answer": "an essay"},
    {"item": {"text": "Q2?"}, "right": "v", "w1": "u", "w2": "t", "n": 3, "dx": "no", "uid": 6, "answer": "another"},
]
COLUMNS = {"question": "item.text", "options": ["right", "w1", "w2"], "answer": "n", "answer_from": 1, "id": "uid"}


def test_named_columns_are_used_and_nothing_else(write):
    path = write("set.jsonl", "".join(json.dumps(row) + "\n" for row in OTHER))
    first, second = read_questions(DataSource(path=path, columns={**COLUMNS, "rare": "dx"}))
    assert (first.stem, first.options, first.truth) == ("Q1?", {"A": "x", "B": "y", "C": "z"}, "A")
    assert (second.truth, second.source_id, first.rare, second.rare) == ("C", "6", True, False)


@pytest.mark.parametrize(
    ("columns", "needle"),
    [
        ({"answer": "key"}, "has no column 'key', which columns.answer names; its columns are item, right"),
        ({"options": ["right", "wrong"]}, "has no column 'wrong', which columns.options names"),
        ({"answer_from": 0}, "answer = 'D' is not one of the options"),
        ({"question": "n"}, "'question' must be a text, got int"),
    ],
)
def test_columns_that_do_not_fit_are_refused(write, columns, needle):
    path = write("set.jsonl", "".join(json.dumps(row) + "\n" for row in OTHER))
    assert needle in refusal(path=path, columns=COLUMNS | columns)


def test_an_unknown_form_is_refused_with_the_columns_fix(write):
    assert "name the columns: `columns: {question" in refusal(path=write("set.json", json.dumps(OTHER)))


def test_unusable_items_may_be_left_out(write, caplog):
    rows = [{**ROWS[0], "image": "x.png"}, ROWS[1], {**ROWS[0], "opb": ""}, {**ROWS[0], "id": "q4"}]
    path = write("set.json", json.dumps(rows))
    assert "2 of 4 items cannot be used; correct or remove them, or leave them out" in refusal(path=path)
    assert [q.source_id for q in read_questions(DataSource(path=path, unusable="skip"))] == ["q2", "q4"]
    assert "2 of 4 items are left out: item 1 (id 'q1'): needs an image" in caplog.text
    assert len(read_questions(DataSource(path=path, unusable="skip", limit=1))) == 1
    assert "1 of 1 items" in refusal(path=write("bad.json", json.dumps(rows[:1])), unusable="skip")


def test_shuffle_draws_before_limit_takes(write):
    rows = [{**ROWS[0], "id": f"q{place}"} for place in range(50)]
    path = write("set.json", json.dumps(rows))
    drawn = [[q.source_id for q in read_questions(DataSource(path=path, shuffle=True, limit=9), s)] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 9
    assert drawn[0] != [f"q{place}" for place in range(9)]


# Folders and the hub


def write_set(folder: Path, card: str = "") -> None:
    for split, row in zip(("train", "test"), ROWS, strict=True):
        file = folder / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(make_parquet([row]))
    if card:
        (folder / "README.md").write_text(card)


def test_a_folder_of_too_much_is_no_data_set(tmp_path, monkeypatch):
    """A home folder or a disk given by mistake is refused soon, not searched for hours."""
    monkeypatch.setattr("medssr_dist.sources.source_rows._MOST_ENTRIES", 5)
    write_set(tmp_path)
    assert len(read_questions(DataSource(path=str(tmp_path), split="test"))) == 1
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(InputError, match="more than 5 files and folders, so it is not one data set"):
        read_questions(DataSource(path=str(tmp_path), split="test"))


SUBSETS = """---
configs:
- config_name: a
  data_files: [{split: test, path: data/train-*}]
- config_name: b
  data_files: [{split: test, path: data/test-*}]
---
"""


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """A hub cache of this test, and no network."""
    from datasets import config
    from huggingface_hub import constants, file_download

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    assert file_download
    return tmp_path / "hub"


def write_cached(cache: Path, repo: str, card: str = "") -> Path:
    """Write a data set as the hub's library keeps it: refs/main names the commit, snapshots/COMMIT has the files."""
    folder = cache / f"datasets--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs" / "main").write_text("1" * 40)
    write_set(folder / "snapshots" / ("1" * 40), card)
    return folder


def test_a_folder_has_splits_and_subsets(tmp_path, caches):
    write_set(tmp_path / "set")
    path = str(tmp_path / "set")
    assert read_questions(DataSource(path=path, split="test"))[0].source_id == "q2"
    assert [q.source_id for q in read_questions(DataSource(path=path, split="train+test"))] == ["q1", "q2"]
    assert "has 2 splits: train, test; name one with `split`" in refusal(path=path)
    assert "Unknown split" in refusal(path=path, split="dev")
    write_set(tmp_path / "two", SUBSETS)
    path = str(tmp_path / "two")
    assert read_questions(DataSource(path=path, subset="b"))[0].source_id == "q2"
    assert "has 2 subsets: a, b; name one with `subset`" in refusal(path=path)
    assert "has no subset 'c'" in refusal(path=path, subset="c")


def test_a_hub_id_is_read_from_the_local_cache(caches):
    folder = write_cached(caches, "lab/vitamins")
    for path in ("lab/vitamins", "hf://datasets/lab/vitamins", "hf://lab/vitamins@main"):
        source = DataSource(path=path, split="test")
        assert read_questions(source)[0].source_id == "q2" and name_source(source) == "vitamins"
    file = "hf://datasets/lab/vitamins/data/train-00000-of-00001.parquet"
    assert read_questions(DataSource(path=file))[0].source_id == "q1"
    (folder / "snapshots" / ("1" * 40) / "data" / "dev-00000-of-00002.parquet").write_bytes(make_parquet(ROWS))
    assert "HF_HUB_OFFLINE is set" in refusal(path="lab/vitamins", split="test")  # a shard is missing


def test_an_absent_hub_id_says_so_offline(caches):
    needle = "'lab/none' is neither a file or folder here nor a data set in the local Hugging Face cache"
    assert needle in refusal(path="lab/none") and "medssr prefetch" in refusal(path="lab/none")
    assert "'lab/none@v2'" in refusal(path="lab/none", revision="v2")
    assert "names another revision" in refusal(path="hf://datasets/lab/none@v1", revision="v2")
    assert "is not of the form hf://datasets" in refusal(path="hf:/lab/none")


@pytest.mark.parametrize("keys", [{"split": "test"}, {"subset": "a"}, {"revision": "main"}])
def test_a_file_has_no_splits_or_revisions(write, keys):
    assert f"{next(iter(keys))} = " in refusal(path=write("set.csv", CSV), **keys)


@pytest.mark.parametrize(
    ("keys", "needle"),
    [
        ({"path": "hpo:seeds", "split": "test"}, "split has no meaning for the embedded set 'hpo:seeds'"),
        ({"path": "x.csv", "rare": True, "columns": {"rare": "r"}}, "say the same; keep one"),
        ({"path": "x.csv", "columns": {"answer_from": 1}}, "answer_from needs `answer`"),
        ({"path": ""}, "path is empty"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(keys, needle):
    with pytest.raises(ValidationError, match=needle):
        DataSource(**keys)


@pytest.mark.parametrize("key", ["rare", "questions", "shuffle"])
def test_a_corpus_takes_no_keys_of_question_sets(key):
    with pytest.raises(ValidationError, match="Extra inputs"):
        CorpusSource(path="c.jsonl", name="c", **{key: 1})
