"""Thoughts cut off replies: every kind of mark, open thoughts, and thoughts that the prompt has opened."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_policy import tiny_tokenizer

from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.thoughts import CutReply, cut_thoughts, find_closing_mark, find_opening

SAID = "The answer is B."
CHANNEL = "<|channel|>analysis<|message|>"


@pytest.mark.parametrize(
    "reply",
    [
        "{said}",
        "<think>Perhaps A?</think>{said}",
        "<think>\n\n</think>\n\n{said}",
        "<thinking>Perhaps A?</thinking> {said}",
        "<thinking mode='long'>Perhaps A?</thinking> {said}",
        "<think>Perhaps A?</thinking>{said}",
        "<Thought>Perhaps A?</Thought>{said}",
        "<seed:think>Perhaps A?</seed:think>{said}",
        "<reasoning>Perhaps A?</reasoning>\n{said}",
        "<thinking>A <reflection>no</reflection> or C</thinking>{said}",
        "[THINK]Perhaps A?[/THINK]{said}",
        "◁think▷Perhaps A?◁/think▷{said}",
        "<|begin_of_thought|>Perhaps A?<|end_of_thought|>{said}",
        "<|START_THINKING|>Perhaps A?<|END_THINKING|>{said}",
        "<unused94>thought\nPerhaps A?<unused95>{said}",
        "<|im_start|>think\nPerhaps A?<|im_start|>answer\n{said}",
        "<|channel>thought\nPerhaps A?<channel|>{said}",
        CHANNEL + "Perhaps A?<|end|><|start|>assistant<|channel|>final<|message|>{said}<|return|>",
        CHANNEL + "Perhaps A?<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{said}",
        CHANNEL + "A?<|end|><|channel|>commentary to=functions.f<|message|>C?<|call|><|channel|>final<|message|>{said}",
        "<|channel|>final<|message|>{said}",
        "analysisWe weigh A.assistantfinal{said}",
        "analysisWe weigh A.assistantcommentaryC?assistantfinal{said}",
        "final{said}",
        "## Thinking\n\nPerhaps A?\n\n## Final Response\n\n{said}",
        "think\nPerhaps A?\nanswer\n{said}",
        "Perhaps A?</think>{said}",
        "Perhaps A? [/THINK]{said}",
        "Perhaps A? Once more.</think> C, then?</think>{said}",
        "<think>A tag <think> in thoughts</think>{said}",
    ],
)
def test_what_is_said_outside_thoughts_is_kept(reply):
    assert cut_thoughts(reply.replace("{said}", SAID)) == CutReply(SAID, is_open=False)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("<think>The answer is A", ""),
        ("<think>", ""),
        ("Well. <think>The answer is A", "Well."),
        ("<think>A?</think>So <think>The answer is A", "So"),
        ("<seed:think>The answer is A", ""),
        ("<thinking>A? <reflection>no</reflection>", ""),
        ("[THINK]The answer is A", ""),
        (CHANNEL + "The answer is A", ""),
        ("analysisWe weigh A.", ""),
        ("## Thinking\nThe answer is A", ""),
    ],
)
def test_thoughts_that_the_reply_does_not_close(reply, text):
    assert cut_thoughts(reply) == CutReply(text, is_open=True)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "With p < 0.05 and n > 30, I think that B fits.",
        "Analysis of the options: B.",
        "analysis: B",
        "Finally, B.",
        "final diagnosis: B",
        "<answer>B</answer>",
        "The rational thinker [1] thinks.",
    ],
)
def test_a_reply_without_thoughts_stays_as_it_is(reply):
    assert cut_thoughts(reply) == CutReply(reply, is_open=False)


@pytest.mark.parametrize("part", ["<", "< ", "<|", "<think", "[", "</", "<think ", "<think>", "</think>", CHANNEL[:-1]])
def test_degenerate_replies_take_linear_time(part):
    """The reply is so long that more than linear time would not finish."""
    assert cut_thoughts("</think>" + part * (400_000 // len(part)) + "</think>" + SAID).text == SAID


@given(st.lists(st.sampled_from(["<think>", "</think>", "<|end|>", "[THINK]", CHANNEL, "B ", "analysis", "final"])))
def test_any_sequence_of_marks_is_read(parts):
    cut = cut_thoughts("".join(parts))
    assert "<think>" not in cut.text and cut.text == cut.text.strip()


@pytest.mark.parametrize(
    ("reply", "mark"),
    [
        ("The answer is B.", ""),
        ("<think>Perhaps A?</think>B.", ""),
        ("<think>Perhaps A?", "</think>"),
        ("Well. <thinking>Perhaps A?", "</thinking>"),
        ("<seed:think>Perhaps A?", "</seed:think>"),
        ("<think>One.</think>So. <reflection>Perhaps A?", "</reflection>"),
        ("[THINK]Perhaps A?", "[/THINK]"),
        ("◁think▷Perhaps A?", "◁/think▷"),
        ("<|begin_of_thought|>Perhaps A?", "<|end_of_thought|>"),
        ("<|START_THINKING|>Perhaps A?", "<|END_THINKING|>"),
        ("<unused94>thought Perhaps A?", "<unused95>"),
        ("<|channel|>analysis<|message|>Perhaps A?", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("## Thinking\n\nPerhaps A?", "\n## Final Answer:\n"),
    ],
)
def test_open_thoughts_are_closed_by_their_own_mark(reply, mark):
    assert find_closing_mark(reply) == mark
    after = cut_thoughts(f"{reply}{mark}The answer is B.")
    assert not after.is_open and after.text.endswith("The answer is B.")


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<|im_start|>assistant\n<seed:think>", "<seed:think>"),
        ("Put your thoughts in <think> tags.\n<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("x" * 200 + "[THINK]", "[THINK]"),
        ("", ""),
    ],
)
def test_thoughts_that_the_prompt_opens(prompt, opening):
    assert find_opening(prompt) == opening


@pytest.mark.parametrize(("end", "opening"), [("{{ '<think>\\n' }}", "<think>\n"), ("<think></think>", ""), ("", "")])
def test_a_template_that_opens_thoughts(end, opening):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }} {% endfor %}" + end
    assert PromptRenderer(tokenizer, load_prompt_form("direct")).opening == opening
