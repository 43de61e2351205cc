"""What adaptive voting saves, computed from known answers, without an engine or a clock.

`replay_votes` runs the real scheduler and answers each request at once, so that no sample is wasted.
`find_least_tokens` is a lower bound for every method that stops when the label is certain: the cheapest of the K votes,
chosen with hindsight, that decide the label.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

from medssr_dist.bench.voting.simulated_vote import (
    POLICY,
    SAMPLING,
    PlainPrompts,
    make_simulated_config,
    write_questions,
)
from medssr_dist.bench.voting.simulation import DrawnAnswers
from medssr_dist.bench.voting.voting_figures import SavingsCurve
from medssr_dist.config.schema import Config
from medssr_dist.config.voting import Voting
from medssr_dist.inference.requests import PoolResult
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.early_stopping import is_certain
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.tally import Tally
from medssr_dist.voting.vote_scheduler import VoteScheduler

ACCURACIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def find_least_tokens(votes: list[tuple[str | None, int]], letters: tuple[str, ...], voting: Voting) -> int:
    """Return the tokens of the cheapest votes among these K that decide the label.

    Args:
        votes: (answer, tokens) of each; the answer is None for an invalid vote.
        letters: of the question's options.
    """
    costs = defaultdict(list)
    for answer, tokens in sorted(votes, key=lambda vote: vote[1]):
        costs[answer].append(tokens)
    sums = {answer: [0, *itertools.accumulate(tokens)] for answer, tokens in costs.items()}
    best = sum(tokens for _, tokens in votes)
    for taken in itertools.product(*(range(len(each)) for each in sums.values())):
        cost = sum(each[count] for each, count in zip(sums.values(), taken, strict=True))
        if cost < best:
            counts = dict(zip(sums, taken, strict=True))
            invalid = counts.pop(None, 0)
            tally = Tally(tuple(sorted((letter, count) for letter, count in counts.items() if count)), invalid)
            if is_certain(tally, letters, voting):
                best = cost
    return best


def replay_votes(config: Config, questions: Path, folder: Path, answers: DrawnAnswers) -> int:
    """Return the tokens of all votes on `questions`. Each request is answered before the scheduler makes the next."""
    tokens = 0
    with VoteLedger(folder, POLICY, SAMPLING, keep_text=False) as ledger:
        scheduler = VoteScheduler(config, QuestionFeed(questions), ledger, PlainPrompts())
        while request := scheduler.next_request(config.voting.samples):
            samples = [answers(request, request.seed + index) for index in range(request.n)]
            tokens += sum(sample.tokens for sample in samples)
            scheduler.add_outcomes([PoolResult(request.key, sample) for sample in samples])
    return tokens


def simulate_savings(
    folder: Path, questions: int, samples: int, accuracies: tuple[float, ...] = ACCURACIES
) -> SavingsCurve:
    """Return tokens of adaptive over full voting for simulated policies with each of `accuracies` on every question.

    Answers are drawn at random: four letters, 2% invalid, wrong answers uniform over the other letters. The threshold
    is 0.5 of the requested votes.
    """
    file = folder / "questions.jsonl"
    write_questions(file, questions)

    def ratios(mode: str) -> list[float]:
        return [
            _token_ratio(folder / f"{mode}{number}", file, mode, samples, accuracy)
            for number, accuracy in enumerate(accuracies)
        ]

    return SavingsCurve(questions, samples, list(accuracies), lossless=ratios("lossless"), kept=ratios("kept"))


def _token_ratio(folder: Path, questions: Path, mode: str, samples: int, accuracy: float) -> float:
    answers = DrawnAnswers(least=accuracy, best=accuracy)
    used, full = (
        replay_votes(make_simulated_config(samples=samples, adaptive=adaptive), questions, folder / adaptive, answers)
        for adaptive in (mode, "never")
    )
    return round(used / full, 4)
