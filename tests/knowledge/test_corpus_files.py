"""JSONL corpora that are read by offset: valid lines, errors with their place, and changed files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from medssr_dist.errors import InputError
from medssr_dist.knowledge import corpus_files
from medssr_dist.knowledge.corpus_files import FileCorpus


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


def row(name, content="c", **more):
    return json.dumps({"id": name, "title": f"Title {name}", "content": content, **more}, ensure_ascii=False) + "\n"


@pytest.fixture
def shards(tmp_path):
    """Three shards of 4, 0 and 3 passages in MedRAG's format."""
    folder = tmp_path / "chunk"
    folder.mkdir()
    for number, names in enumerate(("abcd", "", "efg")):
        (folder / f"pubmed{number:04}.jsonl").write_text("".join(row(name, f"content {name}") for name in names))
    return folder


def count_scans(monkeypatch):
    """Return a list that gets an entry for each scan from now on."""
    done, scan = [], corpus_files._scan_files
    monkeypatch.setattr(corpus_files, "_scan_files", lambda *given: done.append(1) or scan(*given))
    return done


def test_folder_of_shards_is_read_by_row_slice_and_id(shards):
    corpus = FileCorpus(shards)
    assert len(corpus) == 7 and [passage.id for passage in corpus] == list("abcdefg")
    assert (corpus[4].id, corpus[4].source, corpus[-1].content) == ("e", "pubmed0002", "content g")
    assert [passage.id for passage in corpus[2:6]] == list("cdef") and corpus[3] == corpus.by_id("d")
    with pytest.raises(KeyError):
        corpus.by_id("z")
    with pytest.raises(IndexError):
        corpus[7]


@pytest.mark.parametrize("limit", [3, 4, 5])
def test_limit_takes_the_first_passages_and_changes_the_hash(shards, limit):
    corpus = FileCorpus(shards, limit)
    assert [passage.id for passage in corpus] == list("abcdefg")[:limit]
    assert corpus.hash != FileCorpus(shards).hash


def test_utf8_blank_lines_crlf_and_no_last_newline_are_read(tmp_path):
    file = tmp_path / "odd.jsonl"
    text = row("é", "naïve 麻酔 \u2028 x") + "\n  \r\n" + row("b").replace("\n", "\r\n") + row("c").rstrip("\n")
    file.write_bytes(text.encode())
    corpus = FileCorpus(file)
    assert [passage.id for passage in corpus] == ["é", "b", "c"]
    assert corpus.by_id("é").content == "naïve 麻酔 \u2028 x" and corpus[2].content == "c"


def test_byte_order_mark_is_skipped(tmp_path):
    file = tmp_path / "marked.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + (row("a") + row("b")).encode())
    corpus = FileCorpus(file)
    assert [passage.id for passage in corpus] == ["a", "b"] and corpus.by_id("b") == corpus[1]


def test_title_may_be_empty(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": "a", "content": "x"}\n{"id": "b", "title": null, "content": "y"}\n')
    assert [passage.title for passage in FileCorpus(tmp_path / "t.jsonl")] == ["", ""]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", "title": "t", "cont', "line 3 is not JSON"),
        (b'{"id": "x\xe9"}\n', "line 3 is not UTF-8"),
        (b"[1]\n", "line 3: Expected `object`"),
        (b'{"id": "x", "content": 4}\n', r"line 3: Expected `str \| null`, got `int` - at `\$\.content`"),
        (b'{"id": "x", "content": " "}\n', r"line 3 \(id 'x'\): no content"),
        (row("a").encode(), r"line 3: id 'a' occurs twice, first at .*c\.jsonl line 1;"),
    ],
)
def test_bad_line_is_reported_by_number(tmp_path, line, message):
    (tmp_path / "c.jsonl").write_bytes(row("a").encode() + b"\n" + line)
    with pytest.raises(InputError, match=r"c\.jsonl " + message):
        FileCorpus(tmp_path / "c.jsonl")


def test_id_in_two_shards_is_reported_with_both_places(shards):
    with open(shards / "pubmed0002.jsonl", "a") as file:
        file.write("\n" + row("b"))
    with pytest.raises(
        InputError, match=r"pubmed0002\.jsonl line 5: id 'b' occurs twice, first at .*pubmed0000\.jsonl line 2"
    ):
        FileCorpus(shards)


def test_ids_with_equal_hash_are_distinguished(shards, monkeypatch):
    monkeypatch.setattr(corpus_files, "_hash_id", lambda name: ord(name) % 2)
    corpus = FileCorpus(shards)
    assert [corpus.by_id(name).id for name in "abcdefg"] == list("abcdefg")


def test_folder_without_shards_is_refused_with_the_fix(tmp_path):
    with pytest.raises(InputError, match=r"has no \*\.jsonl files.*chunk/"):
        FileCorpus(tmp_path)


def test_files_are_scanned_again_only_after_a_change(shards, monkeypatch):
    done = count_scans(monkeypatch)
    first, again = FileCorpus(shards), FileCorpus(shards)
    assert len(done) == 1 and again.hash == first.hash
    os.utime(shards / "pubmed0000.jsonl", ns=(1, 1))
    assert FileCorpus(shards).hash == first.hash and len(done) == 2
    (shards / "pubmed0001.jsonl").write_text(row("new"))
    changed = FileCorpus(shards)
    assert len(done) == 3 and changed.hash != first.hash
    assert [passage.id for passage in changed] == [*"abcd", "new", *"efg"]
    (shards / "pubmed0003.jsonl").write_text(row("h"))
    assert len(FileCorpus(shards)) == 9


def test_change_while_in_use_is_refused(shards):
    corpus = FileCorpus(shards)
    with open(shards / "pubmed0000.jsonl", "a") as file:
        file.write(row("new"))
    with pytest.raises(InputError, match=r"pubmed0000\.jsonl was changed while in use"):
        corpus[0]
    assert corpus[5].id == "f"


def test_hash_covers_ids_contents_and_order(tmp_path):
    hashes = set()
    for lines in ([row("a"), row("b")], [row("b"), row("a")], [row("a"), row("b", "other")]):
        (tmp_path / "c.jsonl").write_text("".join(lines))
        hashes.add(FileCorpus(tmp_path / "c.jsonl").hash)
    assert len(hashes) == 3


def test_large_file_is_not_loaded_into_memory(tmp_path):
    file = tmp_path / "large.jsonl"
    with open(file, "w") as handle:
        for number in range(60_000):
            handle.write(row(f"passage {number}", "x" * 2000))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from medssr_dist.knowledge.corpus_files import FileCorpus\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); corpus = FileCorpus(Path(sys.argv[1])); corpus.by_id('passage 59999')\n"
        "print(len(corpus), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    count, grown_kb = map(int, done.stdout.split())
    assert count == 60_000 and grown_kb * 1024 < 25e6 < file.stat().st_size / 4


def test_rows_are_read_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    contents = ["é" * int(rng.integers(1, 50)) for _ in range(300)]
    (tmp_path / "c.jsonl").write_text("".join(row(f"{i}", content) for i, content in enumerate(contents)))
    corpus = FileCorpus(tmp_path / "c.jsonl")
    for i in rng.permutation(300):
        assert corpus[int(i)].content == corpus.by_id(str(i)).content == contents[i]
