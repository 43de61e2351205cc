"""A chat API that uses almost no CPU, so that a benchmark measures the client and not the server.

It is a bare asyncio.Protocol on uvloop, in its own process. Every reply is a distinct, valid question with `usage`,
joined from a few pre-encoded parts that the digits of a counter select. The server can delay its replies, limit their
rate (a token bucket; status 429 above it), and refuse a share of the requests at random.

    python -m medssr_dist.bench.synthesis.reply_server --latency-ms 200 --rate-limit 300 --refuse-share 0.3

prints its base URL, serves POST /v1/chat/completions and GET /stats, and ends when its stdin closes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

MODEL = "reply-server"
_PARTS = 1000  # the stem has three of them: 10^9 questions before one repeats
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_REFUSAL_BODY = b'{"error":{"message":"rate limit reached","type":"rate_limit"}}'
_REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_REFUSAL_BODY),
    _REFUSAL_BODY,
)
_HEAD = b'{"id":"r","object":"chat.completion","created":1,"model":"' + MODEL.encode()
_HEAD += b'","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"'
_TAIL = b'"}}],"usage":{"prompt_tokens":640,"completion_tokens":150,"total_tokens":790}}'
_CONTENT = (
    rb"{\"question\": \"A patient with fatigue and hepatomegaly shows %s, %s and %s. "
    rb"What is the most likely diagnosis?\", \"options\": "
    rb"{\"A\": \"first %s\", \"B\": \"second %s\", \"C\": \"third %s\", \"D\": \"fourth %s\"}}"
)
_SYLLABLES = [consonant + vowel for consonant in ("b", "c", "d", "fl", "g", "k", "m", "pr") for vowel in "aeiou"]


@contextmanager
def run_reply_server(latency_ms: float = 0, rate_limit: float = 0, refuse_share: float = 0) -> Iterator[str]:
    """Run the server on a free loopback port and yield its base URL. `Replies` documents the options."""
    command = [sys.executable, "-m", "medssr_dist.bench.synthesis.reply_server", "--latency-ms", str(latency_ms)]
    command += ["--rate-limit", str(rate_limit), "--refuse-share", str(refuse_share)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def read_refused_share(url: str) -> float:
    """Return the share of all requests so far that the server at `url` has refused."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats", timeout=30) as response:
        stats = json.loads(response.read())
    return round(stats["refusals"] / max(1, stats["replies"] + stats["refusals"]), 3)


class Replies:
    """The sequence of replies.

    Args:
        latency_ms: delay of a reply, milliseconds; refusals are not delayed.
        rate_limit: most replies a second; 0 = no limit.
        refuse_share: share of requests refused at random, independent of the load.
    """

    def __init__(self, latency_ms: float = 0, rate_limit: float = 0, refuse_share: float = 0):
        self.latency_s = latency_ms / 1000
        self.replies = self.refusals = 0
        self._rate = rate_limit
        self._refuse_share = refuse_share
        self._allowance, self._filled = 1.0, time.monotonic()
        self._rng = random.Random(42)
        self._findings = [self._text(14).encode() for _ in range(_PARTS)]
        self._options = [self._text(3).encode() for _ in range(_PARTS)]

    def next(self) -> bytes | None:
        """Return a complete HTTP reply, or None to refuse."""
        if self._rng.random() < self._refuse_share or not self._allowed():
            self.refusals += 1
            return None
        self.replies += 1
        return self._question(self.replies)

    def stats(self) -> bytes:
        """Return the HTTP reply to GET /stats: replies and refusals so far, as JSON."""
        body = json.dumps({"replies": self.replies, "refusals": self.refusals}).encode()
        return _OK % len(body) + body

    def _allowed(self) -> bool:
        """Take a token from a bucket that holds a tenth of a second, so that bursts do not exceed the rate."""
        if not self._rate:
            return True
        now = time.monotonic()
        self._allowance = min(max(1.0, self._rate / 10), self._allowance + (now - self._filled) * self._rate)
        self._filled = now
        allowed = self._allowance >= 1
        self._allowance -= allowed
        return allowed

    def _question(self, number: int) -> bytes:
        high, low = divmod(number, _PARTS)
        middle = high % _PARTS
        findings, options = self._findings, self._options
        parts = (findings[low], findings[middle - low - 1], findings[(low * 7 + middle) % _PARTS])
        parts += (options[low], options[middle], options[low - middle], options[low - 7])
        body = _HEAD + _CONTENT % parts + _TAIL
        return _OK % len(body) + body

    def _text(self, words: int) -> str:
        return " ".join("".join(self._rng.choices(_SYLLABLES, k=self._rng.randint(2, 4))) for _ in range(words))


class _Connection(asyncio.Protocol):
    """One keep-alive connection, which reads complete requests one after the other by their Content-Length."""

    def __init__(self, replies: Replies, later):
        self._replies = replies
        self._later = later
        self._buffer = b""

    def connection_made(self, transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._request_end()) is not None:
            is_stats = self._buffer.startswith(b"GET")
            self._buffer = self._buffer[end:]
            self._answer(is_stats)

    def _request_end(self) -> int | None:
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return None
        place = self._buffer.lower().find(b"content-length:", 0, head)
        length = int(self._buffer[place + 15 : head + 2].split(b"\r\n", 1)[0]) if place >= 0 else 0
        end = head + 4 + length
        return end if len(self._buffer) >= end else None

    def _answer(self, is_stats: bool) -> None:
        reply = self._replies.stats() if is_stats else self._replies.next()
        if reply is None:
            self._transport.write(_REFUSAL)
        elif is_stats or not self._replies.latency_s:
            self._transport.write(reply)
        else:
            self._later(self._replies.latency_s, self._write, reply)

    def _write(self, reply: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(reply)


async def _serve(replies: Replies) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(replies, loop.call_later), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # the server ends with the process that started it


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--rate-limit", type=float, default=0, help="replies a second; 0 = no limit")
    parser.add_argument("--refuse-share", type=float, default=0, help="of requests, at random")
    args = parser.parse_args()
    uvloop.run(_serve(Replies(args.latency_ms, args.rate_limit, args.refuse_share)))


if __name__ == "__main__":
    main()
