"""Encoders, index and retrieval, with the real MiniLM and a small random MedCPT."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch

from medssr_dist.cache import cache_dir
from medssr_dist.config import DataSource, Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus import Passage
from medssr_dist.knowledge.encoders import encoder_name, load_encoder
from medssr_dist.knowledge.index import index_dir, open_index
from medssr_dist.knowledge.retrieval import Retriever

PASSAGES = [
    Passage("p1", "Alkaptonuria", "Urine turns dark; joints hurt; homogentisic acid is high.", "t"),
    Passage("p2", "Wilson disease", "Copper builds up in the liver and the brain; Kayser-Fleischer rings.", "t"),
    Passage("p3", "Marfan syndrome", "Tall stature, lens dislocation, aortic root dilatation.", "t"),
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rare", "disease", "liver", "copper", "eye", "wilson"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    rows = [{"id": p.id, "title": p.title, "content": p.content} for p in PASSAGES]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


def save_bert(directory, seed):
    from transformers import BertConfig, BertModel, BertTokenizer

    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).eval().save_pretrained(directory)
    return str(directory)


@pytest.fixture
def medcpt(tmp_path):
    return Knowledge(
        encoder="medcpt",
        medcpt_query=save_bert(tmp_path / "query", 0),
        medcpt_article=save_bert(tmp_path / "article", 1),
        batch_size=2,
    )


def cls_state(directory, *texts):
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(directory)(*texts, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(directory).eval()(**inputs).last_hidden_state[0, 0].numpy()


def test_cache_dir_is_private(tmp_path):
    assert cache_dir() == tmp_path / "cache"
    assert cache_dir().stat().st_mode & 0o777 == 0o700


def test_cache_dir_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="MEDSSR_CACHE"):
        cache_dir()


def test_medcpt_queries_are_cls_states_of_the_query_tower(medcpt):
    vectors = load_encoder(medcpt).encode_queries(["wilson disease", "rare", "copper liver eye"])
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], cls_state(medcpt.medcpt_query, "wilson disease"), atol=1e-5)
    np.testing.assert_allclose(vectors[2], cls_state(medcpt.medcpt_query, "copper liver eye"), atol=1e-5)
    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_medcpt_articles_are_title_content_pairs_of_the_article_tower(medcpt):
    vector = load_encoder(medcpt).encode_articles([Passage("1", "wilson disease", "copper liver", "t")])[0]
    pair = cls_state(medcpt.medcpt_article, "wilson disease", "copper liver")
    np.testing.assert_allclose(vector, pair, atol=1e-5)
    assert not np.allclose(vector, cls_state(medcpt.medcpt_article, "wilson disease copper liver"), atol=1e-3)


def test_medcpt_cuts_queries_at_64_and_articles_at_512(medcpt):
    encoder = load_encoder(medcpt)
    query = cls_state(medcpt.medcpt_query, " ".join(["rare"] * 62))
    np.testing.assert_allclose(encoder.encode_queries(["rare " * 100])[0], query, atol=1e-5)
    article = cls_state(medcpt.medcpt_article, "eye", " ".join(["rare"] * 508))
    np.testing.assert_allclose(
        encoder.encode_articles([Passage("1", "eye", "rare " * 900, "t")])[0], article, atol=1e-5
    )


def test_absent_medcpt_says_what_to_do(tmp_path):
    for model in (str(tmp_path / "nowhere"), "nobody/no-such-encoder"):
        with pytest.raises(InputError, match=r"medssr prefetch.*knowledge\.encoder=minilm"):
            load_encoder(Knowledge(encoder="medcpt", medcpt_query=model))


def test_encoder_name_follows_the_model_files(medcpt, tmp_path):
    before = encoder_name(medcpt)
    (tmp_path / "article" / "model.safetensors").write_bytes(b"changed")
    assert before != encoder_name(medcpt) and before.startswith("medcpt:")
    assert encoder_name(Knowledge(encoder="minilm")) == "minilm"


def test_minilm_gives_unit_vectors_that_know_meaning():
    encoder = load_encoder(Knowledge(encoder="minilm", batch_size=2))
    vectors = encoder.encode_articles(PASSAGES)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    queries = encoder.encode_queries(["homogentisic aciduria", "copper in the liver", "a very tall patient"])
    assert (queries @ vectors.T).argmax(axis=1).tolist() == [0, 1, 2]


class AxisEncoder:
    """Passage i -> unit vector i; counts how often it is used."""

    name = "axis"
    calls = 0

    def encode_articles(self, passages):
        self.calls += 1
        return np.eye(len(passages), 4, dtype=np.float32)


def search_first(index):
    return index.search(np.eye(1, 4, dtype=np.float32), 1)[1][0][0]


def test_index_is_built_once():
    encoder = AxisEncoder()
    for _ in range(2):
        assert search_first(open_index(PASSAGES, "axis", lambda: encoder)) == 0
    assert encoder.calls == 1
    assert index_dir(PASSAGES, "axis") != index_dir(PASSAGES[:2], "axis") != index_dir(PASSAGES[:2], "other")


@pytest.mark.parametrize("damage", ["hash", "count", "torn", "not json"])
def test_index_that_does_not_match_is_built_again_with_a_warning(damage, caplog):
    encoder = AxisEncoder()
    open_index(PASSAGES, "axis", lambda: encoder)
    facts, data = index_dir(PASSAGES, "axis") / "index.json", index_dir(PASSAGES, "axis") / "index.faiss"
    if damage == "torn":
        data.write_bytes(data.read_bytes()[:30])
    elif damage == "not json":
        facts.write_text("{")
    else:
        changed = {"hash": {"corpus_hash": "0"}, "count": {"count": 9}}[damage]
        facts.write_text(json.dumps({**json.loads(facts.read_text()), **changed}))
    with caplog.at_level(logging.WARNING):
        index = open_index(PASSAGES, "axis", lambda: encoder)
    assert "building it again" in caplog.text and encoder.calls == 2 and index.ntotal == 3
    open_index(PASSAGES, "axis", lambda: encoder)
    assert encoder.calls == 2


def test_retrieval_finds_the_disease_with_both_encoders(corpus, medcpt):
    minilm = Knowledge(corpus=corpus, encoder="minilm", top_k=2)
    found = Retriever(minilm).top_k("Wilson disease")
    assert len(found) == 2 and found[0].id == "p2"
    both = Retriever(medcpt.model_copy(update={"corpus": corpus, "top_k": 5})).top_k("Wilson disease")
    assert sorted(passage.id for passage in both) == ["p1", "p2", "p3"]


def test_resumed_retrieval_loads_no_model(corpus):
    knowledge = Knowledge(corpus=corpus, encoder="minilm", top_k=1)
    expected = [passage.id for passage in Retriever(knowledge).top_k("Marfan syndrome")]
    code = (
        "import sys; from medssr_dist.config import Knowledge; from medssr_dist.knowledge.retrieval import Retriever\n"
        "knowledge = Knowledge.model_validate_json(sys.argv[1])\n"
        "print([passage.id for passage in Retriever(knowledge).top_k('Marfan syndrome')])\n"
        "sys.exit(len({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, knowledge.model_dump_json()], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(expected)), done.stderr


def test_another_k_is_another_retrieval(corpus):
    ids = [
        [passage.id for passage in Retriever(Knowledge(corpus=corpus, encoder="minilm", top_k=k)).top_k("Marfan")]
        for k in (1, 3, 1)
    ]
    assert [len(found) for found in ids] == [1, 3, 1] and ids[0] == ids[2] == ids[1][:1]
