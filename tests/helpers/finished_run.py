"""A finished run of any size, written by the product's own writers, for tests of what is read from a run."""

from __future__ import annotations

import random
from pathlib import Path

from config_builder import make_config
from evaluation_examples import QUESTIONS as BENCHMARK
from evaluation_examples import RecordingPool, answer_a, run_policy, score_all
from step_rows import append_steps, make_metrics
from synthesis_examples import summary as synthesis_summary

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import JsonlLedger, write_json
from medssr_dist.data.records import Label, Provenance, Question, Rejected, Vote
from medssr_dist.data.wilson import measure_share
from medssr_dist.evaluation.score_report import write_report as write_scores
from medssr_dist.evaluation.scoring import collect_letters
from medssr_dist.run.directory import RunDir, open_run
from medssr_dist.synthesis.synthesis_summary import AlphaShares
from medssr_dist.training.stage_job import StageSummary
from medssr_dist.voting.labels import label_question
from medssr_dist.voting.ledger import VoteLedger
from medssr_dist.voting.quality import write_quality
from medssr_dist.voting.quality_records import VoteSummary
from medssr_dist.voting.tally import Tally

WORDS = str.split(
    "patient fever cough renal failure biopsy shows acute chronic history of pain left right lobe serum level elevated "
    "treatment with examination reveals mass tender syndrome disease rare common most likely diagnosis next step "
    "management mutation gene protein deficiency anemia heart liver lung brain nerve muscle skin infant adult woman man"
)
VOCABULARY = [*WORDS, *(first + second for first in WORDS for second in WORDS)]
DANGEROUS = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
CONFIG = {"synthesis": {"accepted": 8}, "voting": {"samples": 8}, "training": {"stage2": {"enabled": False}}}


def write_run(folder: Path, count: int = 8, words: int = 12, votes: int = 8, vote_words: int = 8) -> RunDir:
    """Write a run of `count` questions with `votes` votes each; the text of one question would attack a page."""
    config = make_config(**CONFIG | {"voting": {"samples": votes}})
    rng = random.Random(1)
    with open_run(folder, config) as run:
        for step in ("synthesize", "vote", "stage1", "evaluate"):
            run.begin_step(step, config, {"base": "b", "stage1": "s"} if step == "evaluate" else {})
        questions = [_make_question(rng, i, words) for i in range(count)]
        _write_synthesis(run, questions)
        _write_votes(run, config, questions, rng, votes, vote_words)
        _write_stage(run, questions)
        _write_evaluation(run)
        for step in ("synthesize", "vote", "stage1", "evaluate"):
            run.finish_step(step)
    return run


def _say(rng: random.Random, words: int) -> str:
    """Words at random: they compress worse than sentences do."""
    return " ".join(rng.choices(VOCABULARY, k=words))


def _make_question(rng: random.Random, index: int, words: int) -> Question:
    stem = DANGEROUS if index == 0 else f"{_say(rng, words)}, case {index}?"
    options = [f"{_say(rng, max(1, words // 12))} {letter}" for letter in "vwxyz"]
    rare = index % 2 == 0
    origin = Provenance(
        index=index,
        prompt_hash=f"{rng.getrandbits(64):016x}",
        seed_ids=(f"{rng.getrandbits(64):016x}", f"{rng.getrandbits(64):016x}"),
        rho=rng.random(),
        entity=f"Disease {index % 500}" if rare else None,
        passage_ids=(f"hpo:ORPHA:{index % 500}",) if rare else (),
        teacher="gpt-x",
        random_seed=1,
        commit="c0ffee",
    )
    truth = "A" if index % 3 == 0 else None
    return Question.make(stem, options, source="synthetic", rare=rare, provenance=origin, truth=truth)


def _write_synthesis(run: RunDir, questions: list[Question]) -> None:
    with JsonlLedger(run.synthesis.questions) as ledger:
        ledger.append(*(question.model_dump(mode="json") for question in questions))
    rejected = Rejected(index=1, reason="not_json", detail="no JSON object", reply=DANGEROUS)
    with JsonlLedger(run.synthesis.rejected) as ledger:
        ledger.append(rejected.model_dump(mode="json"))
    count = len(questions)
    alpha = AlphaShares(asked=0.5, requests=measure_share(count // 2, count), accepted=measure_share(count // 2, count))
    found = synthesis_summary(requested=count + 1, accepted=count, rejected_by_reason={"not_json": 1}, alpha=alpha)
    write_json(run.synthesis.summary, found.model_dump(mode="json"))


def _write_votes(
    run: RunDir, config: Config, questions: list[Question], rng: random.Random, count: int, words: int
) -> None:
    with VoteLedger(run.voting.folder, "p", "s") as ledger:
        for position, question in enumerate(questions):
            letters = [None if rng.random() < 0.05 else rng.choices("ABCDE", (6, 1, 1, 1, 1))[0] for _ in range(count)]
            votes = [_make_vote(rng, question, seed, letter, words) for seed, letter in enumerate(letters)]
            ledger.add_votes(position, votes)
            ledger.add_label(position, _decide(question, letters, config, words))
            if position % 1000 == 0:
                ledger.commit()
    quality = write_quality(run.voting.folder, run.voting.labels, config.voting, lambda question: question.truth)
    found = VoteSummary(votes_taken_now=quality.votes, seconds=60.0, tokens=quality.tokens, quality=quality)
    write_json(run.voting.summary, found.model_dump(mode="json"))


def _decide(question: Question, letters: list[str | None], config: Config, words: int) -> Label:
    facts = {"tokens": words * len(letters), "truncated": 0, "policy": "p", "sampling": "s"}
    return label_question(question, Tally.from_answers(letters), config.voting, **facts)


def _make_vote(rng: random.Random, question: Question, seed: int, letter: str | None, words: int) -> Vote:
    text = f"{_say(rng, words)}. The answer is {letter}." if letter else DANGEROUS
    facts = {"policy": "p", "sampling": "s", "seed": seed, "answer": letter, "method": letter and "statement"}
    return Vote(question_id=question.id, text=text, tokens=words, truncated=False, **facts)


def _write_stage(run: RunDir, questions: list[Question]) -> None:
    append_steps(run.stage("stage1").metrics, *(make_metrics(i, kl=0.01 * i, entropy=1.0) for i in (1, 2, 3)))
    rows = [
        {"step": step, "question_id": q.id, "prompt": q.stem, "response": DANGEROUS, "label": "A", "reward": 1.0}
        for step in (1, 2, 3)
        for q in questions[:2]
    ]
    with JsonlLedger(run.stage("stage1").samples) as ledger:
        ledger.append(*rows)
    found = StageSummary(
        prompts=8, skipped_too_long=0, old_logprobs="", steps=3, reward_by_step=[0.2, 0.4, 0.5], seconds=9.0, tokens=99
    )
    write_json(run.stage("stage1").summary, vars(found))


def _write_evaluation(run: RunDir) -> None:
    benchmarks = {"set": BENCHMARK}
    policies = {
        name: run_policy(run.evaluation.folder, RecordingPool(answer_a), policy=mark)
        for name, mark in (("base", "b"), ("stage1", "s"))
    }
    letters = collect_letters(benchmarks, policies)
    write_scores(score_all(benchmarks, policies), letters, run.evaluation)
