"""The paper's evaluation protocol: n generations a question, then a second pass for those without an answer.

First pass: one request with n samples (temperature 0.6, top-p 0.95, top-k 20 in the paper). Second pass:
a generation in which no answer is found is continued with "The answer is (", greedily, restricted to one
token: the letters of that very question (the authors' script allows the letters of the whole data set).

Every answer goes to an append-only ledger as it comes. An answer found in the second pass is a second line
with the same key, and the later line counts; so a killed evaluation asks nothing twice, in either pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from pydantic import Field
from tqdm import tqdm

from medssr_dist.config.schema import Evaluation
from medssr_dist.data.answers import INSTRUCTION, chat_prompt
from medssr_dist.data.jsonl import JsonlLedger, read_jsonl
from medssr_dist.data.records import Question, Record, content_hash, parse_record
from medssr_dist.errors import Stopped
from medssr_dist.inference.requests import Completion, SampleRequest

SECOND_PASS = "\n\nThe answer is ("


class Pool(Protocol):
    """What evaluation needs of an engine pool (runtime.pool.EnginePool)."""

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[tuple[str, list[Completion]]]: ...


class Answer(Record):
    """One generation of one policy on one question. Key: (policy, question_id, sampling, generation).

    Example: Answer(question_id="ab..", policy="3f..", sampling="77..", generation=2, seed=1812, letter="B",
    method="statement", text="... The answer is (B).", tokens=212, truncated=False)
    """

    question_id: str
    policy: str = Field(description="fingerprint of the evaluated policy")
    sampling: str = Field(description="hash of the sampling parameters, the random seed and the prompt form")
    generation: int = Field(description="0..n-1")
    seed: int
    letter: str | None = Field(description="answer letter; None if still without one")
    method: str | None = Field(description="form it was found in, 'second_pass', or None")
    text: str = Field(description="first-pass text")
    tokens: int = Field(description="generated tokens, both passes")
    truncated: bool = Field(description="the first pass hit the token limit")
    second_pass: bool = Field(False, description="asked again, restricted to the option letters")


def evaluate_policy(
    pool: Pool,
    tokenizer,
    questions: list[Question],
    evaluation: Evaluation,
    random_seed: int,
    ledger: Path,
    *,
    policy: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """Answer every question `evaluation.generations` times; what the ledger holds is not asked again.

    Args:
        pool: engines serving the policy.
        tokenizer: the policy's tokenizer, for its chat template.
        questions: of all benchmarks together; a question that occurs twice is asked once.
        ledger: JSONL file, appended to; several policies may share it.
        policy: fingerprint of the policy, part of the key.
        should_stop: asked after each request; True raises Stopped, with all answers so far on disk.

    Returns:
        n answers a distinct question, in the order of `questions`, generations 0..n-1.
    """
    with JsonlLedger(ledger) as book:
        by_id = {question.id: question for question in questions}
        session = _Session(pool, tokenizer, by_id, evaluation, random_seed, policy, book, should_stop)
        session.resume()
        session.first_pass()
        session.second_pass()
    return [session.answers[key] for key in session.wanted()]


def hash_sampling(evaluation: Evaluation, tokenizer, random_seed: int) -> str:
    """Hash of all that shapes an answer beside policy and question. n is no part: generation g is the same."""
    parameters = evaluation.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"})
    return content_hash([parameters, random_seed, INSTRUCTION, tokenizer.chat_template, SECOND_PASS])


class _Session:
    """One call of `evaluate_policy`: the answers so far, and the two passes that complete them."""

    def __init__(
        self,
        pool: Pool,
        tokenizer,
        questions: dict[str, Question],
        evaluation: Evaluation,
        random_seed: int,
        policy: str,
        book: JsonlLedger,
        should_stop: Callable[[], bool],
    ):
        self.pool, self.tokenizer, self.questions, self.book = pool, tokenizer, questions, book
        self.evaluation, self.random_seed, self.policy = evaluation, random_seed, policy
        self.should_stop = should_stop
        self.sampling = hash_sampling(evaluation, tokenizer, random_seed)
        self.answers: dict[tuple[str, int], Answer] = {}

    def wanted(self) -> list[tuple[str, int]]:
        """(question id, generation) of every answer to be had."""
        return [(question_id, g) for question_id in self.questions for g in range(self.evaluation.generations)]

    def resume(self) -> None:
        """Take up the answers that the ledger holds; of two lines with one key the later counts."""
        for row in read_jsonl(self.book.path):
            if row.get("policy") == self.policy and row.get("sampling") == self.sampling:
                answer = parse_record(Answer, row, str(self.book.path))
                self.answers[answer.question_id, answer.generation] = answer

    def first_pass(self) -> None:
        missing: dict[str, list[int]] = {}
        for question_id, generation in self.wanted():
            if (question_id, generation) not in self.answers:
                missing.setdefault(question_id, []).append(generation)
        requests = [self._request(self.questions[key], generations[0]) for key, generations in missing.items()]
        for key, completions in self._generate(requests, "evaluate"):
            answers = [self._first_answer(self.questions[key], completion) for completion in completions]
            self._keep(*(answer for answer in answers if answer.generation in missing[key]))

    def second_pass(self) -> None:
        unanswered = [self.answers[key] for key in self.wanted()]
        unanswered = [answer for answer in unanswered if answer.letter is None and not answer.second_pass]
        waiting = {f"{answer.question_id}/{answer.generation}": answer for answer in unanswered}
        requests = [self._second_request(key, answer) for key, answer in waiting.items()]
        for key, (completion,) in self._generate(requests, "second pass"):
            self._keep(_second_answer(waiting[key], completion, self.questions[waiting[key].question_id]))

    def _keep(self, *answers: Answer) -> None:
        self.book.append(*(answer.model_dump() for answer in answers))
        self.answers.update({(answer.question_id, answer.generation): answer for answer in answers})

    def _base_seed(self, question_id: str) -> int:
        """Seed of a question's generation 0; it depends on neither order nor what else is asked."""
        return int(content_hash([self.random_seed, question_id], 7), 16)

    def _request(self, question: Question, first: int) -> SampleRequest:
        """One request for the generations from `first` on: a torn write loses the last ones, n may grow."""
        return SampleRequest(
            key=question.id,
            prompt=chat_prompt(self.tokenizer, question),
            options=question.options,
            n=self.evaluation.generations - first,
            seed=self._base_seed(question.id) + first,
            temperature=self.evaluation.temperature,
            top_p=self.evaluation.top_p,
            top_k=self.evaluation.top_k,
            max_tokens=self.evaluation.max_tokens,
        )

    def _second_request(self, key: str, answer: Answer) -> SampleRequest:
        question = self.questions[answer.question_id]
        prompt = chat_prompt(self.tokenizer, question) + answer.text + SECOND_PASS
        return SampleRequest(key=key, prompt=prompt, temperature=0.0, max_tokens=1, choices=tuple(question.options))

    def _first_answer(self, question: Question, completion: Completion) -> Answer:
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
                    raise Stopped("evaluation stopped; the same command asks for the answers that are missing")


def _second_answer(answer: Answer, completion: Completion, question: Question) -> Answer:
    """`answer` with the letter of the second pass; still None if the context had no room for one."""
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
