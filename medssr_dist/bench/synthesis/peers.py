"""The other clients, each in a fresh process: a bare aiohttp loop, AsyncOpenAI, distilabel.

This file runs as a script, under this Python or that of another environment (`--peers-python`). It therefore imports
nothing of this package, and a client's library only where it is used:

    python peers.py bare_uvloop http://127.0.0.1:8000/v1 --concurrency 64 --warmup-s 2 --seconds 10

prints a Measurement as JSON. Each client keeps `concurrency` requests in flight and reads the text of every reply.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path

PROMPT_CHARS = 3800
_STEP_S = 1e-4  # resolution of the latency histogram, up to 20 s: its memory is bounded
_STEPS = 200_000


@dataclass(frozen=True)
class Measurement:
    """One client at one latency and concurrency, in one window of time.

    >>> Measurement(47374, 5918.9, cpu_us_per_request=169.7, p50_ms=8.2, p99_ms=17.4, peak_mb=105.2)

    Attributes:
        requests: that ended in the window; requests_per_s: 0 if none did.
        cpu_us_per_request: CPU time of the client's process in microseconds; None without requests.
        p50_ms, p99_ms: quantiles of the latency; None without requests.
        peak_mb: the most memory the process has had, MiB.
        attempts: requests with their retries, of our client alone.
    """

    requests: int
    requests_per_s: float
    cpu_us_per_request: float | None
    p50_ms: float | None
    p99_ms: float | None
    peak_mb: float
    attempts: int | None = None

    def to_json(self) -> dict[str, float | None]:
        """Return the keys of the result file; `attempts` only where it is known."""
        return {name: value for name, value in asdict(self).items() if name != "attempts" or value is not None}


class Meter:
    """Measures rate, CPU time and latencies of the requests that end between the warm-up and `seconds` later.

    The clock starts with the first request, so that the time to import a library does not count. With `count`, the
    window is that many requests, however long they take.
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
        """Whether no further request is to be sent."""
        return self._started >= self._count or self.closed

    @property
    def closed(self) -> bool:
        """Whether the window has ended, so that no further reply counts."""
        return time.perf_counter() >= self._end

    def begin(self) -> float:
        """Record that a request is sent, and return the time, which `end` takes."""
        now = time.perf_counter()
        if not self._started:
            self._begin = now + self._warmup_s
            self._end = self._begin + self._seconds
            self._first = (now, time.process_time())
        self._started += 1
        return now

    def end(self, begun: float) -> None:
        """Record the reply to the request that was sent at `begun`."""
        now = time.perf_counter()
        if now >= self._end:
            return
        self._last = (now, time.process_time())
        if now < self._begin:
            self._first = self._last
            return
        self._ended += 1
        self._steps[min(int((now - begun) / _STEP_S), _STEPS - 1)] += 1

    def result(self) -> Measurement:
        """Return the measurement of the window."""
        wall, cpu = (last - first for first, last in zip(self._first, self._last, strict=True))
        return Measurement(
            requests=self._ended,
            requests_per_s=round(self._ended / wall, 1) if self._ended else 0.0,
            cpu_us_per_request=round(1e6 * cpu / self._ended, 1) if self._ended else None,
            p50_ms=self._latency(0.5),
            p99_ms=self._latency(0.99),
            peak_mb=read_peak_mb(),
        )

    def _latency(self, share: float) -> float | None:
        """Return the latency that `share` of the requests do not exceed, in milliseconds."""
        seen = 0
        for step, number in enumerate(self._steps):
            seen += number
            if number and seen >= share * self._ended:
                return round((step + 1) * _STEP_S * 1e3, 1)
        return None


def read_peak_mb() -> float:
    """Return the most resident memory that this process has had, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024, 1)


def make_messages() -> list[dict[str, str]]:
    """Return a prompt of 3.8 KB, the size of our client's prompt with three passages."""
    system = "You are a physician who writes multiple-choice questions for medical licensing examinations."
    return [{"role": "system", "content": system}, {"role": "user", "content": ("word " * 1000)[: PROMPT_CHARS - 92]}]


async def _bare(url: str, concurrency: int, meter: Meter) -> None:
    import aiohttp

    body = {"model": "m", "messages": make_messages(), "temperature": 1.0, "max_tokens": 1024}
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
                    model="m", messages=make_messages(), temperature=1.0, max_tokens=1024
                )
                assert reply.choices[0].message.content
                meter.end(begun)

        await asyncio.gather(*(work() for _ in range(concurrency)))


def _distilabel(url: str, concurrency: int, meter: Meter) -> None:
    """Run distilabel's asynchronous LLM without its pipeline, batch after batch, as its steps call it."""
    from distilabel.models.llms import OpenAILLM

    llm = OpenAILLM(model="m", base_url=url, api_key="none")
    llm.load()
    while not meter.over:
        begun = [meter.begin() for _ in range(concurrency)]
        replies = llm.generate_outputs(inputs=[make_messages() for _ in begun], max_new_tokens=1024)
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
    print(json.dumps(meter.result().to_json()))


if __name__ == "__main__":
    main()
