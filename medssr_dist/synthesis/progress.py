"""How a synthesis goes, while it goes: a bar, TensorBoard, and progress.json for `medssr status`."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import Synthesis
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.wilson import share_of
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.synthesis.client.budget import ReservationLedger, Spending
from medssr_dist.synthesis.journal import Journal
from medssr_dist.synthesis.question_writer import QuestionWriter
from medssr_dist.synthesis.request_queue import RequestQueue

_SHOW_S = 0.5
_WRITE_S = 5.0
_RATE_WINDOW_S = 30.0


class SynthesisProgress:
    """A context that shows and records the state. `runner` is a Dispatcher or a BatchRunner."""

    def __init__(
        self,
        folder: Path,
        synthesis: Synthesis,
        runner,
        queue: RequestQueue,
        spending: Spending,
        writer: QuestionWriter,
    ):
        self._paths = SynthesisPaths(folder)
        self._synthesis = synthesis
        self._runner = runner
        self._queue = queue
        self._spending = spending
        self._writer = writer
        self._marks: deque[tuple[float, int, int]] = deque()  # time, replies, accepted
        self._shown = self._written = 0.0

    def __enter__(self) -> SynthesisProgress:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events = EventFileWriter(str(self._paths.tensorboard))
        self._bar = tqdm(
            total=self._synthesis.accepted, initial=self._writer.judged.accepted, desc="synthesize", unit="question"
        )
        self.update()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._show(self.state())
        self._write(self.state())
        self._bar.close()
        self._events.close()

    def update(self) -> None:
        """Show the state twice a second, record it every five."""
        now = time.monotonic()
        if now - self._shown < _SHOW_S:
            return
        self._shown = now
        state = self.state()
        self._show(state)
        if now - self._written > _WRITE_S:
            self._written = now
            self._write(state)

    def state(self) -> dict:
        """The numbers now; rates are over the last 30 seconds, None at first."""
        accepted, done = self._writer.judged.accepted, self._writer.judged.done
        rate, accepted_rate = self._rates(self._queue.delivered, accepted)
        missing = self._synthesis.accepted - accepted
        return {
            "time": time.time(),
            "accepted": accepted,
            "wanted": self._synthesis.accepted,
            "judged": done,
            "accepted_share": round(accepted / done, 4) if done else None,
            "in_flight": self._queue.in_flight,
            "replies_per_s": rate,
            "eta_s": round(missing / accepted_rate) if accepted_rate else None,
            "usd": round(self._spending.usd, 4),
            "tokens": self._spending.tokens,
            "attempts": self._runner.attempts,
            "lost": self._spending.lost,
            "endpoints": [vars(state) for state in self._runner.read_states()],
        }

    def _rates(self, replies: int, accepted: int) -> tuple[float | None, float | None]:
        now = time.monotonic()
        self._marks.append((now, replies, accepted))
        while now - self._marks[0][0] > _RATE_WINDOW_S:
            self._marks.popleft()
        since, replies_then, accepted_then = self._marks[0]
        if now - since < 1:
            return None, None
        return round((replies - replies_then) / (now - since), 2), (accepted - accepted_then) / (now - since)

    def _show(self, state: dict) -> None:
        self._bar.n = state["accepted"]
        troubled = [f"{each['name']} {each['breaker']}" for each in state["endpoints"] if each["breaker"] != "closed"]
        facts = {
            "replies/s": "-" if state["replies_per_s"] is None else f"{state['replies_per_s']:.1f}",
            "on the wire": state["in_flight"],
            "accepted": "-" if state["accepted_share"] is None else f"{100 * state['accepted_share']:.0f}%",
            "spent": f"${state['usd']:.2f}" if self._synthesis.prices else f"{state['tokens']:,} tokens",
        }
        self._bar.set_postfix(facts | ({"endpoints": ", ".join(troubled)} if troubled else {}))

    def _write(self, state: dict) -> None:
        write_json(self._paths.progress, state)
        scalars = {name: value for name, value in state.items() if isinstance(value, int | float) and name != "time"}
        for each in state["endpoints"]:
            scalars |= {f"{each['name']}/{name}": each[name] for name in ("limit", "in_flight", "refusals")}
        self._record(scalars, step=state["judged"])

    def _record(self, scalars: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=f"synthesis/{name}", simple_value=value) for name, value in scalars.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def summarize(config: Config, work: SynthesisWork, started: float) -> dict:
    """The step's summary.

    `requests_sent`, `http_attempts`, `asked_again`, `lost`, `held_s` (waiting for the vote) and `seconds` are of
    the attempt that ended the step; all else is of the whole folder. `surplus` replies came after the last accepted
    question: they are paid for and kept in the journal, but not used. `alpha` holds shares with their 95% Wilson
    intervals.
    """
    writer, spending, queue = work.writer, work.spending, work.queue
    done, accepted = writer.judged.done, writer.judged.accepted
    return {
        "requested": done,
        "accepted": accepted,
        "rejected_by_reason": dict(sorted(writer.rejected.items())),
        "stopped_by": queue.stopped_by,
        "budget": config.synthesis.budget.model_dump(),
        "surplus": len(work.journal) - done,
        "alpha": {
            "asked": config.synthesis.alpha,
            "requests": share_of(writer.rare, done),
            "accepted": share_of(writer.accepted_rare, accepted),
        },
        "letter_balance": {
            "first_option": dict(sorted(writer.first_option.items())),
            "entity_option": dict(sorted(writer.entity_option.items())),
        },
        "models": {"asked": config.synthesis.models, "answered": dict(writer.answered_by.most_common())},
        "prompt_tokens": spending.prompt_tokens,
        "completion_tokens": spending.completion_tokens,
        "tokens": spending.completion_tokens,
        "usd": round(spending.usd, 6),
        "lost_tokens": spending.lost_tokens,
        "requests_sent": queue.asked,
        "requests_replayed": len(work.journal) - queue.asked,
        "http_attempts": work.attempts,
        "asked_again": queue.asked_again,
        "lost": spending.lost,
        "held_s": round(queue.held_s, 2),
        "started": _timestamp(started),
        "ended": _timestamp(time.time()),
        "seconds": round(time.time() - started, 2),
    }


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


@dataclass
class SynthesisWork:
    """The open files and counts of the step."""

    journal: Journal
    reservations: ReservationLedger
    spending: Spending
    writer: QuestionWriter
    queue: RequestQueue
    attempts: int = 0
