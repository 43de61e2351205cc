"""Questions, answers and a pool that records its requests, for the tests of the evaluation."""

from __future__ import annotations

import random

from stream_parts import Tokenizer

from medssr_dist.config.schema import Evaluation, Policy
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.evaluation.policy_answers import PolicyAnswers
from medssr_dist.evaluation.protocol import evaluate_policy
from medssr_dist.evaluation.scores import Scores
from medssr_dist.evaluation.scoring import build_scores, collect_letters
from medssr_dist.inference.requests import Completion
from medssr_dist.run.paths import EvaluationPaths


class CharacterTokenizer(Tokenizer):
    """One token for each character, so that tests can read prompts."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": list(map(ord, text))}


def make_character_prompts(chat_template=None) -> PromptRenderer:
    return PromptRenderer(CharacterTokenizer(chat_template), load_prompt_form("direct"))


def read_prompt(request) -> str:
    return "".join(map(chr, request.prompt))


PROMPTS = make_character_prompts()
TINY = Policy(model="tiny", prompt="direct")
EVALUATION = Evaluation(generations=3, max_tokens=32)
TEXTS = ["one", "two", "three", "four"]
QUESTIONS = [
    Question.make(f"Question {i}", TEXTS[: 2 + i % 3], source="set", truth="A", rare=i == 0, rare_by="column")
    for i in range(5)
]


class RecordingPool:
    """A pool that answers with `reply(request, seed)`, in shuffled order, and can stop after some requests."""

    def __init__(self, reply, stops_after: int | None = None):
        self.reply, self.stops_after, self.requests = reply, stops_after, []

    def generate(self, requests):
        requests = list(requests)
        random.Random(0).shuffle(requests)
        for request in requests:
            if self.stops_after is not None and len(self.requests) == self.stops_after:
                raise KeyboardInterrupt
            self.requests.append(request)
            seeds = range(request.seed, request.seed + request.n)
            yield request.key, [Completion.from_text(request, s, self.reply(request, s), 4, False) for s in seeds]

    @property
    def second(self):
        """The requests of second passes."""
        return [request for request in self.requests if request.choices]


def answer_a(request, seed):
    return "A" if request.choices else "The answer is A."


def answer_second_pass_only(request, seed):
    return request.choices[-1] if request.choices else "I do not know"


def run_policy(
    folder, pool, benchmarks=None, evaluation=EVALUATION, random_seed=1, policy="p1", prompts=PROMPTS
) -> PolicyAnswers:
    benchmarks = {"set": QUESTIONS} if benchmarks is None else benchmarks
    paths = EvaluationPaths(folder)
    return evaluate_policy(pool, prompts, benchmarks, evaluation, random_seed, paths, policy=policy, settings=TINY)


def score_all(benchmarks, answers: dict[str, PolicyAnswers], evaluation=EVALUATION) -> Scores:
    letters = collect_letters(benchmarks, answers)
    return build_scores(benchmarks, answers, letters, evaluation, 1, dict.fromkeys(answers, 2.0))
