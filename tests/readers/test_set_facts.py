"""Facts of a data set: duplicates, the constant answer, rare questions and what marks them."""

from medssr_dist.data.records import Question
from medssr_dist.readers import DataSetFacts, count_facts


def question(stem: str, truth: str | None = "A", **fields) -> Question:
    return Question.make(stem, ["yes", "no"], source="set", truth=truth, **fields)


def test_duplicates_and_the_constant_answer_are_counted():
    items = [question("one", "B"), question("one", "B", source_id="2"), question("two", "A"), question("three", "B")]
    facts = count_facts(items)
    assert (facts.questions, facts.duplicates, facts.commonest_letter, facts.constant_baseline) == (4, 1, "B", 0.75)
    assert facts.describe() == "4 questions, exact duplicates: 1, always B: 75.0%"


def test_of_equally_common_letters_the_first_is_named():
    assert count_facts([question("one", "B"), question("two", "A")]).commonest_letter == "A"


def test_rare_questions_are_counted_by_what_marks_them():
    items = [
        question("one", rare=True, rare_by="auto", rare_disease="Gaucher disease"),
        question("two", rare=False, rare_by="auto"),
        question("three", rare=True, rare_by="source"),
        question("four", None, rare=True),
    ]
    facts = count_facts(items)
    assert (facts.rare, facts.rare_by) == (3, {"auto": 1, "source": 1, "record": 1})
    assert facts.describe() == "4 questions, always A: 100.0%, 1 without an answer, 3 rare (auto, record, source)"


def test_a_set_without_answers_has_no_baseline():
    facts = count_facts([question("one", None)])
    assert facts == DataSetFacts(1, 0, None, 0, 0, 0, {})
    assert (facts.constant_baseline, count_facts([]).questions) == (0.0, 0)
