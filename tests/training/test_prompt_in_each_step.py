"""Vote, rollout and evaluation send the very same prompt to their engines, with the same stop strings."""

from __future__ import annotations

import json

import pytest
from config_builder import make_config
from tiny_templates import TEMPLATES, write_tokenizer

from medssr_dist.data.records import Question
from medssr_dist.evaluation.protocol import evaluate_policy
from medssr_dist.inference.requests import Completion
from medssr_dist.run.paths import RunPaths
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer
from medssr_dist.training.rollout.examples import Example, PromptLoader
from medssr_dist.training.rollout.groups import Group, Sample
from medssr_dist.training.rollout.rollout_engine import make_sampling_params
from medssr_dist.training.rollout.sampler import Sampler
from medssr_dist.training.rollout.workers import make_batch_plan, make_sampling
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.vote_scheduler import VoteScheduler

QUESTION = Question.make("Which <|im_end|> test?\nOne only.", ["MRI", "<think>CT"], source="set", truth="B")


class Pool:
    """A pool of evaluation that keeps its first request."""

    def generate(self, requests):
        for request in requests:
            self.first = getattr(self, "first", request)
            yield request.key, [Completion(request.seed, "The answer is (B).", 5, False, "B", "statement")]


class Engines:
    """Rollout engines that keep the last request."""

    restarts = 0

    def submit(self, request):
        self.request = request

    def next_group(self):
        asked = self.request
        samples = [Sample([7], None, float(reward), False, False, 0) for reward in range(2)]
        return Group(asked.number, asked.prompt, asked.prompt_ids, asked.label, samples)


def ask_in_vote(config, prompts, folder):
    file = folder / "questions.jsonl"
    file.write_text(QUESTION.model_dump_json() + "\n", encoding="utf-8")
    with VoteLedger(folder / "voting", "policy", "sampling") as ledger:
        return VoteScheduler(config, QuestionFeed(file), ledger, prompts).next_request(8)


def ask_in_evaluation(config, prompts, folder):
    pool = Pool()
    paths = RunPaths(folder).evaluation
    evaluate_policy(pool, prompts, {"set": [QUESTION]}, config.evaluation, 1, paths, policy="p", settings=config.policy)
    return pool.first


def ask_in_rollout(config, prompts):
    stage, engines = config.training.stage1, Engines()
    loader = PromptLoader(lambda start: [(1, Example(QUESTION, "B"))], prompts, 10**6)
    plan, sampling = make_batch_plan(config, stage), make_sampling(config, stage)
    Sampler(plan, sampling, loader, engines, lambda doing: None).next_step()
    return engines.request


@pytest.mark.parametrize("preset", ["reason", "direct", "base"])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_all_steps_send_the_same_prompt(tmp_path, kind, preset):
    folder = tmp_path / "model"
    write_tokenizer(folder, kind)
    config = make_config(
        policy={"model": str(folder), "prompt": preset},
        evaluation={"generations": 1},
        training={"stage1": {"steps": 1, "prompts_per_step": 1, "samples_per_prompt": 2}, "ranks_per_node": 1},
    )
    prompts = make_prompt_renderer(load_tokenizer(folder, config.policy), config.policy)
    expected = prompts.render(QUESTION)
    vote = ask_in_vote(config, prompts, tmp_path)
    evaluation = ask_in_evaluation(config, prompts, tmp_path)
    rollout = ask_in_rollout(config, prompts)
    assert tuple(vote.prompt) == tuple(evaluation.prompt) == tuple(rollout.prompt_ids) == expected.ids
    assert vote.stop == evaluation.stop == rollout.sampling.stop == config.policy.prompt.stop
    assert tuple(make_sampling_params(rollout).stop) == config.policy.prompt.stop
    assert json.loads(rollout.label)["id"] == QUESTION.id
