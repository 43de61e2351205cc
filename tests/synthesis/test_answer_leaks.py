"""Replies that tell the answer, in every form, and words that only look like it."""

import json

import pytest

from medssr_dist.synthesis.checks.parse import read_reply
from medssr_dist.synthesis.checks.reply_parts import Draft, Rejection

STEM = "A 45-year-old man has a painful big toe. What is the most likely diagnosis?"
OPTIONS = {"A": "Gout", "B": "Septic arthritis", "C": "Pseudogout", "D": "Cellulitis"}
SOUND = {"question": STEM, "options": OPTIONS}
PLAIN = STEM + "\n" + "\n".join(f"{letter}. {text}" for letter, text in OPTIONS.items())


def is_leak(reply) -> bool:
    outcome = read_reply(reply if isinstance(reply, str) else json.dumps(reply))
    assert isinstance(outcome, Draft) or outcome.reason == "answer_leaked", outcome
    return isinstance(outcome, Rejection)


@pytest.mark.parametrize(
    "fields",
    [
        {"answer": "A"},
        {"Correct Answer": "Gout"},
        {"correct": "B"},
        {"correctIndex": 0},
        {"answer_key": ["A"]},
        {"answers": ["A"]},
        {"Explanation": "Since..."},
        {"reasoning": "Gout, since..."},
        {"rationale": {"A": "typical"}},
        {"key": "A"},
        {"gold": 1},
        {"label": 2},
        {"right": "(C)"},
        {"solution": "Gout"},
        {"options": {**OPTIONS, "answer": "A"}},
        {"options": {**OPTIONS, "correct": "Gout"}},
        {"options": [{"text": "Gout", "correct": True}, {"text": "Lupus", "correct": False}]},
        {"options": [{"text": "Gout", "isCorrect": True}, {"text": "Lupus"}]},
        {"options": [{"text": "Gout", "explanation": "typical"}, {"text": "Lupus"}]},
        {"options": {"Gout": True, "Lupus": False}},
    ],
)
def test_fields_that_tell_the_answer(fields):
    assert is_leak({**SOUND, **fields})
    assert is_leak({"item": {**SOUND, **fields}, "topic": "joints"})


@pytest.mark.parametrize("outer", [{"answer": "A"}, {"correct_option": "Gout"}, {"key": "B"}])
def test_fields_beside_the_question_tell_it_too(outer):
    assert is_leak({"question": SOUND, **outer}) and is_leak({"questions": [SOUND], **outer})


MARKS = [
    "{} (correct)",
    "{} (Correct answer)",
    "{} [correct]",
    "{} (right answer)",
    "{}*",
    "*{}",
    "{} *",
    "**{}**",
    "[x] {}",
]
MARKS += [
    "{} \u2713",
    "\u2705 {}",
    "{} \u2190 correct",
    "{} <-- correct answer",
    "{} - correct",
    "{} (right)",
    "__{}__",
]


@pytest.mark.parametrize("mark", MARKS)
def test_marks_on_one_option(mark):
    assert is_leak({**SOUND, "options": {**OPTIONS, "B": mark.format(OPTIONS["B"])}})
    assert is_leak(PLAIN.replace("Septic arthritis", mark.format("Septic arthritis")))


@pytest.mark.parametrize(
    "told",
    [
        "Answer: B",
        "**Answer:** B",
        "**Answer**: (B)",
        "Answer - B",
        "answer: b)",
        "Ans: B",
        "Correct answer: B. Septic arthritis",
        "Correct option: **B**",
        "The correct answer is B.",
        "The answer is septic arthritis.",
        "The answer would be Gout, of course.",
        "The correct choice is option C",
        "Answer key: A",
        "Key: D",
        "<answer>B</answer>",
        "Option B is the correct one.",
        "B is correct.",
        "(B)",
        "Explanation: gout is typical.",
        "**Rationale:** gout is typical.",
    ],
)
def test_the_answer_below_or_above_the_question(told):
    assert is_leak(f"{PLAIN}\n\n{told}") and is_leak(f"{json.dumps(SOUND)}\n{told}")
    assert is_leak(f"{told}\n{json.dumps(SOUND)}")
    assert not is_leak(f"<think>{told}</think>{json.dumps(SOUND)}")


def test_the_answer_of_a_draft_is_not_told():
    draft = json.dumps({"question": "Which one?", "options": ["x", "y"], "answer": "A"})
    assert not is_leak(f"{draft}\nNo answer was asked for. Corrected:\n{json.dumps(SOUND)}")


@pytest.mark.parametrize(
    "said",
    [
        "I hope it helps.",
        "Only one answer is correct.",
        "Exactly one option is correct, and the correct answer is not shown, as you asked.",
        "The answer is left open.",
        "Answer: not given",
        "This question has one best answer: it tests reasoning.",
        "I can write an answer key if you like.",
    ],
)
def test_words_around_a_question_that_tell_nothing(said):
    assert not is_leak(f"{json.dumps(SOUND)}\n{said}") and not is_leak(f"{said}\n\n{json.dumps(SOUND)}")
    assert not is_leak(f"{PLAIN}\n\n{said}")


@pytest.mark.parametrize(
    ("stem", "options"),
    [
        ("Which answer describes the mechanism that best explains the correct dose?", OPTIONS),
        ("The physician promptly answers:", OPTIONS),
        ("Reflexes are 1+ (left) and 3+ (right). Which lesion is the most likely?", OPTIONS),
        ("Which kidney?", ["Left kidney", "Kidney (right)", "Both kidneys"]),
        ("Which nerve?", ["Femoral (left)", "Femoral (right)"]),
        ("What now?", ["Correct the sodium", "Right ventricle"]),
        ("Which allele?", ["*2/*2", "HLA-B*27", "CYP2C19*2"]),
        ("Which variant?", ["p.Gln41*", "p.Arg506Gln"]),
        ("Which organism?", ["*E. coli*", "Norovirus", "*V. cholerae*"]),
        ("Which are bold?", ["**Gout**", "**Lupus**"]),
    ],
)
def test_words_within_a_question_that_tell_nothing(stem, options):
    assert not is_leak({"question": stem, "options": options})


def test_a_tag_around_the_question_tells_nothing():
    assert not is_leak(f"<answer>{json.dumps(SOUND)}</answer>")


def test_markup_is_no_part_of_a_question():
    stem = "A man has **pain**.\n**Which organism** is it, *E. coli* aside?"
    text = json.dumps({"question": stem, "options": ["*E. coli*", "x*y"]})
    assert read_reply(text) == Draft("A man has pain.\nWhich organism is it, E. coli aside?", ("E. coli", "x*y"))


def test_options_that_the_stem_lists_too():
    inline = STEM + " " + " ".join(f"({letter}) {text}" for letter, text in OPTIONS.items())
    outcome = read_reply(json.dumps({"question": inline, "options": OPTIONS}))
    assert isinstance(outcome, Rejection) and outcome.reason == "options_in_stem"
    assert read_reply(json.dumps({"question": PLAIN, "options": list(OPTIONS.values())[::-1]})).stem == STEM
    findings = "He has:\n1. Gout\n2. Fever\nWhich is treated first?"
    assert read_reply(json.dumps({"question": findings, "options": ["Fever", "Neither"]})).stem == findings
