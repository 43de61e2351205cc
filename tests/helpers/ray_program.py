"""A small Ray program for `medssr_dist.launch --slots`: it starts an actor on every node and works until it is stopped.

python ray_program.py RUN_DIR ACTORS: exits with 3 on SIGTERM, and with 1 if Ray has too few slots.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from medssr_dist.run.paths import RunPaths, vote_segment


class Worker:
    def where(self) -> str:
        import ray

        return ray.util.get_node_ip_address()


def main(run_dir: Path, actors: int) -> int:
    import ray

    ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False, _node_ip_address=os.environ["MEDSSR_NODE_IP"])
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    if ray.cluster_resources().get("GPU", 0) < actors:
        print("too few slots")
        return 1
    actor = ray.remote(num_gpus=1, num_cpus=0)(Worker)
    workers = [actor.options(scheduling_strategy="SPREAD").remote() for _ in range(actors)]
    places = ray.get([worker.where.remote() for worker in workers])
    print("actors on", *sorted(set(places)), flush=True)
    votes = vote_segment(RunPaths(run_dir).voting.votes, 0)
    votes.parent.mkdir(parents=True, exist_ok=True)
    while not asked.wait(0.2):
        with open(votes, "a", encoding="utf-8") as file:
            file.write("{}\n")
        answers, _ = ray.wait([worker.where.remote() for worker in workers], num_returns=1)
        assert answers  # of the actors that are left
    return 3


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
