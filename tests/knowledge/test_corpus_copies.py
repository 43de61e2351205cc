"""Corpora of any kind: tables, packed files, folders and data sets of the hub give the same passages as JSONL."""

import bz2
import csv
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from medssr_dist.config.synthesis import CorpusSource, Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus import open_corpora, read_corpus, sample_passages

ROWS = [
    {"id": "p1", "title": "Gout", "content": "Urate crystals; the big toe,\nfirst."},
    {"id": "p2", "title": "", "content": "Naïve 麻酔 text."},
    {"id": "p3", "title": "Alkaptonuria", "content": "Dark urine."},
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


def write_csv(path, rows, delimiter=","):
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


def write(path, rows=ROWS):
    """Write rows as the name of the file says."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.name.endswith(".csv"):
        write_csv(path, rows)
    elif path.name.endswith(".tsv"):
        write_csv(path, rows, "\t")
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
        path.write_bytes(pack(lines))
    return CorpusSource(path=str(path))


def read(source):
    return [(passage.id, passage.title, passage.content, passage.source) for passage in read_corpus(source)]


KINDS = ["c.jsonl", "c.parquet", "c.csv", "c.tsv", "c.json", "c.jsonl.gz", "c.jsonl.xz", "c.ndjson.bz2"]


@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_of_files_give_the_same_passages(tmp_path, name):
    source = write(tmp_path / name)
    assert read(source) == [(row["id"], row["title"], row["content"], "c") for row in ROWS]
    sampled = sample_passages(Knowledge(corpora=[{"path": source.path}]), 2)
    assert [passage.id for passage in sampled] == ["p1", "p2"]


def test_limit_and_name_hold_for_tables_too(tmp_path):
    write(tmp_path / "mine.parquet")
    knowledge = Knowledge(corpora=[{"path": str(tmp_path / "mine.parquet"), "limit": 2}])
    (corpus,) = open_corpora(knowledge)
    assert corpus.name == "mine" and [passage.id for passage in corpus.passages] == ["p1", "p2"]
    assert Knowledge(corpora=[str(tmp_path / "mine.csv.gz")]).corpora[0].name == "mine"


def test_a_copy_is_made_once_and_again_when_the_file_changes(tmp_path):
    source = write(tmp_path / "c.csv")
    first = read(source)
    (copy,) = (tmp_path / "cache" / "corpus_copies").rglob("*.jsonl")
    made = copy.stat().st_mtime_ns
    assert read(source) == first and copy.stat().st_mtime_ns == made
    write(tmp_path / "c.csv", ROWS[:1])
    assert len(read(source)) == 1


def test_columns_are_recognised_or_named(tmp_path):
    source = write(tmp_path / "c.parquet", [{"_id": 7, "text": "Dark urine."}])  # as BEIR's corpora
    assert read(source) == [("7", "", "Dark urine.", "c")]
    source = write(tmp_path / "d.csv", [{"nr": "1", "head": "Gout", "body": "Urate."}])
    with pytest.raises(InputError, match=r"no column 'id'; its columns are nr, head, body; name them"):
        read(source)
    named = CorpusSource(path=source.path, columns={"id": "nr", "title": "head", "content": "body"})
    assert read(named) == [("1", "Gout", "Urate.", "d")]
    with pytest.raises(InputError, match=r"no column 'heading'"):
        read(named.model_copy(update={"columns": named.columns.model_copy(update={"title": "heading"})}))


def test_errors_name_the_corpus_and_not_its_copy(tmp_path):
    source = write(tmp_path / "c.csv", [ROWS[0], {**ROWS[1], "content": " "}])
    with pytest.raises(InputError, match=r"/c\.csv row 2 \(id 'p2'\) has no content"):
        read(source)
    source = write(tmp_path / "d.csv", [ROWS[0], ROWS[0]])
    with pytest.raises(InputError, match=r"/d\.csv line 2: id 'p1' occurs twice, first at .*/d\.csv line 1"):
        read(source)
    with pytest.raises(InputError, match="has no passages"):
        read(write(tmp_path / "e.json", []))
    with pytest.raises(InputError, match="does not exist"):
        read(CorpusSource(path=str(tmp_path / "absent.parquet")))


def test_embedded_corpora_refuse_keys_of_files():
    with pytest.raises(ValueError, match="split has no meaning"):
        CorpusSource(path="hpo:passages", split="train")


def test_a_folder_of_shards_is_one_corpus(tmp_path):
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for shard, rows in enumerate((ROWS[:2], ROWS[2:])):
        write(folder / f"train-{shard:05}-of-00002.parquet", rows)
    assert [row[0] for row in read(CorpusSource(path=str(tmp_path / "set"), split="train"))] == ["p1", "p2", "p3"]


def put_in_hub_cache(hub, repo, files):
    """Write a data set as the hub's library keeps it."""
    folder = hub / f"datasets--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("a" * 40)
    for name, rows in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        write(snapshot / name, rows)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)


def test_hub_ids_are_read_from_the_cache_and_refused_offline(tmp_path, monkeypatch):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(file_download, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    put_in_hub_cache(tmp_path / "hub", "lab/books", {"chunk/a.jsonl": ROWS[:2], "chunk/b.jsonl": ROWS[2:]})  # as MedRAG
    put_in_hub_cache(tmp_path / "hub", "lab/wiki", {"data/passages.parquet": ROWS, "data/test.parquet": [{"q": "?"}]})
    knowledge = Knowledge(corpora=["lab/books", "hf://datasets/lab/wiki/data/passages.parquet"])
    books, wiki = open_corpora(knowledge)
    assert (books.name, wiki.name) == ("books", "passages")
    assert [passage.id for passage in books.passages] == [passage.id for passage in wiki.passages] == ["p1", "p2", "p3"]
    with pytest.raises(InputError, match=r"'lab/absent' is neither .* HF_HUB_OFFLINE is set"):
        read(CorpusSource(path="lab/absent"))
