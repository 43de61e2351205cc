"""Votes as first rollouts: which are found, what they weigh, and that they train as fresh samples do."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from config_builder import make_config

from medssr_dist.config.training import Stage
from medssr_dist.config.voting import Voting
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.errors import InputError
from medssr_dist.training.update.grpo_terms import compute_advantages
from medssr_dist.voting.early_stopping import is_certain
from medssr_dist.voting.first_votes import FirstVotes, find_kept_probability
from medssr_dist.voting.labels import label_question
from medssr_dist.voting.ledger import VoteLedger, derive_seeds
from medssr_dist.voting.tally import Tally

LETTERS = "ABCD"


def question(number: int, options: int = 4) -> Question:
    return Question.make(f"Question {number}?", [f"option {index}" for index in range(options)], source="set")


def label_of(votes: str, voting: Voting, asked: Question | None = None) -> Label:
    tally = Tally.from_answers(None if vote == "-" else vote for vote in votes)
    asked = asked or question(0)
    return label_question(asked, tally, voting, tokens=9, truncated=0, policy="p", sampling="s")


def weigh(votes: str, answer: str | None, samples: int = 16, threshold: float = 0.5, **rule) -> float:
    voting = Voting(samples=samples, threshold=threshold, **rule)
    return find_kept_probability(label_of(votes, voting), answer, samples, threshold)


def test_a_vote_that_the_label_needs_weighs_nothing():
    assert weigh("A" * 9 + "BBBBCCC", "A") == weigh("A" * 9 + "BBBBCCC", "B") == 1
    assert weigh("A" * 8 + "BBBBCCCC", "A") == 0
    assert weigh("A" * 8 + "BBBBCCCC", "B") == weigh("A" * 8 + "BBBBCCC-", None) == 1
    assert weigh("A" * 8 + "B" * 7 + "C", "C") == 0  # with B in place of C there would be a tie


def test_untaken_votes_make_a_vote_probably_not_needed():
    """After 8 of 12 the label is kept; one more A, and it is kept without any one of them."""
    early = weigh("A" * 8 + "BBCC", "A", adaptive="lossless")
    assert 0.9 < early < 1
    assert weigh("A" * 8 + "BBBCCCD", "A", samples=15) == 0  # all are taken
    late = weigh("A" * 8 + "BBBCCCD", "A", adaptive="lossless")
    assert late == pytest.approx(9 / 20)  # one vote is left, and A has 8 + 1 of 15 + 5 ways


# --- on a tiny policy: one softmax over the options ---------------------------------------------------------------


def find_gradient(answers: str, weights: list[float], label: str, policy: torch.Tensor, stage: Stage) -> torch.Tensor:
    """The gradient of the objective in the logits: the sum of weight x advantage x (one-hot - probabilities)."""
    reward_BG = torch.tensor([[float(answer == label) for answer in answers]])
    advantage = compute_advantages(reward_BG, stage).advantage.double() * torch.tensor(weights, dtype=torch.float64)
    chosen = torch.stack([torch.eye(len(policy), dtype=torch.float64)[LETTERS.index(answer)] for answer in answers])
    return (advantage[:, None] * (chosen - policy)).sum(0)


@pytest.mark.parametrize("advantage", ["rloo", "mean_only"])
def test_the_expected_gradient_is_exactly_that_of_fresh_samples(advantage):
    """All 3^5 votes of a question, and for each all fresh groups, with the same mean weight of the question."""
    policy, voting = torch.tensor([0.5, 0.3, 0.2]).double(), Voting(samples=5, threshold=0.6, adaptive="never")
    stage, asked = Stage(advantage=advantage, samples_per_prompt=3), question(0, 3)
    by_votes, by_fresh, unweighted = torch.zeros(3).double(), torch.zeros(3).double(), torch.zeros(3).double()
    for votes in map("".join, itertools.product("ABC", repeat=5)):
        label = label_of(votes, voting, asked)
        if not label.kept:
            continue
        chance = torch.stack([policy[LETTERS.index(vote)] for vote in votes]).prod()
        group = votes[:3]
        weights = [find_kept_probability(label, vote, 5, 0.6) for vote in group]
        by_votes += chance * find_gradient(group, weights, label.answer, policy, stage)
        unweighted += chance * find_gradient(group, [1.0] * 3, label.answer, policy, stage)
        for fresh in map("".join, itertools.product("ABC", repeat=3)):
            fresh_chance = torch.stack([policy[LETTERS.index(answer)] for answer in fresh]).prod()
            mean = [sum(weights) / 3] * 3
            by_fresh += chance * fresh_chance * find_gradient(fresh, mean, label.answer, policy, stage)
    torch.testing.assert_close(by_votes, by_fresh, atol=1e-6, rtol=0)
    assert (unweighted - by_fresh).abs().max() > 0.01


def take_votes(policy: torch.Tensor, voting: Voting, rng: random.Random) -> str:
    """Answers in the order of their seeds, until the vote on the question may end."""
    votes = ""
    while not is_certain(Tally.from_answers(votes), LETTERS, voting):
        votes += rng.choices(LETTERS, policy.tolist())[0]
    return votes


def test_votes_train_as_fresh_samples_do_over_200_seeds():
    """Mean reward and gradient of 12 questions, with adaptive voting; GRPO's advantage, whole groups of 8."""
    torch.manual_seed(0)
    policies = torch.softmax(torch.randn(12, 4).double() * 1.2, 1)
    voting, stage = Voting(samples=16, threshold=0.5, adaptive="lossless"), Stage(samples_per_prompt=8)
    rewards, gradients, naive = [], [], []
    for seed in range(200):
        rng, found, plain = random.Random(seed), torch.zeros(2, 2).double(), torch.zeros(2, 2).double()
        difference = torch.zeros(12, 4).double()
        for number, policy in enumerate(policies):
            votes = take_votes(policy, voting, rng)
            label = label_of(votes, voting)
            if not label.kept:
                continue
            weights = [find_kept_probability(label, vote, 16, 0.5) for vote in votes[:8]]
            weights += [1.0] * (8 - len(weights))
            group = (votes + "".join(rng.choices(LETTERS, policy.tolist(), k=8)))[:8]
            fresh, mean = "".join(rng.choices(LETTERS, policy.tolist(), k=8)), sum(weights) / 8
            right = torch.tensor([float(answer == label.answer) for answer in group]).double()
            found += torch.tensor(
                [
                    [float(right @ torch.tensor(weights).double()), sum(weights)],
                    [mean * fresh.count(label.answer), 8 * mean],
                ]
            ).double()
            plain += torch.tensor([[float(right.sum()), 8.0], [float(fresh.count(label.answer)), 8.0]]).double()
            difference[number] = find_gradient(group, weights, label.answer, policy, stage)
            difference[number] -= find_gradient(fresh, [mean] * 8, label.answer, policy, stage)
        rewards.append((found[0, 0] / found[0, 1] - found[1, 0] / found[1, 1]).item())
        naive.append((plain[0, 0] / plain[0, 1] - plain[1, 0] / plain[1, 1]).item())
        gradients.append(difference.flatten())
    reward, gradient, plain_reward = (
        torch.tensor(rewards),
        torch.stack(gradients),
        torch.tensor(naive),
    )
    error = reward.std() / 200**0.5
    assert reward.mean().abs() < 3 * error
    assert plain_reward.mean() > 3 * error  # without weights, the votes seem better than fresh samples
    z = gradient.mean(0) / (gradient.std(0) / 200**0.5).clamp(min=1e-9)
    assert z.abs().max() < 4 and z.square().mean() < 1.6  # of 48 numbers


# --- what is read from disk ---------------------------------------------------------------------------------------


def write_votes(folder, config, questions: int, taken: int, with_tokens: bool = True, policy: str = "p") -> list[Label]:
    labels = []
    with VoteLedger(folder, policy, "s") as ledger:
        for position in range(questions):
            asked = question(position)
            seeds = derive_seeds(asked.id, config.runtime.random_seed, config.voting.samples)[:taken]
            for seed in reversed(seeds):  # the order of arrival is another one
                tokens = (seed % 7, position) if with_tokens else None
                found = {"answer": "A", "method": "statement", "tokens": 2, "truncated": False, "token_ids": tokens}
                one = Vote(question_id=asked.id, policy=policy, sampling="s", seed=seed, text=f"A {seed}", **found)
                ledger.add_votes(position, [one])
            one = label_of("A" * taken, config.voting.model_copy(update={"samples": taken}), asked)
            labels.append(one.model_copy(update={"policy": policy, "requested": config.voting.samples}))
            ledger.add_label(position, labels[-1])
    return labels


@pytest.fixture
def config():
    stage = {"samples_per_prompt": 4}
    return make_config(voting={"samples": 8, "threshold": 0.2}, training={"stage1": stage, "ranks_per_node": 1})


def test_the_first_seeds_are_found_in_their_order(tmp_path, config):
    labels = write_votes(tmp_path, config, questions=3, taken=6)
    votes = FirstVotes(tmp_path, config, "p", "s")
    votes.check()
    for position, label in enumerate(labels):
        seeds = derive_seeds(label.question.id, config.runtime.random_seed, 8)
        found = [each.vote for each in votes.find(position, label)]
        assert [vote.seed for vote in found] == list(seeds[:4])
        assert [vote.token_ids for vote in found] == [(seed % 7, position) for seed in seeds[:4]]


def test_votes_that_were_not_taken_are_left_out(tmp_path, config):
    label = write_votes(tmp_path, config, questions=1, taken=3)[0]
    assert len(FirstVotes(tmp_path, config, "p", "s").find(0, label)) == 3


def test_votes_of_another_policy_or_prompt_are_refused(tmp_path, config):
    write_votes(tmp_path, config, questions=1, taken=3)
    with pytest.raises(InputError, match="votes of policy p, but stage 1 begins with policy q.*first_rollouts=engines"):
        FirstVotes(tmp_path, config, "q", "s").check()
    with pytest.raises(InputError, match="another prompt or way of sampling"):
        FirstVotes(tmp_path, config, "p", "t").check()


def test_votes_without_tokens_are_refused(tmp_path, config):
    write_votes(tmp_path, config, questions=1, taken=3, with_tokens=False)
    with pytest.raises(InputError, match="stored without their tokens"):
        FirstVotes(tmp_path, config, "p", "s").check()
