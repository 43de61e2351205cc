"""kill -9 of a run over the Batch API at chosen moments: nothing is lost, and nothing is bought twice."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections import Counter

import pytest
from batch_cases import (
    FileQueue,
    delivered,
    quick_backoff,  # noqa: F401 - a fixture of every test here
    run,
    settings,
    times_served,
)

from medssr_dist.offline_teacher import start_teacher
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.synthesis.client.batch_api import BatchApi
from medssr_dist.synthesis.client.batch_ledger import BatchLedger

# Where the process is killed: (class, method, before or after the call, number of the call).
MOMENTS = {
    "before the upload": (BatchApi, "upload", "before", 1),
    "after the upload": (BatchApi, "upload", "after", 1),
    "creation recorded, not sent": (BatchApi, "create", "before", 1),
    "creation answered, not recorded": (BatchApi, "create", "after", 1),
    "creation recorded": (BatchLedger, "record_created", "after", 1),
    "while polling": (BatchApi, "read_state", "after", 2),
    "during the download": (BatchApi, "read_answers", "after", 1),
    "while delivering": (FileQueue, "finish", "after", 7),
    "delivered, not closed": (BatchLedger, "record_closed", "before", 1),
    "in the second batch": (BatchApi, "create", "after", 2),
}


def _killing(method, when, number):
    """Return `method` with a kill -9 of this process before or after its call of this number."""
    calls = Counter()

    def kill(at):
        calls[at] += at == when
        if calls[at] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    async def waits(*args):
        kill("before")
        result = await method(*args)
        kill("after")
        return result

    def does(*args):
        kill("before")
        result = method(*args)
        kill("after")
        return result

    return waits if asyncio.iscoroutinefunction(method) else does


def _run_to_death(url, folder, salt, moment):
    owner, name, when, number = MOMENTS[moment]
    setattr(owner, name, _killing(getattr(owner, name), when, number))
    run(settings(url), folder, FileQueue(folder, 30, salt))


@pytest.fixture(scope="module")
def slow_teacher(tmp_path_factory):
    options = ["--batch-delay-s", "0.1", "--rate-429", "0.1"]
    with start_teacher(tmp_path_factory.mktemp("slow") / "log", options=options) as url:
        yield url


@pytest.mark.parametrize("moment", MOMENTS)
def test_kill_9_at_any_moment_loses_and_repeats_nothing(slow_teacher, tmp_path, moment):
    child = multiprocessing.get_context("fork").Process(
        target=_run_to_death, args=(slow_teacher, tmp_path, moment, moment)
    )
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    before = FileQueue(tmp_path, 30, moment).known
    queue = FileQueue(tmp_path, 30, moment)
    run(settings(slow_teacher, retry={"tries": 20}), tmp_path, queue)
    assert delivered(tmp_path) == list(range(30)) and queue.counts["reply"] == 30 - len(before)
    assert times_served(slow_teacher, moment, 30) == [1] * 30 and queue.counts["lost"] == 0
    assert not list(BatchLedger(SynthesisPaths(tmp_path).batches))
    assert not list(tmp_path.glob("batch-*.jsonl"))


def test_two_workers_at_one_endpoint_resume_their_batches(slow_teacher, tmp_path):
    synthesis = settings(slow_teacher, batch_size=8)
    synthesis = synthesis.model_copy(update={"endpoints": [synthesis.endpoints[0]] * 2})
    waiting = lambda runner: all(" of 8" in state.reason for state in runner.read_states())  # noqa: E731
    run(synthesis, tmp_path, FileQueue(tmp_path, 16, "workers"), waiting)
    assert len(list(BatchLedger(SynthesisPaths(tmp_path).batches))) == 2
    run(synthesis, tmp_path, FileQueue(tmp_path, 16, "workers"))
    assert times_served(slow_teacher, "workers", 16) == [1] * 16 and delivered(tmp_path) == list(range(16))
