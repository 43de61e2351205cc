"""Labels of options against initials, numbers and names that only look like labels."""

import json

import pytest

from medssr_dist.synthesis.checks.option_labels import strip_labels
from medssr_dist.synthesis.checks.parse import read_reply
from medssr_dist.synthesis.checks.reply_parts import RejectedReply, Rejection

TEXTS = ("Gout", "Lupus", "Iron deficiency", "Scurvy")
LETTERED = ("A", "B", "C", "D")


FORMS = [
    "{}. ",
    "{}.",
    "{}) ",
    "{})",
    "({}) ",
    "[{}] ",
    "{}: ",
    "{}:",
    "{} - ",
    "{} \u2013 ",
    "{} \u2014 ",
    "{}.) ",
    "({}). ",
]
FORMS += [
    "Option {}: ",
    "Option {} - ",
    "option {}. ",
    "Choice {}) ",
    "**{}.** ",
    "**{})** ",
    "**{}**. ",
    "- {}. ",
    "* {}) ",
]


@pytest.mark.parametrize("form", [*FORMS, "\u2022 {}. ", "{} "])
def test_labels_of_every_form_are_taken_off(form):
    for labels in (LETTERED, [letter.lower() for letter in LETTERED] if form != "{} " else LETTERED):
        assert strip_labels([form.format(label) + text for label, text in zip(labels, TEXTS, strict=True)]) == TEXTS


@pytest.mark.parametrize("form", ["{}. ", "{}) ", "({}) ", "{}: ", "Option {}: ", "{} - "])
def test_numbers_are_labels_too(form):
    for labels in ("1234", ("i", "ii", "iii", "iv"), ("I", "II", "III", "IV")):
        assert strip_labels([form.format(label) + text for label, text in zip(labels, TEXTS, strict=True)]) == TEXTS


def test_full_width_labels():
    assert strip_labels(["\uff21\uff0eGout", "\uff22\uff0eLupus", "\uff23\uff09Scurvy"]) == ("Gout", "Lupus", "Scurvy")


def test_labels_before_initials_of_organisms():
    assert strip_labels(["A. C. difficile", "B. E. coli", "C. H. pylori"]) == ("C. difficile", "E. coli", "H. pylori")


def test_small_letters_behind_labels():
    assert strip_labels(["A. yes", "B. no", "C. maybe"]) == ("yes", "no", "maybe")
    assert strip_labels(["A. anemia", "B. leukemia", "C. uremia", "D. toxemia"])[0] == "anemia"
    assert strip_labels(["A.5 mg", "B.10 mg"]) == strip_labels(["1. 5 mg", "2. 10 mg"]) == ("5 mg", "10 mg")


def test_ten_options():
    texts = tuple(f"text {number}" for number in range(10))
    assert strip_labels([f"{letter}. {text}" for letter, text in zip("ABCDEFGHIJ", texts, strict=True)]) == texts
    assert strip_labels([f"{number + 1}. {text}" for number, text in enumerate(texts)]) == texts


@pytest.mark.parametrize(
    "options",
    [
        ("C. difficile", "E. coli", "H. pylori", "S. aureus"),
        ("A. fumigatus", "B. dermatitidis", "H. capsulatum", "C. immitis"),
        ("E. coli", "B. cereus", "C. difficile", "D. latum"),
        ("1.5 mg", "2.5 mg", "3.5 mg", "4.5 mg"),
        ("1 hour", "2 hours", "3 hours", "4 hours"),
        ("1-2 weeks", "2-4 weeks", "3-6 weeks", "4-8 weeks"),
        ("1 - 2 weeks", "2 - 4 weeks", "3 - 6 weeks"),
        ("1:10", "2:10", "3:10"),
        ("1", "2", "3", "4"),
        ("I", "II", "III", "IV"),
        ("A fibers", "B fibers", "C fibers"),
        ("A antigen", "B antigen"),
        ("A-type current", "B-cell lymphoma", "C-peptide", "D-dimer"),
        ("Vitamin A", "Vitamin B", "Vitamin C"),
        ("A, B and C", "B and C", "C alone"),
        ("C. Difficile", "E. Coli", "H. Pylori"),
        ("a drug", "both drugs", "calcium"),
        ("I", "V", "X"),
        ("-1", "-2"),
    ],
)
def test_what_only_looks_like_labels_stays(options):
    assert strip_labels(options) == options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("A|B|C|D", "bare_letters"),
        ("A.|B.|C.|D.", "bare_letters"),
        ("(a)|(b)|(c)", "bare_letters"),
        ("Option A|Option B|Option C|Option D", "bare_letters"),
        ("A. Gout|B. Lupus|Scurvy|D. Rickets", "unclear_labels"),
        ("A) Gout|B) Lupus|D) Rickets", "unclear_labels"),
        ("A. fumigatus|B. dermatitidis|C. immitis", "unclear_labels"),
        ("B. Lupus|A. Gout|C. Scurvy", "unclear_labels"),
        ("1. Gout|2. Lupus|4. Scurvy", "unclear_labels"),
        ("A gout|B lupus|C scurvy", "unclear_labels"),
    ],
)
def test_what_is_unclear_is_refused(options, reason):
    with pytest.raises(RejectedReply) as refused:
        strip_labels(options.split("|"))
    assert refused.value.rejection.reason == reason
    outcome = read_reply(json.dumps({"question": "What is it, in all likelihood?", "options": options.split("|")}))
    assert isinstance(outcome, Rejection) and outcome.reason == reason
