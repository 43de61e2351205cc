"""The evaluation protocol: n sampled generations per question, then a second pass for missing answers.

First pass: one request per question with n samples (the paper: temperature 0.6, top-p 0.95, top-k 20). Second pass: a
generation in which a protocol reads no letter is continued greedily by one token, which must be one of the protocol's
letters. The protocols (`reading_rules.py`) find no letter in different answers and allow different letters, so each has
its own second passes.

Answers and second passes are appended to a file each as soon as they arrive, one line per key, and none is requested
again: not after a kill, and not when reading rules change. Letters are not stored with the texts: they are read anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Protocol

from medssr_dist.config.schema import Evaluation, Policy
from medssr_dist.data.checksums import warn_of_damage
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question, hash_content, parse_record
from medssr_dist.errors import Stopped
from medssr_dist.evaluation.paper_rule import list_gold_letters
from medssr_dist.evaluation.policy_answers import Answer, PolicyAnswers, SecondPass, SecondPassKey
from medssr_dist.evaluation.reading_rules import SECOND_PASS, ReadingRule, list_rules
from medssr_dist.inference.requests import Completion, SampleRequest
from medssr_dist.run.paths import EvaluationPaths
from medssr_dist.runtime.progress_bar import ProgressBar


class Pool(Protocol):
    """The part of an engine pool (inference.pool.EnginePool) that evaluation uses."""

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[tuple[str, list[Completion]]]: ...


def evaluate_policy(
    pool: Pool,
    prompts: PromptRenderer,
    benchmarks: Mapping[str, Sequence[Question]],
    evaluation: Evaluation,
    random_seed: int,
    paths: EvaluationPaths,
    *,
    policy: str,
    settings: Policy,
    should_stop: Callable[[], bool] = lambda: False,
) -> PolicyAnswers:
    """Sample `evaluation.generations` answers per question; those on disk are reused.

    Args:
        pool: engines that serve the policy.
        prompts: makes the policy's prompts.
        benchmarks: name -> questions; a question that occurs twice is answered once.
        paths: files to append to; several policies share them.
        policy: fingerprint of the policy, a part of the key.
        settings: section policy of the config. The paper's rule has a form for Gemma's models.
        should_stop: called after each request; True raises Stopped.

    Raises:
        Stopped: `should_stop` returned True. All answers so far are on disk.
        InputError: a line of a file is not valid, or the disk is full.
    """
    found = PolicyAnswers(list_rules(settings.model), evaluation.generations)
    with JsonlLedger(paths.answers) as answers, JsonlLedger(paths.second_passes) as second_passes:
        session = _Session(
            pool,
            benchmarks,
            prompts,
            evaluation,
            hash_sampling(evaluation, settings, prompts, random_seed),
            random_seed,
            policy,
            found,
            answers,
            second_passes,
            should_stop,
        )
        session.resume()
        session.run_first_pass()
        session.run_second_pass()
    return found


def hash_sampling(evaluation: Evaluation, policy: Policy, prompts: PromptRenderer, random_seed: int) -> str:
    """Return a hash of everything, except the weights and the question, that an answer depends on.

    The number of generations is left out: generation g is the same answer for every n. The wording of the second pass
    is in it for the lines of second_pass.jsonl.
    """
    parameters = evaluation.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"})
    parameters |= policy.model_dump(include={"max_model_len", "dtype"})
    return hash_content([parameters, random_seed, prompts.identity, prompts.chat_template, SECOND_PASS])


@dataclass
class _Session:
    """One call of `evaluate_policy`: the answers so far and the two passes that add the missing ones."""

    pool: Pool
    benchmarks: Mapping[str, Sequence[Question]]
    prompts: PromptRenderer
    evaluation: Evaluation
    sampling: str
    random_seed: int
    policy: str
    found: PolicyAnswers
    answer_file: JsonlLedger
    second_pass_file: JsonlLedger
    should_stop: Callable[[], bool]

    @cached_property
    def questions(self) -> dict[str, Question]:
        """By id."""
        return {question.id: question for questions in self.benchmarks.values() for question in questions}

    def resume(self) -> None:
        """Load what the files hold of this policy with this sampling."""
        for row in self._read_own(self.answer_file):
            self._add_answer(row)
        for row in self._read_own(self.second_pass_file):
            self._add_second_pass(parse_record(SecondPass, row, str(self.second_pass_file.path)))

    def _read_own(self, file: JsonlLedger) -> Iterator[dict[str, Any]]:
        own = (self.policy, self.sampling)
        return (row for row in read_jsonl(file.path, warn_of_damage) if (row.get("policy"), row.get("sampling")) == own)

    def _add_answer(self, row: dict[str, Any]) -> None:
        """Add a line of answers.jsonl.

        Older versions wrote letters into it, and a second line with the letter of the second pass: that one is kept.
        """
        older = {key: row.pop(key, None) for key in ("letter", "method", "second_pass")}
        answer = parse_record(Answer, row, str(self.answer_file.path))
        if older["second_pass"]:
            question = self.questions.get(answer.question_id)
            shared = answer.model_dump(include={"question_id", "policy", "sampling", "generation"})
            choices = "".join(question.options) if question else ""
            found = {"letter": older["letter"], "tokens": 0}
            self._add_second_pass(SecondPass(**shared, **found, protocol="ours", choices=choices))
        self.found.first.setdefault((answer.question_id, answer.generation), answer)

    def _add_second_pass(self, found: SecondPass) -> None:
        key = SecondPassKey(found.question_id, found.generation, found.protocol, found.choices)
        self.found.second[key] = found

    def run_first_pass(self) -> None:
        """Sample the missing generations, with one request per question."""
        missing: dict[str, list[int]] = {}
        for question_id in self.questions:
            for generation in range(self.evaluation.generations):
                if (question_id, generation) not in self.found.first:
                    missing.setdefault(question_id, []).append(generation)
        requests = [self._make_request(self.questions[key], generations[0]) for key, generations in missing.items()]
        for key, completions in self._generate(requests, "evaluate"):
            answers = [self._make_answer(self.questions[key], completion) for completion in completions]
            answers = [answer for answer in answers if answer.generation in missing[key]]
            self.answer_file.append(*(answer.model_dump() for answer in answers))
            self.found.first.update({(key, answer.generation): answer for answer in answers})

    def run_second_pass(self) -> None:
        """Ask for a letter, once, for every answer in which a protocol reads none."""
        wanted = {"/".join(map(str, key)): key for key in self._list_second_passes()}
        rules = {rule.name: rule for rule in self.found.rules}
        requests = [self._make_second_request(name, key, rules[key.protocol]) for name, key in wanted.items()]
        for name, (completion,) in self._generate(requests, "second pass"):
            found = self._make_second_pass(wanted[name], completion)
            self.second_pass_file.append(found.model_dump())
            self._add_second_pass(found)

    def _list_second_passes(self) -> Iterator[SecondPassKey]:
        """Yield the second passes that are missing. A question in two benchmarks may need two of them."""
        for questions in self.benchmarks.values():
            gold_letters = list_gold_letters(questions)
            for question, rule in product(questions, self.found.rules):
                choices = "".join(rule.list_choices(question, gold_letters))
                for g in range(self.evaluation.generations):
                    key = SecondPassKey(question.id, g, rule.name, choices)
                    if key not in self.found.second and self.found.read(rule, question, g) is None:
                        yield key

    def _base_seed(self, question_id: str) -> int:
        """Return the seed of a question's generation 0, which depends on no other question."""
        return int(hash_content([self.random_seed, question_id], 7), 16)

    def _make_request(self, question: Question, first: int) -> SampleRequest:
        """Return a request for generations `first` to n-1.

        Missing generations are the last ones: a torn write loses the end of the file, and a larger n adds generations.
        """
        return SampleRequest(
            key=question.id,
            prompt=self.prompts.render(question).ids,
            options=question.options,
            n=self.evaluation.generations - first,
            seed=self._base_seed(question.id) + first,
            temperature=self.evaluation.temperature,
            top_p=self.evaluation.top_p,
            top_k=self.evaluation.top_k,
            max_tokens=self.evaluation.max_tokens,
            stop=self.prompts.stop,
            opening=self.prompts.opening,
        )

    def _make_second_request(self, name: str, key: SecondPassKey, rule: ReadingRule) -> SampleRequest:
        prompt = self.prompts.render(self.questions[key.question_id])
        text = self.found.first[key.question_id, key.generation].text
        reply = text.removeprefix(self.prompts.opening)
        longer = self.prompts.extend(prompt, reply, rule.continue_reply(text, self.prompts))
        return SampleRequest(key=name, prompt=longer.ids, temperature=0.0, max_tokens=1, choices=tuple(key.choices))

    def _make_answer(self, question: Question, completion: Completion) -> Answer:
        return Answer(
            question_id=question.id,
            policy=self.policy,
            sampling=self.sampling,
            generation=completion.seed - self._base_seed(question.id),
            seed=completion.seed,
            text=completion.text,
            tokens=completion.tokens,
            truncated=completion.truncated,
        )

    def _make_second_pass(self, key: SecondPassKey, completion: Completion) -> SecondPass:
        """The letter is None if the context had no room for another token."""
        letter = completion.text.strip()
        return SecondPass(
            **key._asdict(),
            policy=self.policy,
            sampling=self.sampling,
            letter=letter if letter and letter in key.choices else None,
            tokens=completion.tokens,
        )

    def _generate(self, requests: list[SampleRequest], name: str) -> Iterator[tuple[str, list[Completion]]]:
        if requests:
            for done in ProgressBar(self.pool.generate(requests), total=len(requests), desc=name, unit="request"):
                yield done
                if self.should_stop():
                    raise Stopped("evaluation stopped; run the same command again to get the missing answers")
