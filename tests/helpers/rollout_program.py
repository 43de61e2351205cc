"""Training ranks and rollout engines without a training loop; run as a process by test_rollout_stack.py.

    python rollout_program.py CASE.json

CASE: config (a file), overrides, engine_model and rank_model (folders), syncs (their number), prompts (token ids, one
group for each), interrupt (whether the first sync comes while long samples are drawn), turns (whether a group is
requested while the ranks train), kill (whether to kill engine 0 while the prompts are sampled), hang (whether to stop
its processes at the end), logs, out.

Writes to `out` the seconds of each sync, the groups that the engines sampled before, during and after the syncs, and
the error of a sync while an engine hangs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["MEDSSR_DEVICE"] = "cpu"

import psutil  # noqa: E402
import ray  # noqa: E402

from medssr_dist.config.load import load_config  # noqa: E402
from medssr_dist.runtime.cluster import open_ray_cluster  # noqa: E402
from medssr_dist.training import stage_actor as stages  # noqa: E402
from medssr_dist.training.rollout.examples import PromptLoader  # noqa: E402
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sampling  # noqa: E402
from medssr_dist.training.rollout.workers import RolloutWorkers  # noqa: E402
from medssr_dist.training.stall_watch import start_board  # noqa: E402


def main(case: dict) -> None:
    config = load_config(Path(case["config"]), case["overrides"])
    with open_ray_cluster(config, Path(case["logs"])):
        workers = start(config, Path(case["engine_model"]), Path(case["rank_model"]))
        before = sample(workers, case["prompts"])
        seconds, during = [], []
        for version in range(1, case["syncs"] + 1):
            workers.sampler.returned = version
            since = time.monotonic()
            if case["interrupt"] and version == 1:
                during = sample_during_sync(workers, case["prompts"])
            else:
                workers.sync_weights()
            seconds.append(time.monotonic() - since)
        after = sample(workers, case["prompts"], case["kill"])
        hung = hang(workers) if case["hang"] else ""
        turns = request_during_training(workers, case["prompts"]) if case["turns"] else None
        found = {
            "turns": turns,
            "hung": hung,
            "seconds": seconds,
            "before": before,
            "during": during,
            "after": after,
            "restarts": workers.engines.restarts,
        }
        Path(case["out"]).write_text(json.dumps(found))


def start(config, engine_model: Path, rank_model: Path) -> RolloutWorkers:
    """Start engines with the weights of one model, and ranks with those of another, that send to these engines."""
    from medssr_dist.training.backend.strategy import Strategy
    from medssr_dist.training.ranks import PolicyRank

    stage, board = config.training.stage1, start_board()
    strategy = Strategy(config, stage, engine_model / "stage")
    ranks, bundles = stages.start_ranks(config, PolicyRank, None)
    workers = RolloutWorkers(config, stage, engine_model, board, ranks, bundles)
    workers.make_room()
    refs = ranks.async_init_model_from_pretrained(strategy, str(rank_model), 10)
    refs += ranks.async_run_method("report_to", board)
    workers.wait_ready(refs)
    workers.make_sampler(PromptLoader(lambda start: (), None, 0))
    return workers


def hang(workers: RolloutWorkers) -> str:
    """Return the error of a sync with an engine whose processes are stopped."""
    engine = psutil.Process(ray.get(workers.engines.handles[0].ready.remote()))
    stopped = [child for child in engine.children(recursive=True) if child.name().startswith("VLLM")]
    for child in stopped:
        child.suspend()
    try:
        workers.sync_weights()
    except Exception as error:
        return str(error)
    finally:
        for child in stopped:
            child.resume()
    return f"no error, with {len(stopped)} processes stopped"


def sample_during_sync(workers: RolloutWorkers, prompts: list[list[int]]) -> list[dict]:
    """Send new weights while groups are sampled, one after the other; return the groups."""
    sync, engines = workers._sync, workers.engines.by_name
    sync._all("connect_engines", engines, sync._settings)  # which takes longer than a group
    sync._connected = engines
    is_sent = threading.Event()

    def sample_until_sent() -> list[dict]:
        found = []
        while not is_sent.is_set():
            found += sample(workers, prompts * 4, tokens=200)
        return found

    with ThreadPoolExecutor() as threads:
        groups = threads.submit(sample_until_sent)
        time.sleep(1)
        workers.sync_weights()
        is_sent.set()
        return groups.result()


def request_during_training(workers: RolloutWorkers, prompts: list[list[int]]) -> dict:
    """Request groups while the ranks train; return whether one was answered meanwhile, and the groups after it."""
    workers.begin_training()
    with ThreadPoolExecutor() as threads:
        groups = threads.submit(sample, workers, prompts)
        time.sleep(5)
        answered = groups.done()
        workers.sampler.returned += 1
        workers.sync_weights()
        return {"answered": answered, "groups": groups.result()}


def sample(workers: RolloutWorkers, prompts: list[list[int]], kill: bool = False, tokens: int = 6) -> list[dict]:
    """Sample one group for each prompt; with `kill`, engine 0 is killed meanwhile."""
    sampling = Sampling(n=3, temperature=1.0, top_p=1.0, max_tokens=tokens, logprobs=True, random_seed=5)
    label = json.dumps({"answer": "A", "options": {"A": "yes", "B": "no"}})
    for number, ids in enumerate(prompts):
        workers.engines.submit(GroupRequest(number, "", ids, label, sampling))
    if kill:
        os.kill(ray.get(workers.engines.handles[0].ready.remote()), signal.SIGKILL)
    groups: list[Group] = [workers.engines.next_group() for _ in prompts]
    return [group.as_dict() for group in sorted(groups, key=lambda group: group.number)]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
