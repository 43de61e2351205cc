"""From the labels of the slice to thresholds, a certificate and refusals that name the number still needed."""

from __future__ import annotations

import pytest

from medssr_dist.config.voting import Voting
from medssr_dist.data.label_certificate import KindThresholds, LabelCertificate, format_certificate
from medssr_dist.errors import InputError
from medssr_dist.voting.calibration import choose_thresholds
from medssr_dist.voting.fixed_sequence import JudgedLabel, count_enough

SLICE = {"data": [{"path": "slice.jsonl"}]}


def voting(**calibrate) -> Voting:
    return Voting(samples=4, threshold=0.25, calibrate=SLICE | calibrate)


def labels(*groups: tuple[float | None, int, int], rare=False) -> list[JudgedLabel]:
    """(share, number, right ones) of each group."""
    return [JudgedLabel(share, i < right, rare) for share, number, right in groups for i in range(number)]


def test_one_threshold_where_a_kind_is_too_small():
    mixed = labels((1.0, 300, 296), (0.5, 200, 120)) + labels((1.0, 10, 10), rare=True)
    (found,) = choose_thresholds(mixed, voting())
    assert (found.kind, found.threshold, found.questions) == ("all", 0.75, 510)
    assert (found.kept, found.right, found.tested) == (310, 306, 2)
    assert 0.9 <= found.bound < 306 / 310


def test_two_thresholds_share_the_error():
    enough = count_enough(0.9, 0.975)
    rare = labels((1.0, 2 * enough, 2 * enough - 3), rare=True)
    common = labels((1.0, enough, enough), (0.5, 4 * enough, 4 * enough - 6))
    found = {each.kind: each for each in choose_thresholds(rare + common, voting())}
    assert set(found) == {"rare", "common"}
    assert found["common"].threshold == 0.25 and found["rare"].threshold == 0.25
    (together,) = choose_thresholds(rare + common, voting(by_kind=False))
    assert together.kind == "all"


def test_the_threshold_of_the_config_is_the_lowest_tried():
    found = choose_thresholds(labels((1.0, 500, 500)), Voting(samples=4, threshold=0.6, calibrate=SLICE))
    assert found[0].threshold == 0.6


@pytest.mark.parametrize(
    ("groups", "fields", "found"),
    [
        ([(1.0, 10, 10)], {}, r"at least 29 labels, all right, but the slice of 10 questions gives 10; give about 29"),
        ([(1.0, 10, 10), (None, 90, 0)], {}, r"the slice of 100 questions gives 10; give about 290 questions"),
        ([(None, 50, 0)], {}, r"gives 0; give about more questions"),
        ([(1.0, 100, 94)], {}, r"94 of 100 \(94.0%\) are right; give about 1\d\d questions in place of 100"),
        ([(1.0, 300, 240)], {}, r"more than 0.800 right; set voting.calibrate.precision below that"),
        ([(1.0, 40, 40)], {"precision": 0.99}, r"at least 299 labels"),
    ],
)
def test_a_slice_that_gives_no_threshold_is_refused(groups, fields, found):
    with pytest.raises(InputError, match=found) as caught:
        choose_thresholds(labels(*groups), voting(**fields))
    assert "voting.calibrate" in str(caught.value)


def test_a_kind_that_fails_is_named():
    enough = count_enough(0.9, 0.975)
    both = labels((1.0, enough, enough)) + labels((1.0, 2 * enough, enough), rare=True)
    with pytest.raises(InputError, match="rare questions: no threshold"):
        choose_thresholds(both, voting())


def test_statistical_stopping_is_refused():
    with pytest.raises(ValueError, match="adaptive=lossless"):
        Voting(samples=4, adaptive="statistical", calibrate=SLICE)


def test_the_certificate_says_what_it_promises():
    thresholds = choose_thresholds(labels((1.0, 500, 490)), voting())
    certificate = LabelCertificate(
        data=("slice.jsonl",),
        data_hash="9f",
        precision=0.9,
        confidence=0.95,
        samples=4,
        denominator="valid",
        rule="majority",
        policy="p",
        sampling="s",
        thresholds=thresholds,
    )
    assert certificate.find_thresholds() == KindThresholds(0.25, 0.25)
    text = format_certificate(certificate)
    assert "at least 90.0% of the kept labels are right, with 95.0% confidence" in text
    assert "slice.jsonl, 500 questions" in text and "490 of 500 right" in text
    assert "questions drawn like the slice" in text
    assert LabelCertificate.model_validate_json(certificate.model_dump_json()) == certificate
