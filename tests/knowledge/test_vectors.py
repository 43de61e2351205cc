"""Encoding in shards: killed and resumed, in this process or on Ray workers, and with a killed worker."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from tiny_bert import save_bert

from medssr_dist.config.base import DataSource
from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus import read_corpus
from medssr_dist.knowledge.encoders import load_encoder
from medssr_dist.knowledge.vectors import Vectors, encode_corpus

SHARD = 8
# Encodes the corpus of the Knowledge in argv[1] into the folder argv[2].
ENCODE = """
import sys; from pathlib import Path
from medssr_dist.config.synthesis import Knowledge
from medssr_dist.knowledge.corpus import read_corpus
from medssr_dist.knowledge.encoders import load_encoder
from medssr_dist.knowledge.vectors import encode_corpus
knowledge = Knowledge.model_validate_json(sys.argv[1])
encode_corpus(read_corpus(knowledge.corpora[0]), knowledge, Path(sys.argv[2]), lambda: load_encoder(knowledge))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def knowledge(tmp_path):
    words = ["rare", "disease", "liver", "copper", "eye", "wilson"]
    rng = np.random.default_rng(0)
    rows = [
        {"id": str(i), "title": words[i % 6], "content": " ".join(rng.choice(words, 100 + int(rng.integers(150))))}
        for i in range(157)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Knowledge(
        corpus=DataSource(path=str(tmp_path / "c.jsonl")),
        medcpt_query=save_bert(tmp_path / "query", 0),
        medcpt_article=save_bert(tmp_path / "article", 1),
        batch_size=4,
        shard_size=SHARD,
    )


def encode_here(knowledge, folder):
    folder.mkdir()
    vectors = encode_corpus(read_corpus(knowledge.corpora[0]), knowledge, folder, lambda: load_encoder(knowledge))
    return np.vstack([shard for _, shard in vectors])


@pytest.mark.slow
def test_killed_encoding_resumes_at_the_next_shard(knowledge, tmp_path):
    expected = encode_here(knowledge, tmp_path / "whole")
    folder = tmp_path / "killed"
    folder.mkdir()
    command = [sys.executable, "-c", ENCODE, knowledge.model_dump_json(), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("*.npy"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    (folder / ".00009.npy.1.tmp").write_bytes(b"half")
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert 3 <= len(kept) < 20
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert sorted(file.name for file in folder.iterdir()) == [f"{number:05}.npy" for number in range(20)]
    np.testing.assert_array_equal(np.vstack([np.load(file) for file in sorted(folder.iterdir())]), expected)


def test_full_disk_is_bad_input_and_leaves_no_partial_shard(knowledge, tmp_path, monkeypatch):
    def full(file, vectors):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="no space left"):
        encode_here(knowledge, tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_vectors_are_read_by_row_from_arrays_and_files(tmp_path):
    table = np.random.default_rng(0).standard_normal((23, 4), dtype=np.float32)
    parts = [table[:10], table[10:20], table[20:]]
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", part)
    rows = np.array([22, 0, 9, 10, 0, 19])
    for vectors in (Vectors(parts), Vectors([tmp_path / f"{n}.npy" for n in range(3)]), Vectors.split(table, 10)):
        assert (len(vectors), vectors.dimension, vectors.shard_count) == (23, 4, 3)
        np.testing.assert_array_equal(vectors.take(rows), table[rows])
        np.testing.assert_array_equal(vectors.load().take(rows), table[rows])


def list_workers():
    """Return the live encoding workers of this process' cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            found += [process] * ("ray::ShardEncoder" in " ".join(process.cmdline()))
    return found


@pytest.mark.slow
def test_ray_workers_encode_the_same_though_one_is_killed(knowledge, tmp_path, caplog):
    pytest.importorskip("ray")
    from medssr_dist.knowledge.encoder_workers import encode_on_workers

    corpus, expected = read_corpus(knowledge.corpora[0]), encode_here(knowledge, tmp_path / "here")
    shards = {number: range(number * SHARD, min((number + 1) * SHARD, len(corpus))) for number in range(20)}
    found = {}
    for number, vectors in encode_on_workers(corpus, knowledge.model_copy(update={"workers": 2}), shards):
        if not found:
            os.kill(list_workers()[0].pid, signal.SIGKILL)
        found[number] = vectors
    assert "another worker retries it" in caplog.text and sorted(found) == list(range(20))
    np.testing.assert_allclose(np.vstack([found[number] for number in range(20)]), expected, atol=1e-6)
    assert not list_workers()


def test_too_many_workers_or_worker_deaths_are_refused(knowledge, monkeypatch):
    ray = pytest.importorskip("ray")
    from medssr_dist.knowledge import encoder_workers

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(InputError, match=r"knowledge\.workers = 3, but the Ray cluster has 1 GPUs"):
        encoder_workers._make_starter(3)
    with pytest.raises(InputError, match=r"3 encoding workers died one after another at shard 7 \(gone\)"):
        encoder_workers._count_death(7, 3, RuntimeError("gone"))
