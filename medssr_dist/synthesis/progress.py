"""Shows and records a synthesis while it runs: a progress bar, TensorBoard, and progress.json for `medssr status`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from medssr_dist.data.jsonl import write_json
from medssr_dist.run.demand import QuestionDemand
from medssr_dist.run.event_file import EventFile
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.synthesis.client.batch_runner import BatchRunner
from medssr_dist.synthesis.client.budget import Spending
from medssr_dist.synthesis.client.dispatcher import Dispatcher
from medssr_dist.synthesis.question_writer import QuestionWriter
from medssr_dist.synthesis.request_queue import RequestQueue
from medssr_dist.synthesis.synthesis_summary import SynthesisProgress

_SHOW_S = 0.5
_WRITE_S = 5.0
_RATE_WINDOW_S = 30.0


class ProgressReporter:
    """A context in which `update` shows and records the progress."""

    def __init__(
        self,
        folder: Path,
        demand: QuestionDemand,
        runners: Sequence[Dispatcher | BatchRunner],
        queue: RequestQueue,
        spending: Spending,
        writer: QuestionWriter,
    ):
        self._paths = SynthesisPaths(folder)
        self._demand = demand
        self._runners = runners
        self._queue = queue
        self._spending = spending
        self._writer = writer
        self._marks: deque[tuple[float, int, int]] = deque()  # time, replies, accepted
        self._shown = self._written = 0.0

    def __enter__(self) -> ProgressReporter:
        self._events = EventFile(self._paths.tensorboard)
        self._bar = ProgressBar(
            total=self._demand.count_wanted(), initial=self._writer.judged.accepted, desc="synthesize", unit="question"
        )
        self.update()
        return self

    def __exit__(self, *exc_info: object) -> None:
        progress = self.measure()
        self._show(progress)
        self._write(progress)
        self._bar.close()
        self._events.close()

    def update(self) -> None:
        """Show the progress, at most every 0.5 s, and record it, at most every 5 s."""
        now = time.monotonic()
        if now - self._shown < _SHOW_S:
            return
        self._shown = now
        progress = self.measure()
        self._show(progress)
        if now - self._written > _WRITE_S:
            self._written = now
            self._write(progress)

    def measure(self) -> SynthesisProgress:
        """Return the progress now."""
        accepted, judged = self._writer.judged.accepted, self._writer.judged.total
        rate, accepted_rate = self._rates(self._queue.delivered, accepted)
        wanted = self._demand.count_wanted()
        return SynthesisProgress(
            time=time.time(),
            accepted=accepted,
            wanted=wanted,
            judged=judged,
            accepted_share=round(accepted / judged, 4) if judged else None,
            in_flight=self._queue.in_flight,
            replies_per_s=rate,
            eta_s=round(max(0, wanted - accepted) / accepted_rate) if accepted_rate else None,
            usd=round(self._spending.usd, 4),
            unpriced=tuple(sorted(self._spending.unpriced)),
            tokens=self._spending.tokens,
            attempts=sum(runner.attempts for runner in self._runners),
            lost=self._spending.lost,
            endpoints=tuple(state for runner in self._runners for state in runner.read_states()),
        )

    def _rates(self, replies: int, accepted: int) -> tuple[float | None, float | None]:
        """Return replies and accepted questions per second over the last 30 seconds."""
        now = time.monotonic()
        self._marks.append((now, replies, accepted))
        while now - self._marks[0][0] > _RATE_WINDOW_S:
            self._marks.popleft()
        since, replies_then, accepted_then = self._marks[0]
        if now - since < 1:
            return None, None
        return round((replies - replies_then) / (now - since), 2), (accepted - accepted_then) / (now - since)

    def _show(self, progress: SynthesisProgress) -> None:
        self._bar.n, self._bar.total = progress.accepted, progress.wanted
        failing = [f"{each.name} {each.in_words}" for each in progress.endpoints if each.breaker != "closed"]
        share, rate = progress.accepted_share, progress.replies_per_s
        facts = {
            "replies/s": "-" if rate is None else f"{rate:.1f}",
            "in flight": progress.in_flight,
            "accepted": "-" if share is None else f"{100 * share:.0f}%",
            "spent": f"{progress.tokens:,} tokens" if progress.unpriced else f"${progress.usd:.2f}",
        }
        self._bar.set_postfix(facts | ({"endpoints": ", ".join(failing)} if failing else {}))

    def _write(self, progress: SynthesisProgress) -> None:
        values = progress.model_dump(mode="json")
        write_json(self._paths.progress, values)
        scalars = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "time"}
        for each in progress.endpoints:
            scalars |= {
                f"{each.name}/limit": each.limit,
                f"{each.name}/in_flight": each.in_flight,
                f"{each.name}/refusals": each.refusals,
            }
        named = {f"synthesis/{name}": value for name, value in scalars.items()}
        self._events.add(progress.judged, named)
