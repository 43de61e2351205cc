"""Question files as people keep them: from spreadsheets, pandas, downloads; what is no data is named as what it is."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pytest

from medssr_dist.config.base import DataSource
from medssr_dist.config.synthesis import CorpusSource
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus_copies import locate_passages
from medssr_dist.readers import read_questions

HEADER = "question,opa,opb,answer"
TABLE = f"{HEADER}\nSigns of pellagra?,diarrhoea,fever – high,A\n"
ITEM = {"question": "Signs of pellagra?", "options": ["diarrhoea", "fever – high"], "answer": "A"}


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    return write_file


def refuse(path: str) -> str:
    with pytest.raises(InputError) as error:
        read_questions(DataSource(path=path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("excel.csv", TABLE.encode("utf-16")),
        ("excel.tsv", b"\xfe\xff" + TABLE.replace(",", "\t").encode("utf-16-be")),
        ("wide.csv", TABLE.encode("utf-32")),
        ("set.jsonl", json.dumps(ITEM, ensure_ascii=False).encode("utf-16")),
        ("excel.csv", "sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")),
        ("excel.csv", "sep=/\n" + TABLE.replace(",", "/")),
        ("pipes.csv", TABLE.replace(",", "|")),
        ("quoted.csv", TABLE.replace(",", ";").replace("answer", 'answer;"note, long"').replace(";A", ";A;")),
        ("pandas.csv", "," + TABLE.replace("\nS", "\n0,S")),
        ("capital.csv", TABLE.replace(HEADER, "Question,A,B,Answer")),
        ("spaces.csv", TABLE.replace(HEADER, "question , Option A, Option B , Correct Answer")),
        ("marks.csv", TABLE.replace(HEADER, "QUESTION,option-a,option-b,Correct-Option")),
        ("list.csv", "question,options,answer\nSigns of pellagra?,\"['diarrhoea', 'fever – high']\",A\n"),
        ("dict.csv", "question,options,answer\nSigns of pellagra?,\"{'A': 'diarrhoea', 'B': 'fever – high'}\",A\n"),
        ("one_list.json", json.dumps({"version": 2, "questions": [ITEM]})),
        ("one_list.json.gz", gzip.compress(json.dumps({"data": [ITEM]}).encode())),
    ],
)
def test_what_people_keep_is_read(write, name, content):
    (question,) = read_questions(DataSource(path=write(name, content)))
    assert (question.stem, list(question.options.values()), question.truth) == tuple(ITEM.values())


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("old.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "is an Excel file; save its sheet as CSV"),
        ("set.jsonl", "<!DOCTYPE html>\n<html><body>Sign in</body>", "is a web page"),
        ("set.parquet", "version https://git-lfs.github.com/spec/v1\nsize 9\n", "pointer of Git LFS"),
        ("set.pkl", b"\x80\x04\x95" + bytes(20), "is a Python pickle, which may run code"),
        ("set.tar.gz", gzip.compress(bytes(257) + b"ustar\x0000" + bytes(300)), "is a tar archive; unpack it"),
        ("set.pdf", b"%PDF-1.7\n", "is a PDF"),
        ("set.csv", TABLE.encode("cp1252"), "is not UTF-8 (byte 59); convert it from the encoding it has"),
        ("set.csv", json.dumps(ITEM), "is named .csv, but begins like JSON; rename it"),
        ("set.csv", TABLE.encode("utf-16")[:-1], "is UTF-16, but damaged at byte"),
        ("set.csv", TABLE.replace("opa,opb", "opa,"), "has a column without a name"),
        ("numpy.csv", "question,options,answer\nQ?,\"['x' 'y']\",A\n", "needs 2-10 options, got 1"),
        ("deep.csv", "question,options,answer\nQ?," + "[" * 15_000 + ",A\n", "the text of options"),
        ("code.csv", "question,options,answer\nQ?,\"[exit(1), 'y']\",A\n", "the text of options is not valid JSON"),
        ("splits.json", json.dumps({"train": [ITEM], "test": [ITEM]}), "holds several data sets (train, test)"),
    ],
)
def test_what_is_no_such_data_is_named(write, name, content, needle):
    assert needle in refuse(write(name, content))


@pytest.mark.parametrize("name", ["set.jsonl.gz", "set.jsonl.xz", "set.jsonl.bz2", "set.jsonl.zst"])
def test_a_packed_file_that_unpacks_to_too_much_is_refused(write, monkeypatch, name):
    monkeypatch.setattr("medssr_dist.data.jsonl._MOST_BYTES", 2**21)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(bytes(2**22))
    packed = {
        "gz": gzip.compress(bytes(2**22)),
        "xz": lzma.compress(bytes(2**22)),
        "bz2": bz2.compress(bytes(2**22)),
        "zst": sink.getvalue().to_pybytes(),
    }
    assert "unpacked, has more than" in refuse(write(name, packed[name.rpartition(".")[2]]))


def test_a_key_in_two_spellings_is_not_chosen(write):
    rows = json.dumps(ITEM | {"Answer": "B", "Label": "vitamins", "LABEL": "x"})
    assert read_questions(DataSource(path=write("set.jsonl", rows)))[0].truth == "A"


@pytest.mark.parametrize("address", ["https://example.org/set.jsonl", "s3://lab/set.jsonl", "file:///data/set.jsonl"])
def test_an_address_is_no_path(address):
    assert f"{address} is an address, not a path" in refuse(address)


def test_a_folder_of_several_kinds_is_refused(write, tmp_path):
    folder = str(tmp_path / "mixed")
    write("mixed/a.jsonl", json.dumps(ITEM))
    write("mixed/readme.txt", "about the files")
    assert len(read_questions(DataSource(path=folder))) == 1
    write("mixed/b.csv", TABLE)
    assert "has files of several kinds, such as a.jsonl and b.csv" in refuse(folder)
    with pytest.raises(InputError, match="files of several kinds"):
        locate_passages(CorpusSource(path=folder, name="c"))
