"""engines.jsonl: one line for each event, with its time."""

import time

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.inference.event_log import EngineEvent, EventLog


def test_events_are_appended_with_their_time(tmp_path):
    before = time.time()
    for event, detail in (("start", ""), ("died", "ActorDiedError: node lost")):
        with EventLog(tmp_path / "engines.jsonl") as on_event:
            on_event("engine 3", event, detail)
    found = [EngineEvent(**row) for row in read_jsonl(tmp_path / "engines.jsonl")]
    assert [(each.engine, each.event, each.detail) for each in found] == [
        ("engine 3", "start", ""),
        ("engine 3", "died", "ActorDiedError: node lost"),
    ]
    assert before - 0.001 <= found[0].time <= found[1].time <= time.time() + 0.001
