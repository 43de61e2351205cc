"""An engine of the pool for a tiny policy on a CPU: whole batches through transformers, without vLLM.

A step of vLLM costs more than the forward pass of a model with 1M parameters. The votes are as real as those of vLLM:
the same prompts, temperature and token limit, each drawn from the policy's own distribution by its seed (inverse of the
cumulated probabilities, at uniform numbers that depend on the seed alone). Only the numbers drawn are others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from medssr_dist.inference.engine_protocol import EngineOutput, LeasedCompletion, LeasedRequest
from medssr_dist.inference.requests import Completion, SampleRequest

_ROWS = 1024  # samples drawn together
_DROP_EVERY = 8  # steps after which finished samples leave the batch


class BatchEngine:
    """Samples of one model in float32. See `engine_protocol.Engine`.

    Args:
        model: directory of the policy.
    """

    name = "batches"

    def __init__(self, model: Path):
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._waiting: deque[LeasedRequest] = deque()
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Do nothing: the model is loaded."""

    def submit(self, requests: list[LeasedRequest], aborted: list[int]) -> None:
        """Queue the requests."""
        dropped = set(aborted)
        self._waiting = deque(each for each in (*self._waiting, *requests) if each.lease_id not in dropped)
        self._news.set()

    async def collect(self) -> EngineOutput:
        """Answer up to about _ROWS samples of the queue."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        batch: list[LeasedRequest] = []
        while self._waiting and sum(each.request.n for each in batch) < _ROWS:
            batch.append(self._waiting.popleft())
        return await asyncio.to_thread(self._answer, batch)

    async def stop(self) -> None:
        """Forget the queue."""
        self._waiting.clear()

    def _answer(self, batch: list[LeasedRequest]) -> EngineOutput:
        ends, texts, logprobs = self._sample([each.request for each in batch])
        output, row = EngineOutput(), 0
        for lease_id, request in batch:
            for index in range(request.n):
                tokens, truncated = ends[row]
                sample = Completion.from_text(
                    request, request.seed + index, texts[row], tokens, truncated, logprobs[row] / max(1, tokens)
                )
                output.samples.append(LeasedCompletion(lease_id, sample))
                output.tokens += tokens
                row += 1
        return output

    @torch.no_grad()
    def _sample(self, requests: list[SampleRequest]) -> tuple[list[tuple[int, bool]], list[str], list[float]]:
        """Return (tokens, cut at the limit), text and summed log-prob of each sample, in the order of the requests.

        R: requests, N: samples in the batch, P: prompt tokens, V: vocabulary.
        """
        first = requests[0]
        prompts = self._tokenizer.pad(
            [{"input_ids": list(each.prompt)} for each in requests], padding_side="left", return_tensors="pt"
        )
        mask_RP = prompts["attention_mask"]
        places_RP = (mask_RP.cumsum(1) - 1).clamp(min=0)
        output = self._model(
            input_ids=prompts["input_ids"], attention_mask=mask_RP, position_ids=places_RP, logits_to_keep=1
        )
        rows_N = torch.tensor([row for row, each in enumerate(requests) for _ in range(each.n)])
        seeds = [each.seed + index for each in requests for index in range(each.n)]
        limit = first.max_tokens
        uniform_NT = torch.tensor(np.stack([np.random.default_rng(seed).random(limit) for seed in seeds]))
        cache = output.past_key_values
        cache.batch_select_indices(rows_N)
        logits_NV, mask_NP, place_N1 = output.logits[rows_N, -1], mask_RP[rows_N], places_RP[rows_N, -1:]
        drawn: list[list[int]] = [[] for _ in seeds]
        logprobs, closed = [0.0] * len(seeds), [False] * len(seeds)
        alive = list(range(len(seeds)))  # the sample of each row of the batch
        for step in range(limit):
            cumulated_NV = (logits_NV / first.temperature).double().softmax(-1).cumsum(-1)
            point_N1 = uniform_NT[alive, step : step + 1] * cumulated_NV[:, -1:]
            token_N1 = torch.searchsorted(cumulated_NV, point_N1, right=True).clamp(max=logits_NV.shape[-1] - 1)
            logprob_N = logits_NV.log_softmax(-1).gather(1, token_N1).squeeze(1).tolist()
            for sample, token, logprob in zip(alive, token_N1.squeeze(1).tolist(), logprob_N, strict=True):
                if not closed[sample]:
                    drawn[sample].append(token)
                    logprobs[sample] += logprob
                    closed[sample] = token == self._tokenizer.eos_token_id
            if all(closed):
                break
            if step % _DROP_EVERY == _DROP_EVERY - 1:
                kept = torch.tensor([row for row, sample in enumerate(alive) if not closed[sample]])
                alive = [alive[row] for row in kept.tolist()]
                cache.batch_select_indices(kept)
                token_N1, mask_NP, place_N1 = token_N1[kept], mask_NP[kept], place_N1[kept]
            place_N1 = place_N1 + 1
            mask_NP = torch.cat([mask_NP, torch.ones_like(place_N1)], 1)
            output = self._model(
                input_ids=token_N1, attention_mask=mask_NP, position_ids=place_N1, past_key_values=cache
            )
            cache, logits_NV = output.past_key_values, output.logits[:, -1]
        texts = self._tokenizer.batch_decode(drawn, skip_special_tokens=True)
        ends = [(len(tokens), not is_closed) for tokens, is_closed in zip(drawn, closed, strict=True)]
        return ends, texts, logprobs
