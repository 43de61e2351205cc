"""How a synthesis goes, while it goes: a bar, TensorBoard, and progress.json for `medssr status`."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from tqdm import tqdm

from medssr_dist.config_synthesis import Synthesis
from medssr_dist.jsonl import write_json
from medssr_dist.synthesis.budget import Spending
from medssr_dist.synthesis.outputs import Outputs
from medssr_dist.synthesis.supply import Supply

PROGRESS = "progress.json"
_SHOW_S = 0.5
_WRITE_S = 5.0
_RATE_WINDOW_S = 30.0


class Progress:
    """A context that shows and records the state. `runner` is a Dispatcher or a BatchRunner."""

    def __init__(
        self, folder: Path, synthesis: Synthesis, runner, supply: Supply, spending: Spending, outputs: Outputs
    ):
        self._folder = folder
        self._synthesis = synthesis
        self._runner = runner
        self._supply = supply
        self._spending = spending
        self._outputs = outputs
        self._marks: deque[tuple[float, int, int]] = deque()  # time, replies, accepted
        self._shown = self._written = 0.0

    def __enter__(self) -> Progress:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events = EventFileWriter(str(self._folder / "tensorboard"))
        self._bar = tqdm(
            total=self._synthesis.accepted, initial=self._outputs.judged.accepted, desc="synthesize", unit="question"
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
        accepted, done = self._outputs.judged.accepted, self._outputs.judged.done
        rate, accepted_rate = self._rates(self._supply.delivered, accepted)
        missing = self._synthesis.accepted - accepted
        return {
            "time": time.time(),
            "accepted": accepted,
            "wanted": self._synthesis.accepted,
            "judged": done,
            "accepted_share": round(accepted / done, 4) if done else None,
            "in_flight": self._supply.in_flight,
            "replies_per_s": rate,
            "eta_s": round(missing / accepted_rate) if accepted_rate else None,
            "usd": round(self._spending.usd, 4),
            "tokens": self._spending.tokens,
            "attempts": self._runner.attempts,
            "lost": self._spending.lost,
            "endpoints": [vars(state) for state in self._runner.states()],
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
        write_json(self._folder / PROGRESS, state)
        scalars = {name: value for name, value in state.items() if isinstance(value, int | float) and name != "time"}
        for each in state["endpoints"]:
            scalars |= {f"{each['name']}/{name}": each[name] for name in ("limit", "in_flight", "refusals")}
        self._record(scalars, step=state["judged"])

    def _record(self, scalars: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=f"synthesis/{name}", simple_value=value) for name, value in scalars.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
