"""The story of one question is told from what the steps left, and says nothing where they left nothing."""

from __future__ import annotations

from pathlib import Path

from vote_cases import tally_of

from medssr_dist.config.voting import Voting
from medssr_dist.data.jsonl import JsonlLedger
from medssr_dist.data.records import Provenance, Question
from medssr_dist.evaluation.question_letters import FinalLetters, QuestionLetters
from medssr_dist.run.paths import RunPaths
from medssr_dist.summary.question_story import WIDTH, _find_gain, tell_question_story
from medssr_dist.voting.labels import label_question


def make_question(number: int, rare: bool) -> Question:
    known = {
        "index": number,
        "prompt_hash": "p",
        "seed_ids": ["a", "b"],
        "rho": 0.1,
        "passage_ids": ["hpo:ORPHA:1/genes"],
    }
    known |= {"teacher": "t", "permutation": [0, 1], "random_seed": 1, "commit": "c", "entity_id": "ORPHA:1"}
    provenance = Provenance(**known, entity="Alkaptonuria" if rare else None, answered_by="t", topic="")
    return Question.make(
        f"Question {number} " * 40, ["iron", "zinc"], source="synthetic", rare=rare, provenance=provenance
    )


def write_labels(run: RunPaths, questions: list[Question]) -> None:
    run.voting.folder.mkdir(parents=True)
    with JsonlLedger(run.voting.labels) as ledger:
        for question in questions:
            voting = Voting(samples=4, threshold=0.5)
            label = label_question(question, tally_of("BBBA"), voting, tokens=8, truncated=0, policy="p", sampling="s")
            ledger.append(label.model_dump(mode="json"))


def test_the_rare_question_with_most_rollouts_is_told(tmp_path: Path):
    run = RunPaths(tmp_path)
    questions = [make_question(0, False), make_question(1, True), make_question(2, True)]
    write_labels(run, questions)
    run.stage("stage1").folder.mkdir(parents=True)
    with JsonlLedger(run.stage("stage1").samples) as ledger:
        for step in (1, 5):
            row = {"step": step, "question_id": questions[2].id, "response": "The answer is B", "reward": 1.0}
            ledger.append(row)
    story = tell_question_story(tmp_path)
    assert "Question 2" in story and "Question 1" not in story and "Alkaptonuria; passages hpo:ORPHA:1/genes" in story
    assert "A 1, B 3 of 4; label B, confidence 0.75" in story
    assert "stage 1, step 5, reward 1: The answer is B" in story
    assert max(map(len, story.splitlines())) <= WIDTH


def test_a_run_without_labels_has_no_story(tmp_path):
    assert tell_question_story(tmp_path) == ""


def test_the_first_rare_question_that_improved_is_shown():
    def row(name: str, rare: bool, before: str, after: str) -> QuestionLetters:
        given = {
            policy: {"ours": FinalLetters(letters=tuple(letters))}
            for policy, letters in (("base", before), ("end", after))
        }
        return QuestionLetters(benchmark="b", question_id=name, truth="B", rare=rare, policies=given)

    rows = [row("1", False, "AAAA", "BBBB"), row("2", True, "BBBB", "BBBB"), row("3", True, "AABA", "BBBA")]
    assert _find_gain(rows, ["base", "end"], "ours").question_id == "3"
    assert _find_gain(rows[:2], ["base", "end"], "ours") is None
