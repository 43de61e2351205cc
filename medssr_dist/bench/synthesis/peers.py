"""The contestants beside ours, each in a fresh process: a bare aiohttp loop, AsyncOpenAI, distilabel.

Run as a script, by this Python or by that of another environment (`--peers-python`), so it imports nothing of this
package and a peer's library only where it is used:

    python peers.py bare_uvloop http://127.0.0.1:8000/v1 --concurrency 64 --warmup-s 2 --seconds 10

prints one JSON object: requests_per_s, cpu_us_per_request, p50_ms, p99_ms, peak_mb, requests. Each keeps
`concurrency` requests in flight and, as any use must, takes the text out of every reply.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from array import array
from pathlib import Path

PROMPT_CHARS = 2500
_STEP_S = 1e-4  # latencies are counted in steps of 0.1 ms, up to 20 s: bounded memory
_STEPS = 200_000


class Meter:
    """Rate, CPU and latencies of the requests that end between the warm-up and `seconds` later.

    The clock starts with the first request, so importing a library is nobody's disadvantage. With `count` the window
    is that many requests, however long they take.
    """

    def __init__(self, warmup_s: float, seconds: float, count: int = 0):
        self._warmup_s = 0 if count else warmup_s
        self._seconds = float("inf") if count else seconds
        self._count = count or float("inf")
        self._started = 0
        self._ended = 0
        self._begin = self._end = float("inf")
        self._first = self._last = (0.0, 0.0)  # time and CPU time as the window opened, and at its last reply
        self._steps = array("L", bytes(_STEPS * array("L").itemsize))

    @property
    def over(self) -> bool:
        """Nothing more is to be asked."""
        return self._started >= self._count or self.closed

    @property
    def closed(self) -> bool:
        """The window has ended: no reply counts any more."""
        return time.perf_counter() >= self._end

    def begin(self) -> float:
        """A request is sent; returns the time, to be given back to `end`."""
        now = time.perf_counter()
        if not self._started:
            self._begin = now + self._warmup_s
            self._end = self._begin + self._seconds
            self._first = (now, time.process_time())
        self._started += 1
        return now

    def end(self, begun: float) -> None:
        """The request begun then has its reply."""
        now = time.perf_counter()
        if now >= self._end:
            return
        self._last = (now, time.process_time())
        if now < self._begin:
            self._first = self._last
            return
        self._ended += 1
        self._steps[min(int((now - begun) / _STEP_S), _STEPS - 1)] += 1

    def result(self) -> dict:
        wall, cpu = (last - first for first, last in zip(self._first, self._last, strict=True))
        return {
            "requests": self._ended,
            "requests_per_s": round(self._ended / wall, 1) if self._ended else 0.0,
            "cpu_us_per_request": round(1e6 * cpu / self._ended, 1) if self._ended else None,
            "p50_ms": self._latency(0.5),
            "p99_ms": self._latency(0.99),
            "peak_mb": peak_mb(),
        }

    def _latency(self, share: float) -> float | None:
        """The latency that `share` of the requests do not exceed, milliseconds."""
        seen = 0
        for step, number in enumerate(self._steps):
            seen += number
            if number and seen >= share * self._ended:
                return round((step + 1) * _STEP_S * 1e3, 1)
        return None


def peak_mb() -> float:
    """Most resident memory this process has had, MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)


def messages() -> list[dict[str, str]]:
    """A prompt of 2.5 KB, the size of ours with three passages."""
    system = "You are a physician who writes multiple-choice questions for medical licensing examinations."
    return [{"role": "system", "content": system}, {"role": "user", "content": ("word " * 1000)[: PROMPT_CHARS - 92]}]


async def _bare(url: str, concurrency: int, meter: Meter) -> None:
    import aiohttp

    body = {"model": "m", "messages": messages(), "temperature": 1.0, "max_tokens": 1024}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            while not meter.over:
                begun = meter.begin()
                async with session.post(f"{url}/chat/completions", json=body) as response:
                    assert (await response.json())["choices"][0]["message"]["content"]
                meter.end(begun)

        await asyncio.gather(*(work() for _ in range(concurrency)))


async def _openai(url: str, concurrency: int, meter: Meter) -> None:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key="none") as client:

        async def work() -> None:
            while not meter.over:
                begun = meter.begin()
                reply = await client.chat.completions.create(
                    model="m", messages=messages(), temperature=1.0, max_tokens=1024
                )
                assert reply.choices[0].message.content
                meter.end(begun)

        await asyncio.gather(*(work() for _ in range(concurrency)))


def _distilabel(url: str, concurrency: int, meter: Meter) -> None:
    """Its asynchronous LLM alone, without the pipeline around it, batch after batch as its steps call it."""
    from distilabel.models.llms import OpenAILLM

    llm = OpenAILLM(model="m", base_url=url, api_key="none")
    llm.load()
    while not meter.over:
        begun = [meter.begin() for _ in range(concurrency)]
        replies = llm.generate_outputs(inputs=[messages() for _ in begun], max_new_tokens=1024)
        assert all(reply["generations"][0] for reply in replies)
        for each in begun:
            meter.end(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["bare", "bare_uvloop", "openai", "distilabel"])
    parser.add_argument("url")
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--warmup-s", type=float, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    meter = Meter(args.warmup_s, args.seconds)
    if args.name == "distilabel":
        _distilabel(args.url, args.concurrency, meter)
    elif args.name == "bare":
        asyncio.run(_bare(args.url, args.concurrency, meter))
    else:
        import uvloop

        work = _openai if args.name == "openai" else _bare
        uvloop.run(work(args.url, args.concurrency, meter))
    print(json.dumps(meter.result()))


if __name__ == "__main__":
    main()
