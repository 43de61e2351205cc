import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import Question
from medssr_dist.readers import read_questions
from medssr_dist.synthesis.checks.decontamination import Decontaminator
from medssr_dist.synthesis.checks.wording import fold, hash_ngrams, hash_text, hash_words, join_text

VIGNETTE = (
    "A 45-year-old man comes to the physician because of a painful big toe for two days. His temperature is 38 degrees "
    "and his pulse is 90/min. Which of the following is the most likely diagnosis?"
)
OPTIONS = ["Gout", "Septic arthritis", "Pseudogout", "Cellulitis"]


def item(stem: str, options=("x", "y"), number: int = 0) -> Question:
    return Question.make(stem, list(options), source="bench", source_id=str(number))


def check(items, *texts, threshold=0.5):
    return Decontaminator(items, threshold).check(texts)


def brute_force(items, text, threshold):
    """Return the number of the best item and its coverage, computed by the definition."""
    words = fold(text).split()
    held = [fold(join_text(one.stem, one.options.values())).split() for one in items]
    if len(words) < 8:
        return next(((number, 1.0) for number, one in enumerate(held) if one == words), None)
    grams = [words[start : start + 8] for start in range(len(words) - 7)]
    shares = [sum(gram in [one[s : s + 8] for s in range(len(one) - 7)] for gram in grams) / len(grams) for one in held]
    best = max(range(len(items)), key=shares.__getitem__, default=None)
    return (best, shares[best]) if best is not None and shares[best] >= threshold else None


def test_a_copy_in_other_case_accents_or_option_order_is_found():
    items = [item("Another question about nothing in particular that no one has asked?"), item(VIGNETTE, OPTIONS)]
    copy = VIGNETTE.upper().replace(",", ";").replace("painful", "páinful").replace("45-year", "45\u2013year")
    (match,) = check(items, join_text(copy, reversed(OPTIONS)))
    assert match.item == items[1] and match.coverage == 1.0


@pytest.mark.parametrize(
    "hide",
    [
        lambda text: text.replace("i", "i\u00ad"),
        lambda text: text.replace(" ", "\u00a0"),
        lambda text: text.replace(" ", " \u200b"),
        lambda text: text.replace("e", "e\u200d").replace("a", "\u2060a"),
        lambda text: f"\ufeff\u202a{text}\u202c",
        lambda text: "".join(chr(ord(one) + 0xFEE0) if one.isalnum() and one.isascii() else one for one in text),
        lambda text: text.replace("fi", "\ufb01").replace("38", "\u2083\u2088"),
        lambda text: text.translate(str.maketrans("aeopcAT", "\u0430\u0435\u043e\u0440\u0441\u0410\u0422")),
        lambda text: text.translate(str.maketrans("ghik", "\U0001d420\U0001d421\U0001d422\U0001d424")),
        lambda text: text.replace("o", "o\ufe0f").replace("u", "u\u034f"),
        lambda text: text.replace("l", "l\U000e0061"),
        lambda text: text.replace("n", "n\u0303"),
        lambda text: text.replace("of", "**of**").replace("-", "\u2011"),
    ],
)
def test_what_a_reader_does_not_see_hides_no_copy(hide):
    (match,) = check([item(VIGNETTE, OPTIONS)], join_text(hide(VIGNETTE), [hide(option) for option in OPTIONS]))
    assert match and match.coverage == 1.0
    (match,) = check([item(hide(VIGNETTE), [hide(option) for option in OPTIONS])], join_text(VIGNETTE, OPTIONS))
    assert match and match.coverage == 1.0


def test_the_threshold_is_a_share_of_the_questions_8_grams():
    head = " ".join(f"h{n}" for n in range(20))  # 13 grams
    text = f"{head} " + " ".join(f"t{n}" for n in range(13))  # 33 words: 26 grams, half of them in the head
    (match,) = check([item(head)], text, threshold=0.5)
    assert match.coverage == 0.5
    assert check([item(head)], text, threshold=0.51) == [None]


def test_hits_with_many_items_do_not_add_up():
    words = [f"w{n}" for n in range(40)]
    pieces = [item(" ".join(words[start : start + 10])) for start in range(0, 40, 10)]
    assert check(pieces, " ".join(words), threshold=0.3) == [None]


def test_short_texts_match_when_equal_and_only_then():
    items = [item("Cause of scurvy?", ["Vitamin C", "Iron"])]
    same, other = join_text("cause of SCURVY", ["iron", "vitamin c"]), join_text("Cause of rickets?", ["Iron", "C"])
    match, no_match = check(items, same, other)
    assert match.item == items[0] and match.coverage == 1.0 and no_match is None


def test_nothing_to_compare_with_and_texts_without_words():
    assert check([], VIGNETTE, "") == [None, None]
    assert check([item(VIGNETTE)], "", "?!", "one") == [None, None, None]


def test_more_texts_than_a_batch():
    texts = [f"{VIGNETTE} {number}" if number % 100 == 7 else f"Nothing {number}" for number in range(700)]
    found = [number for number, match in enumerate(check([item(VIGNETTE, OPTIONS)], *texts)) if match]
    assert found == list(range(7, 700, 100))


WORDS = st.lists(st.sampled_from(["a", "b", "C", "\u00b5g"]), max_size=24).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, max_size=4), st.sampled_from([0.1, 0.5, 0.75, 1.0]))
def test_the_same_as_by_brute_force(stems, texts, threshold):
    items = [item(f"s {stem}", number=number) for number, stem in enumerate(stems)]
    texts += [join_text(items[0].stem, items[0].options.values())]
    for text, match in zip(texts, check(items, *texts, threshold=threshold), strict=True):
        expected = brute_force(items, text, threshold)
        assert (match is None) == (expected is None)
        if match:
            assert match.coverage == expected[1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_hashes_of_many_texts_are_those_of_each(texts):
    folded = [fold(text) for text in texts]
    hashes, lengths = hash_words(folded)
    assert lengths.tolist() == [len(text.split()) for text in folded]
    apart = [int(one) for text in folded for word in text.split() for one in hash_words([word])[0]]
    assert hashes.tolist() == apart
    words = [word for text in folded for word in text.split()]
    assert len(set(apart)) == len(set(words))
    assert len(hash_ngrams(hashes, 3)) == max(0, len(words) - 2)


def test_words_are_folded():
    assert fold("Sj\u00f6gren\u2019s IL-6, \u201cX\u201d e\u0301").split() == [
        b"sjogren",
        b"s",
        b"il",
        b"6",
        b"x",
        b"e",
    ]
    assert fold("diag\u00adnosis ze\u200bro \uff21\uff29\uff24\uff33 \U0001d41ab \u0421OPD").split() == [
        b"diagnosis",
        b"zero",
        b"aids",
        b"ab",
        b"copd",
    ]
    assert fold("half \ud83d pair").split() == [b"half", b"pair"]
    assert hash_text(fold("A  b.")) == hash_text(fold("a, B")) != hash_text(fold("ab"))


def test_real_medqa_dev_against_the_official_test(shared_data):
    """One of the 1,272 vignettes is in both sets: a newborn with jaundice."""
    dev = read_questions(DataSource(path=str(shared_data / "medqa_dev_mediq.jsonl")))
    test = read_questions(DataSource(path=str(shared_data / "medssr_eval_format" / "test_short_medqa.json")))
    matches = Decontaminator(test, 0.5).check([join_text(one.stem, one.options.values()) for one in dev])
    assert [match.item.source_id for match in matches if match] == ["medqa-000456"]
    itself = Decontaminator(test, 0.5).check([join_text(one.stem, one.options.values()) for one in test])
    assert all(match.coverage == 1.0 for match in itself)
