"""Does stage 1 beside the vote save the time that it takes? Stream against sequential, on balanced rates.

Pool, scheduler, ledger, bounded stream and the trainer's own loader are the real ones, the trainer in a process of its
own; engines and optimizer steps only take time. The trainer's step is set so that it trains on all kept labels in just
the time that the vote takes, and both sides have the same rate in both modes, as where each has GPUs of its own. (Where
sequential steps have all GPUs each and a stream parts them, there is nothing to be saved but what each side wastes.)
The clock runs from the moment when both sides have started up.
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

from medssr_dist.bench.voting.simulation import DrawnAnswers, SimulatedEngine, Speed
from medssr_dist.bench.voting.simulation_cluster import (
    POLICY,
    SAMPLING,
    PlainTokenizer,
    simulated_config,
    write_questions,
)
from medssr_dist.inference.pool import EnginePool
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed, follow_kept_labels, has_room, mark_end, publish_taken
from medssr_dist.training.rollout.examples import PromptLoader, of_label
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

_ENGINES, _SAMPLES, _BUFFER, _STEP = 4, 8, 64, 8
_QUESTIONS_PER_S = 40  # about: 4 engines, 16 samples at once each, an answer in 0.25 s, 6 votes a question
_SPEED = Speed(fixed_s=0.005, per_sample_s=0.0, batch=16)
_ANSWERS = DrawnAnswers(tokens=45.0, max_tokens=128)


def stream_against_sequential(folder: Path, seconds: float) -> dict:
    """Wall times of both modes for a vote of about `seconds`."""
    questions = folder / "questions.jsonl"
    write_questions(questions, max(4 * _STEP, round(_QUESTIONS_PER_S * seconds)))
    vote_s, kept = _vote(questions, folder / "sequential", follows=False)
    steps = math.ceil(kept / _STEP)
    with _trainer(folder / "sequential", vote_s / steps) as trainer:
        train_s = _timed(trainer)
    with _trainer(folder / "stream", vote_s / steps) as trainer:
        started = time.perf_counter()
        _go(trainer)
        stream_vote_s, stream_kept = _vote(questions, folder / "stream", follows=True)
        trained = _trained(trainer)
        stream_s = time.perf_counter() - started
    if (stream_kept, trained) != (kept, steps * _STEP):
        raise RuntimeError(f"{kept} labels, but {stream_kept} in the stream, trained on {trained}")
    return {
        "stream_wall_ratio": round(stream_s / (vote_s + train_s), 3),
        "stream": {
            "kept": kept,
            "steps": steps,
            "vote_s": round(vote_s, 2),
            "train_s": round(train_s, 2),
            "stream_s": round(stream_s, 2),
            "vote_beside_training_s": round(stream_vote_s, 2),
            "buffer": _BUFFER,
        },
    }


def _vote(questions: Path, folder: Path, follows: bool) -> tuple[float, int]:
    """Vote in `folder`; returns seconds and kept labels. `follows`: a trainer does, and may hold it up."""
    config = simulated_config(samples=_SAMPLES, in_flight=_SPEED.batch, engines=_ENGINES, buffer=_BUFFER)
    engines = [SimulatedEngine(f"engine {number}", _SPEED, _ANSWERS) for number in range(_ENGINES)]
    started = time.perf_counter()
    with (
        VoteLedger(folder, POLICY, SAMPLING) as ledger,
        EnginePool(engines, config.voting) as pool,
        tqdm(desc=f"vote, {folder.name}", unit="question", leave=False) as bar,
    ):

        def hold() -> bool:
            return follows and not has_room(ledger.labels_file, ledger.num_kept, _BUFFER)

        scheduler = VoteScheduler(config, QuestionFeed(questions), ledger, PlainTokenizer(), hold)
        collect_votes(pool, scheduler, ledger, bar, bool)
        mark_end(ledger.labels_file, ledger.num_kept)
        return time.perf_counter() - started, ledger.num_kept


@contextmanager
def _trainer(folder: Path, step_s: float) -> Iterator[subprocess.Popen]:
    """The trainer's process, which has started up and waits for its go."""
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


def _go(trainer: subprocess.Popen) -> None:
    trainer.stdin.write("go\n")
    trainer.stdin.flush()


def _trained(trainer: subprocess.Popen) -> int:
    """Prompts that the trainer has taken, once it is done."""
    return int(trainer.stdout.readline())


def _timed(trainer: subprocess.Popen) -> float:
    started = time.perf_counter()
    _go(trainer)
    _trained(trainer)
    return time.perf_counter() - started


class _Words:
    """A tokenizer without a chat template, by words."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict:
        return {"input_ids": text.split()}


def train(labels: Path, step_s: float) -> int:
    """Take prompts as stage 1 does, and sleep `step_s` for each step of them; returns how many were taken."""

    def examples(start: int):
        return ((place, of_label(label)) for place, label in follow_kept_labels(labels, start))

    loader = PromptLoader(examples, _Words(), 4096, _STEP, 0, lambda taken: publish_taken(labels, taken))
    for number, _ in enumerate(loader, start=1):
        if number % _STEP == 0:
            time.sleep(step_s)
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
