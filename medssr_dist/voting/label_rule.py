"""The rule that `voting.rule` names: found by name, tried before a vote is paid for, and checked in what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config.label_settings import MAJORITY
from medssr_dist.data.records import Question, Vote
from medssr_dist.errors import InputError
from medssr_dist.runtime.failures import write_traceback
from medssr_dist.runtime.user_functions import load_user_function
from medssr_dist.voting.question_votes import LabelRule, OptionShares, QuestionVotes
from medssr_dist.voting.rules.agreement import count_forms
from medssr_dist.voting.rules.length import weigh_by_length
from medssr_dist.voting.rules.logprob import weigh_by_logprob
from medssr_dist.voting.rules.majority import count_alike

_KEY = "voting.rule"
_BUILT_IN: dict[str, LabelRule] = {
    MAJORITY: count_alike,
    "length": weigh_by_length,
    "logprob": weigh_by_logprob,
    "agreement": count_forms,
}
_ROUNDING = 1e-9
_SAMPLE = Question.make("Which organ makes insulin?", ["the pancreas", "the spleen", "the liver"], source="sample")


@dataclass(frozen=True)
class NamedRule:
    """A rule and its name. Example: NamedRule("length", weigh_by_length)"""

    name: str
    function: LabelRule

    def share(self, question: Question, votes: list[Vote], folder: Path | None = None) -> OptionShares:
        """Return the shares that the rule gives the options, without options of no share.

        Args:
            folder: run directory, for the traceback of a rule that raises.

        Raises:
            InputError: the rule raises, or returns something else than shares of the options.
        """
        asked = question.model_copy(update={"truth": None})
        found = QuestionVotes(asked, tuple(sorted(votes, key=lambda vote: vote.seed)))
        try:
            return _check_shares(self.function(found), question)
        except Exception as error:
            place = write_traceback(error, folder)
            raise InputError(
                f"{_KEY} = {self.name} raised {type(error).__name__}: {error} on question {question.id} "
                f"({question.stem[:40]!r}); the traceback is in {place}; correct the rule, and run the same command "
                "again"
            ) from error


def load_label_rule(name: str) -> NamedRule:
    """Return the rule that `voting.rule` names, after a trial on made-up votes.

    Raises:
        InputError: it cannot be imported, it raises, or it returns something else than shares.
    """
    rule = NamedRule(name, _BUILT_IN.get(name) or load_user_function(name, _KEY))
    rule.share(_SAMPLE, [_make_sample_vote(seed, answer) for seed, answer in enumerate(("A", "B", "A", None))])
    rule.share(_SAMPLE, [_make_sample_vote(0, None)])
    return rule


def _make_sample_vote(seed: int, answer: str | None) -> Vote:
    return Vote(
        question_id=_SAMPLE.id,
        policy="sample",
        sampling="sample",
        seed=seed,
        answer=answer,
        method="statement" if answer else None,
        text=f"The answer is ({answer})." if answer else "I do not know.",
        tokens=6,
        truncated=False,
        logprob=-0.5,
    )


def _check_shares(shares: OptionShares, question: Question) -> OptionShares:
    """Return the shares above 0. Raises TypeError or ValueError where they are none."""
    checked = {letter: float(share) for letter, share in shares.items()}
    if unknown := sorted(map(str, checked.keys() - question.options.keys())):
        raise ValueError(f"it gives a share to {unknown[0]!r}, but the options are {', '.join(question.options)}")
    for letter, share in checked.items():
        if not (math.isfinite(share) and 0 <= share <= 1 + _ROUNDING):
            raise ValueError(f"the share of {letter} is {share}, not between 0 and 1")
    if sum(checked.values()) > 1 + _ROUNDING:
        raise ValueError(f"the shares sum to {sum(checked.values()):.6g}, more than 1")
    return {letter: min(1.0, share) for letter, share in checked.items() if share > 0}
