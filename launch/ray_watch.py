"""Wait until Ray has every node of the job, print READY, and end when Ray loses one.

python -m medssr_dist.launch.ray_watch --address IP:PORT --nodes n1=IP n2=IP --within 120
"""

from __future__ import annotations

import argparse
import sys
import time

READY = "every node of the job has joined Ray"
_POLL_S = 1.0


def describe_missing_nodes(wanted: dict[str, str], alive: set[str]) -> str:
    """Return names and addresses of the nodes of `wanted` (name -> IP) that are not in `alive`; "" if none is missing.

    Example: describe_missing_nodes({"n1": "10.0.0.1", "n2": "10.0.0.2"}, {"10.0.0.1"}) == "n2 (10.0.0.2)"
    """
    return ", ".join(f"{name} ({ip})" for name, ip in wanted.items() if ip not in alive)


def watch_nodes(address: str, wanted: dict[str, str], within_s: float) -> int:
    """Watch Ray's nodes. Return 1 if a node has not joined within `within_s` seconds, or when one has left."""
    from ray._raylet import GcsClient

    gcs = GcsClient(address=address)
    deadline = time.monotonic() + within_s
    while absent := describe_missing_nodes(wanted, _alive(gcs)):
        if time.monotonic() > deadline:
            print(f"not joined to Ray at {address} after {within_s:.0f} s: {absent}", flush=True)
            return 1
        time.sleep(_POLL_S)
    print(READY, flush=True)
    while not (absent := describe_missing_nodes(wanted, _alive(gcs))):
        time.sleep(_POLL_S)
    print(f"Ray has lost {absent}", flush=True)
    return 1


def _alive(gcs) -> set[str]:
    from ray.core.generated import gcs_pb2

    nodes = gcs.get_all_node_info(timeout=30).values()
    return {node.node_manager_address for node in nodes if node.state == gcs_pb2.GcsNodeInfo.ALIVE}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m medssr_dist.launch.ray_watch", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--nodes", required=True, nargs="+", metavar="NAME=IP")
    parser.add_argument("--within", type=float, default=120.0, metavar="SECONDS")
    args = parser.parse_args()
    return watch_nodes(args.address, dict(node.split("=") for node in args.nodes), args.within)


if __name__ == "__main__":
    sys.exit(main())
