"""What becomes of a reply: whole replies, JSON and plain text, versions, thoughts, cut and refused replies."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.config.base import DataSource
from medssr_dist.readers import read_questions
from medssr_dist.synthesis.checks.parse import OPTION_CHARS, read_reply
from medssr_dist.synthesis.checks.reply_parts import Draft, Rejection

STEM = "A 45-year-old man has a painful big toe. What is the most likely diagnosis?"
OPTIONS = {"A": "Gout", "B": "Septic arthritis", "C": "Pseudogout", "D": "Cellulitis"}
TEXTS = tuple(OPTIONS.values())
SOUND = {"question": STEM, "options": OPTIONS}
OTHER = {
    "question": "Which of these drafts has two right answers?",
    "options": ["This draft", "That one", "Both", "No"],
}
PLAIN = STEM + "\n" + "\n".join(f"{letter}. {text}" for letter, text in OPTIONS.items())
OTHER_PLAIN = OTHER["question"] + "\nA. This draft\nB. That one\nC. Both\nD. No"
READ = Draft(STEM, TEXTS)


def reason(reply, finish_reason="") -> str | None:
    """Return why a reply is rejected, None if it is read."""
    outcome = read_reply(reply if isinstance(reply, str) else json.dumps(reply), finish_reason)
    return outcome.reason if isinstance(outcome, Rejection) else None


@pytest.mark.parametrize(
    "reply",
    [
        SOUND,
        [SOUND],
        {"question": SOUND},
        {"mcq": {"item": SOUND}, "difficulty": "hard"},
        {"questions": [SOUND]},
        {"Question": f"  {STEM}\n", "choices": [f"{k}. {v}" for k, v in OPTIONS.items()], "answer": None},
        {"stem": STEM, "options": [{"text": v} for v in TEXTS]},
        {"question": STEM, "options": [{"label": k, "text": v} for k, v in OPTIONS.items()]},
        {"question": STEM, "options": [{"label": k, "text": v, "id": 1} for k, v in OPTIONS.items()]},
        {"question": STEM, "options": [{k: v} for k, v in OPTIONS.items()]},
        {"question": STEM, "options": [[k, v] for k, v in OPTIONS.items()]},
        {"question": STEM, "options": [OPTIONS]},
        {"question": STEM, "options": dict(reversed(OPTIONS.items()))},
        {"question": STEM, "options": {f"option_{k}": {"text": v, "correct": False} for k, v in OPTIONS.items()}},
        {"question": STEM, "answer_choices": TEXTS},
        {"question": STEM, "Options": "\n".join(f"{k}) {v}" for k, v in OPTIONS.items())},
        {"question": STEM, **OPTIONS},
        {"question": STEM, **{f"option{k}": v for k, v in OPTIONS.items()}},
        {"question": STEM, **{f"op{k.lower()}": v for k, v in OPTIONS.items()}},
        {"vignette": STEM.split(". ")[0] + ".", "question": STEM.split(". ")[1], "options": OPTIONS},
        {"stem": STEM, "question": STEM.split(". ")[1], "options": OPTIONS},
        {"question": {"stem": STEM.split(". ")[0] + ".", "lead_in": STEM.split(". ")[1]}, "options": OPTIONS},
        {"question": STEM, "options": {str(number): text for number, text in enumerate(TEXTS)}},
        {"question": PLAIN},
        {"question": PLAIN, "options": OPTIONS},
        {"draft": OTHER, "critique": "Two are right.", "final": SOUND},
        {"final": SOUND, "draft": OTHER},
        {"seed_question": OTHER, "new_question": SOUND},
        {"question": f"**Question:** {STEM}", "options": [f"**{v}**" for v in TEXTS]},
    ],
)
def test_shapes_of_json(reply):
    outcome = read_reply(json.dumps(reply))
    assert isinstance(outcome, Draft), outcome
    assert (" ".join(outcome.stem.split()), outcome.options) == (STEM, TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps(SOUND, indent=1)}\n```",
        f"Sure {{here}} it is: {json.dumps(SOUND)} I hope it helps.",
        f"{json.dumps(SOUND)}\nThis tests several steps; only one option is correct.",
        json.dumps(SOUND, indent=2).replace('"\n', '",\n'),
        json.dumps(SOUND).replace("}", ",}"),
        json.dumps(SOUND).replace(" big toe", "\nbig toe"),
        repr(SOUND),
        str([SOUND]),
        json.dumps(SOUND).replace('"', "'"),
        json.dumps(SOUND).replace(' "', " “").replace('"', "”").replace("{”", "{“"),
        json.dumps(SOUND).replace('"', "”"),
        json.dumps(SOUND).replace('"question"', "question").replace('"options"', "options"),
        json.dumps(SOUND).replace(": ", ":\u00a0"),
        f"\ufeff{json.dumps(SOUND)}",
        f'<think>Perhaps {{"question": "X?", "options": ["a", "b"], "answer": "A"}}</think>\n{json.dumps(SOUND)}',
        f"<seed:think>{json.dumps(OTHER)}</seed:think>{json.dumps(SOUND)}",
        f"Two are right in {json.dumps(OTHER)}</think>{json.dumps(SOUND)}",
        f"<|channel|>analysis<|message|>{json.dumps(OTHER)}<|end|><|start|>assistant<|channel|>final<|message|>"
        + json.dumps(SOUND),
        f"First try: {json.dumps(OTHER)}\nThat has two right answers. Better version:\n{json.dumps(SOUND)}",
        f"{json.dumps({**OTHER, 'answer': 'A'})}\nI was not to tell it. Again:\n```json\n{json.dumps(SOUND)}\n```",
        f"Draft:\n{OTHER_PLAIN}\n\nBetter version:\n{json.dumps(SOUND)}",
    ],
)
def test_json_within_text_and_with_slips(text):
    outcome = read_reply(text)
    assert isinstance(outcome, Draft), outcome
    assert (" ".join(outcome.stem.split()), outcome.options) == (STEM, TEXTS)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"**Question:** {STEM}\n\n" + "\n".join(f"({k}) {v}" for k, v in OPTIONS.items()) + "\n",
        f"### Question 1\n\n{STEM}\n\n**Options:**\n" + "\n".join(f"- **{k}.** {v}" for k, v in OPTIONS.items()),
        f"Sure! Here is a new question:\n\n{STEM}\n\nAnswer choices:\n"
        + "\n\n".join(f"{k}: {v}" for k, v in OPTIONS.items()),
        f"{STEM}\n" + "\n".join(f"{number}. {v}" for number, v in enumerate(TEXTS, 1)),
        f"Stem: {STEM}\n" + "\n".join(f"{k.lower()}) {v}" for k, v in OPTIONS.items()),
        f"{STEM}\n" + "\n".join(f"Option {k}: {v}" for k, v in OPTIONS.items()),
        f"{STEM}\n" + "\n".join(f"**{k}) {v}**" for k, v in OPTIONS.items()),
        f"```\n{PLAIN}\n```\nI hope it helps.",
        f"{OTHER_PLAIN}\n\nThat has two right answers. Better version:\n\n{PLAIN}",
        f"Draft 1:\n{OTHER_PLAIN}\n---\nVersion 2:\n**Question:** {PLAIN}",
        f"1. {PLAIN}",
        f"Q: {PLAIN}",
        f'question: "{STEM}"\noptions:\n' + "\n".join(f'  {k}: "{v}"' for k, v in OPTIONS.items()),
        f"<question>{STEM}</question>\n<options>\n" + PLAIN.split("\n", 1)[1] + "\n</options>",
        f"Vignette: {STEM.split('. ')[0]}.\nQuestion: {PLAIN.split('. ', 1)[1]}",
    ],
)
def test_forms_of_plain_text(text):
    outcome = read_reply(text)
    assert isinstance(outcome, Draft), outcome
    assert (" ".join(outcome.stem.split()), outcome.options) == (STEM, TEXTS)


def test_a_vignette_above_the_heading_is_kept():
    outcome = read_reply("A man has a painful toe.\n\nQuestion: What is it?\nA. Gout\nB. Lupus\nC. Scurvy")
    assert outcome == Draft("A man has a painful toe.\nWhat is it?", ("Gout", "Lupus", "Scurvy"))


def test_statements_in_the_stem_are_not_the_options():
    outcome = read_reply("Which statements hold?\n1. One\n2. Two\n3. Three\nA. First two\nB. Last two\nC. No two")
    assert outcome == Draft("Which statements hold?\n1. One\n2. Two\n3. Three", ("First two", "Last two", "No two"))


def test_five_options_and_an_option_over_two_lines():
    text = "What?\nA. Start aspirin\nand clopidogrel\nB. Observe\nC. Operate\nD. Wait\nE. Stop aspirin,\n  then operate"
    assert read_reply(text).options == (
        "Start aspirin and clopidogrel",
        "Observe",
        "Operate",
        "Wait",
        "Stop aspirin, then operate",
    )
    assert read_reply(text + "\nGood luck!") == read_reply(text)
    as_json = json.dumps({"question": "What now?", "options": ["Start aspirin\nand clopidogrel", "Observe"]})
    assert read_reply(as_json).options == ("Start aspirin and clopidogrel", "Observe")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("", "empty"),
        ({**SOUND, "question": " "}, "empty"),
        ({**SOUND, "options": {"A": "x", "B": ""}}, "empty"),
        ({**SOUND, "options": {**OPTIONS, "C": None}}, "empty"),
        ({**SOUND, "options": {**OPTIONS, "C": float("nan")}}, "empty"),
        ({**SOUND, "options": {**OPTIONS, "C": "nan"}}, "empty"),
        ({**SOUND, "options": {**OPTIONS, "C": "\u200b"}}, "empty"),
        ({**SOUND, "options": ["A. Gout", "B. Lupus", "C.", "D. Scurvy"]}, "empty"),
        ({"question": "...", "options": {"A": "...", "B": "..."}}, "empty"),
        ("<think>A question about gout.</think>", "empty"),
        ("Which of these is an infection of the skin?", "not_parsable"),
        ('{"question": "What is', "not_parsable"),
        ('{"question": "What is it?", "options": {"A": "Gout", "B": "Lup', "not_parsable"),
        ({"question": STEM}, "not_parsable"),
        ({"question": STEM, "context": "Gout is a disease.", "options": TEXTS}, "not_parsable"),
        ({**SOUND, "options": {**OPTIONS, "note": "all are diseases"}}, "not_parsable"),
        ('{"question": "What?", "question": "Who?", "options": ["Gout", "Lupus"]}', "not_parsable"),
        ('{"question": "What?", "options": {"A": "Gout", "A": "Lupus", "B": "Rickets"}}', "not_parsable"),
        ('{"question": "What?", "options": ["Gout" "Lupus", "Rickets"]}', "not_parsable"),
        ('{"question": "He says "no" and leaves?", "options": ["Gout", "Lupus"]}', "not_parsable"),
        (f'{json.dumps(OTHER)}\nBetter:\n{{"question": "What is', "not_parsable"),
        (f"{json.dumps(OTHER)}\nBetter version:\n{PLAIN}", "not_parsable"),
        (f"{OTHER_PLAIN}\n\nTwo are right, so rather this.\n\n{PLAIN}", "not_parsable"),
        (f"{OTHER_PLAIN}\n\nBetter version:\n{STEM}\nA. Gout", "not_parsable"),
        ("What?\nA. Gout\n\nThis is typical.\n\nB. Lupus", "not_parsable"),
        (PLAIN + "\n\nThis question\n1. takes several steps\n2. has plausible options", "not_parsable"),
        (f"{json.dumps(SOUND)}\nIt\n1. takes several steps\n2. has plausible options", "not_parsable"),
        ({"question": "He has\n1. fever\n2. pain\nWhich is worse?"}, "not_parsable"),
        ("What?\nA. Gout\nB. Lupus\nD. Scurvy\nE. Rickets", "not_parsable"),
        ({**SOUND, "options": {"A": "Gout"}}, "option_count"),
        ({**SOUND, "options": {"A": "Gout", "B": "Lupus", "D": "Rickets"}}, "unclear_labels"),
        ({**SOUND, "options": [f"Number {n}" for n in range(11)]}, "option_count"),
        ({**SOUND, "options": {**OPTIONS, "B": "gout "}}, "duplicate_options"),
        ({**SOUND, "options": {**OPTIONS, "B": "Go\u00adut"}}, "duplicate_options"),
        ({**SOUND, "options": {**OPTIONS, "D": "y" * (OPTION_CHARS + 1)}}, "option_too_long"),
        ("I cannot help with that.", "refused"),
        ("I'm sorry, but as an AI I do not write questions about this.", "refused"),
        (f"<think>{json.dumps(SOUND)} but two fit, so I", "still_thinking"),
        (f"<|channel|>analysis<|message|>{json.dumps(SOUND)}", "still_thinking"),
        (f"{json.dumps(SOUND)}\n<think>Two fit, so", "still_thinking"),
    ],
)
def test_each_rejection_has_its_reason(reply, expected):
    assert reason(reply) == expected
    assert read_reply(reply if isinstance(reply, str) else json.dumps(reply)).detail


@pytest.mark.parametrize("end", ["length", "max_tokens", "MAX_TOKENS"])
def test_a_reply_at_the_token_limit_is_no_question(end):
    assert reason(SOUND, end) == reason("", end) == reason("<think>Gout", end) == "truncated"
    assert "limit of tokens" in read_reply(json.dumps(SOUND), end).detail


def test_why_a_reply_ended_counts_only_if_it_says_so():
    assert [reason(SOUND, end) for end in ("content_filter", "refusal", "SAFETY")] == ["refused"] * 3
    assert [reason(SOUND, end) for end in ("stop", "", "end_turn", "tool_calls", "eos")] == [None] * 5


@pytest.mark.parametrize(
    "near_miss",
    [
        {**SOUND, "question": "Which answer describes the mechanism that best explains the correct dose?"},
        {**SOUND, "options": {**OPTIONS, "A": "Correct the sodium", "B": "Right ventricle"}},
        {**SOUND, "answer": None},
        {**SOUND, "options": [str(n) for n in range(10)]},
        {**SOUND, "options": {**OPTIONS, "D": "y" * OPTION_CHARS}},
        {**SOUND, "options": [{"text": "Gout", "correct": False}, {"text": "Lupus", "correct": False}]},
        {**SOUND, "options": ["None", "One", "Two"]},
        {**SOUND, "options": ["\u2191", "\u2193", "\u2194"]},
    ],
)
def test_what_only_looks_like_a_fault_is_read(near_miss):
    assert reason(near_miss) is None


def test_numbers_stay_as_written():
    assert read_reply('{"question": "How much?", "options": [0.50, 1.0, 2, 1e3]}').options == (
        "0.50",
        "1.0",
        "2",
        "1e3",
    )


def test_what_a_reader_does_not_see_is_removed():
    stem = "\u200e" + STEM.replace("painful", "pain\u00adful") + "\ufeff"
    hidden = json.dumps({"question": stem, "options": TEXTS})
    assert read_reply(hidden) == READ
    seen = {
        "question": "Is 10\u2076 \u00b5g the dose of \u03b2\u2011blocker?",
        "options": ["\u2265 \u00bd", "n\u00e3o"],
    }
    assert read_reply(json.dumps(seen)) == Draft(seen["question"], tuple(seen["options"]))


def test_half_a_surrogate_pair_can_be_written():
    draft = read_reply('{"question": "Mood \\ud83d?", "options": ["x\\u2028y", "z"]}')
    json.dumps(draft, ensure_ascii=False).encode("utf-8")
    assert draft.options[0] == "x y"


PIECES = (
    "{",
    "[",
    '{"question":',
    '{"',
    "{'",
    "{\u201c",
    "'a",
    "\\",
    "A. x\n",
    "A ",
    "(",
    "**",
    "answer",
    "answer ",
    "correct ",
)
PIECES += (
    "Option ",
    "\n",
    " ",
    "Question: ",
    "- ",
    "```\n",
    "sure ",
    "here ",
    "1. x\n",
    "I. x\n",
    '{"a": [',
    "\u00ad",
    '"',
    "}{",
    "_",
)


@pytest.mark.parametrize("piece", PIECES)
def test_degenerate_replies_take_linear_time(piece):
    """The replies are so long that more than linear time would not finish."""
    count = 100_000 // len(piece)
    for text in (piece * count, json.dumps({"question": piece * count, "options": [piece * count, "x"]})):
        assert reason(text) or isinstance(read_reply(text), Draft)


@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(st.sampled_from([*PIECES, "B. y\n", "?", "x", "}", "]", ":", ",", "<think>", '"options":'])).map(
            "".join
        ),
        st.recursive(
            st.none() | st.text() | st.integers() | st.booleans(),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["question", "options", "A", "B", "answer", "text"]), inner)
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


def render_plain(question, form):
    lines = [form.format(letter) + text for letter, text in question.options.items()]
    return "\n".join([question.stem, "", *lines])


RENDERINGS = {
    "object": lambda question: json.dumps({"question": question.stem, "options": question.options}),
    "list": lambda question: json.dumps({"question": question.stem, "options": list(question.options.values())}),
    "labelled list": lambda question: json.dumps(
        {"stem": question.stem, "choices": [f"({letter}) {text}" for letter, text in question.options.items()]}
    ),
    "python": lambda question: repr({"question": question.stem, "options": question.options}),
    "A.": lambda question: render_plain(question, "{}. "),
    "A)": lambda question: "Sure! Here's a question:\n\n**Question:** " + render_plain(question, "- **{})** "),
    "Option A:": lambda question: render_plain(question, "Option {}: "),
}


@pytest.mark.parametrize("form", RENDERINGS)
def test_real_questions_are_read_as_they_are(shared_data, form):
    """All of 1,773 MedQA and PubMedQA items, whose stems hold tables, lists, quotes and symbols."""
    for name in ("test_short_medqa.json", "test_short_pubmedqa.json"):
        for question in read_questions(DataSource(path=str(shared_data / "medssr_eval_format" / name))):
            expected = " ".join([question.stem, *question.options.values()]).split()
            outcome = read_reply(RENDERINGS[form](question))
            assert isinstance(outcome, Draft) and " ".join([outcome.stem, *outcome.options]).split() == expected
