"""The section `knowledge`: corpora by name, path or section, and the settings that do not fit together."""

import pytest
from pydantic import ValidationError

from medssr_dist.config.synthesis import Knowledge


def describe(**settings):
    return [(corpus.name, corpus.path, corpus.share, corpus.limit) for corpus in Knowledge(**settings).corpora]


def test_the_default_corpus_is_hpo():
    assert describe() == describe(corpora=["hpo"]) == [("hpo", "hpo:passages", 0.0, 0)]


def test_a_corpus_is_a_name_a_path_or_a_section():
    corpora = ["pubmed", "mine/rare.jsonl", "/data/statpearls/chunk", {"name": "hpo", "limit": 5, "share": 0.4}]
    assert describe(corpora=corpora, corpora_root="/medrag") == [
        ("pubmed", "", 0.0, 0),
        ("rare", "mine/rare.jsonl", 0.0, 0),
        ("statpearls", "/data/statpearls/chunk", 0.0, 0),
        ("hpo", "hpo:passages", 0.4, 5),
    ]


def test_the_one_corpus_of_earlier_configs_still_works():
    assert describe(corpus="hpo:passages") == describe()
    assert describe(corpus={"path": "hpo:passages", "limit": 9}) == [("hpo", "hpo:passages", 0.0, 9)]


def test_a_dumped_section_is_read_back():
    knowledge = Knowledge(corpora=["pubmed", "hpo"], corpora_root="/medrag", entities_file="mine.csv")
    assert Knowledge.model_validate_json(knowledge.model_dump_json()) == knowledge


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpora": ["pubmed"]}, "the corpus 'pubmed' has no path; give it one, or set corpora_root"),
        ({"corpora": ["a/x.jsonl", "b/x.jsonl"]}, "two corpora have the name 'x'"),
        ({"corpora": ["hpo"], "corpus": "hpo"}, "corpus and corpora are both set; write all corpora in corpora"),
        ({"corpora": []}, "at least 1 item"),
        ({"corpora": [7]}, "valid dictionary"),
        ({"corpora": [{"name": "a:b", "path": "a.jsonl"}]}, "name"),
        ({"corpora": [{"name": "hpo", "share": 0.6}, {"path": "a.jsonl", "share": 0.5}]}, "add up to more than 1"),
        ({"search_depth": 2}, "search_depth = 2 is below top_k = 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Knowledge(**settings)
