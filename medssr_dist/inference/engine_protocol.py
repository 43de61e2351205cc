"""What every engine of the pool can do: a vLLM engine on Ray, a running server, or a simulated one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from medssr_dist.inference.requests import Completion, SampleRequest


class LeasedRequest(NamedTuple):
    """A request as an engine gets it: the engine returns each sample with the lease's id."""

    lease_id: int
    request: SampleRequest


class LeasedCompletion(NamedTuple):
    """A sample, and the lease that it belongs to."""

    lease_id: int
    completion: Completion


class FailedLease(NamedTuple):
    """A lease that the engine refused, and why."""

    lease_id: int
    reason: str


@dataclass(slots=True)
class EngineOutput:
    """What an engine has produced since the last `collect`.

    Example: EngineOutput([LeasedCompletion(7, Completion(5, "(B)", 3, False, "B", "bracketed"))], [], 19): one sample
    is finished; 19 tokens were generated, of which 16 belong to samples that are not finished.

    Attributes:
        samples: the finished samples.
        failed: the leases that the engine refused.
        tokens: generated tokens, those of unfinished samples included.
    """

    samples: list[LeasedCompletion] = field(default_factory=list)
    failed: list[FailedLease] = field(default_factory=list)
    tokens: int = 0


class Engine(Protocol):
    """An engine of the pool. All methods run on the pool's asyncio loop."""

    name: str

    async def start(self) -> None:
        """Start the engine; also again after `stop`. Raises the cause of a failure; InputError ends the run."""

    def submit(self, requests: list[LeasedRequest], aborted: list[int]) -> None:
        """Send new requests and the ids of leases to abort, without waiting. `collect` reports what fails."""

    async def collect(self) -> EngineOutput:
        """Wait for finished samples, or for tokens of unfinished ones. Raises when the engine is dead."""

    async def stop(self) -> None:
        """Stop the engine at once, even if it does not respond."""
