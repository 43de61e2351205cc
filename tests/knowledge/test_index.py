"""The index with FAISS on small data: exact search, IVF-PQ and its recall, memory, the cache and its checks."""

import json
import logging

import numpy as np
import pytest

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.index import build_index, estimate_index_memory, locate_form, locate_index, open_index
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.knowledge.vectors import Vectors, list_shard_files

pytest.importorskip("faiss")

KNOWLEDGE = {"encoder": "minilm", "shard_size": 700, "pq_bytes": 8, "ivf_lists": 32, "top_k": 5}


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: small searches are slower on several, especially while other tests run."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def vectors():
    """[4000, 64] in 200 clusters, not normalised; the last ten are copies of the first ten."""
    rng = np.random.default_rng(0)
    made = rng.standard_normal((200, 64))[rng.integers(0, 200, 4000)] + 0.6 * rng.standard_normal((4000, 64))
    made[-10:] = made[:10]
    return made.astype(np.float32)


@pytest.fixture(scope="module")
def queries(vectors):
    rng = np.random.default_rng(1)
    return vectors[rng.integers(0, 4000, 50)] + 0.3 * rng.standard_normal((50, 64), dtype=np.float32)


def make_knowledge(name, **more):
    return Knowledge(**KNOWLEDGE | {"index": name} | more)


def search_by_sorting(vectors, queries, k):
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def test_exact_forms_find_the_largest_inner_products(vectors, queries, tmp_path):
    for name in ("flat", "sharded_flat"):
        scores, rows = build_index(vectors, make_knowledge(name), tmp_path / name).search(queries, 5)
        assert rows.dtype == np.int64 and scores.dtype == np.float32
        np.testing.assert_array_equal(np.sort(rows), np.sort(search_by_sorting(vectors, queries, 5)))
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5, 120])
def test_sharded_search_equals_flat_search_with_ties(vectors, tmp_path, k):
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    flat = build_index(vectors, make_knowledge("flat"), tmp_path / "flat").search(vectors[:10], k)
    sharded = build_index(mapped, make_knowledge("sharded_flat"), tmp_path / "sharded").search(vectors[:10], k)
    np.testing.assert_array_equal(sharded[0], flat[0])
    np.testing.assert_array_equal(sharded[1], flat[1])
    if k > 1:
        assert [sorted(pair) for pair in flat[1][:, :2].tolist()] == [[row, 3990 + row] for row in range(10)]


def test_shards_may_be_smaller_than_k(vectors, queries, tmp_path):
    index = build_index(vectors[:100], make_knowledge("sharded_flat", shard_size=3), tmp_path)
    np.testing.assert_array_equal(index.search(queries, 20)[1], search_by_sorting(vectors[:100], queries, 20))


def test_ivfpq_ranks_by_exact_scores_and_reports_recall(vectors, queries, tmp_path):
    index = build_index(vectors, make_knowledge("ivfpq", ivf_probes=8, candidates=200), tmp_path, queries)
    scores, rows = index.search(queries, 5)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), rtol=1e-4)
    facts = json.loads((tmp_path / "index.json").read_text())
    exact = search_by_sorting(vectors, queries, 5)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
    assert facts["recall"]["of"] == {"k": 5, "probes": 8, "candidates": 200} and facts["recall"]["queries"] == 50
    assert facts["recall"]["value"] == pytest.approx(recall) and recall > 0.95


def test_fewer_candidates_and_probes_recall_less(vectors, tmp_path):
    few = make_knowledge("ivfpq", ivf_probes=1, candidates=5, pq_bytes=2)
    build_index(vectors, few, tmp_path)
    recall = json.loads((tmp_path / "index.json").read_text())["recall"]
    assert recall["queries"] == 200 and 0.05 < recall["value"] < 0.9


def test_missing_results_have_row_minus_one(vectors, queries, tmp_path):
    index = build_index(vectors[:300], make_knowledge("ivfpq", ivf_lists=250, ivf_probes=1), tmp_path)
    scores, rows = index.search(queries, 20)
    assert (rows[:, 0] >= 0).all() and (rows[:, -1] == -1).any() and (scores[rows == -1] == -np.inf).all()
    assert ((rows == -1).astype(int).cumsum(1) <= np.arange(1, 21)).all() and not (
        np.diff(rows == -1, axis=1) < 0
    ).any()


@pytest.mark.parametrize(
    ("count", "settings", "message"),
    [
        (200, {}, r"needs at least 256 passages, there are 200; use flat"),
        (400, {"ivf_lists": 500}, r"needs at least 500 passages, there are 400"),
        (400, {"pq_bytes": 7}, r"pq_bytes = 7 does not divide the dimension 64"),
    ],
)
def test_ivfpq_that_cannot_be_trained_is_refused(vectors, tmp_path, count, settings, message):
    with pytest.raises(InputError, match=message):
        build_index(vectors[:count], make_knowledge("ivfpq", **settings), tmp_path)


def test_memory_of_each_form_for_24_million_passages():
    """As many passages as PubMed abstracts, encoded by MedCPT."""
    needed = estimate_index_memory(Knowledge(), 24_000_000, 768)
    assert needed["flat"] == pytest.approx(73.9e9, rel=0.01)
    assert needed["sharded_flat"] == pytest.approx(0.46e9, rel=0.01)
    assert 2e9 < needed["ivfpq"] < 6e9


def test_form_that_does_not_fit_is_refused_with_alternatives(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("medssr_dist.knowledge.index.read_available_memory", lambda: 1_000_000_000)
    wide = Vectors([np.broadcast_to(np.float32(0), (1_000_000, 768))])
    smaller = r"set knowledge\.index=sharded_flat \(0\.46 GB\) or ivfpq \(0\.\d\d GB\)$"
    with pytest.raises(InputError, match=rf"index=flat needs 3\.22 GB .*1,000,000.*768, 1\.00 GB are free; {smaller}"):
        build_index(wide, make_knowledge("flat", shard_size=100_000), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr("medssr_dist.knowledge.index.read_available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"lower knowledge\.shard_size or free some memory"):
        build_index(vectors, make_knowledge("sharded_flat"), tmp_path / "x")


# --- the cache


class Rows(Corpus):
    """A corpus of `count` passages without content."""

    def __init__(self, count, name="rows"):
        self.hash, self._count = f"{name}{count}", count

    def __len__(self):
        return self._count

    def __getitem__(self, item):
        rows = range(self._count)[item]
        return [self[row] for row in rows] if isinstance(item, slice) else Passage(str(rows), "t", "c", "s")

    def by_id(self, passage_id):
        return self[int(passage_id)]


class TableEncoder:
    """Encodes passage i as row i of a table, and counts the encoded passages."""

    name = "table"

    def __init__(self, table):
        self.table, self.encoded = table, 0

    def encode_articles(self, passages):
        self.encoded += len(passages)
        return self.table[[int(passage.id) for passage in passages]]

    def encode_queries(self, texts):
        return self.table[[len(text) for text in texts]]


@pytest.fixture
def encoder(vectors):
    return TableEncoder(vectors)


def finds_queries(index, encoder):
    return index.search(encoder.table[:3], 1)[1][:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["flat", "sharded_flat", "ivfpq"])
def test_index_is_built_once(encoder, name):
    corpus = Rows(3000)
    for _ in range(2):
        index = open_index(corpus, make_knowledge(name, ivf_probes=32, pq_bytes=32), lambda: encoder)
        assert finds_queries(index, encoder)
    assert encoder.encoded == 3000
    folder = locate_index(corpus, make_knowledge(name))
    assert [np.load(file).shape for file in list_shard_files(folder, 3000, 700)] == [(700, 64)] * 4 + [(200, 64)]
    facts = json.loads((locate_form(folder, make_knowledge(name, pq_bytes=32)) / "index.json").read_text())
    assert facts["corpus_hash"] == corpus.hash and facts["recall"]["value"] > 0.9
    assert set(facts["memory_bytes"]) == {"flat", "sharded_flat", "ivfpq"}


def test_forms_share_the_encoded_vectors(encoder):
    for name in ("flat", "sharded_flat", "ivfpq"):
        open_index(Rows(3000), make_knowledge(name), lambda: encoder)
    assert encoder.encoded == 3000
    folders = [
        locate_index(Rows(3), make_knowledge("flat")),
        locate_index(Rows(3, "x"), make_knowledge("flat")),
        locate_index(Rows(3), make_knowledge("flat", shard_size=1)),
    ]
    assert len(set(folders)) == 3


def test_other_search_settings_measure_recall_without_a_build(encoder, monkeypatch):
    open_index(Rows(3000), make_knowledge("ivfpq"), lambda: encoder, ["query"] * 7)
    monkeypatch.setattr("medssr_dist.knowledge.index.build_ivfpq", lambda *given: pytest.fail("built again"))
    open_index(Rows(3000), make_knowledge("ivfpq", ivf_probes=3), lambda: encoder, ["query"] * 9)
    knowledge = make_knowledge("ivfpq")
    facts = json.loads((locate_form(locate_index(Rows(3000), knowledge), knowledge) / "index.json").read_text())
    assert facts["recall"]["of"]["probes"] == 3 and facts["recall"]["queries"] == 9


@pytest.mark.parametrize("damage", ["hash", "count", "torn", "not json", "of another corpus"])
def test_index_that_does_not_match_is_built_again(encoder, damage, caplog):
    open_index(Rows(3000), make_knowledge("ivfpq"), lambda: encoder)
    folder = locate_form(locate_index(Rows(3000), make_knowledge("ivfpq")), make_knowledge("ivfpq"))
    facts, data = folder / "index.json", folder / "index.faiss"
    if damage == "torn":
        data.write_bytes(data.read_bytes()[:30])
    elif damage == "not json":
        facts.write_text("{")
    elif damage == "of another corpus":
        open_index(Rows(2000), make_knowledge("ivfpq"), lambda: encoder)
        other = locate_form(locate_index(Rows(2000), make_knowledge("ivfpq")), make_knowledge("ivfpq"))
        data.write_bytes((other / "index.faiss").read_bytes())
    else:
        changed = {"hash": {"corpus_hash": "0"}, "count": {"count": 9}}[damage]
        facts.write_text(json.dumps({**json.loads(facts.read_text()), **changed}))
    with caplog.at_level(logging.WARNING):
        index = open_index(Rows(3000), make_knowledge("ivfpq", ivf_probes=32, candidates=300), lambda: encoder)
    assert "building it again" in caplog.text and finds_queries(index, encoder)


def test_torn_shard_is_encoded_again(encoder, caplog):
    open_index(Rows(3000), make_knowledge("flat"), lambda: encoder)
    file = list_shard_files(locate_index(Rows(3000), make_knowledge("flat")), 3000, 700)[1]
    file.write_bytes(file.read_bytes()[:1000])
    assert finds_queries(open_index(Rows(3000), make_knowledge("flat"), lambda: encoder), encoder)
    assert encoder.encoded == 3700 and "encoding its passages again" in caplog.text


def test_too_little_memory_is_reported_before_encoding(encoder, monkeypatch):
    monkeypatch.setattr("medssr_dist.knowledge.index.read_available_memory", lambda: 160_000_000)
    with pytest.raises(InputError, match=r"index=flat needs .* set knowledge\.index=sharded_flat"):
        open_index(Rows(100_000), make_knowledge("flat"), lambda: encoder)
    assert encoder.encoded == 0
