"""Encoding on Ray workers, each with its own copy of the encoder, and with its own GPU if the cluster has GPUs.

The calling process reads the passages and writes the vectors, so a worker needs neither the corpus nor the cache.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from medssr_dist.config.synthesis import Knowledge
from medssr_dist.errors import InputError
from medssr_dist.knowledge.encoders import EncodedShard, load_encoder
from medssr_dist.knowledge.passages import Corpus, Passage
from medssr_dist.runtime.cluster import connect_to_ray, read_ray_address
from medssr_dist.runtime.working_directory import make_job_config

logger = logging.getLogger(__name__)
_MAX_DEATHS = 3  # worker deaths at one shard, after which the shard is taken as the cause


class ShardEncoder:
    """A Ray actor that loads the encoder of `knowledge` once."""

    def __init__(self, knowledge: Knowledge):
        self._encoder = load_encoder(knowledge)

    def encode(self, passages: list[Passage]) -> np.ndarray:
        """Return the vectors of n passages, float32 [n, d]."""
        return self._encoder.encode_articles(passages)


def encode_on_workers(corpus: Corpus, knowledge: Knowledge, shards: dict[int, range]) -> Iterator[EncodedShard]:
    """Yield the shards as they are finished. If a worker dies, another one retries its shard.

    Args:
        shards: shard number -> rows of the corpus.
    Raises:
        InputError: the cluster has fewer GPUs (or CPUs) than `knowledge.workers`, or a shard has killed three workers.
    """
    import ray

    lost = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError)
    with _join_cluster(knowledge.workers):
        start = _make_starter(knowledge.workers)
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
                _count_death(number, deaths[number], error)
                waiting.appendleft(number)
                worker = start(knowledge)
            else:
                yield EncodedShard(number, vectors)
            idle.append(worker)


def _count_death(number: int, deaths: int, error: Exception) -> None:
    """Warn that a worker died, or raise InputError if it was the third one at this shard."""
    reason = " ".join(str(error).split())[:300]
    if deaths == _MAX_DEATHS:
        raise InputError(
            f"{deaths} encoding workers died one after another at shard {number} ({reason}); lower "
            "knowledge.batch_size, knowledge.shard_size or knowledge.workers if memory ran out"
        )
    logger.warning("an encoding worker died at shard %d (%s); another worker retries it", number, reason)


def _make_starter(workers: int) -> Callable[[Knowledge], Any]:
    """Return the function that starts a worker, with one GPU each, or an equal share of the CPUs without GPUs."""
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
def _join_cluster(workers: int) -> Iterator[None]:
    """Use the connected cluster or the one at RAY_ADDRESS; without either, start one here for the block."""
    import ray

    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address := read_ray_address():
        connect_to_ray(address)
    else:
        here = {"num_cpus": max(os.cpu_count() or 1, workers), "include_dashboard": False, "logging_level": "WARNING"}
        ray.init(address="local", job_config=make_job_config(), log_to_driver=False, **here)
    signal.signal(signal.SIGTERM, on_sigterm)  # ray.init installs its own handler, which exits at once
    try:
        yield
    finally:
        ray.shutdown()
