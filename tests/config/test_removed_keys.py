"""Keys of earlier versions in a recorded config are translated to those of today."""

from __future__ import annotations

import pytest

from medssr_dist.config.removed_keys import drop_removed_keys


@pytest.mark.parametrize(
    ("recorded", "lag"),
    [
        ({"async_rollout": False, "over_draw": False, "max_policy_lag": 1}, 0),  # the limit had nothing to limit
        ({"async_rollout": True, "over_draw": False, "max_policy_lag": 4}, 1),  # one step ahead, whatever the limit
        ({"async_rollout": False, "over_draw": True, "max_policy_lag": 1}, 1),
        ({"async_rollout": True, "over_draw": True, "max_policy_lag": 2}, 2),
        ({"async_rollout": True}, 1),
        ({"max_policy_lag": 3}, 3),
    ],
)
def test_the_lag_of_an_earlier_version_is_translated(recorded, lag):
    expected = {name: value for name, value in recorded.items() if name != "async_rollout"} | {"max_policy_lag": lag}
    assert drop_removed_keys({"training": recorded}) == {"training": expected}
    flat = drop_removed_keys({f"training.{name}": value for name, value in recorded.items()})
    assert flat == {f"training.{name}": value for name, value in expected.items()}


def test_votes_keep_the_limit_of_their_age():
    recorded = {"async_rollout": False, "max_policy_lag": 4, "stage1": {"first_rollouts": "votes"}}
    assert drop_removed_keys({"training": recorded})["training"]["max_policy_lag"] == 4
    flat = {"training.async_rollout": False, "training.max_policy_lag": 4, "training.stage1.first_rollouts": "votes"}
    assert drop_removed_keys(flat)["training.max_policy_lag"] == 4
