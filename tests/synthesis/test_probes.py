"""New jobs as probes: if only failing jobs are left, they show whether the jobs or the endpoint fail."""

import pytest
from chat_cases import (
    Jobs,
    Server,
    quick,  # noqa: F401 - a fixture of every test here
    run,
)

from medssr_dist.errors import InputError
from medssr_dist.synthesis.client import dispatcher


class HeldBack(Jobs):
    """Gives the last three jobs only as probes."""

    def next_job(self, probe=False):
        return super().next_job() if probe or len(self.waiting) > 3 else None


async def test_a_probe_tells_failing_prompts_from_a_dead_endpoint():
    """Only failing jobs are left: a new job shows that the endpoint still answers."""
    jobs = HeldBack(8)
    await run([Server(lambda prompt, number: 500 if prompt in "34" else None)], jobs, {"tries": 2, "patience_s": 12})
    assert set(jobs.given_up) == {3, 4} and len(jobs.replies) == 6 and jobs.balanced()


async def test_probes_do_not_empty_the_queue_of_a_dead_endpoint():
    jobs = HeldBack(40)
    with pytest.raises(InputError, match="patience_s"):
        await run([Server(lambda prompt, number: 500)], jobs, {"patience_s": 6}, concurrency=2)
    assert not jobs.outcomes and len(jobs.waiting) >= 40 - 8 * 2 - dispatcher.MAX_PROBES
