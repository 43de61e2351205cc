"""engines.jsonl: the events in the lives of a pool's engines, for `medssr status`, rates and fault finding."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from medssr_dist.data.jsonl import JsonlLedger


@dataclass(frozen=True)
class EngineEvent:
    """One line of engines.jsonl.

    Example: EngineEvent(time=1795484096.125, engine="engine 3", event="died", detail="ActorDiedError: node lost")

    Attributes:
        time: seconds since the epoch.
        engine: the engine's name; "" where the event concerns a request.
        event: start, ready, first token, died, given up, or quarantined (of a request).
        detail: the reason, where there is one.
    """

    time: float
    engine: str
    event: str
    detail: str


class EventLog:
    """Appends the events of a pool to a file; call it as `EnginePool`'s `on_event`."""

    def __init__(self, path: Path):
        self._file = JsonlLedger(path)

    def __call__(self, engine: str, event: str, detail: str) -> None:
        self._file.append(asdict(EngineEvent(round(time.time(), 3), engine, event, detail)))

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
