"""The judge: a second request about each question that passed the checks (`synthesis.judge`).

A language model scores the question from 1 to 5 for reasoning need, answerability and plausibility of the wrong
options. Each verdict is written to `verdicts.jsonl` before it is used, in the form of the journal of replies and under
the number of the question's request, so it is paid once. A question waits for its verdict; the questions behind it wait
too, so that the accepted ones stay in the order of the requests.

A verdict that cannot be read, or a request that was given up, is counted as "not judged"; `judge.not_judged` says
whether such a question is kept.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from medssr_dist.config.synthesis import Judge, Synthesis
from medssr_dist.data.records import Provenance, Question
from medssr_dist.data.thoughts import cut_thoughts
from medssr_dist.errors import InputError
from medssr_dist.run.paths import SynthesisPaths
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.synthesis.checks.reply_parts import Rejection
from medssr_dist.synthesis.client.budget import Spending
from medssr_dist.synthesis.journal import Journal, JournalEntry
from medssr_dist.synthesis.prompts import PASSAGE_HEADING, hash_messages, join_blocks, make_one_line, render_question
from medssr_dist.synthesis.synthesis_summary import JudgeSummary

CRITERIA = ("reasoning", "answerability", "plausibility")
QUESTION_HEADING = "[Question]"
VERDICT_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {name: {"type": "integer", "enum": [1, 2, 3, 4, 5]} for name in CRITERIA},
            "required": list(CRITERIA),
            "additionalProperties": False,
        },
    },
}
_SYSTEM = """\
You are a physician who reviews multiple-choice questions for board examinations. Solve the question first, then score \
it with whole numbers from 1 to 5.

reasoning: how much reasoning the right option needs. 1 = one recalled fact or one keyword is enough; 3 = two steps; \
5 = several steps that connect the findings.
answerability: whether exactly one option is right. 1 = several options or none can be right, or something needed is \
missing; 3 = one option is better than the others, with doubts; 5 = one option is right beyond doubt.
plausibility: how tempting the wrong options are. 1 = of another kind or obviously wrong; 3 = some are plausible; \
5 = each would be chosen by a reader who overlooks or misreads a finding.

Reply with one JSON object and nothing else: {"reasoning": 1-5, "answerability": 1-5, "plausibility": 1-5}"""
_WITH_PASSAGES = "Score the question above. The passages are what its author was given; the reader does not see them."
_ALONE = "Score the question above."


class VerdictScores(NamedTuple):
    """The scores of a verdict, 1 to 5. Example: VerdictScores(reasoning=4, answerability=5, plausibility=3)"""

    reasoning: int
    answerability: int
    plausibility: int


class NotJudged(NamedTuple):
    """Why a question has no scores. Example: NotJudged("no JSON object with the three scores")"""

    problem: str


def read_verdict(text: str) -> VerdictScores | NotJudged:
    """Read the scores in the reply of a judge: the last JSON object with all three, behind any thoughts."""
    found: VerdictScores | NotJudged = NotJudged("no JSON object with the three scores")
    for candidate in re.findall(r"\{[^{}]*\}", cut_thoughts(text).text):
        try:
            values = json.loads(candidate)
        except ValueError:
            continue
        if all(name in values for name in CRITERIA):
            found = _check_scores([values[name] for name in CRITERIA])
    return found


def _check_scores(values: list[object]) -> VerdictScores | NotJudged:
    for name, value in zip(CRITERIA, values, strict=True):
        if isinstance(value, bool) or str(value) not in ("1", "2", "3", "4", "5"):
            return NotJudged(f"{name} = {value!r} is not a whole number from 1 to 5")
    return VerdictScores(*(int(str(value)) for value in values))


class VerdictRequest(NamedTuple):
    """A request for a verdict. Example: VerdictRequest(messages=[...], provenance=Provenance(index=7, ...))"""

    messages: list[dict[str, str]]
    provenance: Provenance


class QuestionJudge:
    """Finds the verdict of each question, and decides by it. `waiting` holds the requests that are to be sent.

    Args:
        passage_text: passage id -> text.

    Raises:
        InputError: from `find`, if the stored verdict is on another question or by another judge.
    """

    def __init__(self, synthesis: Synthesis, journal: Journal, passage_text: Callable[[str], str]):
        assert synthesis.judge is not None
        self.waiting: deque[VerdictRequest] = deque()
        self.journal = journal
        self._judge: Judge = synthesis.judge
        self._asked = [synthesis.judge_models, self._judge.temperature, self._judge.max_tokens]
        self._teacher = ", ".join(synthesis.judge_models)
        self._passage_text = passage_text
        self._scores: dict[str, Counter[int]] = {name: Counter() for name in CRITERIA}
        self._problems: Counter[str] = Counter()

    def submit(self, question: Question) -> None:
        """Queue the request for the verdict on `question`, unless the journal holds it."""
        request = self._build(question)
        if request.provenance.index not in self.journal:
            self.waiting.append(request)

    def find(self, question: Question) -> VerdictScores | NotJudged | None:
        """Return the verdict on `question`; None if it has not arrived."""
        provenance = self._build(question).provenance
        if provenance.index not in self.journal:
            return None
        entry = self.journal.read(provenance.index)
        if entry.provenance.prompt_hash != provenance.prompt_hash:
            raise InputError(
                f"{self.journal.path} holds verdicts on other questions, or of another judge (first at request "
                f"{provenance.index}); put the settings back, or use another --run-dir"
            )
        if entry.reply is None:
            return NotJudged(f"{entry.gave_up}: {entry.detail}")
        return read_verdict(entry.reply)

    def decide(self, verdict: VerdictScores | NotJudged) -> Rejection | None:
        """Count `verdict`; return why its question is refused, or None if it is kept."""
        if isinstance(verdict, NotJudged):
            self._problems[verdict.problem] += 1
            return Rejection("not_judged", verdict.problem) if self._judge.not_judged == "refuse" else None
        for name, score in verdict._asdict().items():
            self._scores[name][score] += 1
        for name, score in verdict._asdict().items():
            least = getattr(self._judge, name)
            if score < least:
                return Rejection(f"judge_{name}", f"the judge gives {score} of 5; at least {least} is asked for")
        return None

    def summarize(self) -> JudgeSummary:
        """Return the counts of the verdicts used so far."""
        scores = {name: {score: counts[score] for score in range(1, 6)} for name, counts in self._scores.items()}
        return JudgeSummary(
            models=self._teacher.split(", "),
            judged=self._scores["reasoning"].total(),
            not_judged=self._problems.total(),
            not_judged_kept=self._judge.not_judged == "keep",
            least={name: getattr(self._judge, name) for name in CRITERIA},
            scores=scores,
        )

    def _build(self, question: Question) -> VerdictRequest:
        assert question.provenance is not None
        messages = build_verdict_messages(question, map(self._passage_text, question.provenance.passage_ids))
        changes = {"prompt_hash": hash_messages(messages, self._asked), "teacher": self._teacher, "answered_by": ""}
        return VerdictRequest(messages, question.provenance.model_copy(update=changes))


def build_verdict_messages(question: Question, passages: Iterable[str] = ()) -> list[dict[str, str]]:
    """Return the chat messages that ask for the verdict on `question`; they do not say which option is right."""
    blocks = [f"{QUESTION_HEADING}\n{render_question(question)}"]
    if knowledge := join_blocks(PASSAGE_HEADING, [make_one_line(text) for text in passages]):
        blocks.append(knowledge)
    blocks.append(_WITH_PASSAGES if knowledge else _ALONE)
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "\n\n".join(blocks)}]


def open_verdicts(paths: SynthesisPaths, spending: Spending) -> Journal:
    """Open the journal of verdicts and count the cost of those that it holds."""

    def count(entry: JournalEntry) -> None:
        spending.count(entry.model, entry.prompt_tokens, entry.completion_tokens)
        bar.update()

    with ProgressBar(
        desc="synthesize: reading the verdicts", unit="verdict", disable=not paths.verdicts.exists()
    ) as bar:
        return Journal(paths.verdicts, count)
