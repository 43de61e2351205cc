"""Passages from HPO and from JSONL files, and the errors for unusable corpora."""

import json

import pytest
from places import SHARED_DATA

from medssr_dist.config.base import DataSource
from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus import HPO_PASSAGES, MAX_PHENOTYPES, describe_disease, read_corpus
from medssr_dist.knowledge.hpo import load_diseases
from medssr_dist.knowledge.identity import find_group
from medssr_dist.knowledge.rare_diseases import load_rare_diseases
from medssr_dist.knowledge.retrieval import draw_entities
from medssr_dist.knowledge.splits import EVALUATION, split_group

ROW = {"id": "a1", "title": "Alkaptonuria", "content": "Dark urine.", "contents": "Alkaptonuria. Dark urine."}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSource(path=str(path))


def test_disease_is_described_in_prose():
    passage = describe_disease(load_diseases()["OMIM:203500"])
    assert (passage.id, passage.title, passage.source) == ("OMIM:203500", "Alkaptonuria", "hpo")
    assert passage.content.startswith("Alkaptonuria is a rare disease. Very frequent features are dark urine; ")
    assert passage.content.endswith("Inheritance: autosomal recessive. Associated genes: HGD.")
    assert passage.content.count(";") < MAX_PHENOTYPES


def test_hpo_passages_cover_rare_diseases_evaluation_last():
    passages = read_corpus(DataSource(path=HPO_PASSAGES))
    assert len(passages) == len({passage.id for passage in passages}) == len(load_rare_diseases())
    held_out = [split_group(find_group(passage.id)) == EVALUATION for passage in passages]
    assert held_out == sorted(held_out) and any(held_out)
    assert list(read_corpus(DataSource(path=HPO_PASSAGES, limit=7))) == passages[:7]
    assert passages.by_id(passages[3].id) == passages[3]


def test_medrag_format_is_read(tmp_path):
    source = write(tmp_path / "med.jsonl", ROW, {**ROW, "id": 2})
    first, second = read_corpus(source)
    assert (first.id, first.title, first.content, first.source) == ("a1", "Alkaptonuria", "Dark urine.", "med")
    assert second.id == "2"
    assert list(read_corpus(source.model_copy(update={"limit": 1}))) == [first]


def test_ids_need_to_be_unique_only_within_a_source(tmp_path):
    passages = read_corpus(write(tmp_path / "two.jsonl", {**ROW, "source": "GARD"}, {**ROW, "source": "GHR"}))
    assert [passage.id for passage in passages] == ["GARD:a1", "GHR:a1"]


def test_medquad_is_read():
    path = SHARED_DATA / "medquad_rare.jsonl"
    if not path.exists():
        pytest.skip("medquad_rare.jsonl is not here")
    passages = read_corpus(DataSource(path=str(path)))
    assert len(passages) == 10819
    assert passages[0].title == "ABCD syndrome" and passages[0].source.endswith("GARD_QA")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no passages"),
        ([ROW, ROW], r"c\.jsonl line 2: id 'a1' occurs twice"),
        ([ROW, {"id": "a2", "title": " "}], r"line 2 \(id 'a2'\): no content"),
        ([{"title": "t", "content": "c"}], r"line 1 \(id None\): no id"),
    ],
)
def test_unusable_corpora_are_refused(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_corpus(write(tmp_path / "c.jsonl", *rows))


def test_absent_unknown_or_non_utf8_corpus_is_refused(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        read_corpus(DataSource(path=str(tmp_path / "latin.jsonl")))
    with pytest.raises(InputError, match="does not exist"):
        read_corpus(DataSource(path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(InputError, match="use hpo:passages"):
        read_corpus(DataSource(path="hpo:seeds"))


def test_entities_are_seeded_and_exclude_evaluation_diseases():
    knowledge = Knowledge(corpus=DataSource(path=HPO_PASSAGES, limit=50), entities=10)
    drawn = draw_entities(knowledge, 42)
    assert len(drawn) == 10 and drawn == draw_entities(knowledge, 42) != draw_entities(knowledge, 43)
    assert {entity.id for entity in drawn} <= {passage.id for passage in read_corpus(knowledge.corpus)}
    everything = draw_entities(Knowledge(), 0)
    assert len(everything) > 3000
    assert not any(split_group(find_group(entity.id)) == EVALUATION for entity in everything)


def test_too_many_entities_are_refused():
    with pytest.raises(InputError, match=r"knowledge\.entities=51, but there are 50 .*corpus\.limit=50"):
        draw_entities(Knowledge(corpus=DataSource(path=HPO_PASSAGES, limit=50), entities=51), 0)
