"""Votes of the policy in training: through the vote ledger, on the questions that come next, with traceable flips."""

from __future__ import annotations

from functools import partial

import pytest
from config_builder import make_config
from pydantic import ValidationError
from stored_votes import stored_votes
from stream_parts import label, make_prompts, question

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.data.records import parse_record
from medssr_dist.inference.requests import CompletedRequest, Completion
from medssr_dist.run.paths import StagePaths, VotingPaths
from medssr_dist.training.rollout.examples import PromptLoader, make_labeled_example
from medssr_dist.training.rollout.revoter import LabelFlip, RevoteCounts, Revoter, VotedLabel
from medssr_dist.training.train_stage import _drop_steps_after
from medssr_dist.voting.ledger import LedgerState, derive_seeds
from medssr_dist.voting.online_vote import vote_online

CONFIG = make_config(voting={"samples": 4, "threshold": 0.5, "in_flight": 6, "online": {"every": 2}})


class Engines:
    """Answer question i with the letters of answers[i], by seed; the newest request first."""

    def __init__(self, answers: dict[int, str]):
        self._answers = {question(number).id: letters for number, letters in answers.items()}
        self._requests = []
        self.samples = 0

    def submit(self, request) -> None:
        self._requests.append(request)
        assert sum(each.n for each in self._requests) <= CONFIG.voting.in_flight

    def next_completed(self) -> CompletedRequest:
        request = self._requests.pop()
        self.samples += request.n
        first = derive_seeds(request.key, CONFIG.runtime.random_seed, 4).start
        letters = [self._answers[request.key][seed - first] for seed in range(request.seed, request.seed + request.n)]
        texts = [f"The answer is {letter}." for letter in letters]
        samples = [Completion.from_text(request, request.seed + i, text, 4, False) for i, text in enumerate(texts)]
        return CompletedRequest(request.key, samples)


def make_loader(count: int) -> PromptLoader:
    examples = [make_labeled_example(label(question(number))) for number in range(count)]
    return PromptLoader(lambda start: enumerate(examples[start:], start + 1), make_prompts(), 10**6)


def make_revoter(folder, loader, engines, wrap=True, every=2, last_step=9) -> Revoter:
    paths, vote = StagePaths(folder), partial(vote_online, CONFIG)
    return Revoter(vote, every, last_step, wrap, "base", paths, loader, make_prompts(), engines)


def draw(loader: PromptLoader, count: int) -> list[tuple[str, str]]:
    """Return (number of the question, its answer) of the next prompts."""
    found = [loader.draw(wrap=True) for _ in range(count)]
    return [(prompt.text.split()[1].strip("?"), prompt.votes.answer) for prompt in found]


def test_the_next_questions_get_the_labels_of_the_policy(tmp_path):
    loader = make_loader(6)
    draw(loader, 2)
    engines = Engines({2: "AAAA", 3: "BBBA", 4: "ABAB", 5: "BBBB"})
    revoter = make_revoter(tmp_path, loader, engines)
    assert revoter.vote_if_due(1, drawn=2) is None
    counts = revoter.vote_if_due(2, drawn=2)
    assert counts == RevoteCounts(revoted_questions=4, revotes=13, labels_flipped=2, labels_dropped=1)
    assert engines.samples == 13  # AAA, BBB, ABAB, BBB: early stopping is that of the vote
    assert draw(loader, 5) == [("2", "A"), ("3", "B"), ("5", "B"), ("0", "A"), ("1", "A")]
    assert draw(loader, 3) == [("2", "A"), ("3", "B"), ("5", "B")]  # in the next pass too


def test_each_flip_is_recorded_with_both_votes(tmp_path):
    revoter = make_revoter(tmp_path, make_loader(4), Engines({0: "BBBA", 1: "AAAA"}))
    revoter.vote_if_due(2, drawn=1)
    flips = [parse_record(LabelFlip, row, "flips") for row in read_jsonl(StagePaths(tmp_path).flips)]
    before = VotedLabel("A", True, {"A": 1}, policy="p")
    assert flips == [LabelFlip(2, question(0).id, before, VotedLabel("B", True, {"B": 3}, policy="base-step2"))]
    folder = StagePaths(tmp_path).revote_at(2)
    votes = [vote for vote in stored_votes(folder) if vote.question_id == question(0).id]
    assert [(vote.answer, vote.policy) for vote in votes] == [("B", "base-step2")] * 3
    assert all(vote.text for vote in votes) and len({vote.key for vote in votes}) == 3
    assert LedgerState.read(VotingPaths(folder).ledger).policy == "base-step2"


def test_a_restart_uses_the_votes_up_to_its_checkpoint(tmp_path):
    loader = make_loader(4)
    revoter = make_revoter(tmp_path, loader, Engines({0: "BBBB", 1: "BBBB"}))
    revoter.vote_if_due(2, drawn=1)
    draw(loader, 2)
    state = loader.state_dict()
    again = make_loader(4)
    make_revoter(tmp_path, again, Engines({}))
    again.load_state_dict(state)
    assert draw(again, 4) == [("2", "A"), ("3", "A"), ("0", "B"), ("1", "B")] == draw(loader, 4)


def test_votes_after_the_checkpoint_are_taken_again(tmp_path):
    paths = StagePaths(tmp_path)
    revoter = make_revoter(tmp_path, make_loader(8), Engines({0: "BBBB", 1: "BBBB"}))
    revoter.vote_if_due(2, drawn=1)
    revoter.vote_if_due(4, drawn=1)
    assert paths.revoted_steps() == [2, 4]
    _drop_steps_after(paths, 2)
    assert paths.revoted_steps() == [2] and {row["step"] for row in read_jsonl(paths.flips)} == {2}


def test_no_vote_follows_the_last_step(tmp_path):
    assert make_revoter(tmp_path, make_loader(4), Engines({}), last_step=2).vote_if_due(2, drawn=1) is None


def test_a_single_pass_votes_on_what_is_left(tmp_path):
    loader = make_loader(3)
    draw(loader, 2)
    counts = make_revoter(tmp_path, loader, Engines({2: "AAAA"}), wrap=False).vote_if_due(2, drawn=4)
    assert counts.revoted_questions == 1


def test_servers_that_hold_another_policy_are_refused():
    servers = [{"base_url": "http://127.0.0.1:9/v1"}]
    with pytest.raises(
        ValidationError, match=r"the servers hold another one, the base policy: http://127.0.0.1:9/v1; set"
    ):
        make_config(voting={"online": {"every": 2}, "servers": servers})


@pytest.mark.parametrize("other", [{"record_logprobs": True}, {"rule": "logprob", "adaptive": "never"}])
def test_log_probs_of_votes_are_refused(other):
    with pytest.raises(ValidationError, match="online cannot be used with voting.record_logprobs"):
        make_config(voting={"online": {"every": 2}} | other)
