import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.records import Provenance, Question, Rejected
from medssr_dist.synthesis.parse import OPTION_CHARS, STEM_CHARS, parse_reply

STEM = "A 45-year-old man has a painful big toe. What is the most likely diagnosis?"
OPTIONS = {"A": "Gout", "B": "Septic arthritis", "C": "Pseudogout", "D": "Cellulitis"}
SOUND = {"question": STEM, "options": OPTIONS}


def provenance(entity=None):
    return Provenance(
        index=3, prompt_hash="h", seed_ids=("a", "b"), rho=0.2, entity=entity, teacher="m", random_seed=1, commit="c"
    )


def parse(text, taken=()):
    return parse_reply(text, provenance(), taken)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(SOUND),
        f"```json\n{json.dumps(SOUND, indent=1)}\n```",
        f"Sure {{here}} it is: {json.dumps(SOUND)} I hope it helps.",
        json.dumps([SOUND]),
        json.dumps({"question": SOUND}),
        json.dumps({"Question": f"  {STEM}\n", "choices": [f"{k}. {v}" for k, v in OPTIONS.items()], "answer": None}),
        json.dumps({"stem": STEM, "options": [{"text": v} for v in OPTIONS.values()]}),
        json.dumps({"question": STEM, "options": dict(reversed(OPTIONS.items()))}),
        STEM + "\n" + "\n".join(f"{k}. {v}" for k, v in OPTIONS.items()),
        f"**Question:** {STEM}\n\n" + "\n".join(f"({k}) {v}" for k, v in OPTIONS.items()) + "\n",
    ],
)
def test_forms_that_are_read(text):
    question = parse(text)
    assert isinstance(question, Question), question
    assert question.stem.endswith(STEM) and question.options == OPTIONS
    assert question.source == "synthetic" and not question.rare and question.truth is None


def test_rare_and_provenance_are_carried():
    question = parse_reply(json.dumps(SOUND), provenance("Alkaptonuria"))
    assert question.rare and question.provenance.entity == "Alkaptonuria"


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty"),
        ({**SOUND, "question": " "}, "empty"),
        ({**SOUND, "options": {"A": "x", "B": ""}}, "empty"),
        ("I cannot help with that.", "not_parsable"),
        ('{"question": "What is', "not_parsable"),
        ({"question": STEM}, "not_parsable"),
        ({**SOUND, "options": {"A": "Gout"}}, "option_count"),
        ({**SOUND, "options": [str(n) for n in range(11)]}, "option_count"),
        ({**SOUND, "options": {**OPTIONS, "B": "gout "}}, "duplicate_options"),
        ({**SOUND, "answer": "A"}, "answer_leaked"),
        ({**SOUND, "Explanation": "Since..."}, "answer_leaked"),
        ({**SOUND, "correct_answer": "A"}, "answer_leaked"),
        ({**SOUND, "options": {**OPTIONS, "A": "Gout (correct)"}}, "answer_leaked"),
        ({**SOUND, "question": STEM + " The correct answer is A."}, "answer_leaked"),
        (f"{STEM}\nA. Gout\nB. Lupus\nAnswer: A", "answer_leaked"),
        ({**SOUND, "question": "x" * (STEM_CHARS + 1)}, "too_long"),
        ({**SOUND, "options": {**OPTIONS, "D": "y" * (OPTION_CHARS + 1)}}, "too_long"),
    ],
)
def test_each_rejection_has_its_reason(reply, reason):
    text = reply if isinstance(reply, str) else json.dumps(reply)
    rejected = parse(text)
    assert isinstance(rejected, Rejected)
    assert (rejected.reason, rejected.reply, rejected.index) == (reason, text, 3)


def test_duplicate_of_an_accepted_question():
    first = parse(json.dumps(SOUND))
    assert parse(json.dumps(SOUND), {first.id}).reason == "duplicate"


def test_a_question_about_answers_is_not_a_leak():
    stem = "Which answer describes the mechanism that best explains the correct dose?"
    assert isinstance(parse(json.dumps({**SOUND, "question": stem})), Question)


@given(
    st.one_of(
        st.text(max_size=200),
        st.recursive(
            st.none() | st.text() | st.integers(),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["question", "options", "A", "B", "answer"]), inner)
            ),
        ).map(json.dumps),
    )
)
def test_any_text_is_a_question_or_a_rejection_that_can_be_written(text):
    outcome = parse(text)
    assert isinstance(outcome, Question | Rejected)
    if isinstance(outcome, Question):
        json.dumps(outcome.model_dump(), ensure_ascii=False).encode("utf-8")


def test_half_a_surrogate_pair_can_be_written():
    question = parse('{"question": "Mood \\ud83d?", "options": ["x\\u2028y", "z"]}')
    json.dumps(question.model_dump(), ensure_ascii=False).encode("utf-8")
    assert question.options["A"] == "x\ny"
