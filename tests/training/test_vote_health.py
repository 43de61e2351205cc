"""Agreement, entropies, unanimity, length and truncation of the groups that a step has drawn."""

from __future__ import annotations

import math
import random

import pytest
from vote_traces import make_group

from medssr_dist.training.rollout.vote_health import measure_health

HALF = math.log(2) / math.log(4)


def test_groups_of_one_step_by_hand():
    found = measure_health([make_group("AAAA", "A"), make_group("AABB", "B"), make_group("CC--", "D", length=40)])
    assert found.majority_agreement == pytest.approx((1 + 0.5 + 0) / 3)  # a tie counts half
    assert found.vote_entropy == pytest.approx((0 + HALF + 0) / 3)
    assert found.unanimous == pytest.approx(1 / 3)  # answers without an option agree with nothing
    assert found.drawn_length == pytest.approx((10 + 10 + 40) / 3)
    shares = (6 / 10, 2 / 10, 2 / 10)
    assert found.letter_entropy == pytest.approx(-sum(s * math.log(s) for s in shares) / math.log(4))


@pytest.mark.parametrize(
    ("letters", "vote_entropy", "letter_entropy"),
    [(("AAAA", "AAAA"), 0, 0), (("AAAA", "BBBB"), 0, HALF), (("ABCD", "ABCD"), 1, 1), (("AABB", "CCDD"), HALF, 1)],
)
def test_entropy_within_and_over_questions(letters, vote_entropy, letter_entropy):
    found = measure_health([make_group(each, "A") for each in letters])
    assert (found.vote_entropy, found.letter_entropy) == pytest.approx((vote_entropy, letter_entropy))


def test_answers_without_an_option_have_no_entropy():
    found = measure_health([make_group("!!--", "A")])
    assert (found.vote_entropy, found.letter_entropy) == (None, None)
    assert (found.majority_agreement, found.unanimous, found.drawn_truncated) == (0, 0, 0.5)


def test_the_order_of_groups_does_not_matter():
    groups = [make_group("".join(random.Random(n).choices("ABCD-", k=8)), "C", 10 + n, n) for n in range(20)]
    shuffled = random.Random(1).sample(groups, len(groups))
    assert measure_health(groups) == measure_health(shuffled)
