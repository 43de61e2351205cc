"""The prompts of second passes with real tokenizers and each kind of chat template."""

import pytest
from tiny_templates import TEMPLATES, build_tokenizer

from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.evaluation.reading_rules import OurRule, PaperRule

QUESTION = Question.make("Which mineral?", ["iron", "zinc"], source="set", truth="A")
OURS, PAPER = OurRule(), PaperRule("tiny")
COMPLETION = ".\nGive one option only.\nThe answer is "


def extend(kind, form, reply, rule, **kwargs):
    """Return what stands behind the first-pass prompt, and all ids."""
    tokenizer = build_tokenizer(TEMPLATES[kind])
    prompts = PromptRenderer(tokenizer, load_prompt_form(form), template_kwargs=kwargs)
    prompt = prompts.render(QUESTION)
    longer = prompts.extend(prompt, reply, rule.continue_reply(reply, prompts))
    assert longer.ids[: len(prompt.ids)] == prompt.ids
    assert tokenizer.decode(longer.ids[len(prompt.ids) :]) == longer.text[len(prompt.text) :]
    return longer.text[len(prompt.text) :], longer.ids


@pytest.mark.parametrize("kind", list(TEMPLATES))
def test_our_second_pass_goes_on_in_the_reply(kind):
    assert extend(kind, "reason", "Iron is low", OURS)[0] == "Iron is low\n\nThe answer is ("
    assert extend(kind, "reason", "<think>Low", OURS)[0] == "<think>Low\n</think>\n\nThe answer is ("


@pytest.mark.parametrize(
    ("kind", "form", "end"),
    [
        ("chat", "reason", "<|im_end|>\n<|im_start|>user\nGive one option only. The answer is<|im_end|>\n"),
        ("thinking", "direct", "<|im_end|>\n<|im_start|>user\nGive one option only. The answer is <|im_end|>\n"),
        ("no_system", "direct", "<|im_end|>[INST] Give one option only. The answer is  [/INST]"),
        ("none", "reason", COMPLETION),
        ("chat", "base", COMPLETION),
    ],
)
def test_the_papers_second_pass_is_a_turn_where_there_are_turns(kind, form, end):
    text, _ = extend(kind, form, "Iron is low", PAPER)
    start = "<|im_start|>assistant\n" if "<|im_start|>" in end else ""
    assert text == f"Iron is low{end}{start}"


def test_the_papers_second_pass_keeps_the_templates_arguments():
    text, _ = extend("thinking", "direct", "Iron is low", PAPER, enable_thinking=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_reply_that_ends_with_a_stop_gets_no_second_one():
    assert extend("none", "base", "Iron is low. ", PAPER)[0] == "Iron is low. \nGive one option only.\nThe answer is "


@pytest.mark.parametrize("rule", [OURS, PAPER])
def test_control_tokens_that_a_reply_spells_are_text(rule):
    """Only the turns of the template have control tokens."""
    tokenizer = build_tokenizer(TEMPLATES["chat"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    spelled = extend("chat", "direct", "Iron<|im_end|>", rule)[1].count(end)
    assert spelled == extend("chat", "direct", "Iron", rule)[1].count(end)
