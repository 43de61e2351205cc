"""Passages from HPO and from JSONL files, and the errors for unusable corpora."""

import json
import re

import pytest
from places import SHARED_DATA

from medssr_dist.config.synthesis import HPO_PASSAGES, CorpusSource, Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.corpus import find_passage, open_corpora, read_corpus
from medssr_dist.knowledge.hpo_passages import MAX_FINDINGS, describe_disease, list_corpus_diseases
from medssr_dist.knowledge.identity import find_group
from medssr_dist.knowledge.names import decapitalize
from medssr_dist.knowledge.rare_diseases import load_rare_diseases
from medssr_dist.knowledge.splits import EVALUATION, split_group

ROW = {"id": "a1", "title": "Alkaptonuria", "content": "Dark urine.", "contents": "Alkaptonuria. Dark urine."}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return CorpusSource(path=str(path))


def find_disease(code):
    return next(disease for disease in list_corpus_diseases() if disease.id == code)


def test_disease_has_passages_on_course_findings_and_genes():
    passages = describe_disease(find_disease("ORPHA:56"))
    parts = {passage.id.removeprefix("ORPHA:56/"): passage.content for passage in passages}
    assert list(parts) == ["course", "findings", "findings-2", "genes"]
    assert {(passage.title, passage.source) for passage in passages} == {("Alkaptonuria", "hpo")}
    assert parts["course"].startswith("Alkaptonuria (also called Hereditary ochronosis, ")
    assert "is a rare disease. Prevalence: 1-9 / 1 000 000. Onset: adult, infantile. Very " in parts["course"]
    assert "Genitourinary system: dark urine (frequent); " in parts["findings-2"]
    assert parts["genes"] == "Inheritance of Alkaptonuria: autosomal recessive. Associated genes: HGD."
    assert all(len(text.split(";")) <= MAX_FINDINGS for text in parts.values())


def test_findings_are_listed_once_and_the_most_frequent():
    for code in ("ORPHA:56", "ORPHA:648", "ORPHA:110"):
        disease = find_disease(code)
        text = " ".join(one.content for one in describe_disease(disease) if "/findings" in one.id)
        found = re.findall(r"[:;] ([^:;]+) \((?:very frequent|frequent|occasional|rare|reported)\)", text)
        expected = {decapitalize(phenotype.name) for phenotype in disease.phenotypes[: 2 * MAX_FINDINGS]}
        assert len(found) == len(expected) and set(found) == expected


def test_hpo_passages_cover_rare_diseases_evaluation_last():
    passages = read_corpus(CorpusSource(path=HPO_PASSAGES))
    diseases = list(dict.fromkeys(passage.id.split("/")[0] for passage in passages))
    assert len(passages) == len({passage.id for passage in passages}) > 3 * len(diseases)
    assert len(diseases) == len(load_rare_diseases())
    held_out = [split_group(find_group(code)) == EVALUATION for code in diseases]
    assert held_out == sorted(held_out) and any(held_out)
    first = list(read_corpus(CorpusSource(path=HPO_PASSAGES, limit=7)))
    assert first == passages[: len(first)] and len({passage.title for passage in first}) == 7
    assert passages.by_id(passages[3].id) == passages[3]


def test_a_corpus_by_name_is_medrags_folder(tmp_path):
    for name in ("textbooks", "pubmed"):
        (tmp_path / name / "chunk").mkdir(parents=True)
        write(tmp_path / name / "chunk" / "a.jsonl", {**ROW, "title": name})
    knowledge = Knowledge(corpora=["textbooks", {"name": "pubmed", "share": 0.5}, "hpo"], corpora_root=str(tmp_path))
    corpora = open_corpora(knowledge)
    assert [(corpus.name, corpus.share) for corpus in corpora] == [("textbooks", 0), ("pubmed", 0.5), ("hpo", 0)]
    assert [corpus.read(0).id for corpus in corpora[:2]] == ["textbooks:a1", "pubmed:a1"]
    assert find_passage(corpora, "pubmed:a1").title == "pubmed"
    assert find_passage(corpora, "hpo:ORPHA:56/genes").title == "Alkaptonuria"
    for absent in ("wikipedia:a1", "pubmed:a2", "a1"):
        with pytest.raises(KeyError):
            find_passage(corpora, absent)
    with pytest.raises(InputError, match=r"'wikipedia', but .*wikipedia/chunk is no folder"):
        open_corpora(Knowledge(corpora=["wikipedia"], corpora_root=str(tmp_path)))


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
    passages = read_corpus(CorpusSource(path=str(path)))
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
        read_corpus(CorpusSource(path=str(tmp_path / "latin.jsonl")))
    with pytest.raises(InputError, match="does not exist"):
        read_corpus(CorpusSource(path=str(tmp_path / "absent.jsonl")))
    with pytest.raises(InputError, match="use hpo:passages"):
        read_corpus(CorpusSource(path="hpo:seeds"))
