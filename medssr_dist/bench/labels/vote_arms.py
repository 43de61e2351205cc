"""The votes that `medssr bench labels` analyses: the mini policy on questions with a known answer, in three ways.

plain: as the questions are. shuffled: `voting.shuffle_options`. paraphrased: with STEMS - 1 further stems of the same
patient (age, sex and findings are the same, the sentences differ).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config.load import load_config
from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import LETTERS, Question, Vote
from medssr_dist.errors import InputError
from medssr_dist.inference.pool import EnginePool
from medssr_dist.knowledge.mini_world import EVALUATION, load_mini_world, make_mini_question
from medssr_dist.knowledge.vignettes import write_stem
from medssr_dist.run.paths import VotingPaths
from medssr_dist.run.stream import QuestionFeed, has_ended, mark_end
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer, resolve_model
from medssr_dist.runtime.progress_bar import ProgressBar
from medssr_dist.voting.segments import list_segments, read_votes
from medssr_dist.voting.vote_scheduler import collect_votes

CONFIG = Path(__file__).parents[3] / "configs" / "demo_cpu.yaml"
ARMS = {
    "plain": {"voting.record_logprobs": True},
    "shuffled": {"voting.record_logprobs": True, "voting.shuffle_options": True},
    "paraphrased": {"voting.record_logprobs": True},
}
STEMS = 4
_TRIES = 50
_PERSON = re.compile(r"An? \d+-\w+-old (\w+)")


@dataclass(frozen=True)
class AskedQuestion:
    """A question, and further stems of it. Example: AskedQuestion(question, stems=("A 7-year-old girl is ...",))"""

    question: Question
    stems: tuple[str, ...]


@dataclass(frozen=True)
class VotedQuestion:
    """A question with all votes on it, by seed. Example: VotedQuestion(question, votes=(vote, ...))"""

    question: Question
    votes: tuple[Vote, ...]


def make_questions(count: int, random_seed: int = 42) -> list[AskedQuestion]:
    """Make questions about patients of hpo:mini-evaluation, with STEMS - 1 further stems each.

    Raises:
        InputError: a patient has too few different stems.
    """
    world, rng = load_mini_world(), random.Random(f"{random_seed}:labels")
    asked: dict[str, AskedQuestion] = {}
    while len(asked) < count:
        for disease in [each for pair in zip(world.common, world.rare, strict=True) for each in pair]:
            patient = world.draw_patient(disease, EVALUATION, rng)
            question = make_mini_question(world, patient, EVALUATION, rng)
            if question is None or patient.key in asked or len(asked) == count:
                continue
            stems = {question.stem: None}
            for _ in range(_TRIES):
                stems |= dict.fromkeys(
                    _rewrite(question.stem, write_stem(disease, list(patient.shown), patient.sex, rng))
                )
                if len(stems) == STEMS:
                    break
            if len(stems) == STEMS:
                asked[patient.key] = AskedQuestion(question, tuple(stems)[1:])
    return list(asked.values())


def _rewrite(stem: str, other: str) -> list[str]:
    """Return `other` with the age of `stem`, as a list; [] where one is about a child and the other is not."""
    own, found = _PERSON.match(stem), _PERSON.match(other)
    return [own[0] + other[found.end() :]] if own and found and own[1] == found[1] else []


def take_votes(folder: Path, asked: Sequence[AskedQuestion], samples: int) -> dict[str, list[VotedQuestion]]:
    """Let the mini policy vote on the questions in each way; resumes from what `folder` holds.

    Returns:
        name of the arm -> its questions, in order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    questions, stems = folder / "questions.jsonl", folder / "stems.jsonl"
    _write_rows(questions, [each.question.model_dump(mode="json") for each in asked])
    _write_rows(stems, [{"id": each.question.id, "stems": list(each.stems)} for each in asked])
    configs = {name: _make_config(name, settings, stems, samples) for name, settings in ARMS.items()}
    model = resolve_model(configs["plain"].policy)
    for name in ARMS:
        if not has_ended(VotingPaths(folder / name).labels):
            _vote(configs[name], questions, len(asked), folder / name, model)
    return {name: _read_votes(folder / name, asked, samples) for name in ARMS}


def _make_config(name: str, settings: dict[str, bool], stems: Path, samples: int) -> Config:
    overrides = {
        "voting.samples": samples,
        "voting.adaptive": "never",
        "voting.keep_text": False,
        "voting.in_flight": 2048,
        "runtime.mode": "sequential",
        "training.stage1.enabled": False,
        "training.stage2.enabled": False,
        **settings,
    }
    overrides |= {"voting.paraphrases": stems} if name == "paraphrased" else {}
    return load_config(
        CONFIG,
        [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in overrides.items()],
    )


def _vote(config: Config, questions: Path, count: int, folder: Path, model: Path) -> None:
    """Take the votes as a run does, with `BatchEngine` in the pool."""
    from medssr_dist.bench.labels.batch_engine import BatchEngine
    from medssr_dist.voting.vote import VoteMethod

    method = VoteMethod.from_config(config, make_prompt_renderer(load_tokenizer(model, config.policy), config.policy))
    with (
        method.open_ledger(folder, fingerprint_model(model)) as ledger,
        EnginePool([BatchEngine(model)], config.voting) as pool,
        ProgressBar(total=count * config.voting.samples, desc=folder.name, unit="vote") as bar,
    ):
        feed = QuestionFeed(questions)
        for _ in range(ledger.num_labels):
            feed.next()
        collect_votes(pool, method.make_scheduler(feed, ledger), ledger, bar, lambda: False)
        mark_end(ledger.labels_file, ledger.num_kept)


def _read_votes(folder: Path, asked: Sequence[AskedQuestion], samples: int) -> list[VotedQuestion]:
    """Read the votes back. Raises InputError where a question has not all of them."""
    votes: dict[str, list[Vote]] = {each.question.id: [] for each in asked}
    place = VotingPaths(folder).votes
    for number in list_segments(place):
        for vote in read_votes(place, number):
            votes[vote.question_id].append(vote)
    if short := [id for id, found in votes.items() if len(found) != samples]:
        raise InputError(
            f"{folder}: {len(short)} questions have not {samples} votes; remove the folder and start again"
        )
    return [
        VotedQuestion(each.question, tuple(sorted(votes[each.question.id], key=lambda vote: vote.seed)))
        for each in asked
    ]


def list_shown_letters(voted: Sequence[VotedQuestion]) -> Counter[str]:
    """Count the valid votes by the letter that the policy wrote, whatever option stood there."""
    letters: Counter[str] = Counter()
    for each in voted:
        for vote in each.votes:
            if vote.answer:
                letters[LETTERS[vote.order.index(vote.answer)] if vote.order else vote.answer] += 1
    return letters


def _write_rows(file: Path, rows: list[dict[str, object]]) -> None:
    file.unlink(missing_ok=True)
    with JsonlLedger(file) as ledger:
        ledger.append(*rows)
