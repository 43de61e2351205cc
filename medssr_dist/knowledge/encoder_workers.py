"""Encoding on Ray: workers that each hold the encoder, on a GPU of its own where the cluster has GPUs.

This process reads the passages and writes the vectors; a worker needs neither the corpus nor the cache.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.encoders import load_encoder
from medssr_dist.knowledge.passages import Corpus, Passage

_log = logging.getLogger(__name__)
_MAX_DEATHS = 3  # of workers with one shard; then it is the shard that kills them


class ShardEncoder:
    """A Ray actor: the encoder of `knowledge`, loaded once."""

    def __init__(self, knowledge: Knowledge):
        self._encoder = load_encoder(knowledge)

    def encode(self, passages: list[Passage]) -> np.ndarray:
        """[n, d] float32."""
        return self._encoder.encode_articles(passages)


def encode_on_workers(
    corpus: Corpus, knowledge: Knowledge, shards: dict[int, range]
) -> Iterator[tuple[int, np.ndarray]]:
    """(shard, its vectors) as they are done. A shard whose worker dies is done again by another worker.

    Raises:
        InputError: the cluster has fewer GPUs (or CPUs) than workers; a shard has killed three workers.
    """
    import ray

    lost = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError)
    with _cluster(knowledge.workers):
        start = _worker_class(knowledge.workers)
        idle = [start(knowledge) for _ in range(min(knowledge.workers, len(shards)))]
        waiting, running, deaths = deque(shards), {}, dict.fromkeys(shards, 0)
        while waiting or running:
            while waiting and idle:
                worker, number = idle.pop(), waiting.popleft()
                rows = shards[number]
                running[worker.encode.remote(corpus[rows.start : rows.stop])] = worker, number
            (done,), _ = ray.wait(list(running))
            worker, number = running.pop(done)
            try:
                vectors = ray.get(done)
            except lost as error:
                deaths[number] += 1
                _refuse_deadly(number, deaths[number], error)
                waiting.appendleft(number)
                worker = start(knowledge)
            else:
                yield number, vectors
            idle.append(worker)


def _refuse_deadly(number: int, deaths: int, error: Exception) -> None:
    reason = " ".join(str(error).split())[:300]
    if deaths == _MAX_DEATHS:
        raise InputError(
            f"{deaths} encoding workers died one after another at shard {number} ({reason}); lower "
            "knowledge.batch_size, knowledge.shard_size or knowledge.workers if memory ran out"
        )
    _log.warning("an encoding worker died at shard %d (%s); another does it again", number, reason)


def _worker_class(workers: int):
    """What starts a worker: one GPU each if the cluster has any, else an equal share of its CPUs."""
    import ray

    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") else "CPU"
    if resources[kind] < workers:
        raise InputError(
            f"knowledge.workers = {workers}, but the Ray cluster has {resources[kind]:g} {kind}s; ask for at most that"
        )
    share = {"num_gpus": 1} if kind == "GPU" else {"num_cpus": int(resources["CPU"] // workers)}
    return ray.remote(**share)(ShardEncoder).remote


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """The cluster that is connected or that RAY_ADDRESS names, else one on this machine for the block."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    here = {"num_cpus": max(os.cpu_count() or 1, workers), "include_dashboard": False, "logging_level": "WARNING"}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(address=address or "local", log_to_driver=False, **({} if address else here))
    signal.signal(signal.SIGTERM, on_sigterm)  # ray.init puts in its own, which exits on the spot
    try:
        yield
    finally:
        ray.shutdown()
