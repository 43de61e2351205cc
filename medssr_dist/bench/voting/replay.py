"""What adaptive voting saves, worked out from answers that are known already: no engine, no clock.

`replay` has the real scheduler ask for votes and gives them at once, so that what is asked is what the bound needs and
nothing is wasted on the way. `least_tokens` is a limit for any way of voting that stops when it is certain: the
cheapest of the K votes, chosen with hindsight, that settle the decision.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

from medssr_dist.bench.voting.simulation import DrawnAnswers
from medssr_dist.bench.voting.simulation_cluster import (
    POLICY,
    SAMPLING,
    PlainTokenizer,
    simulated_config,
    write_questions,
)
from medssr_dist.config.schema import Config, Voting
from medssr_dist.inference.requests import PoolResult
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.early_stopping import is_certain
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.tally import Tally
from medssr_dist.voting.vote_scheduler import VoteScheduler

ACCURACIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
MODES = ("lossless", "kept")


def least_tokens(votes: list[tuple[str | None, int]], letters: tuple[str, ...], voting: Voting) -> int:
    """Tokens of the cheapest votes among these K that settle the decision.

    Args:
        votes: (answer, tokens) of each.
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


def replay(config: Config, questions: Path, folder: Path, answers: DrawnAnswers) -> int:
    """Tokens of the votes that all of `questions` take, each wave answered before the next is asked."""
    tokens = 0
    with VoteLedger(folder, POLICY, SAMPLING, keep_text=False) as ledger:
        scheduler = VoteScheduler(config, QuestionFeed(questions), ledger, PlainTokenizer())
        while request := scheduler.next_request(config.voting.samples):
            samples = [answers(request, request.seed + index) for index in range(request.n)]
            tokens += sum(sample.tokens for sample in samples)
            scheduler.add_outcomes([PoolResult(request.key, sample) for sample in samples])
    return tokens


def simulated_curve(folder: Path, questions: int, samples: int, accuracies: tuple[float, ...] = ACCURACIES) -> dict:
    """Tokens of adaptive over full voting for policies that are right with each of `accuracies` on every question.

    Answers are drawn, not a model's: four letters, 2% invalid, the wrong ones even. Threshold 0.5 of requested.
    """
    file = folder / "questions.jsonl"
    write_questions(file, questions)
    curve = {"simulated": True, "questions": questions, "samples": samples, "accuracy": list(accuracies)}
    for mode in MODES:
        curve[mode] = [
            _ratio(folder / f"{mode}{number}", file, mode, samples, accuracy)
            for number, accuracy in enumerate(accuracies)
        ]
    return curve


def _ratio(folder: Path, questions: Path, mode: str, samples: int, accuracy: float) -> float:
    answers = DrawnAnswers(least=accuracy, best=accuracy)
    used, full = (
        replay(simulated_config(samples=samples, adaptive=adaptive), questions, folder / adaptive, answers)
        for adaptive in (mode, "never")
    )
    return round(used / full, 4)
