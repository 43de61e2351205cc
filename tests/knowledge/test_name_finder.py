"""Names of diseases in texts: every spelling is found, and another disease is not."""

import pytest

from medssr_dist.knowledge.name_finder import FoundName, NameFinder, find_name, is_acronym, is_same_name, list_keys


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Fabry disease", "He is known to have FABRY'S DISEASE."),
        ("Fabry disease", "a case of Fabry’s disease"),
        ("Fabry disease", "two brothers with Fabrys disease"),
        ("Graves disease", "Graves' disease and Grave's disease"),
        ("Ménétrier disease", "Menetrier disease of the stomach"),
        ("Sjögren syndrome", "secondary Sjo\u0308gren syndrome"),
        ("Wilson disease", "Wil\u00adson\u00a0dis\u200bease"),
        ("Straße syndrome", "the STRASSE syndrome"),
        ("Ehlers-Danlos syndrome", "the Ehlers–Danlos syndromes"),
        ("Hyper-IgE syndrome", "HyperIgE syndrome, or hyper IgE syndrome"),
        ("O'Donnell-Luria syndrome", "ODonnell Luria syndrome"),
        ("β-ketothiolase deficiency", "beta-ketothiolase deficiency"),
        ("Alpha-mannosidosis", "α-mannosidosis"),
        ("Hereditary haemorrhagic telangiectasia", "hereditary hemorrhagic telangiectasia"),
        ("Wilms tumor", "a Wilms' tumour"),
        ("Muscular dystrophy, Becker type", "a man with Becker muscular dystrophy"),
        ("Muscular dystrophy, Becker type", "Becker-type muscular dystrophy"),
        ("Becker muscular dystrophy", "Becker muscular dystrophies"),
        ("Leukemia, acute lymphoblastic", "acute lymphoblastic leukaemia"),
        ("Ciliary dyskinesia, primary, 7", "primary ciliary dyskinesia 7"),
        ("Lipodystrophy, familial partial, type 4", "familial partial lipodystrophy type 4"),
        ("Diabetes mellitus, type 1", "type 1 diabetes mellitus"),
        ("Factor XI, deficiency of", "factor XI deficiency"),
        ("Factor X deficiency", "deficiency of factor 10"),
        ("Glycogen storage disease type II", "glycogen storage disease, type 2"),
        ("Glycogen storage disease II", "Glycogen storage disease type II"),
        ("Usher syndrome type 2A", "Usher syndrome, type IIA"),
        ("Usher syndrome IB", "Usher syndrome type 1B"),
        ("Mucopolysaccharidosis I", "mucopolysaccharidosis type 1"),
        ("Niemann-Pick disease type C", "Niemann-Pick C: Niemann-Pick disease C"),
        ("{5-@oxoprolinase deficiency}", "5-oxoprolinase deficiency"),
        ("?Leukemia, acute, X-linked", "acute x-linked leukemia"),
        ("CHARGE syndrome", "Charge syndrome"),
    ],
)
def test_every_spelling_is_found(name, text):
    assert find_name(text, [name]) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Gout", "goutweed, or a ragout"),
        ("Hodgkin lymphoma", "non-Hodgkin lymphoma"),
        ("Hypoparathyroidism", "pseudo-hypoparathyroidism"),
        ("Marfan syndrome", "a Marfan syndrome-like habitus"),
        ("Fanconi anemia", "Fanconi syndrome with anemia"),
        ("Gaucher disease type 1", "Gaucher disease type 10"),
        ("Spinocerebellar ataxia type 12", "spinocerebellar ataxia type 1, 2 and 3"),
        ("Mucopolysaccharidosis type 1", "mucopolysaccharidosis type II"),
        ("Muscular dystrophy, Duchenne type", "muscular dystrophy of another type"),
        ("A-T", "a patient seen at home, a tall man"),
        ("CF", "CF"),
    ],
)
def test_another_disease_is_not_found(name, text):
    assert find_name(text, [name]) is None


def test_acronyms_are_found_on_request_and_in_their_case():
    assert [is_acronym(name) for name in ("CHF", "MEN1", "SCID-X1", "PMM2-CDG", "Gout", "CHARGE syndrome")] == (
        [True] * 4 + [False] * 2
    )
    assert find_name("MELAS is suspected", ["MELAS"]) == "MELAS"
    assert find_name("a melas", ["MELAS"]) is None
    assert find_name("PMM2-CDG", ["PMM2-CDG"]) == "PMM2-CDG"
    assert find_name("His CHF is decompensated", ["Congenital hepatic fibrosis", "CHF"], acronyms=False) is None


def test_finder_returns_each_disease_once_in_order_of_text():
    finder = NameFinder({"1": ["Fabry disease", "Anderson-Fabry disease"], "2": ["Wilson disease"], "3": ["FD"]})
    found = finder.find("Wilson's disease was excluded; Fabry disease (Anderson-Fabry disease) was found.")
    assert found == [
        FoundName("2", "Wilson disease", "Wilson disease"),
        FoundName("1", "Fabry disease", "Fabry disease"),
    ]
    assert finder.find("A woman has a cough.") == finder.find("") == []


def test_the_longest_of_overlapping_names_counts():
    finder = NameFinder({"short": ["Huntington disease"], "long": ["Juvenile Huntington disease"]})
    assert [found.id for found in finder.find("A boy has juvenile Huntington's disease.")] == ["long"]
    assert [found.id for found in finder.find("A man has Huntington's disease.")] == ["short"]


def test_a_name_shared_by_two_diseases_finds_both():
    finder = NameFinder({"1": ["Recklinghausen disease"], "2": ["Recklinghausen's disease"]})
    assert [found.id for found in finder.find("Recklinghausen disease")] == ["1", "2"]


def test_same_names_share_a_key_and_other_names_none():
    assert is_same_name("Gout, primary", "Primary gout")
    assert is_same_name("Tumours of Wilms", "tumor of Wilms")
    assert not is_same_name("Primary gout", "Secondary gout")
    assert not list_keys("") and not list_keys("12")
