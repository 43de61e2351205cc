"""Which version of the weights each token of a running request comes from.

New weights interrupt running requests: vLLM stops after a forward pass, keeps the tokens, forgets the cache, and goes
on with the new weights, for which it computes the cache of prompt and tokens anew. So a token and its log-prob come
from the version that the engine held when it sampled the token, given all tokens before it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_SLICE = 32  # vLLM's front end handles at least this many outputs between two turns of the event loop


class SampleVersions:
    """The versions of the tokens of one request's samples.

    Args:
        samples: number of samples. version: of the engine's weights when the request came.

    Example: versions = SampleVersions(2, 3); versions.interrupt({0: 5}); versions.go_on(4)
        versions.find(0, 9) == (3, [[5, 4]]) and versions.find(1, 9) == (4, [])
    """

    def __init__(self, samples: int, version: int):
        self._versions = [version]
        self._lengths: list[dict[int, int]] = []  # of each unfinished sample, at the end of each version but the last
        self._unfinished = set(range(samples))

    def finish(self, place: int) -> None:
        """Note that a sample has all its tokens."""
        self._unfinished.discard(place)

    def interrupt(self, lengths: dict[int, int]) -> None:
        """Note how many tokens each unfinished sample has, by its place; one that is missing has not begun."""
        self._lengths.append({place: lengths.get(place, 0) for place in self._unfinished})

    def go_on(self, version: int) -> None:
        """Note the version of all further tokens."""
        self._versions.append(version)

    def find(self, place: int, tokens: int) -> tuple[int, list[list[int]]]:
        """Return the version of a finished sample's first token, and [token, version] where a newer one begins."""
        ends = [*(found.get(place, tokens) for found in self._lengths), tokens]
        runs = [
            [start, version]
            for start, end, version in zip([0, *ends], ends, self._versions, strict=False)
            if end > start
        ]
        return (runs[0][1], runs[1:]) if runs else (self._versions[-1], [])


def count_tokens(llm: AsyncLLM) -> dict[str, dict[int, int]]:
    """Return the number of tokens so far of each unfinished sample that has begun, by request and place in it."""
    found: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for state in llm.output_processor.request_states.values():
        request_id = state.parent_req.external_req_id if state.parent_req else state.external_req_id
        found[request_id][state.request_index] = state.detokenizer.num_output_tokens()
    return found


async def receive_outputs(llm: AsyncLLM) -> None:
    """Wait until vLLM's front end has handled all tokens that its paused engine had sampled.

    They have all arrived when the call that pauses the engine returns, because they come through the same socket. The
    front end takes a batch of outputs at a time, and handles it in slices, one in each turn of the event loop; whoever
    waits for a request's outputs is woken in the turn after.
    """
    queue = llm.engine_core.outputs_queue
    while queue is not None and not queue.empty():
        await asyncio.sleep(0)
    for _ in range(4 + len(llm.output_processor.request_states) // _SLICE):
        await asyncio.sleep(0)
