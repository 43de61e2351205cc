"""Placement groups on a Ray cluster of two nodes (two raylets on this machine)."""

from __future__ import annotations

import pytest

from medssr_dist.errors import InputError
from medssr_dist.inference import vllm_engine
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


def count_bundles_by_node(*groups) -> list[int]:
    from collections import Counter

    from ray.util.placement_group import placement_group_table, remove_placement_group

    nodes = [node for group in groups for node in placement_group_table(group)["bundles_to_node_id"].values()]
    for group in groups:
        remove_placement_group(group)
    return sorted(Counter(nodes).values())


def test_ranks_are_spread_and_rollout_engines_packed(two_nodes):
    bundles = [{"GPU": 1, "CPU": 1}] * 2
    assert count_bundles_by_node(*cluster.reserve_each(bundles[0], 2, "voters")) == [1, 1]
    assert count_bundles_by_node(cluster.reserve_bundles(bundles, "engines")) == [2]
    assert count_bundles_by_node(cluster.reserve_bundles(bundles, "ranks", per_node=1)) == [1, 1]
    assert count_bundles_by_node(cluster.reserve_bundles(bundles, "ranks", per_node=2)) == [2]
    assert count_bundles_by_node(cluster.reserve_bundles(bundles * 2, "ranks", per_node=2)) == [2, 2]


def test_bundles_without_room_are_refused_with_the_reason(two_nodes, monkeypatch):
    monkeypatch.setattr(cluster, "_PLACEMENT_S", 1.0)
    with pytest.raises(InputError, match=r"the ranks ask for 6 x .* 4 GPUs free of 4, on 2 nodes"):
        cluster.reserve_bundles([{"GPU": 1, "CPU": 1}] * 6, "the ranks", per_node=3)
    with pytest.raises(InputError, match=r"the voters ask for 5 x .* 4 GPUs free of 4, on 2 nodes"):
        cluster.reserve_each({"GPU": 1, "CPU": 1}, 5, "the voters")


def test_an_engine_without_room_times_out(two_nodes, monkeypatch, tmp_path):
    import asyncio

    from ray.util.placement_group import placement_group

    monkeypatch.setattr(vllm_engine, "_PLACE_S", 2)
    model = vllm_engine.ServedModel(tmp_path, "")
    engine = vllm_engine.RayEngine("engine 0", lambda: placement_group([{"GPU": 3}]), 3, lambda: model, {}, {}, 0.0)
    with pytest.raises(TimeoutError, match=r"no room for \{'GPU': 3.*\} on the cluster within 2 s"):
        asyncio.run(engine.start())
    asyncio.run(engine.stop())
