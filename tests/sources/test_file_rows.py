"""Shapes of question files: by column, by id, several data sets, a byte order mark, compressed files and tables."""

import gzip
import json

import pytest

from medssr_dist.config.base import DataSource
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.errors import InputError
from medssr_dist.readers import read_questions
from medssr_dist.sources.file_rows import read_rows

ROWS = [
    {"question": "First?", "options": {"A": "x", "B": "y"}, "answer_idx": "B"},
    {"question": "Second?", "options": {"A": "x", "B": "z"}, "answer_idx": "A"},
]
LISTS = {key: [row[key] for row in ROWS] for key in ROWS[0]}
INDEXED = {key: {str(place): row[key] for place, row in enumerate(ROWS)} for key in ROWS[0]}
KEYED = {f"000{place}": row for place, row in enumerate(ROWS)}


@pytest.fixture
def read(tmp_path):
    def read_file(content, name="set.json"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return read_questions(DataSource(path=str(file)))

    return read_file


@pytest.mark.parametrize("document", [ROWS, LISTS, INDEXED, KEYED])
@pytest.mark.parametrize("indent", [None, 1])
def test_every_shape_gives_the_same_questions(read, document, indent):
    first, second = read(json.dumps(document, indent=indent).encode())
    assert (first.stem, first.options, first.truth) == ("First?", {"A": "x", "B": "y"}, "B")
    assert (second.stem, second.truth) == ("Second?", "A")
    assert (first.source_id, second.source_id) == (("0000", "0001") if document is KEYED else ("", ""))


@pytest.mark.parametrize("options", [{"opa": ["x", "x"], "opb": ["y", "z"]}, {"choices": [["x", "y"], ["x", "z"]]}])
def test_columns_may_hold_options_in_any_form(read, options):
    assert [q.truth for q in read({"question": ["First?", "Second?"], "answer": ["B", "A"]} | options)] == ["B", "A"]


@pytest.mark.parametrize(
    ("document", "needle"),
    [
        (LISTS | {"answer_idx": ["B"]}, "'answer_idx' has not the same rows as 'question' (1 and 2)"),
        (INDEXED | {"answer_idx": {"0": "B", "7": "A"}}, "'answer_idx' has not the same rows"),
        ({"medqa": KEYED, "mmlu": KEYED}, "holds several data sets (medqa, mmlu)"),
        ({"questions": [{"body": "Is it?", "type": "yesno", "exact_answer": "yes"}]}, "its keys are questions"),
        ({"question": ["First?"], "options": "x"}, "must be a text, got list"),
        ([["First?", "x"]], "must be a JSON list of objects"),
    ],
)
def test_other_shapes_are_refused(read, document, needle):
    with pytest.raises(InputError, match=r"set\.json") as error:
        read(document)
    assert needle in str(error.value)


def test_a_byte_order_mark_and_crlf_are_no_text(read):
    lines = b"\r\n".join(json.dumps(row).encode() for row in ROWS)
    for content in (b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), b"\xef\xbb\xbf" + lines + b"\r\n"):
        assert [question.stem for question in read(content)] == ["First?", "Second?"]


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("set.jsonl.gz", gzip.compress(json.dumps(ROWS).encode())[:40], "is compressed, and damaged or cut off"),
        ("set.json", b"PK\x03\x04rest", "is a zip archive; unpack it with unzip"),
        ("set.xlsx", b"PK\x03\x04rest", "is an Excel file; save its sheet as CSV (UTF-8)"),
        ("set.json", b"question,opa\nQ,x\n", "is neither JSON nor JSONL: it begins with 'question,opa"),
        ("set.csv", b"question,opa\nQ,x,y\n", "line 2 has 3 cells, but the header has 2"),
        ("set.csv", b"question,opa,opa\nQ,x,y\n", "but has 'opa' twice"),
        ("set.csv", b'question,opa\n"Q,x\n', "is not valid CSV"),
        ("set.csv", b"What is it?,x,y,z,w,A\nAnd that?,x,y,z,w,B\n", "name the columns: `columns: {question"),
        ("set.parquet", b"PAR1", "is Parquet, but damaged or cut off"),
        ("set.parquet", b"question,opa\n", "is named .parquet, but is no such file"),
        ("set.arrow", b"ARROW1\x00\x00", "is Arrow, but damaged or cut off"),
    ],
)
def test_files_of_another_kind_are_refused_with_the_fix(read, name, content, needle):
    with pytest.raises(InputError) as error:
        read(content, name)
    assert needle in str(error.value)


@pytest.mark.parametrize("path", ["a\0b.jsonl", "a\ud800.jsonl", "x" * 300 + ".jsonl"])
def test_a_path_that_is_no_file_is_refused(path):
    with pytest.raises(InputError, match="check the path"):
        read_questions(DataSource(path=path))


LINE = '{"question": "What?", "options": {"A": "x", "B": "y"}, "answer": "A"%s}\n'


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ('{"a":' + "[" * 100_000, "is not valid JSON (its lists and objects are nested too deep)"),
        (LINE % "" + '{"a":' + "[" * 100_000, "line 2 is not valid JSON (its lists"),
        (LINE % "" + LINE % (', "id": ' + "9" * 5000), "line 2 is not valid JSON (Exceeds the limit"),
        (LINE % "" + LINE % ', "answer": "B"', "line 2 is not valid JSON (an object has the key 'answer' twice)"),
        (LINE.replace("What", "\\ud800") % "", "item 1: a text holds half of a surrogate pair"),
        (LINE % ', "id": ["a"]', "item 1: id must be a text or a number, got list"),
        (LINE.replace('"A"%s}', '"' + "y" * 100_000 + '"}'), "item 1: the answer answer = 'yyy"),
        ('{"\\u001b[31mred": 1, "a\\nb": 2}\n', "its keys are \\x1b[31"),
        ('{"' + "k" * 100_000 + '": 1}\n', "its keys are kkk"),
        (LINE.replace('"A"%s}', "1e999}"), "answer = inf is not one of the options"),
        (LINE.replace('"A"%s}', "9" * 4000 + "}"), "cannot be read: its answer values"),
        (LINE.replace("What?", "\\u2028") % "", "is missing or empty"),
    ],
)
def test_any_broken_text_is_told_in_one_short_line(read, text, needle):
    with pytest.raises(InputError) as error:
        read(text.encode(), "set.jsonl")
    message = str(error.value)
    assert needle in message and message.isprintable() and len(message) < 4000


def test_questions_with_checksums_are_read_as_a_data_set(tmp_path):
    file = tmp_path / "questions.jsonl"
    with JsonlLedger(file) as ledger:
        ledger.append({"question": "Which?", "options": ["iron", "zinc"]})
    assert "crc32" in file.read_text()
    assert read_rows(file) == [{"question": "Which?", "options": ["iron", "zinc"]}]
    file.write_text(file.read_text().replace("zinc", "gold"))
    with pytest.raises(InputError, match="line 1 does not match its checksum"):
        read_rows(file)
