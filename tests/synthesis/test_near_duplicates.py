import random
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medssr_dist.synthesis.checks.near_duplicates import (
    HASHES,
    HashSet,
    NearDuplicates,
    choose_bands,
    compute_signatures,
)

VOCABULARY = [f"word{number}" for number in range(5000)]


def text(rng: random.Random, words: int = 115) -> list[str]:
    return rng.choices(VOCABULARY, k=words)


def changed(rng: random.Random, words: list[str], times: int) -> list[str]:
    words = list(words)
    for place in rng.sample(range(len(words)), times):
        words[place] = "changed"
    return words


def folded(words: list[str]) -> bytes:
    return " ".join(words).encode()


def jaccard(one: list[str], other: list[str]) -> float:
    first, second = ({tuple(words[start : start + 5]) for start in range(len(words) - 4)} for words in (one, other))
    return len(first & second) / len(first | second)


def test_signatures_estimate_jaccard_similarity():
    rng = random.Random(0)
    pairs = [(words := text(rng), changed(rng, words, rng.randrange(12))) for _ in range(300)]
    errors = [
        np.mean(np.equal(*compute_signatures([folded(one), folded(other)]))) - jaccard(one, other)
        for one, other in pairs
    ]
    assert abs(np.mean(errors)) < 0.01 and np.std(errors) < 0.06


def test_near_questions_are_found_and_others_are_not():
    rng = random.Random(1)
    held = NearDuplicates(0.8)
    originals = [text(rng) for _ in range(3000)]
    held.add(held.sketch([folded(words) for words in originals[:2000]]))
    for words in originals[2000:]:  # one at a time, while the table grows
        assert held.find(held.sketch([folded(words)])) is None
        held.add(held.sketch([folded(words)]))
    for number in range(0, 3000, 17):
        near = held.find(held.sketch([folded(changed(rng, originals[number], 1))]))
        assert near and near.number == number and near.similarity > 0.8  # one word of 115: 0.91
        assert held.find(held.sketch([folded(changed(rng, originals[number], 20))])) is None


def test_a_phrase_that_all_share_does_not_fill_the_tables():
    rng = random.Random(2)
    held = NearDuplicates(0.8)
    shared = text(rng, 60)
    for _ in range(500):
        held.add(held.sketch([folded(text(rng, 55) + shared)]))
    words = text(rng, 55) + shared
    held.add(held.sketch([folded(words)]))
    found = held.find(held.sketch([folded(changed(rng, words[:55], 1) + shared)]))
    assert found and found.number == 500


def test_texts_under_five_words_are_near_only_when_equal():
    held = NearDuplicates(0.8)
    held.add(held.sketch([b"cause of scurvy", b"", b"five words are one gram"]))
    found = [held.find(held.sketch([one])) for one in (b"cause of scurvy", b"cause of rickets", b"five words are one")]
    assert found[0].number == 0 and found[1:] == [None, None]


def test_bands_catch_99_percent_at_the_threshold():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        bands, rows = choose_bands(threshold)
        assert bands * rows <= HASHES and 1 - (1 - min(threshold**rows, 0.99)) ** bands >= 0.99
    assert choose_bands(0.8) == (16, 6)
    assert choose_bands(0.001) == (HASHES, 1)


def test_memory_a_question_is_at_most_250_bytes():
    """They are stored in arrays, so 20,000 show the same as a million."""
    held, exact = NearDuplicates(0.8), HashSet()
    held.sketch([b"a text of so many words as the ones below"] * 1000)  # creates the tables that all texts share
    tracemalloc.start()
    for start in range(0, 20_000, 1000):
        texts = [b"q%d a%d b%d c%d d%d e%d" % ((start + number,) * 6) for number in range(1000)]
        held.add(held.sketch(texts))
        for number in range(1000):
            exact.add(hash((start, number)) & 0xFFFFFFFFFFFFFFFF)
    del texts
    used = tracemalloc.get_traced_memory()[0] / 20_000
    tracemalloc.stop()
    assert used < 250


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=60))
def test_hash_set_is_a_set(values):
    held, expected = HashSet(), set()
    for value in values:
        assert (value in held) == (value in expected or (value < 2 and expected & {0, 1} != set()))
        held.add(value)
        expected.add(value)


def test_hash_set_grows():
    held = HashSet()
    values = [random.Random(number).getrandbits(64) for number in range(5000)]
    for value in values:
        held.add(value)
    assert all(value in held for value in values)
    assert not any(value ^ 1 in held for value in values)
