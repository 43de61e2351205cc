"""Encoders, reranker and retrieval, with the real MiniLM and a small random MedCPT."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_bert import save_bert

from medssr_dist.config.base import DataSource
from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.encoders import identify_encoder, load_encoder
from medssr_dist.knowledge.entities import Entity
from medssr_dist.knowledge.passages import Passage
from medssr_dist.knowledge.reranker import Reranker
from medssr_dist.knowledge.retrieval import Retriever
from medssr_dist.runtime.cache import make_cache_dir

PASSAGES = [
    Passage("p1", "Alkaptonuria", "Urine turns dark; joints hurt; homogentisic acid is high.", "t"),
    Passage("p2", "Wilson disease", "Copper builds up in the liver and the brain; Kayser-Fleischer rings.", "t"),
    Passage("p3", "Marfan syndrome", "Tall stature, lens dislocation, aortic root dilatation.", "t"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path):
    rows = [{"id": p.id, "title": p.title, "content": p.content} for p in PASSAGES]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(path))


@pytest.fixture
def medcpt(tmp_path):
    return Knowledge(
        encoder="medcpt",
        medcpt_query=save_bert(tmp_path / "query", 0),
        medcpt_article=save_bert(tmp_path / "article", 1),
        batch_size=2,
    )


def compute_cls(directory, *texts):
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(directory)(*texts, return_tensors="pt")
    with torch.no_grad():
        return AutoModel.from_pretrained(directory).eval()(**inputs).last_hidden_state[0, 0].numpy()


def test_cache_folder_is_private(tmp_path):
    assert make_cache_dir() == tmp_path / "cache"
    assert make_cache_dir().stat().st_mode & 0o777 == 0o700


def test_unusable_cache_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="MEDSSR_CACHE"):
        make_cache_dir()


def test_medcpt_queries_are_cls_states_of_the_query_model(medcpt):
    vectors = load_encoder(medcpt).encode_queries(["wilson disease", "rare", "copper liver eye"])
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], compute_cls(medcpt.medcpt_query, "wilson disease"), atol=1e-5)
    np.testing.assert_allclose(vectors[2], compute_cls(medcpt.medcpt_query, "copper liver eye"), atol=1e-5)
    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_medcpt_articles_are_pairs_of_title_and_content(medcpt):
    vector = load_encoder(medcpt).encode_articles([Passage("1", "wilson disease", "copper liver", "t")])[0]
    pair = compute_cls(medcpt.medcpt_article, "wilson disease", "copper liver")
    np.testing.assert_allclose(vector, pair, atol=1e-5)
    assert not np.allclose(vector, compute_cls(medcpt.medcpt_article, "wilson disease copper liver"), atol=1e-3)


def test_medcpt_truncates_queries_at_64_and_articles_at_512(medcpt):
    encoder = load_encoder(medcpt)
    query = compute_cls(medcpt.medcpt_query, " ".join(["rare"] * 62))
    np.testing.assert_allclose(encoder.encode_queries(["rare " * 100])[0], query, atol=1e-5)
    article = compute_cls(medcpt.medcpt_article, "eye", " ".join(["rare"] * 508))
    np.testing.assert_allclose(
        encoder.encode_articles([Passage("1", "eye", "rare " * 900, "t")])[0], article, atol=1e-5
    )


def test_absent_medcpt_is_reported_with_the_fix(tmp_path):
    for model in (str(tmp_path / "nowhere"), "nobody/no-such-encoder"):
        with pytest.raises(InputError, match=r"medssr prefetch.*knowledge\.encoder=minilm"):
            load_encoder(Knowledge(encoder="medcpt", medcpt_query=model))


def test_encoder_name_changes_with_the_model_files(medcpt, tmp_path):
    before = identify_encoder(medcpt)
    (tmp_path / "article" / "model.safetensors").write_bytes(b"changed")
    assert before != identify_encoder(medcpt) and before.startswith("medcpt:")
    assert identify_encoder(Knowledge(encoder="minilm")) == "minilm"


def test_minilm_vectors_are_normalised_and_match_by_meaning():
    encoder = load_encoder(Knowledge(encoder="minilm", batch_size=2))
    vectors = encoder.encode_articles(PASSAGES)
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    queries = encoder.encode_queries(["homogentisic aciduria", "copper in the liver", "a very tall patient"])
    assert (queries @ vectors.T).argmax(axis=1).tolist() == [0, 1, 2]


def test_retrieval_finds_the_disease_with_both_encoders(corpus, medcpt):
    found = Retriever(use_minilm(corpus)).retrieve("Wilson disease")
    assert len(found) == 2 and found[0].id == "t:p2"
    settings = {"corpora": use_minilm(corpus).corpora, "top_k": 5, "must_name_entity": False}
    both = Retriever(medcpt.model_copy(update=settings)).retrieve("Wilson disease")
    assert sorted(passage.id for passage in both) == ["t:p1", "t:p2", "t:p3"]


def test_resumed_retrieval_loads_no_model(corpus):
    knowledge = use_minilm(corpus, top_k=1)
    expected = [passage.id for passage in Retriever(knowledge).retrieve("Marfan syndrome")]
    code = (
        "import sys\nfrom medssr_dist.config.schema import Knowledge\n"
        "from medssr_dist.knowledge.retrieval import Retriever\n"
        "knowledge = Knowledge.model_validate_json(sys.argv[1])\n"
        "print([passage.id for passage in Retriever(knowledge).retrieve('Marfan syndrome')])\n"
        "sys.exit(len({'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, knowledge.model_dump_json()], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(expected)), done.stderr


def test_other_top_k_is_retrieved_separately(corpus):
    ids = [[passage.id for passage in Retriever(use_minilm(corpus, top_k=k)).retrieve("Marfan")] for k in (1, 3, 1)]
    assert [len(found) for found in ids] == [1, 3, 1] and ids[0] == ids[2] == ids[1][:1]


def find_ledger(tmp_path):
    (file,) = (tmp_path / "cache" / "retrieval").glob("*/retrieval.jsonl")
    return file


def use_minilm(corpus, **settings):
    """Settings that keep the nearest passages, whatever they name."""
    return Knowledge(**{"corpus": corpus, "encoder": "minilm", "top_k": 2, "must_name_entity": False} | settings)


def make_entities(names):
    return [Entity(name, name) for name in names]


def test_prepare_records_every_name_once(corpus, tmp_path, monkeypatch):
    retriever, names = Retriever(use_minilm(corpus)), ["Wilson disease", "Marfan syndrome", "Wilson disease"]
    syncs, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: syncs.append(file) or fsync(file))
    retriever.prepare(make_entities(names))
    rows = [json.loads(line) for line in find_ledger(tmp_path).read_text().splitlines()]
    assert [row["entity"] for row in rows] == names[:2] and [row["passage_ids"][0] for row in rows] == ["t:p2", "t:p3"]
    syncs.clear()
    retriever.prepare(make_entities([*names, "Copper", "Eye"]))
    assert len(syncs) == 1 and len(find_ledger(tmp_path).read_text().splitlines()) == 4
    assert retriever.read_passage("t:p2").startswith("Wilson disease\nCopper builds up")
    with pytest.raises(KeyError):
        retriever.read_passage("t:p9")


def test_torn_ledger_is_repaired(corpus, tmp_path):
    Retriever(use_minilm(corpus)).prepare(make_entities(["Wilson disease"]))
    with open(find_ledger(tmp_path), "a") as file:
        file.write('{"entity": "Marf')
    assert Retriever(use_minilm(corpus)).retrieve("Marfan syndrome")[0].id == "t:p3"
    assert [json.loads(line)["entity"] for line in find_ledger(tmp_path).read_text().splitlines()] == [
        "Wilson disease",
        "Marfan syndrome",
    ]


def test_recorded_passages_are_read_without_torch_and_faiss(corpus):
    """As after a prefetch on another machine: only the ledger and the offsets of the corpus are used."""
    knowledge = use_minilm(corpus)
    Retriever(knowledge).prepare(make_entities(p.title for p in PASSAGES))
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'faiss', 'ray'): sys.modules[name] = None  # an import fails\n"
        "from medssr_dist.config.synthesis import Knowledge; from medssr_dist.knowledge.retrieval import Retriever\n"
        "retriever = Retriever(Knowledge.model_validate_json(sys.argv[1]))\n"
        f"names = {[p.title for p in PASSAGES]}\n"
        "from medssr_dist.knowledge.entities import Entity\n"
        "retriever.prepare([Entity(name, name) for name in names])\n"
        "print(*[retriever.read_passage(retriever.retrieve(name)[0].id).split('\\n')[0] for name in names], sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", code, knowledge.model_dump_json()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "|".join(p.title for p in PASSAGES)


def test_processes_share_the_cache(corpus, tmp_path):
    """Three processes start without a cache: one builds, the others wait, and every line of the ledger is complete."""
    code = (
        "import sys; from medssr_dist.config.synthesis import Knowledge\n"
        "from medssr_dist.knowledge import retrieval; retrieval._RECORDED_AT_ONCE = 3\n"
        "retriever = retrieval.Retriever(Knowledge.model_validate_json(sys.argv[1]))\n"
        "from medssr_dist.knowledge.entities import Entity\n"
        "names = [f'name {i} ' + sys.argv[2] for i in range(60)] + ['common']\n"
        "retriever.prepare([Entity(name, name) for name in names])"
    )
    commands = [[sys.executable, "-c", code, use_minilm(corpus).model_dump_json(), str(n)] for n in range(3)]
    processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
    assert [process.wait() for process in processes] == [0, 0, 0]
    rows = [json.loads(line) for line in find_ledger(tmp_path).read_text().splitlines()]
    assert len({row["entity"] for row in rows}) == 181 and len(rows) <= 183
    assert len({tuple(row["passage_ids"]) for row in rows if row["entity"] == "common"}) == 1


def test_every_retrieval_setting_gets_its_own_records(corpus, tmp_path):
    reranker = save_bert(tmp_path / "cross", 0, "BertForSequenceClassification", num_labels=1)
    other = save_bert(tmp_path / "cross2", 1, "BertForSequenceClassification", num_labels=1)
    settings = [
        {},
        {"top_k": 1},
        {"index": "sharded_flat"},
        {"reranker": reranker},
        {"reranker": other},
        {"reranker": reranker, "rerank_depth": 2},
        {"must_name_entity": True},
        {"must_name_entity": True, "search_depth": 9},
    ]
    for more in settings * 2:
        Retriever(use_minilm(corpus, **more)).prepare(make_entities(["Wilson disease"]))
    assert len(find_ledger(tmp_path).read_text().splitlines()) == len(settings)
    ivfpq = [{}, {"ivf_probes": 3}, {"candidates": 50}, {"pq_bytes": 32}, {"ivf_lists": 9}]
    keys = {Retriever(use_minilm(corpus, index="ivfpq", **more))._settings for more in ivfpq}
    assert len(keys) == len(ivfpq)


def test_cross_encoder_reranks_the_passages(corpus, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = save_bert(tmp_path / "cross", 3, "BertForSequenceClassification", num_labels=1)
    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModelForSequenceClassification.from_pretrained(model)
    scores = {}
    for passage in PASSAGES:
        inputs = tokenizer("copper liver", f"{passage.title} {passage.content}", return_tensors="pt")
        scores[passage.id] = network(**inputs).logits.item()
    best = [f"t:{name}" for name in sorted(scores, key=scores.get, reverse=True)]
    knowledge = use_minilm(corpus, reranker=model, rerank_depth=3, batch_size=2)
    assert [passage.id for passage in Retriever(knowledge).retrieve("copper liver")] == best[:2]
    plain = [passage.id for passage in Retriever(use_minilm(corpus)).retrieve("copper liver")]
    shallow = Retriever(use_minilm(corpus, reranker=model, rerank_depth=2)).retrieve("copper liver")
    assert sorted(passage.id for passage in shallow) == sorted(plain)


def test_reranker_truncates_long_queries_and_passages(tmp_path):
    model = save_bert(tmp_path / "cross", 3, "BertForSequenceClassification", num_labels=1)
    long = Passage("x", "wilson", "copper " * 900, "t")
    assert Reranker(model, 2).rank("liver " * 600, [PASSAGES[0], long], 1)


def test_classifier_with_several_outputs_is_refused(tmp_path):
    model = save_bert(tmp_path / "three", 0, "BertForSequenceClassification", num_labels=3)
    with pytest.raises(InputError, match=r"three' has 3 outputs; give a cross-encoder with one"):
        Reranker(model, 2)
    with pytest.raises(InputError, match=r"medssr prefetch.*knowledge\.reranker=null"):
        Reranker(str(tmp_path / "nowhere"), 2)


def test_every_form_finds_the_same_passages_in_shards(tmp_path):
    """A corpus in MedRAG's format through all parts: files, offsets, vectors in shards, search, passages."""
    folder = tmp_path / "chunk"
    folder.mkdir()
    words = ["copper", "liver", "eye", "joint", "heart", "skin", "urine", "bone", "kidney", "nerve"]
    for shard in range(3):
        rows = [
            {
                "id": f"{shard}_{i}",
                "title": f"{words[i % 10]} {i // 10}",
                "content": f"About {words[i % 10]}, case {i}.",
            }
            for i in range(100)
        ]
        (folder / f"s{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    forms = [{"index": "flat"}, {"index": "sharded_flat"}, {"index": "ivfpq", "ivf_lists": 8, "pq_bytes": 96}]
    found = []
    for form in forms:
        retriever = Retriever(use_minilm(DataSource(path=str(folder)), shard_size=64, top_k=3, **form))
        retriever.prepare(make_entities(words))
        found.append([[passage.content for passage in retriever.retrieve(word)] for word in words])
    assert found[0] == found[1] == found[2]
    assert all(word in content for word, contents in zip(words, found[0], strict=True) for content in contents)


# --- passages that name the entity, several corpora --------------------------------------------------

GAUCHER = Entity("ORPHA:355", "Gaucher disease", ("Glucocerebrosidase deficiency", "GD"))
NAMED = [
    ("n1", "Gaucher's disease", "Bone crises and a large spleen."),
    ("n2", "Storage disorders", "Glucocerebrosidase deficiency leads to lipid-laden macrophages."),
    ("n3", "Gaucher disease cells", "Cells like crumpled paper."),
]
OTHERS = [(f"o{n}", "Lysosomal storage disease", f"GD, a storage disorder with spleen, case {n}.") for n in range(12)]


def write_corpus(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"id": code, "title": title, "content": content}) for code, title, content in rows)
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


def find_ids(entity=GAUCHER, **settings):
    retriever = Retriever(Knowledge(**{"encoder": "minilm"} | settings))
    retriever.prepare([entity])
    return [passage.id for passage in retriever.retrieve(entity.name)], retriever.count([entity])


def test_passages_that_do_not_name_the_entity_are_replaced(tmp_path, caplog):
    corpus = write_corpus(tmp_path / "c.jsonl", [*OTHERS, *NAMED])
    plain, counts = find_ids(corpus=corpus, must_name_entity=False)
    named, same = find_ids(corpus=corpus)
    assert sorted(named) == ["c:n1", "c:n2", "c:n3"] and sorted(plain) != sorted(named)
    assert counts.unnamed == same.unnamed == sum(passage.startswith("c:o") for passage in plain) > 0
    assert (same.entities, same.nearest, same.short, same.without) == (1, 3, 0, 0)
    assert "of the 3 nearest passages do not name their disease; passages that do took" in caplog.text
    assert "they stay, because knowledge.must_name_entity is false" in caplog.text


def test_the_search_for_names_is_bounded(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", [*OTHERS, *NAMED])
    deep, _ = find_ids(corpus=corpus, top_k=1)
    nearest, _ = find_ids(corpus=corpus, top_k=1, must_name_entity=False)
    shallow, counts = find_ids(corpus=corpus, top_k=1, search_depth=1)
    assert len(deep) == 1 and shallow == [one for one in nearest if ":n" in one]
    assert counts.without == (not shallow)


def test_entities_that_no_passage_names_are_counted_and_left_out(tmp_path, caplog):
    corpus = write_corpus(tmp_path / "c.jsonl", OTHERS + NAMED[:1])
    retriever, unknown = Retriever(Knowledge(corpus=corpus, encoder="minilm")), Entity("x", "Fabry disease")
    assert retriever.keep_covered([GAUCHER, unknown]) == [GAUCHER, unknown]  # not searched for yet
    retriever.prepare([GAUCHER, unknown])
    counts = retriever.count([GAUCHER, unknown])
    assert (counts.short, counts.without) == (1, 1) and retriever.retrieve("Fabry disease") == []
    assert retriever.keep_covered([GAUCHER, unknown]) == [GAUCHER]
    assert "1 of 2 diseases are named by no passage" in caplog.text


def test_an_entity_with_other_synonyms_is_searched_again(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", [*OTHERS, *NAMED])
    retriever, plain = Retriever(Knowledge(corpus=corpus, encoder="minilm")), Entity("x", "Gaucher disease")
    retriever.prepare([GAUCHER])
    assert retriever.list_missing([GAUCHER]) == [] and retriever.list_missing([plain]) == [plain]
    retriever.prepare([plain])
    assert {passage.id for passage in retriever.retrieve("Gaucher disease")} == {"c:n1", "c:n3"}


def test_an_entity_named_by_an_acronym_is_found_by_it(tmp_path):
    corpus = write_corpus(tmp_path / "c.jsonl", [("1", "PMM2-CDG", "Ataxia."), ("2", "Other", "pmm2-cdg")])
    assert find_ids(Entity("x", "PMM2-CDG"), corpus=corpus)[0] == ["c:1"]


def test_corpora_are_merged_by_score_and_shares_reserved(tmp_path):
    near = [(f"a{n}", "Gaucher disease", "Gaucher disease.") for n in range(4)]
    far = [(f"b{n}", "Case report", f"A child with fits; Gaucher disease was excluded, case {n}.") for n in range(4)]
    first = write_corpus(tmp_path / "near" / "chunk" / "1.jsonl", near)
    second = write_corpus(tmp_path / "far" / "chunk" / "1.jsonl", far)
    assert first != second
    corpora = ["near", {"name": "far"}]
    by_score, _ = find_ids(corpora=corpora, corpora_root=str(tmp_path))
    assert [one.split(":")[0] for one in by_score] == ["near"] * 3
    shares = ["near", {"name": "far", "share": 0.67}]
    shared, _ = find_ids(corpora=shares, corpora_root=str(tmp_path))
    assert [one.split(":")[0] for one in shared] == ["near", "far", "far"]


def test_places_that_a_corpus_cannot_fill_go_to_the_others(tmp_path):
    first = write_corpus(tmp_path / "one.jsonl", [("a", "Gaucher disease", "Spleen.")])
    second = write_corpus(tmp_path / "two.jsonl", [(f"b{n}", "Gaucher disease", f"Bone {n}.") for n in range(4)])
    found, counts = find_ids(corpora=[{"path": first, "share": 1.0}, second])
    assert len(found) == 3 and "one:a" in found and counts.short == 0


def test_the_reranker_orders_named_passages_of_all_corpora(tmp_path):
    model = save_bert(tmp_path / "cross", 3, "BertForSequenceClassification", num_labels=1)
    first = write_corpus(tmp_path / "one.jsonl", [*OTHERS, NAMED[0]])
    second = write_corpus(tmp_path / "two.jsonl", [*OTHERS, *NAMED[1:]])
    found, _ = find_ids(corpora=[first, second], reranker=model, rerank_depth=3)
    assert sorted(found) == ["one:n1", "two:n2", "two:n3"]
