"""Streaming against sequential: is the time of stage 1 saved when it runs concurrently with the vote?

Pool, scheduler, ledger, bounded stream and the trainer's loader are the real ones, and the trainer is a process of its
own. Engines and optimizer steps are simulated: they only take time. The trainer's step takes so long that training on
all kept labels takes as long as the vote. Both sides have the same rate in both modes, as if each had its own GPUs. (If
sequential steps use all GPUs and a stream divides them, only the idle time of each side can be saved.) The clock starts
when both sides have started up.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from medssr_dist.bench.voting.simulated_vote import (
    POLICY,
    SAMPLING,
    PlainPrompts,
    make_simulated_config,
    write_questions,
)
from medssr_dist.bench.voting.simulation import DrawnAnswers, SimulatedEngine, Speed
from medssr_dist.bench.voting.voting_figures import StreamSpeed
from medssr_dist.inference.pool import EnginePool
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed, follow_kept_labels, has_room, mark_end, publish_taken
from medssr_dist.training.rollout.examples import PromptLoader, make_labeled_example
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

_ENGINES, _SAMPLES, _BUFFER, _STEP = 4, 8, 64, 8
_QUESTIONS_PER_S = 40  # estimate: 4 engines, 16 samples in parallel each, 0.25 s an answer, 6 votes a question
_SPEED = Speed(fixed_s=0.005, per_sample_s=0.0, batch=16)
_ANSWERS = DrawnAnswers(tokens=45.0, max_tokens=128)


def measure_stream_speed(folder: Path, seconds: float) -> StreamSpeed:
    """Return the wall times of both modes for a vote of about `seconds`.

    Raises:
        RuntimeError: if the two modes do not keep and train on the same number of labels.
    """
    questions = folder / "questions.jsonl"
    write_questions(questions, max(4 * _STEP, round(_QUESTIONS_PER_S * seconds)))
    vote_s, kept = _time_vote(questions, folder / "sequential", is_followed=False)
    steps = math.ceil(kept / _STEP)
    with _trainer(folder / "sequential", vote_s / steps) as trainer:
        train_s = _time_training(trainer)
    with _trainer(folder / "stream", vote_s / steps) as trainer:
        started = time.perf_counter()
        _start_training(trainer)
        stream_vote_s, stream_kept = _time_vote(questions, folder / "stream", is_followed=True)
        trained = _await_training(trainer)
        stream_s = time.perf_counter() - started
    if (stream_kept, trained) != (kept, steps * _STEP):
        raise RuntimeError(f"{kept} labels, but {stream_kept} in the stream, trained on {trained}")
    return StreamSpeed(
        wall_ratio=round(stream_s / (vote_s + train_s), 3),
        kept=kept,
        steps=steps,
        vote_s=round(vote_s, 2),
        train_s=round(train_s, 2),
        stream_s=round(stream_s, 2),
        vote_beside_training_s=round(stream_vote_s, 2),
        buffer=_BUFFER,
    )


def _time_vote(questions: Path, folder: Path, is_followed: bool) -> tuple[float, int]:
    """Vote in `folder` and return (seconds, kept labels). `is_followed`: a trainer follows and limits the rate."""
    config = make_simulated_config(samples=_SAMPLES, in_flight=_SPEED.batch, engines=_ENGINES, buffer=_BUFFER)
    engines = [SimulatedEngine(f"engine {number}", _SPEED, _ANSWERS) for number in range(_ENGINES)]
    started = time.perf_counter()
    with (
        VoteLedger(folder, POLICY, SAMPLING) as ledger,
        EnginePool(engines, config.voting) as pool,
        tqdm(desc=f"vote, {folder.name}", unit="question", leave=False) as bar,
    ):

        def hold() -> bool:
            return is_followed and not has_room(ledger.labels_file, ledger.num_kept, _BUFFER)

        scheduler = VoteScheduler(config, QuestionFeed(questions), ledger, PlainPrompts(), hold)
        collect_votes(pool, scheduler, ledger, bar, bool)
        mark_end(ledger.labels_file, ledger.num_kept)
        return time.perf_counter() - started, ledger.num_kept


@contextmanager
def _trainer(folder: Path, step_s: float) -> Iterator[subprocess.Popen]:
    """Yield the trainer's process, which has started up and waits for the line "go"."""
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "medssr_dist.bench.voting.stream_speed",
        str(VotingPaths(folder).labels),
        str(step_s),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("the trainer of the stream benchmark did not start")
            yield process
        finally:
            process.kill()


def _start_training(trainer: subprocess.Popen) -> None:
    trainer.stdin.write("go\n")
    trainer.stdin.flush()


def _await_training(trainer: subprocess.Popen) -> int:
    """Wait until the trainer is done and return the number of prompts that it used."""
    return int(trainer.stdout.readline())


def _time_training(trainer: subprocess.Popen) -> float:
    started = time.perf_counter()
    _start_training(trainer)
    _await_training(trainer)
    return time.perf_counter() - started


def train(labels: Path, step_s: float) -> int:
    """Load prompts as stage 1 does, sleep `step_s` for each step, and return the number of prompts."""

    def examples(start: int):
        return ((place, make_labeled_example(label)) for place, label in follow_kept_labels(labels, start))

    loader = PromptLoader(examples, PlainPrompts(), 4096, lambda taken: publish_taken(labels, taken))
    while loader.draw(wrap=loader.taken % _STEP != 0):  # the last step is filled up from the beginning
        if loader.taken % _STEP == 0:
            time.sleep(step_s)
    loader.finish()
    return loader.taken


def main() -> None:
    parser = argparse.ArgumentParser(description="The trainer of the stream benchmark.")
    parser.add_argument("labels", type=Path)
    parser.add_argument("step_s", type=float)
    args = parser.parse_args()
    print("ready", flush=True)
    sys.stdin.readline()
    print(train(args.labels, args.step_s), flush=True)


if __name__ == "__main__":
    main()
