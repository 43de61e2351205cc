"""The forms in which the policy sees a question: an order of its options, and a stem.

`voting.shuffle_options`: a question with n options is shown in n orders, a drawn one and its rotations. Vote i takes
order i mod n, so each option stands at each letter in the same number of votes (give or take one), and a preference
for a letter favours no option (cyclic permutations of Zheng et al., arXiv 2309.03882). Options that refer to others by
their place, such as 'all of the above', keep the question's order.

`voting.paraphrases`: further stems of the questions, in a file. The stem changes after each round of the orders.

The form of a vote depends on `runtime.random_seed`, the question and the place of its seed alone, and is stored with
it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from medssr_dist.data.jsonl import enumerate_rows
from medssr_dist.data.option_references import find_reference
from medssr_dist.data.records import LETTERS, Question, hash_content, parse_record
from medssr_dist.errors import InputError

OWN_ORDER = ""


@dataclass(frozen=True, slots=True)
class QuestionForm:
    """One form. Example: QuestionForm(order="CABD", paraphrase=0): option C is shown as A, and the stem is its own.

    Attributes:
        order: letters of the options in the order shown; "" = the question's own.
        paraphrase: number of the stem; 0 = the question's own.
        shown: the question as the policy sees it; its id is that of the question itself.
    """

    order: str
    paraphrase: int
    shown: Question

    def restore(self, letter: str | None) -> str | None:
        """Return the question's own letter of an option that is shown as `letter`; None for None."""
        return self.order[LETTERS.index(letter)] if letter and self.order else letter


class _Paraphrased(BaseModel):
    """A line of the file of paraphrases. Example: _Paraphrased(id="9f0c...", stems=("A man of 60 years ...",))"""

    model_config = ConfigDict(extra="forbid")
    id: str
    stems: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Paraphrases:
    """The content of a file of paraphrases.

    Example: Paraphrases(stems={"9f0c...": ("A man of 60 years ...",)}, hash="77ab...")

    Attributes:
        stems: id of a question -> its further stems.
        hash: of all of them; "" where there is no file.
    """

    stems: Mapping[str, tuple[str, ...]]
    hash: str

    @classmethod
    def read(cls, path: str) -> Paraphrases:
        """Read the file; "" = none. Raises InputError where it is absent, broken, or has a stem that is empty."""
        if not path:
            return cls({}, "")
        file = Path(path).expanduser()
        if not file.is_file():
            raise InputError(f"voting.paraphrases = {path!r} is no file; correct the path, or remove the key")
        stems: dict[str, tuple[str, ...]] = {}
        with open(file, "rb") as lines:
            for number, row in enumerate_rows(lines, file):
                where = f"{file} line {number}"
                found = parse_record(_Paraphrased, row, where)
                if found.id in stems:
                    raise InputError(f"{where}: question {found.id} has a line already; put its stems into one line")
                if not all(stem.strip() for stem in found.stems):
                    raise InputError(f"{where}: a stem of question {found.id} is empty; remove it")
                stems[found.id] = found.stems
        return cls(stems, hash_content(stems))


NO_PARAPHRASES = Paraphrases({}, "")


def list_forms(
    question: Question, shuffle: bool, paraphrases: Paraphrases, random_seed: int
) -> tuple[QuestionForm, ...]:
    """Return the forms of a question in the order in which its votes take them, again and again."""
    stems = (question.stem, *paraphrases.stems.get(question.id, ()))
    orders = _rotate_options(question, random_seed) if shuffle else (OWN_ORDER,)
    return tuple(
        QuestionForm(order, number, _show(question, stem, order))
        for number, stem in enumerate(stems)
        for order in orders
    )


def _rotate_options(question: Question, random_seed: int) -> tuple[str, ...]:
    if find_reference(question.options.values()):
        return (OWN_ORDER,)
    letters = list(question.options)
    random.Random(f"{random_seed}:options:{question.id}").shuffle(letters)
    drawn = "".join(letters)
    return tuple(drawn[first:] + drawn[:first] for first in range(len(drawn)))


def _show(question: Question, stem: str, order: str) -> Question:
    if stem == question.stem and order == OWN_ORDER:
        return question
    options = {LETTERS[place]: question.options[letter] for place, letter in enumerate(order or question.options)}
    return question.model_copy(update={"stem": stem, "options": options, "truth": None})
