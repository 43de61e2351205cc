"""Shared by the tests of the sampler: engines that answer in random order, and the batches of a sampler."""

from __future__ import annotations

import random
import threading

from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample, Sampling
from medssr_dist.training.rollout.sampler import Sampler

SAMPLING = Sampling(n=2, temperature=1.0, top_p=1.0, max_tokens=4, logprobs=True, random_seed=3)


class Engines:
    """Returns groups in random order; the prompts numbered in `flat` (modulo `cycle`) get equal rewards."""

    restarts = 0

    def __init__(self, flat, order: int = 0, cycle: int = 10**9):
        self._flat, self._rng, self._cycle, self._requests = flat, random.Random(order), cycle, []
        self.version = 0
        self.hold = threading.Event()
        self.hold.set()

    def submit(self, request: GroupRequest) -> None:
        self._requests.append(request)

    def next_group(self) -> Group:
        self.hold.wait()
        request = self._requests.pop(self._rng.randrange(len(self._requests)))
        rewards = [0.0, float(request.number % self._cycle not in self._flat)]
        rewards = rewards[-request.sampling.n :]
        samples = [Sample([7, 8], [-1.0, -2.0], reward, False, False, self.version) for reward in rewards]
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)


def draw_batches(made: Sampler) -> list[list[int]]:
    """Return the N of 'Question N' of each prompt, for all remaining batches."""
    found = []
    while step := made.next_step():
        found.append([int(sample.prompts[0].split()[1]) for sample in step.samples[:: SAMPLING.n]])
        send_weights(made)
    return found


def send_weights(made: Sampler, engines: Engines | None = None) -> None:
    """Do what the weight sync does after a step."""
    with made.new_weights() as version:
        if engines is not None:
            engines.version = version
