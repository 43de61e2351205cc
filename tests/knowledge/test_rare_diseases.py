"""The list of rare diseases, and the groups of entries that are one disease."""

from collections import Counter

import pytest

from medssr_dist.knowledge import rare_diseases
from medssr_dist.knowledge.hpo import load_diseases
from medssr_dist.knowledge.identity import find_group, find_groups_by_name, load_groups
from medssr_dist.knowledge.name_finder import NameFinder
from medssr_dist.knowledge.names import is_clean, split_words
from medssr_dist.knowledge.orphanet import load_orphanet, read_orphanet_version
from medssr_dist.knowledge.rare_diseases import (
    MIN_PHENOTYPES,
    RareList,
    find_annotations,
    load_rare_diseases,
    load_rare_list,
)
from medssr_dist.knowledge.splits import SPLITS, assign_split


@pytest.fixture(scope="module")
def rare() -> RareList:
    return load_rare_list()


def test_orphanet_table_has_names_types_and_codes():
    entry = load_orphanet()["ORPHA:56"]
    assert (entry.name, entry.type, entry.omim) == ("Alkaptonuria", "Disease", ("OMIM:203500",))
    assert "Homogentisic acid oxidase deficiency" in entry.synonyms and entry.prevalence == ("1-9 / 1 000 000",)
    assert len(load_orphanet()) > 9000 and read_orphanet_version() == "2025-12"


def test_rare_diseases_have_distinct_clean_names(rare):
    assert len(rare.diseases) > 6000
    assert len({split_words(disease.name) for disease in rare.diseases}) == len(rare.diseases)
    assert all(disease.id.startswith("ORPHA:") and is_clean(disease.name) for disease in rare.diseases)
    assert len(load_rare_diseases()) > 4000
    assert all(len(disease.phenotypes) >= MIN_PHENOTYPES for disease in load_rare_diseases())


@pytest.mark.parametrize(
    "name",
    ["Alzheimer disease", "Schizophrenia", "Colorectal cancer", "Breast cancer", "Asthma", "Diabetes mellitus type 2"]
    + ["Essential hypertension", "Obesity", "Autism", "Gout", "Preeclampsia", "Parkinson disease", "Tuberculosis"],
)
def test_common_diseases_are_not_in_the_list(rare, name):
    finder = NameFinder({disease.id: (disease.name, *disease.synonyms) for disease in rare.diseases})
    assert finder.find(f"A patient has {name}.") == []


@pytest.mark.parametrize("name", ["Gaucher's disease", "Duchenne muscular dystrophy", "Marfan syndrome"])
def test_rare_diseases_are_in_the_list(rare, name):
    finder = NameFinder({disease.id: (disease.name, *disease.synonyms) for disease in rare.diseases})
    assert len(finder.find(f"A patient has {name}.")) == 1


def test_what_is_left_out_is_counted_by_reason(rare):
    reasons = rare.left_out
    assert reasons["Orphanet: a group of diseases"] > 2000 and reasons["Orphanet: a subtype of a disease"] > 1000
    in_orphanet = sum(count for reason, count in reasons.items() if reason.startswith("Orphanet"))
    assert in_orphanet + len(rare.diseases) == len(load_orphanet())
    assert "Orphanet 2025-12, HPO 20" in rare.version


def test_a_disease_has_the_annotations_of_its_omim_entry():
    # HPO annotates fumaric aciduria under OMIM:606812 alone.
    disease = next(disease for disease in load_rare_list().diseases if disease.id == "ORPHA:24")
    assert [source.id for source in find_annotations("ORPHA:24")] == ["OMIM:606812"]
    assert disease.phenotypes == load_diseases()["OMIM:606812"].phenotypes
    assert find_annotations("OMIM:606812") == ()


def test_entries_that_orphanet_maps_are_on_one_side():
    known = load_diseases()
    pairs = [(code, omim) for code, entry in load_orphanet().items() for omim in entry.omim]
    pairs = [pair for pair in pairs if all(code in known for code in pair) and load_orphanet()[pair[0]].type]
    diseases = [pair for pair in pairs if pair[0] in load_groups()]
    assert len(diseases) > 2000
    assert [pair for pair in diseases if assign_split(known[pair[0]]) != assign_split(known[pair[1]])] == []


def test_different_names_of_one_disease_are_one_group():
    assert find_group("ORPHA:884") == find_group("OMIM:601803")  # tetrasomy 12p, Pallister-Killian syndrome
    assert find_groups_by_name(["Pallister Killian syndrome"]) == {find_group("ORPHA:884")}
    assert find_groups_by_name(["A disease that nobody knows"]) == frozenset()


def test_numbered_types_and_near_equal_entries_are_one_group():
    names = {disease.name: disease.id for disease in load_diseases().values()}
    assert find_group(names["Bardet-Biedl syndrome 1"]) == find_group(names["Bardet-Biedl syndrome 10"])
    parkinsonian, cerebellar = "Multiple system atrophy, parkinsonian type", "Multiple system atrophy, cerebellar type"
    assert find_group(names[parkinsonian]) == find_group(names[cerebellar])
    assert find_group(names["Marfan syndrome"]) != find_group(names["Alkaptonuria"])


def test_no_group_is_large_and_every_split_has_many():
    sizes = Counter(load_groups().values())
    assert max(sizes.values()) < 200 and len(sizes) > 8000
    splits = [assign_split(disease) for disease in load_rare_diseases()]
    assert all(splits.count(split) > 800 for split in SPLITS)


def test_preeclampsia_is_left_out_as_common():
    assert rare_diseases._refuse(load_orphanet()["ORPHA:275555"]) == "not rare by its prevalence"
