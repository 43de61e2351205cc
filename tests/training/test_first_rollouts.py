"""Votes as first rollouts in the sampler: whole and partial groups, their age, and prompts that are passed over."""

from __future__ import annotations

import json
import math

import pytest
import torch
from config_builder import make_config
from pydantic import ValidationError
from sampler_parts import SAMPLING, Engines
from stream_parts import label, make_prompts, question

from medssr_dist.data.records import Vote, WeightedVote
from medssr_dist.training.rollout.examples import PromptLoader, make_labeled_example
from medssr_dist.training.rollout.first_rollouts import PromptChoice, find_flat_probability
from medssr_dist.training.rollout.reward import reward_answer
from medssr_dist.training.rollout.sampler import BatchPlan, Sampler
from medssr_dist.training.update.experience import fill_vote_log_probs

TEXTS = {"A": "The answer is A.", "B": "The answer is B."}


class Votes:
    """The votes on question i are `answers[i]`; each lookup is recorded."""

    def __init__(self, answers: list[str]):
        self._answers = answers
        self.asked: list[int] = []

    def find(self, position, label):
        self.asked.append(position)
        return [
            WeightedVote(
                Vote(
                    question_id=label.question.id,
                    policy="p",
                    sampling="s",
                    seed=seed,
                    answer=answer,
                    method="statement",
                    text=TEXTS[answer],
                    tokens=2,
                    truncated=False,
                    token_ids=(5, 6),
                ),
                weight=0.25 if answer == "A" else 1.0,
            )
            for seed, answer in enumerate(self._answers[position])
        ]


def make(answers: list[str], votes=True, flat_limit=1.0, max_lag=0, steps=0, counts=None, engines=None) -> Sampler:
    """A sampler with batches of 2 prompts and groups of 2; all labels are A."""
    counts = counts or [{"A": 1}] * len(answers)
    labels = [
        label(question(number)).model_copy(update={"counts": found, "taken": sum(found.values())})
        for number, found in enumerate(counts)
    ]
    examples = [make_labeled_example(each) for each in labels]
    loader = PromptLoader(lambda start: enumerate(examples[start:], start + 1), make_prompts(), 10**6)
    choice = PromptChoice(2, flat_limit, Votes(answers) if votes else None, reward_answer, max_lag)
    plan = BatchPlan(2, steps, True, 0, max_lag=max_lag)
    return Sampler(plan, SAMPLING, loader, engines or Engines(set()), lambda doing: None, choice)


def numbers(step) -> list[int]:
    return [int(sample.prompts[0].split()[1].strip("?")) for sample in step.samples[:: SAMPLING.n]]


def test_votes_are_the_groups_of_the_first_step():
    engines = Engines(set())
    sampler = make(["AB", "BA", "AB", "AB"], engines=engines)
    step = sampler.next_step()
    assert numbers(step) == [0, 1] and not engines._requests
    assert [sample.rewards.item() for sample in step.samples] == [1, 0, 0, 1]
    assert step.weights == [0.25, 1.0, 1.0, 0.25]
    assert step.samples[0].sequences[0, -2:].tolist() == [5, 6]
    assert (step.metrics["votes_used"], step.metrics["tokens_drawn"], step.metrics["policy_lag"]) == (1, 0, 0)


def test_later_steps_sample_anew():
    sampler = make(["AB"] * 4)
    sampler.next_step()
    step = sampler.next_step()
    assert numbers(step) == [2, 3] and step.weights is None
    assert (step.metrics["votes_used"], step.metrics["tokens_drawn"]) == (0, 8)


def test_votes_serve_until_they_are_too_old():
    sampler = make(["AB"] * 6, max_lag=1)
    steps = [sampler.next_step() for _ in range(3)]
    assert [step.metrics["votes_used"] for step in steps] == [1, 1, 0]
    assert [step.metrics["policy_lag"] for step in steps] == [0, 1, 2]  # these engines never get new weights


def test_the_engines_complete_a_group_whose_votes_ended_early():
    """The group is the first votes, whatever they say, and fresh samples for the seeds that were not taken."""
    engines = Engines(set())
    step = make(["B", "AB"], engines=engines).next_step()
    assert step.weights == [1.0, 1.0, 0.25, 1.0]
    assert step.samples[0].sequences[0, -2:].tolist() == [5, 6]
    assert step.samples[1].sequences[0, -2:].tolist() == [7, 8]
    assert step.metrics["votes_used"] == 0.75


def test_flat_groups_of_votes_are_replaced():
    sampler = make(["AA", "AB", "BB", "BA"])
    step = sampler.next_step()
    assert numbers(step) == [1, 3] and step.metrics["prompts_drawn"] == 4


def test_flat_groups_of_votes_are_passed_over():
    sampler = make(["AA", "AB", "BB", "BA"], flat_limit=0.5)
    step = sampler.next_step()
    assert numbers(step) == [1, 3]
    assert (step.metrics["prompts_drawn"], step.metrics["prompts_passed_over"]) == (2, 2)


def test_questions_are_chosen_by_their_votes():
    counts = [{"A": 16}, {"A": 8, "B": 8}, {"A": 15, "B": 1}, {"A": 9, "B": 7}]
    step = make(["AB"] * 4, votes=False, flat_limit=0.6, counts=counts).next_step()
    assert numbers(step) == [1, 3] and step.metrics["prompts_passed_over"] == 2


def test_a_stage_of_unanimous_questions_still_gets_batches():
    sampler = make(["AB"] * 2, votes=False, flat_limit=0.1, counts=[{"A": 16}] * 2, steps=2)
    assert len(sampler.next_step().samples) == len(sampler.next_step().samples) == 4


def test_votes_survive_a_checkpoint():
    first = make(["AB"] * 6, max_lag=1)
    first.next_step()
    state = json.loads(json.dumps(first.state_dict()))
    second = make(["AB"] * 6, max_lag=1)
    second.load_state_dict(state)
    step = second.next_step()
    assert numbers(step) == [2, 3] and step.metrics["votes_used"] == 1


def test_the_probability_of_equal_rewards_follows_the_votes():
    def find(agree: int, taken: int) -> float:
        found = label(question(0)).model_copy(update={"counts": {"A": agree}, "taken": taken})
        return find_flat_probability(found, 8)

    assert find(16, 16) == pytest.approx(0.82, abs=0.01)
    assert find(8, 16) == pytest.approx(0.026, abs=0.01)
    assert find(11, 16) < 0.1 < find(12, 16)


def test_the_log_probs_of_votes_are_those_of_the_reference():
    batch = type("Batch", (), {})()
    batch.rollout_log_probs = torch.tensor([[0.0, math.nan, math.nan], [0.0, -1.0, -2.0]])
    batch.base_action_log_probs = torch.tensor([[0.0, -0.5, -0.25], [0.0, -9.0, -9.0]])
    fill_vote_log_probs(batch)
    assert batch.rollout_log_probs.tolist() == [[0, -0.5, -0.25], [0, -1, -2]]


GOOD = {"first_rollouts": "votes", "importance": "token", "max_new_tokens": 2048}


@pytest.mark.parametrize(
    ("voting", "stage", "training", "message"),
    [
        ({"temperature": 0.6}, {}, {}, "voting.temperature = 0.6 is not 1.0; set voting.temperature=1.0"),
        ({"top_p": 0.9}, {}, {}, "voting.top_p = 0.9 is not 1.0"),
        ({"max_tokens": 512}, {}, {}, "voting.max_tokens = 512 is not 2048"),
        ({"keep_text": False}, {}, {}, "voting.keep_text = False is not True; set voting.keep_text=true"),
        ({"samples": 4}, {}, {}, "voting.samples = 4 is fewer than"),
        ({"shuffle_options": True}, {}, {}, "voting.shuffle_options: stage 1 asks with the question's own order"),
        ({"online": {"every": 2}}, {}, {}, "voting.online: the votes of the base policy have not elected"),
        ({"rule": "length", "adaptive": "never"}, {}, {}, "not voting.rule = length"),
        ({}, {"importance": "off"}, {"max_policy_lag": 1}, "set training.stage1.importance=token"),
        ({}, {"kl_coef": 0}, {}, "kl_coef = 0 loads none"),
    ],
)
def test_votes_unlike_rollouts_are_refused(voting, stage, training, message):
    with pytest.raises(ValidationError) as error:
        make_config(voting=voting, training={"stage1": GOOD | stage, **training})
    assert message in str(error.value)


def test_votes_like_rollouts_are_accepted():
    make_config(training={"stage1": GOOD})
    make_config(training={"stage1": GOOD | {"importance": "off"}, "max_policy_lag": 0})
