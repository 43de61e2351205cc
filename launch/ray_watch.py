"""Which nodes Ray has: waits until the job's are all there, says so, and ends when one of them leaves.

python -m medssr_dist.launch.ray_watch --address IP:PORT --nodes n1=IP n2=IP --within 120
"""

from __future__ import annotations

import argparse
import sys
import time

READY = "every node of the job has joined Ray"
_POLL_S = 1.0


def list_missing_nodes(wanted: dict[str, str], alive: set[str]) -> str:
    """Names and addresses of the nodes of `wanted` (name -> ip) whose address is not in `alive`."""
    return ", ".join(f"{name} ({ip})" for name, ip in wanted.items() if ip not in alive)


def watch_nodes(address: str, wanted: dict[str, str], within_s: float) -> int:
    """Returns 1 when a node did not come within `within_s` seconds, or left."""
    from ray._raylet import GcsClient

    gcs = GcsClient(address=address)
    deadline = time.monotonic() + within_s
    while absent := list_missing_nodes(wanted, _alive(gcs)):
        if time.monotonic() > deadline:
            print(f"not joined to Ray at {address} after {within_s:.0f} s: {absent}", flush=True)
            return 1
        time.sleep(_POLL_S)
    print(READY, flush=True)
    while not (absent := list_missing_nodes(wanted, _alive(gcs))):
        time.sleep(_POLL_S)
    print(f"Ray has lost {absent}", flush=True)
    return 1


def _alive(gcs) -> set[str]:
    from ray.core.generated import gcs_pb2

    nodes = gcs.get_all_node_info(timeout=30).values()
    return {node.node_manager_address for node in nodes if node.state == gcs_pb2.GcsNodeInfo.ALIVE}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m medssr_dist.launch.ray_watch", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--nodes", required=True, nargs="+", metavar="NAME=IP")
    parser.add_argument("--within", type=float, default=120.0, metavar="SECONDS")
    args = parser.parse_args()
    return watch_nodes(args.address, dict(node.split("=") for node in args.nodes), args.within)


if __name__ == "__main__":
    sys.exit(main())
