"""The diseases that questions are written about: from the built-in list, or from a user's file."""

import json
import logging

import pytest

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import InputError
from medssr_dist.knowledge.entities import Entity, draw_entities, read_entities, write_entities
from medssr_dist.knowledge.identity import find_group
from medssr_dist.knowledge.rare_diseases import load_rare_list
from medssr_dist.knowledge.splits import EVALUATION, split_group

HPO_50 = {"path": "hpo:passages", "limit": 50}
TUMOURS = [
    Entity("own:1", "Merkel cell carcinoma", ("Trabecular carcinoma",)),
    Entity("Thymic carcinoma", "Thymic carcinoma"),
]


def write_tumours(folder, suffix):
    """Write TUMOURS to a file with this suffix, as a user would."""
    file = folder / f"tumours{suffix}"
    rows = {
        ".jsonl": [
            json.dumps({"name": "Merkel cell carcinoma", "id": "own:1", "synonyms": ["Trabecular carcinoma"]}),
            json.dumps({"name": "Thymic carcinoma"}),
        ],
        ".csv": ["name, id, synonyms", "Merkel cell carcinoma, own:1, Trabecular carcinoma", "Thymic carcinoma,,"],
        ".tsv": ["id\tname\tsynonyms", "own:1\tMerkel cell carcinoma\tTrabecular carcinoma|", "\tThymic carcinoma\t"],
    }
    file.write_text("\ufeff" * (suffix == ".csv") + "\n".join(rows[suffix]) + "\n", encoding="utf-8")
    return file


def is_held_out(entity):
    return split_group(find_group(entity.id)) == EVALUATION


def test_entities_are_seeded_and_exclude_evaluation_diseases():
    knowledge = Knowledge(corpus=HPO_50, entities=10)
    drawn = draw_entities(knowledge, 42)
    assert drawn == draw_entities(knowledge, 42) != draw_entities(knowledge, 43)
    assert len(drawn.entities) == 10 and drawn.left_out["beyond knowledge.entities"] == 40
    everything = draw_entities(Knowledge(), 0)
    assert len(everything.entities) > 3000 and not any(map(is_held_out, everything.entities))


def test_counts_of_the_list_add_up_and_are_written(tmp_path):
    drawn, rare = draw_entities(Knowledge(), 0), load_rare_list()
    counted = sum(drawn.left_out.values()) - sum(rare.left_out.values())
    assert counted + len(drawn.entities) == len(rare.diseases)
    write_entities(tmp_path / "entities.json", drawn)
    written = read_json(tmp_path / "entities.json")
    assert written["source"] == rare.version and written["left_out"] == drawn.left_out
    assert written["entities"][0].keys() == {"id", "name", "synonyms"}


def test_other_corpora_take_diseases_without_phenotypes(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "1", "content": "c"}', encoding="utf-8")
    only_hpo, both = Knowledge(), Knowledge(corpora=["hpo", str(tmp_path / "c.jsonl")])
    assert len(draw_entities(both, 0).entities) > len(draw_entities(only_hpo, 0).entities) + 500


def test_too_many_entities_are_refused():
    with pytest.raises(InputError, match=r"knowledge\.entities=51, but there are 50 .*limit of the corpus hpo \(50\)"):
        draw_entities(Knowledge(corpus=HPO_50, entities=51), 0)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv"])
def test_own_list_is_read_in_each_form_and_replaces_orphanet(tmp_path, suffix):
    file = write_tumours(tmp_path, suffix)
    assert read_entities(file) == TUMOURS
    drawn = draw_entities(Knowledge(entities_file=str(file)), 0, hold_out=False)
    assert sorted(drawn.entities, key=lambda entity: entity.id) == sorted(TUMOURS, key=lambda entity: entity.id)
    assert drawn.source == str(file)


def test_own_evaluation_diseases_are_left_out_with_warning(tmp_path, caplog):
    held_out = next(disease for disease in load_rare_list().diseases if is_held_out(disease))
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps({"name": name}) for name in (held_out.name.upper(), "A tumour of mine")))
    knowledge = Knowledge(entities_file=str(file))
    with caplog.at_level(logging.WARNING):
        drawn = draw_entities(knowledge, 0)
    assert [entity.name for entity in drawn.entities] == ["A tumour of mine"]
    assert "1 of 2 entities" in caplog.text and drawn.left_out == {"reserved for hpo:evaluation": 1}
    assert len(draw_entities(knowledge, 0, hold_out=False).entities) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("e.jsonl", "", "has no diseases"),
        ("e.txt", "Gout", "is not .jsonl, .csv or .tsv"),
        ("e.jsonl", '{"name": "Gout"}\n{"name": ""}', "line 2: the name '' has fewer than three letters"),
        ("e.jsonl", '{"nam": "Gout"}', "line 1 has the unknown field 'nam'"),
        ("e.jsonl", "Gout", "line 1 is not valid JSON"),
        ("e.jsonl", '["Gout"]', "line 1 is not an object"),
        ("e.jsonl", '{"name": "Gout", "synonyms": "Podagra"}', "line 1: .*synonyms is a list of texts"),
        ("e.jsonl", '{"name": 7}', "line 1: name and id are texts"),
        ("e.jsonl", '{"name": "Wilson disease"}\n\n{"name": "Wilson\'s disease"}', "line 3: .* is named in line 1"),
        (
            "e.jsonl",
            '{"name": "Gout", "id": "1"}\n{"name": "Scurvy", "id": "1"}',
            "line 2: the id '1' is that of line 1",
        ),
        ("e.csv", "name,id\nGout, primary,1", "line 2 has not 2 columns"),
        ("e.csv", "disease\nGout", "line 2 has the unknown field 'disease'"),
    ],
)
def test_unusable_lists_are_refused_with_their_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_entities(tmp_path / name)


def test_an_absent_list_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent.jsonl"):
        read_entities(tmp_path / "absent.jsonl")
