"""Simulated engines and a virtual clock, for tests of the real pool, scheduler and ledger.

`VirtualLoop` is an asyncio loop whose time jumps to the next timer when nothing is ready: an hour of 512 engines passes
in minutes, and the coordinator's computations take no virtual time. `SimulatedEngine` decodes as a GPU does, one token
a step for each sample of its batch, and dies, hangs and slows down as configured; on an ordinary loop it takes real
time. `InstantEngine` answers at once. `DrawnAnswers` draws answers from question and seed alone, so that every engine
returns the same sample each time, and the result of full voting is known without running it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import selectors
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

from medssr_dist.inference.engine_protocol import EngineOutput, LeasedCompletion, LeasedRequest
from medssr_dist.inference.requests import Completion, SampleRequest

_QUIET_S = 1.0  # interval of token counts while no sample is finished
_NEVER = math.inf
_CLOCK_S = 1e-9  # times closer than this are equal
_MASK = 2**64 - 1
_NORMAL = NormalDist()


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that advances the virtual time where it would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("nothing will ever happen: no timer, nothing ready")
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock that starts at 0 s."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


@dataclass(frozen=True)
class Speed:
    """Duration of a decode step: `fixed_s` to read the weights, and `per_sample_s` to read each sample's KV cache.

    Defaults: Llama-3.1-8B in bf16 on an H100 SXM with 60% of the 3.35 TB/s of its data sheet. Weights 16 GB; 700 tokens
    of context a sample, 131 kB each (32 layers x 2 x 8 heads x 128 x 2 bytes). Prefill is not simulated.

    >>> Speed(fixed_s=1.0, per_sample_s=0.5, batch=4).step_s(2)
    2.0
    """

    fixed_s: float = 16e9 / (0.6 * 3.35e12)
    per_sample_s: float = 700 * 131e3 / (0.6 * 3.35e12)
    batch: int = 256  # samples decoded in parallel; others wait

    def step_s(self, samples: int) -> float:
        """Return the seconds of a decode step with so many samples."""
        return self.fixed_s + self.per_sample_s * samples

    @property
    def max_tokens_per_s(self) -> float:
        """Tokens a second with a full batch."""
        return self.batch / self.step_s(self.batch)


@dataclass(frozen=True)
class DrawnAnswers:
    """Votes of a policy whose accuracy differs by question, uniformly between `least` and `best`.

    Wrong answers are uniform over the other letters. Lengths are lognormal around `tokens`, with a factor that all
    samples of a question share. A sample that reaches `max_tokens` is truncated and has no answer.
    """

    least: float = 0.3
    best: float = 1.0
    invalid: float = 0.02
    tokens: float = 500.0
    spread: float = 0.4  # sigma of the logarithm, between samples of a question
    question_spread: float = 0.3  # and between questions
    max_tokens: int = 2048
    text: str = "The answer is ({})."

    def __call__(self, request: SampleRequest, seed: int) -> Completion:
        """Return the sample of `request` for `seed`."""
        return self.draw(request.key, request.options, seed)

    def draw(self, key: str, options: Mapping[str, str], seed: int) -> Completion:
        """Return the sample of the question with the hexadecimal `key` for `seed`."""
        question = _mix(int(key, 16))
        sample = _mix(question ^ seed)
        length = self._length(question, sample)
        answer = None if length >= self.max_tokens else self._answer(question, _mix(sample), list(options))
        method = None if answer is None else "statement"
        return Completion(seed, self.text.format(answer), length, length >= self.max_tokens, answer, method)

    def _length(self, question: int, sample: int) -> int:
        shared = self.question_spread * _NORMAL.inv_cdf(_uniform(question))
        own = self.spread * _NORMAL.inv_cdf(_uniform(sample))
        return max(1, min(self.max_tokens, round(self.tokens * math.exp(shared + own))))

    def _answer(self, question: int, sample: int, letters: list[str]) -> str | None:
        right = _mix(question) % len(letters)
        chance = self.least + (self.best - self.least) * _uniform(_mix(question + 1))
        drawn = _uniform(sample)
        if drawn < self.invalid:
            return None
        if (drawn - self.invalid) / (1 - self.invalid) < chance:
            return letters[right]
        return letters[(right + 1 + _mix(sample) % (len(letters) - 1)) % len(letters)]


def _mix(value: int) -> int:
    """Return 64 pseudo-random bits of `value` (splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _uniform(bits: int) -> float:
    """Return a number in the open interval (0, 1)."""
    return ((bits >> 11) + 0.5) / 2**53


@dataclass(frozen=True)
class Failure:
    """How an engine fails: `after_s` seconds after its start it dies, or if `wedges` it hangs silently."""

    after_s: float = _NEVER
    wedges: bool = False


class SimulatedEngine:
    """An engine of the pool that decodes on the clock of its event loop.

    Args:
        answer: returns the sample of a request for a seed.
        linger_s: seconds for which finished samples are collected before they are returned.
        start_s: seconds that a start takes.
        slowness: 3 = three times slower than `speed`.
        life: returns, at each start, the failure that will end this run of the engine.
        tick_s: samples are returned at multiples of this, so that all engines return theirs together; 0 = at any time.

    Attributes:
        generated: tokens, including those of samples that were never returned.
        up_s: seconds between starts and stops, hanging included, up to the last stop.
        failures: (time, "died" or "wedged").
    """

    def __init__(
        self,
        name: str,
        speed: Speed,
        answer: Callable[[SampleRequest, int], Completion],
        linger_s: float = 0.02,
        start_s: float = 0.0,
        slowness: float = 1.0,
        life: Callable[[], Failure] = Failure,
        tick_s: float = 0.0,
    ):
        self.name, self.speed, self.slowness = name, speed, slowness
        self._answer, self._linger_s, self._start_s, self._life, self._tick_s = answer, linger_s, start_s, life, tick_s
        self.generated = self.up_s = 0.0
        self.failures: list[tuple[float, str]] = []
        self._up_since: float | None = None
        self._reported = 0
        self._numbers = itertools.count()
        self._wake: asyncio.Future | None = None
        self._clear()

    @property
    def running(self) -> int:
        """Number of samples that are being decoded."""
        return len(self._running)

    def capacity(self, now: float) -> float:
        """Return the tokens that a full batch would have generated while the engine was up."""
        up_s = self.up_s + (now - self._up_since if self._up_since is not None else 0.0)
        return up_s * self.speed.max_tokens_per_s / self.slowness

    async def start(self) -> None:
        await asyncio.sleep(self._start_s)
        self._up_since = self._at = self._now()
        failure = self._life()
        self._fails_at, self._wedges = self._at + failure.after_s, failure.wedges

    def submit(self, requests: list[LeasedRequest], aborted: list[int]) -> None:
        self._advance()
        if aborted:
            gone = set(aborted)
            self._running = [each for each in self._running if each[2] not in gone]
            heapq.heapify(self._running)
            self._queue = deque(each for each in self._queue if each[0] not in gone)
        idle = not self._running
        for lease, request in requests:
            samples = (self._answer(request, request.seed + index) for index in range(request.n))
            self._queue.extend(LeasedCompletion(lease, sample) for sample in samples)
        self._seat()
        if idle and self._wake and not self._wake.done():
            self._wake.set_result(None)

    async def collect(self) -> EngineOutput:
        """Return the finished samples. Raises ConnectionError if the engine dies; never returns if it hangs."""
        while True:
            await self._pause()
            self._advance()
            if self._now() >= self._fails_at:
                self.failures.append((self._now(), "wedged" if self._wedges else "died"))
                if self._wedges:
                    await asyncio.get_running_loop().create_future()
                raise ConnectionError("the simulated engine died")
            tokens = int(self.generated) - self._reported
            if self._done or tokens:
                self._reported += tokens
                done, self._done = self._done, []
                return EngineOutput(done, [], tokens)

    async def stop(self) -> None:
        if self._up_since is not None:
            self.up_s += self._now() - self._up_since
        self._up_since = None
        self._clear()

    def _clear(self) -> None:
        self._running: list[tuple[float, int, int, Completion]] = []  # heap: (last step, number, lease, sample)
        self._queue: deque[LeasedCompletion] = deque()
        self._done: list[LeasedCompletion] = []
        self._steps = self._at = 0.0  # decode steps done, and when
        self._fails_at, self._wedges = _NEVER, False

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _step_s(self) -> float:
        return self.slowness * self.speed.step_s(len(self._running))

    def _seat(self) -> None:
        """Move waiting samples into the free places of the batch."""
        while self._queue and len(self._running) < self.speed.batch:
            lease, sample = self._queue.popleft()
            heapq.heappush(self._running, (self._steps + sample.tokens, next(self._numbers), lease, sample))

    def _advance(self) -> None:
        """Decode up to the present time."""
        now = min(self._now(), self._fails_at)
        while self._running:
            step_s = self._step_s()
            left = self._running[0][0] - self._steps
            ends = self._at + left * step_s
            steps = left if ends <= now + _CLOCK_S else max(0.0, (now - self._at) / step_s)
            self.generated += steps * len(self._running)
            self._steps += steps
            if ends > now + _CLOCK_S:
                break
            self._at = ends
            _, _, lease, sample = heapq.heappop(self._running)
            self._done.append(LeasedCompletion(lease, sample))
            self._seat()
        self._at = now

    async def _pause(self) -> None:
        """Wait until there are samples or token counts to return, the engine fails, or it gets its first work."""
        loop = asyncio.get_running_loop()
        until = self._fails_at
        if self._running:
            ends = self._at + (self._running[0][0] - self._steps) * self._step_s()
            until = min(until, ends + self._linger_s, loop.time() + _QUIET_S)
        if self._done:
            until = min(until, loop.time() + self._linger_s)
        if self._tick_s and until < _NEVER:
            until = math.ceil(until / self._tick_s) * self._tick_s
        self._wake = loop.create_future()
        timer = loop.call_at(until, _set, self._wake) if until < _NEVER else None
        try:
            await self._wake
        finally:
            if timer:
                timer.cancel()


def _set(future: asyncio.Future) -> None:
    if not future.done():
        future.set_result(None)


class InstantEngine:
    """An engine of the pool that returns every sample at once."""

    def __init__(self, name: str, answer: Callable[[SampleRequest, int], Completion]):
        self.name, self._answer = name, answer
        self._samples: list[LeasedCompletion] = []
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Do nothing: the engine is always up."""

    def submit(self, requests: list[LeasedRequest], aborted: list[int]) -> None:
        for lease, request in requests:
            seeds = range(request.seed, request.seed + request.n)
            self._samples += [LeasedCompletion(lease, self._answer(request, seed)) for seed in seeds]
        self._news.set()

    async def collect(self) -> EngineOutput:
        while not self._samples:
            self._news.clear()
            await self._news.wait()
        samples, self._samples = self._samples, []
        return EngineOutput(samples, [], sum(sample.tokens for _, sample in samples))

    async def stop(self) -> None:
        """Do nothing: the engine holds no resources."""
