"""Where placement groups go on a Ray of two nodes (two raylets of this machine)."""

from __future__ import annotations

import pytest

from medssr_dist.errors import InputError
from medssr_dist.runtime import cluster


@pytest.fixture(scope="module")
def two_nodes():
    import ray
    from ray.cluster_utils import Cluster

    ray_nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 2})
    ray_nodes.add_node(num_cpus=4, num_gpus=2)
    ray_nodes.wait_for_nodes()
    ray.init(address=ray_nodes.address, log_to_driver=False)
    yield
    ray.shutdown()
    ray_nodes.shutdown()


def _bundles_by_node(group) -> list[int]:
    from collections import Counter

    from ray.util.placement_group import placement_group_table, remove_placement_group

    nodes = placement_group_table(group)["bundles_to_node_id"]
    remove_placement_group(group)
    return sorted(Counter(nodes.values()).values())


def test_ranks_are_spread_as_asked_and_engines_packed(two_nodes):
    bundles = [{"GPU": 1, "CPU": 1}] * 2
    assert _bundles_by_node(cluster.reserve(bundles, "engines")) == [2]
    assert _bundles_by_node(cluster.reserve(bundles, "ranks", per_node=1)) == [1, 1]
    assert _bundles_by_node(cluster.reserve(bundles, "ranks", per_node=2)) == [2]
    assert _bundles_by_node(cluster.reserve(bundles * 2, "ranks", per_node=2)) == [2, 2]


def test_what_cannot_be_placed_is_refused_with_the_reason(two_nodes, monkeypatch):
    monkeypatch.setattr(cluster, "_PLACEMENT_S", 1.0)
    with pytest.raises(InputError, match=r"the ranks ask for 6 x .* 4 GPUs free of 4, on 2 nodes"):
        cluster.reserve([{"GPU": 1, "CPU": 1}] * 6, "the ranks", per_node=3)
