"""Synthesis, vote and trainer run concurrently: a failure of one ends the others, and the same command resumes."""

import json
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from config_builder import make_config
from stream_parts import TIMEOUT_S, draw_steps, label, make_prompts, never, until

from medssr_dist import pipeline
from medssr_dist.data.jsonl import JsonlLedger, read_json, read_jsonl, write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError, Stopped
from medssr_dist.offline_teacher import start_teacher
from medssr_dist.run import background, stream
from medssr_dist.run.background import BackgroundSteps, ThreadStep
from medssr_dist.run.clock import read_clock
from medssr_dist.run.directory import open_run
from medssr_dist.run.session import Session
from medssr_dist.run.stream import has_ended, has_room, mark_end, publish_taken
from medssr_dist.steps import step_inputs
from medssr_dist.training.rollout.examples import Example, PromptLoader


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(stream, "_POLL_S", 0.001)
    monkeypatch.setattr(background, "_POLL_S", 0.01)


# --- background steps ------------------------------------------------------------------------------------------


def test_a_killed_thread_has_ended():
    ended = []

    def work(should_stop):
        until(should_stop)
        ended.append(True)

    side = ThreadStep(work, never)
    assert not side.check()
    side.kill()
    assert side.check() and ended == [True]


def test_a_thread_stops_with_the_run_and_raises_its_error():
    asked = threading.Event()

    def work(should_stop):
        until(should_stop)
        raise Stopped("synthesis stopped")

    side = ThreadStep(work, asked.is_set)
    asked.set()
    side._thread.join(TIMEOUT_S)
    for _ in range(2):
        with pytest.raises(Stopped, match="synthesis stopped"):
            side.check()


class Recorded:
    """A background step that is done, fails or keeps running, as its arguments say."""

    def __init__(self, log, name, error=None, done=False):
        self.log, self.name, self.error, self.done = log, name, error, done

    def check(self):
        if self.error:
            raise self.error
        return self.done

    def kill(self):
        self.log.append(self.name)


@pytest.fixture
def session_of(tmp_path):
    def build(log, should_stop=never):
        run = SimpleNamespace(root=tmp_path, finish_step=lambda step: log.append(f"finished {step}"))
        return SimpleNamespace(run=run, should_stop=should_stop)

    return build


def test_a_step_that_is_done_is_finished_and_not_killed(session_of):
    log = []
    with BackgroundSteps(session_of(log)) as background:
        background.add("synthesize", Recorded(log, "kill synthesize", done=True))
        background.add("stage1", Recorded(log, "kill stage1", done=True))
        background.wait()
        assert background.running == {}
    assert log == ["finished synthesize", "finished stage1"]


def test_a_failed_step_raises_and_ends_the_others(session_of):
    log = []
    with pytest.raises(InputError, match="no credit"), BackgroundSteps(session_of(log)) as background:
        background.add("synthesize", Recorded(log, "kill synthesize", error=InputError("no credit")))
        background.add("stage1", Recorded(log, "kill stage1"))
        background.wait()
    assert log == ["kill stage1", "kill synthesize"]


def test_a_failure_in_the_main_thread_ends_the_steps(session_of):
    log = []
    with pytest.raises(RuntimeError, match="no engine"), BackgroundSteps(session_of(log)) as background:
        background.add("synthesize", Recorded(log, "kill synthesize", error=Stopped("stopped")))
        raise RuntimeError("no engine survived")
    assert log == ["kill synthesize"]


def test_waiting_ends_when_the_run_is_stopped(session_of):
    log = []
    with pytest.raises(Stopped, match="stage1 stopped"), BackgroundSteps(session_of(log, lambda: True)) as background:
        background.add("stage1", Recorded(log, "kill stage1"))
        background.wait()
    assert log == ["kill stage1"]


def test_a_second_ctrl_c_does_not_wait(session_of):
    log = []
    with pytest.raises(KeyboardInterrupt), BackgroundSteps(session_of(log)) as background:
        background.add("synthesize", Recorded(log, "kill synthesize"))
        raise KeyboardInterrupt
    assert log == []


# --- the pipeline, with its own synthesis -----------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with start_teacher(tmp_path_factory.mktemp("teacher") / "teacher.log", 42) as base_url:
        yield base_url


class World:
    """A run in stream mode without engines and GPUs. Its vote and stage 1 follow the rules of the real ones."""

    def __init__(self, folder, base_url, monkeypatch):
        seeds = folder / "seeds.jsonl"
        with JsonlLedger(seeds) as ledger:
            for n in range(30):
                stem = f"A {20 + n}-year-old man has sign {n} and sign {n + 1}. What is the most likely diagnosis?"
                options = [f"Disease {chr(65 + (n + m) % 26)}{m}" for m in range(4)]
                ledger.append(Question.make(stem, options, source="t", source_id=str(n), truth="A").model_dump())
        model = folder / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"weights")
        self.root, self.model = folder / "run", model
        self.sections = {
            "policy": {"model": str(model)},
            "synthesis": {
                "accepted": 60,
                "alpha": 0.0,
                "seeds": [str(seeds)],
                "checks": {"near_duplicate": 0},
                "endpoints": [{"base_url": base_url, "model": "teacher", "concurrency": 4}],
                "retry": {"first_byte_s": 2, "whole_s": 2, "patience_s": 1},
            },
            "voting": {"buffer": 5, "question_buffer": 6},
            "training": {
                "ranks_per_node": 1,
                "stage1": {"prompts_per_step": 8, "samples_per_prompt": 2},
            },
            "runtime": {"mode": "stream"},
        }
        self.trainer_fails_at = self.vote_fails_at = self.stop_at = None
        self.question_lag = self.votes = 0
        self.trained = []
        self.stopping = threading.Event()
        monkeypatch.setattr(step_inputs, "resolve_model", lambda policy: model)
        monkeypatch.setitem(sys.modules, "medssr_dist.voting.vote", SimpleNamespace(vote=self.vote))
        stages = SimpleNamespace(start_stage1=self.start_stage1)
        monkeypatch.setitem(sys.modules, "medssr_dist.training.train_stage", stages)

    def run(self):
        self.stopping.clear()
        config = make_config(**self.sections)
        with open_run(self.root, config) as run:
            pipeline.stream_steps(Session(config, run, self.stopping.is_set, lambda: None))

    def vote(self, config, feed, total, model, folder, truth, should_stop, trainer_follows, calibration):
        assert model == self.model and total == 60 and calibration is None
        labels = folder / "labeled.jsonl"
        with JsonlLedger(labels) as ledger:
            done = kept = 0
            if ledger.size:
                for row in read_jsonl(labels):
                    done, kept = done + 1, kept + row["kept"]
            while not feed.ended:
                if should_stop():
                    raise Stopped("voting stopped")
                if trainer_follows and not has_room(labels, kept, config.voting.buffer):
                    time.sleep(0.001)
                    continue
                found = feed.next()
                if found is None or feed.given <= done:
                    time.sleep(0.001 * (found is None))
                    continue
                ledger.append(label(found, keep := feed.given % 4 != 0).model_dump())
                kept += keep
                self.votes += 1
                self.question_lag = max(self.question_lag, self.accepted() - feed.given)
                if self.vote_fails_at == feed.given:
                    raise RuntimeError("no engine survived")
                if self.stop_at == feed.given:
                    self.stopping.set()
        mark_end(labels, kept)

    def accepted(self):
        return (self.root / "synthesis" / "questions.jsonl").read_bytes().count(b"\n")

    def start_stage1(self, config, model, labels, folder, most_examples, should_stop, validation, votes, revote):
        assert most_examples == 60 and validation == [] and votes is None and revote is None
        publish_taken(labels, 0)
        side = ThreadStep(lambda should_stop: self.train(config.training.stage1, labels, folder, should_stop), never)
        side.wait = None  # in stream mode nothing waits for stage 1 alone
        return side

    def train(self, stage, labels, folder, should_stop):
        def examples(start):
            rows = stream.follow(labels, lambda: has_ended(labels) or should_stop(), start)
            for place, row in enumerate(rows, start=start + 1):
                if should_stop():
                    raise Stopped("killed")
                if row["kept"]:
                    yield place, Example(Question.model_validate(row["question"]), row["answer"])

        checkpoint = folder / "checkpoint.json"
        loader = PromptLoader(examples, make_prompts(), 10**6, partial(publish_taken, labels))
        if checkpoint.exists():
            loader.load_state_dict(read_json(checkpoint))
        del self.trained[loader.taken :]
        for step in draw_steps(loader, stage.prompts_per_step, stage.steps):
            if should_stop():
                raise Stopped("killed")
            self.trained += [json.loads(drawn.label)["id"] for drawn in step]
            write_json(checkpoint, loader.state_dict())
            if self.trainer_fails_at == loader.taken:
                raise RuntimeError("out of memory")

    def assert_complete(self):
        steps = read_json(self.root / "manifest.json")["steps"]
        assert {step: bool(found["finished"]) for step, found in steps.items()} == dict.fromkeys(
            ("synthesize", "vote", "stage1"), True
        )
        asked = [row["id"] for row in read_jsonl(self.root / "synthesis" / "questions.jsonl")]
        rows = list(read_jsonl(self.root / "voting" / "labeled.jsonl"))
        assert len(asked) == 60 and [row["question"]["id"] for row in rows] == asked
        kept = [row["question"]["id"] for row in rows if row["kept"]]
        assert self.trained == [*kept, *kept[: -len(kept) % 8]]
        assert set(read_clock(self.root)) >= {"synthesize", "vote", "stage1"}
        assert self.votes == 60


@pytest.fixture
def world(tmp_path, teacher, monkeypatch):
    return World(tmp_path, teacher, monkeypatch)


def test_questions_flow_to_the_trainer_while_they_are_written(world):
    world.run()
    world.assert_complete()
    assert world.question_lag <= 6 + 4 + 1  # the buffer, and the requests in flight
    assert read_json(world.root / "synthesis" / "summary.json")["accepted"] == 60


def test_finished_steps_are_not_run_again(world, caplog):
    world.run()
    with caplog.at_level("INFO", logger="medssr_dist.run.session"):
        world.run()
    assert caplog.text.count("already finished") == 3
    world.assert_complete()


def test_a_failed_trainer_ends_the_others_and_the_run_resumes(world):
    world.trainer_fails_at, before = 16, threading.active_count()
    with pytest.raises(RuntimeError, match="out of memory"):
        world.run()
    assert not has_ended(world.root / "synthesis" / "questions.jsonl")
    assert threading.active_count() < before + 10 and world.accepted() < 60
    world.trainer_fails_at = None
    world.run()
    world.assert_complete()


def test_a_failed_vote_ends_the_others_and_the_run_resumes(world):
    world.vote_fails_at = 20
    with pytest.raises(RuntimeError, match="no engine survived"):
        world.run()
    assert not any(read_json(world.root / "manifest.json")["steps"][step]["finished"] for step in ("vote", "stage1"))
    world.vote_fails_at = None
    world.run()
    world.assert_complete()


def test_a_failed_synthesis_ends_the_others_and_it_resumes(world, teacher):
    (endpoint,) = world.sections["synthesis"]["endpoints"]
    endpoint["base_url"] = "http://127.0.0.1:9/v1"
    with pytest.raises(InputError, match="no endpoint has replied"):
        world.run()
    endpoint["base_url"] = teacher
    world.run()
    world.assert_complete()


def test_a_stop_ends_all_steps_and_the_run_resumes(world):
    for world.stop_at in (1, 13, 47):
        with pytest.raises(Stopped):
            world.run()
    world.stop_at = None
    world.run()
    world.assert_complete()


def test_the_vote_continues_after_a_trainer_with_fixed_steps(world):
    world.sections["training"]["stage1"]["steps"] = 2
    world.run()
    rows = list(read_jsonl(world.root / "voting" / "labeled.jsonl"))
    assert len(rows) == 60 and world.trained == [row["question"]["id"] for row in rows if row["kept"]][:16]


def test_the_end_mark_of_an_unfinished_synthesis_is_ignored(world):
    """It may come from an attempt with a smaller synthesis.accepted."""
    mark_end(world.root / "synthesis" / "questions.jsonl", 0)
    world.run()
    world.assert_complete()


def test_without_stage_1_the_vote_is_not_held_back(world):
    world.sections["training"]["stage1"]["enabled"] = False
    world.run()
    assert not (world.root / "voting" / "labeled.taken.json").exists() and world.votes == 60
