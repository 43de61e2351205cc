"""The paper's evaluation protocol: n sampled generations per question, then a second pass for missing answers.

First pass: one request per question with n samples (the paper: temperature 0.6, top-p 0.95, top-k 20). Second pass:
a generation without a recognisable answer is continued after "The answer is (", with greedy decoding of one token
that must be an option letter of this question. (The authors' script allows all letters of the data set.)

Each answer is appended to a ledger as soon as it arrives. A letter found in the second pass is appended as a second
line with the same key, and the later line is the valid one. A killed evaluation therefore repeats no request of
either pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pydantic import Field
from tqdm import tqdm

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question, Record, hash_content, parse_record
from medssr_dist.errors import Stopped
from medssr_dist.inference.requests import Completion, SampleRequest

SECOND_PASS = "\n\nThe answer is ("


class Pool(Protocol):
    """The part of an engine pool (inference.pool.EnginePool) that evaluation uses."""

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[tuple[str, list[Completion]]]: ...


class Answer(Record):
    """One generation of one policy for one question, a line of answers.jsonl.

    The key is (policy, question_id, sampling, generation).

    Example: Answer(question_id="ab..", policy="3f..", sampling="77..", generation=2, seed=1812, letter="B",
    method="statement", text="... The answer is (B).", tokens=212, truncated=False)
    """

    question_id: str
    policy: str = Field(description="fingerprint of the evaluated policy")
    sampling: str = Field(description="hash of the sampling parameters, the random seed and the prompt format")
    generation: int = Field(description="0..n-1")
    seed: int
    letter: str | None = Field(description="answer letter; None if no answer was found so far")
    method: str | None = Field(description="pattern that found the letter, 'second_pass', or None")
    text: str = Field(description="first-pass text")
    tokens: int = Field(description="generated tokens of both passes")
    truncated: bool = Field(description="the first pass reached the token limit")
    second_pass: bool = Field(False, description="the second pass was run for this answer")


def evaluate_policy(
    pool: Pool,
    prompts: PromptRenderer,
    questions: list[Question],
    evaluation: Evaluation,
    random_seed: int,
    ledger: Path,
    *,
    policy: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """Sample `evaluation.generations` answers per question; answers in the ledger are reused.

    Args:
        pool: engines that serve the policy.
        prompts: makes the policy's prompts.
        questions: those of all benchmarks; a question that occurs twice is answered once.
        ledger: JSONL file to append to; several policies may share it.
        policy: fingerprint of the policy, a part of the key.
        should_stop: called after each request; True raises Stopped.

    Returns:
        n answers per distinct question, in the order of `questions`, generations 0..n-1.

    Raises:
        Stopped: `should_stop` returned True. All answers so far are on disk.
        InputError: a line of the ledger is not a valid answer, or the disk is full.
    """
    with JsonlLedger(ledger) as opened:
        by_id = {question.id: question for question in questions}
        session = _Session(pool, prompts, by_id, evaluation, random_seed, policy, opened, should_stop)
        session.resume()
        session.run_first_pass()
        session.run_second_pass()
    return [session.answers[key] for key in session.list_wanted()]


def hash_sampling(evaluation: Evaluation, prompts: PromptRenderer, random_seed: int) -> str:
    """Return a hash of everything, except policy and question, that an answer depends on.

    The number of generations is left out: generation g is the same answer for every n.
    """
    parameters = evaluation.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"})
    return hash_content([parameters, random_seed, prompts.identity, prompts.chat_template, SECOND_PASS])


@dataclass
class _Session:
    """One call of `evaluate_policy`: the answers so far and the two passes that add the missing ones."""

    pool: Pool
    prompts: PromptRenderer
    questions: dict[str, Question]  # by id
    evaluation: Evaluation
    random_seed: int
    policy: str
    ledger: JsonlLedger
    should_stop: Callable[[], bool]
    answers: dict[tuple[str, int], Answer] = field(default_factory=dict)  # by question id and generation

    @cached_property
    def sampling(self) -> str:
        return hash_sampling(self.evaluation, self.prompts, self.random_seed)

    def list_wanted(self) -> list[tuple[str, int]]:
        """Return (question id, generation) of every wanted answer."""
        return [(question_id, g) for question_id in self.questions for g in range(self.evaluation.generations)]

    def resume(self) -> None:
        """Load the answers from the ledger; of two lines with the same key the later one is valid."""
        for row in read_jsonl(self.ledger.path):
            if row.get("policy") == self.policy and row.get("sampling") == self.sampling:
                answer = parse_record(Answer, row, str(self.ledger.path))
                self.answers[answer.question_id, answer.generation] = answer

    def run_first_pass(self) -> None:
        """Sample the missing generations, with one request per question."""
        missing: dict[str, list[int]] = {}
        for question_id, generation in self.list_wanted():
            if (question_id, generation) not in self.answers:
                missing.setdefault(question_id, []).append(generation)
        requests = [self._make_request(self.questions[key], generations[0]) for key, generations in missing.items()]
        for key, completions in self._generate(requests, "evaluate"):
            answers = [self._make_answer(self.questions[key], completion) for completion in completions]
            self._keep(*(answer for answer in answers if answer.generation in missing[key]))

    def run_second_pass(self) -> None:
        """Ask for a letter, once, for every answer that has none."""
        unanswered = [self.answers[key] for key in self.list_wanted()]
        unanswered = [answer for answer in unanswered if answer.letter is None and not answer.second_pass]
        waiting = {f"{answer.question_id}/{answer.generation}": answer for answer in unanswered}
        requests = [self._make_second_request(key, answer) for key, answer in waiting.items()]
        for key, (completion,) in self._generate(requests, "second pass"):
            self._keep(_add_letter(waiting[key], completion, self.questions[waiting[key].question_id]))

    def _keep(self, *answers: Answer) -> None:
        self.ledger.append(*(answer.model_dump() for answer in answers))
        self.answers.update({(answer.question_id, answer.generation): answer for answer in answers})

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
        )

    def _make_second_request(self, key: str, answer: Answer) -> SampleRequest:
        question = self.questions[answer.question_id]
        prompt = self.prompts.extend(self.prompts.render(question), answer.text, SECOND_PASS)
        return SampleRequest(key=key, prompt=prompt.ids, temperature=0.0, max_tokens=1, choices=tuple(question.options))

    def _make_answer(self, question: Question, completion: Completion) -> Answer:
        return Answer(
            question_id=question.id,
            policy=self.policy,
            sampling=self.sampling,
            generation=completion.seed - self._base_seed(question.id),
            seed=completion.seed,
            letter=completion.answer,
            method=completion.method,
            text=completion.text,
            tokens=completion.tokens,
            truncated=completion.truncated,
        )

    def _generate(self, requests: list[SampleRequest], name: str) -> Iterator[tuple[str, list[Completion]]]:
        if requests:
            for done in tqdm(self.pool.generate(requests), total=len(requests), desc=name, unit="request"):
                yield done
                if self.should_stop():
                    raise Stopped("evaluation stopped; run the same command again to get the missing answers")


def _add_letter(answer: Answer, completion: Completion, question: Question) -> Answer:
    """Return `answer` after its second pass; the letter stays None if the context had no room for another token."""
    letter = completion.text.strip()
    found = letter in question.options
    return answer.model_copy(
        update={
            "letter": letter if found else None,
            "method": "second_pass" if found else None,
            "tokens": answer.tokens + completion.tokens,
            "second_pass": True,
        }
    )
