import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.synthesis.checks.parse import OPTION_CHARS, read_reply
from medssr_dist.synthesis.checks.reply_parts import Draft, Rejection

STEM = "A 45-year-old man has a painful big toe. What is the most likely diagnosis?"
OPTIONS = {"A": "Gout", "B": "Septic arthritis", "C": "Pseudogout", "D": "Cellulitis"}
SOUND = {"question": STEM, "options": OPTIONS}


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
        json.dumps({"question": STEM, "options": [{"label": k, "text": v} for k, v in OPTIONS.items()]}),
        json.dumps({"question": STEM, "options": [{"label": k, "text": v, "id": 1} for k, v in OPTIONS.items()]}),
        f'<think>Perhaps {{"question": "X?", "options": ["a", "b"], "answer": "A"}}</think>\n{json.dumps(SOUND)}',
        json.dumps({"question": STEM, "options": dict(reversed(OPTIONS.items()))}),
        STEM + "\n" + "\n".join(f"{k}. {v}" for k, v in OPTIONS.items()),
        f"**Question:** {STEM}\n\n" + "\n".join(f"({k}) {v}" for k, v in OPTIONS.items()) + "\n",
    ],
)
def test_forms_that_are_read(text):
    draft = read_reply(text)
    assert isinstance(draft, Draft), draft
    assert draft.stem.endswith(STEM) and draft.options == tuple(OPTIONS.values())


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
        ({**SOUND, "reasoning": "Gout, since..."}, "answer_leaked"),
        ({**SOUND, "options": {**OPTIONS, "A": "Gout \u2713"}}, "answer_leaked"),
        (
            {**SOUND, "options": [{"text": "Gout", "correct": True}, {"text": "Lupus", "correct": False}]},
            "answer_leaked",
        ),
        ("<think>A question about gout.</think>", "empty"),
        ({**SOUND, "options": {**OPTIONS, "D": "y" * (OPTION_CHARS + 1)}}, "option_too_long"),
    ],
)
def test_each_rejection_has_its_reason(reply, reason):
    text = reply if isinstance(reply, str) else json.dumps(reply)
    refusal = read_reply(text)
    assert isinstance(refusal, Rejection) and refusal.reason == reason and refusal.detail


@pytest.mark.parametrize(
    "near_miss",
    [
        {**SOUND, "question": "Which answer describes the mechanism that best explains the correct dose?"},
        {**SOUND, "options": {**OPTIONS, "A": "Correct the sodium", "B": "Right ventricle"}},
        {**SOUND, "answer": None},
        {**SOUND, "options": [str(n) for n in range(10)]},
        {**SOUND, "options": {**OPTIONS, "D": "y" * OPTION_CHARS}},
        {**SOUND, "options": [{"text": "Gout", "correct": False}, {"text": "Lupus", "correct": False}]},
    ],
)
def test_what_only_looks_like_a_fault_is_read(near_miss):
    assert isinstance(read_reply(json.dumps(near_miss)), Draft)


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
def test_any_text_is_a_draft_or_a_rejection_that_can_be_written(text):
    outcome = read_reply(text)
    assert isinstance(outcome, Draft | Rejection)
    json.dumps(outcome, ensure_ascii=False).encode("utf-8")
    if isinstance(outcome, Draft):
        assert outcome.stem and 2 <= len(outcome.options) <= 10
        assert len({option.casefold() for option in outcome.options}) == len(outcome.options)


def test_half_a_surrogate_pair_can_be_written():
    draft = read_reply('{"question": "Mood \\ud83d?", "options": ["x\\u2028y", "z"]}')
    json.dumps(draft, ensure_ascii=False).encode("utf-8")
    assert draft.options[0] == "x\ny"
