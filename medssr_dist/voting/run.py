"""Step 2: the base policy samples K answers a question; the majority is the label (paper section 3.2)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from medssr_dist.answers import chat_prompt, extract_answer
from medssr_dist.config import Config
from medssr_dist.errors import Stopped
from medssr_dist.jsonl import write_json
from medssr_dist.records import Label, Question, Vote, content_hash
from medssr_dist.runtime.engines import EnginePool
from medssr_dist.runtime.models import load_tokenizer, model_fingerprint
from medssr_dist.runtime.requests import Completion, Request
from medssr_dist.stream import mark_end, wait_for_room
from medssr_dist.voting.ledger import VoteLedger, sampling_hash
from medssr_dist.voting.majority import decide


def vote(
    config: Config,
    questions: list[Question],
    model: Path,
    folder: Path,
    truth: Callable[[Question], str | None] = lambda question: question.truth,
    should_stop: Callable[[], bool] = lambda: False,
    trainer_follows: bool = False,
) -> dict:
    """Label `questions` by majority vote of `model`; resumes from what `folder` holds.

    Args:
        truth: the known answer of a question, or None; only counted in the summary, never used as a label.
        should_stop: asked after each question; True raises Stopped, with all votes so far on disk.
        trainer_follows: stage 1 trains on the labels meanwhile; the vote waits where it lags (`voting.buffer`).
    Returns:
        The counts, also written to `folder`/summary.json.
    """
    started = time.monotonic()
    tokenizer = load_tokenizer(model, config.policy)
    sampling = sampling_hash(config, tokenizer.chat_template)
    by_id = {question.id: question for question in questions}
    taken_now = 0
    with (
        VoteLedger(folder, model_fingerprint(model), sampling) as ledger,
        _pool(config, model) as pool,
        tqdm(total=len(questions), desc="vote", unit="question") as bar,
    ):
        for question in questions:  # complete from an earlier attempt
            _label_if_complete(config, question, ledger, bar)
        for question_id, completions in pool.generate(_requests(config, questions, ledger, tokenizer)):
            question = by_id[question_id]
            ledger.add_votes([_to_vote(question, completion, ledger) for completion in completions])
            taken_now += len(completions)
            _label_if_complete(config, question, ledger, bar)
            if should_stop():
                raise Stopped("voting stopped; the same command takes the votes that are missing")
            if trainer_follows:
                wait_for_room(ledger.labels_file, ledger.kept, config.voting.buffer, should_stop)
        mark_end(ledger.labels_file, ledger.kept)
        summary = _summary(questions, ledger, truth)
    summary |= {"votes_taken_now": taken_now, "seconds": round(time.monotonic() - started, 1)}
    write_json(folder / "summary.json", summary)
    return summary


def _requests(config: Config, questions: list[Question], ledger: VoteLedger, tokenizer) -> Iterator[Request]:
    """One request a question for the votes it still lacks (two if a crash left a gap among the seeds)."""
    voting = config.voting
    for question in questions:
        base = int(content_hash([config.runtime.random_seed, question.id])[:7], 16)
        missing = [base + i for i in range(voting.samples) if base + i not in ledger.votes_of(question)]
        for first, count in _contiguous(missing):
            yield Request(
                key=question.id,
                prompt=chat_prompt(tokenizer, question),
                n=count,
                seed=first,
                temperature=voting.temperature,
                top_p=voting.top_p,
                max_tokens=voting.max_tokens,
            )


def _pool(config: Config, model: Path) -> EnginePool:
    voting = config.voting
    return EnginePool(
        model, config.policy, config.runtime, voting.engines, voting.tensor_parallel_size, voting.shard_size
    )


def _contiguous(seeds: list[int]) -> list[tuple[int, int]]:
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([seed, 1])
    return [(first, count) for first, count in runs]


def _to_vote(question: Question, completion: Completion, ledger: VoteLedger) -> Vote:
    extraction = extract_answer(completion.text, question.options)
    return Vote(
        question_id=question.id,
        policy=ledger.policy,
        sampling=ledger.sampling,
        seed=completion.seed,
        answer=extraction.letter,
        method=extraction.method,
        text=completion.text,
        tokens=completion.tokens,
        truncated=completion.truncated,
    )


def _label_if_complete(config: Config, question: Question, ledger: VoteLedger, bar: tqdm) -> None:
    votes = ledger.votes_of(question)
    if len(votes) < config.voting.samples:
        return
    if question.id not in ledger.labels:
        ledger.add_label(decide(question, list(votes.values()), config.voting))
    bar.update()
    bar.set_postfix(kept=ledger.kept)


def _summary(questions: list[Question], ledger: VoteLedger, truth: Callable[[Question], str | None]) -> dict:
    labels: list[Label] = [ledger.labels[question.id] for question in questions]
    votes = list(ledger.all_votes({question.id for question in questions}))
    outcomes = Counter(label.outcome for label in labels)
    kept = [label for label in labels if label.kept]
    known = [(label, answer) for label in kept if (answer := truth(label.question)) is not None]
    return {
        "questions": len(labels),
        "labeled": outcomes["labeled"],
        "ties": outcomes["tie"],
        "all_invalid": outcomes["all_invalid"],
        "kept": len(kept),
        "truth_known": len(known),
        "agree_with_truth": sum(label.answer == answer for label, answer in known),
        "votes": len(votes),
        "invalid_votes": sum(vote.answer is None for vote in votes),
        "truncated_votes": sum(vote.truncated for vote in votes),
        "tokens": sum(vote.tokens for vote in votes),
    }
