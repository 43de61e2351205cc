"""The votes on a question that may be its first rollouts (`training.stage1.first_rollouts: votes`).

Stage 1 begins with the policy that voted and asks with the same prompt, so a vote is a sample of it. The group of a
question is the votes with its first G seeds: fixed before any vote is taken, so never chosen by what the votes say.
Where adaptive voting ended before a seed, the engines sample the rest of the group.

A vote is not independent of the label, which it helped to elect, so rewards of votes would be too high: a label is kept
more often where its votes happened to agree. A vote therefore has a weight: 1 if the other votes alone make sure that
the question has this kept label, else 0. Where some of the K votes were not taken, it is the probability of that. The
weight is then independent of the vote, and so is the label wherever the weight is not 0 (leave one out, as in the
cross-fitting of arXiv 1608.00060, section 3). With the advantages `rloo` and `mean_only`, the expected gradient is
that of fresh samples on equally weighted questions; with `group_norm` the standard deviation of a group still holds the
other votes.
"""

from __future__ import annotations

from math import comb
from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.data.records import Label, Vote, WeightedVote, parse_record
from medssr_dist.errors import InputError
from medssr_dist.run.paths import VotingPaths, vote_segment
from medssr_dist.run.stream import follow
from medssr_dist.voting.ledger import LedgerState, derive_seeds
from medssr_dist.voting.segments import find_segment, read_votes
from medssr_dist.voting.tally import reaches_threshold

_FIX = "set training.stage1.first_rollouts=engines, or vote in a new --run-dir"


class FirstVotes:
    """Reads the votes with the first seeds of each question, also while the vote is running.

    Only the segment of the question that was asked for last is in memory.

    Args:
        folder: the vote's part of the run directory.
        policy: fingerprint of the policy that stage 1 begins with.
        sampling: hash of the way in which stage 1 samples from it.
    """

    def __init__(self, folder: Path, config: Config, policy: str, sampling: str):
        self._paths, self._voting = VotingPaths(folder), config.voting
        self._policy, self._sampling, self._seed = policy, sampling, config.runtime.random_seed
        self._count = config.training.stage1.samples_per_prompt
        self._segment = -1
        self._votes: dict[str, dict[int, Vote]] = {}  # question -> seed -> vote, of the segment

    def check(self) -> None:
        """Check what the vote has written so far, before anything is started.

        Raises:
            InputError: another policy voted, it was asked or sampled in another way, or votes lack their tokens.
        """
        state = LedgerState.read(self._paths.ledger)
        if state is None:
            return
        self._refuse_others(state.policy, state.sampling)
        for position, row in enumerate(follow(self._paths.labels, ended=lambda: True)):
            label = parse_record(Label, row, f"{self._paths.labels} line {position + 1}")
            if label.kept:
                self.find(position, label)
                return

    def find(self, position: int, label: Label) -> list[WeightedVote]:
        """Return the votes with the first seeds of a question, in the order of the seeds; without those not taken.

        Args:
            position: of the question in the ledger.

        Raises:
            InputError: see `check`.
        """
        self._refuse_others(label.policy, label.sampling)
        seeds = derive_seeds(label.question.id, self._seed, self._voting.samples)[: self._count]
        number = find_segment(position)
        found = self._votes.get(label.question.id, {}) if number == self._segment else {}
        if len(found) < min(len(seeds), label.taken):  # read again: the segment may have grown
            self._read(number)
            found = self._votes.get(label.question.id, {})
        votes = [found[seed] for seed in seeds if seed in found]
        if any(vote.token_ids is None for vote in votes):
            where = vote_segment(self._paths.votes, number)
            raise InputError(
                f"{where}: the votes on question {label.question.id} are stored without their tokens, so they cannot "
                f"be first rollouts; {_FIX}"
            )
        return [WeightedVote(vote, self._weigh(vote, label)) for vote in votes]

    def _refuse_others(self, policy: str, sampling: str) -> None:
        if policy != self._policy:
            raise InputError(
                f"{self._paths.folder} holds votes of policy {policy}, but stage 1 begins with policy {self._policy}, "
                f"so they are no first rollouts of it; {_FIX}"
            )
        if sampling != self._sampling:
            raise InputError(
                f"{self._paths.folder} holds votes with another prompt or way of sampling ({sampling}) than stage 1 "
                f"begins with ({self._sampling}), so they are no first rollouts; {_FIX}"
            )

    def _read(self, number: int) -> None:
        self._segment, self._votes = number, {}
        for vote in read_votes(self._paths.votes, number):
            seeds = derive_seeds(vote.question_id, self._seed, self._voting.samples)[: self._count]
            if vote.seed in seeds and (vote.policy, vote.sampling) == (self._policy, self._sampling):
                self._votes.setdefault(vote.question_id, {}).setdefault(vote.seed, vote)

    def _weigh(self, vote: Vote, label: Label) -> float:
        untaken = label.requested - label.taken
        valid = label.valid + untaken + (vote.answer is None)  # as many as if this vote were one of them
        of = label.requested if self._voting.confidence == "requested" else valid
        return find_kept_probability(label, vote.answer, of, self._voting.threshold)


def find_kept_probability(label: Label, answer: str | None, of: int, threshold: float) -> float:
    """Return the probability that a question has its kept label whatever one of its votes is, by the other votes.

    The label must have the votes that it needs without this one, and be ahead by two, so that this one cannot make a
    tie. Untaken votes for the label follow the Dirichlet-multinomial distribution of `early_stopping.py`.

    Args:
        answer: of the vote that is left out.
        of: denominator of the label's share after all K votes.

    Example: a label needs 8 of 16 votes, and the next option has 4. With 9 votes for the label, each vote has weight 1;
    with 8, the votes for the label have weight 0, the others 1.
    """
    counts = dict(label.counts)
    if answer is not None:
        counts[answer] -= 1
    top = counts.pop(label.answer or "")
    second = max(counts.values(), default=0)
    untaken, votes = label.requested - label.taken, label.counts[label.answer or ""]
    kinds = len(label.question.options)  # of votes that are not for the label: the other options, and no answer
    others, sure = label.taken - votes, 0
    for more in range(untaken + 1):
        rest = untaken - more
        if top + more >= second + 2 and reaches_threshold(top + more, of, threshold):
            sure += comb(votes + more, more) * comb(others + kinds - 1 + rest, rest)
    return sure / comb(label.taken + kinds + untaken, untaken)
