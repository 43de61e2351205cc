"""Step 2: the base policy samples up to K answers a question; the majority is the label (paper section 3.2).

Questions come from a feed, which may still grow; the engine pool answers what the scheduler ask; the ledger holds votes
and labels. A stop, an error or a kill at any moment loses no vote that had come: the same call goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError, Stopped
from medssr_dist.inference.placement import open_engine_pool
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed, has_room, mark_end
from medssr_dist.runtime.models import fingerprint_model, load_tokenizer
from medssr_dist.voting.ledger import VoteLedger, hash_vote_sampling
from medssr_dist.voting.quality import write_quality
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

_LOOK_S = 0.5  # how often the trainer's place in the stream is read


def vote(
    config: Config,
    feed: QuestionFeed,
    total: int | None,
    model: Path,
    folder: Path,
    truth: Callable[[Question], str | None] = lambda question: question.truth,
    should_stop: Callable[[], bool] = lambda: False,
    trainer_follows: bool = False,
) -> dict:
    """Label the questions of `feed` by majority vote of `model`; goes on from what `folder` holds.

    Args:
        feed: the questions in order, from the first.
        total: how many there will be, for the progress bar; None = not known yet.
        truth: the known answer of a question, or None; only counted in the quality report, never used as a label.
        should_stop: asked several times a second; True raises Stopped, with all votes so far on disk.
        trainer_follows: stage 1 trains on the labels meanwhile; the vote waits where it lags (`voting.buffer`).

    Returns:
        What is in `folder`/summary.json: the quality of the labels (`measure_quality`), and what this call took.

    Raises:
        InputError: another policy's labels in `folder`, other questions, engines that cannot be had.
        RuntimeError: no engine survived.
        Stopped: see should_stop.
    """
    started = time.monotonic()
    tokenizer = load_tokenizer(model, config.policy)
    sampling = hash_vote_sampling(config, tokenizer.chat_template)
    with (
        VoteLedger(folder, fingerprint_model(model), sampling, config.voting.keep_text) as ledger,
        open_engine_pool(config, model, VotingPaths(folder).engine_events) as pool,
        tqdm(total=total, desc="vote", unit="question", initial=ledger.num_labels) as bar,
    ):
        _skip_decided(feed, ledger, should_stop)
        hold = _Look(lambda: not has_room(ledger.labels_file, ledger.num_kept, config.voting.buffer))
        scheduler = VoteScheduler(config, feed, ledger, tokenizer, hold if trainer_follows else lambda: False)
        collect_votes(pool, scheduler, ledger, bar, should_stop)
        mark_end(ledger.labels_file, ledger.num_kept)
        labels_file = ledger.labels_file
    took = {"votes_taken_now": scheduler.num_votes, "seconds": round(time.monotonic() - started, 1)}
    quality = write_quality(folder, labels_file, config.voting, truth)
    summary = took | {"tokens": quality["tokens"], "quality": quality}
    write_json(VotingPaths(folder).summary, summary)
    return summary


def _skip_decided(feed: QuestionFeed, ledger: VoteLedger, should_stop: Callable[[], bool]) -> None:
    """Pass over the questions that have a label, comparing each with it; waits for those being written anew."""
    for position in range(ledger.num_labels):
        while (question := feed.next()) is None:
            if feed.ended:
                raise InputError(
                    f"{ledger.labels_file} has {ledger.num_labels:,} labels, but there are only {position:,} "
                    "questions; put the questions back, or give a new --run-dir"
                )
            if should_stop():
                raise Stopped("voting stopped; the same command goes on")
            time.sleep(_LOOK_S)
        ledger.check_order(position, question)


class _Look:
    """A question whose answer is good for a while."""

    def __init__(self, ask: Callable[[], bool]):
        self._ask, self._until, self._answer = ask, 0.0, False

    def __call__(self) -> bool:
        if time.monotonic() > self._until:
            self._answer, self._until = self._ask(), time.monotonic() + _LOOK_S
        return self._answer
