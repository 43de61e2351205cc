"""Prompts as token ids, with real tokenizers and each kind of chat template."""

from __future__ import annotations

import os
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import REPO
from tiny_templates import (
    CHAT,
    DATED,
    DROPS_SYSTEM,
    MARKUP,
    NO_SYSTEM,
    SPECIAL,
    TEMPLATES,
    THINKING,
    build_tokenizer,
)

from medssr_dist.config.schema import Policy
from medssr_dist.data import prompt_renderer
from medssr_dist.data.prompt_forms import PRESETS, load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.runtime.models import EMBEDDED_MODEL, load_tokenizer, make_prompt_renderer, resolve_model

GOLDEN = REPO / "tests" / "data" / "golden" / "prompts"
QUESTION = Question.make(
    "A 30-year-old man has ascites.\nWhich test confirms the diagnosis?", ["Liver biopsy", "MRI < CT"], source="test"
)
KINDS = [(kind, preset) for kind in TEMPLATES for preset in PRESETS]


def render(template, preset="direct", question=QUESTION, **options):
    return make(template, preset, **options).render(question)


@cache
def read(preset):
    return load_prompt_form(preset)


@cache
def tokenizer_of(template):
    return build_tokenizer(template)


def make(template, preset="direct", **options) -> PromptRenderer:
    return PromptRenderer(tokenizer_of(template), read(preset), **options)


def list_control(prompt) -> list[str]:
    """Return the added tokens among the ids of a prompt."""
    added = tokenizer_of(None).added_tokens_decoder
    return [added[id].content for id in prompt.ids if id in added]


def check_golden(name: str, prompt, tokenizer) -> None:
    text = f"=== text ===\n{prompt.text}\n=== {len(prompt.ids)} ids, decoded ===\n{tokenizer.decode(prompt.ids)}\n"
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("MEDSSR_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "preset"), KINDS)
def test_golden_prompts_of_each_kind_of_template(kind, preset):
    check_golden(f"{kind}_{preset}", render(TEMPLATES[kind], preset), build_tokenizer(TEMPLATES[kind]))


def test_golden_prompt_without_thoughts():
    prompt = render(THINKING, "reason", template_kwargs={"enable_thinking": False})
    check_golden("thinking_off_reason", prompt, build_tokenizer(THINKING))


def test_golden_prompt_with_a_system_turn():
    prompt = render(CHAT, "reason", system_prompt="You are a careful physician.")
    check_golden("chat_reason_system", prompt, build_tokenizer(CHAT))


@pytest.mark.parametrize("preset", PRESETS)
def test_golden_prompts_of_the_embedded_policy(preset):
    policy = Policy(model=EMBEDDED_MODEL, prompt=preset)
    tokenizer = load_tokenizer(resolve_model(policy), policy)
    check_golden(f"embedded_{preset}", make_prompt_renderer(tokenizer, policy).render(QUESTION), tokenizer)


@pytest.mark.parametrize("preset", ["direct", "reason"])
@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM, THINKING])
def test_ids_are_those_of_the_chat_template(template, preset):
    tokenizer, prompts = build_tokenizer(template), make(template, preset)
    turns = [{"role": "user", "content": prompts.form.fill_in(QUESTION)}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(prompts.render(QUESTION).ids) == ids


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM, None])
def test_the_start_token_is_there_once(template, preset):
    """The template prints it, and the tokenizer adds it to a text without a template."""
    control = list_control(render(template, preset))
    assert control[0] == "<s>" and control.count("<s>") == 1


@pytest.mark.parametrize("template", [None, THINKING])
def test_no_start_token_where_the_model_has_none(template):
    tokenizer = build_tokenizer(template, adds_bos=False)
    assert "<s>" not in list_control(PromptRenderer(tokenizer, load_prompt_form("direct")).render(QUESTION))


def test_a_file_that_writes_the_start_token_gets_no_second():
    form = load_prompt_form("base").model_copy(update={"user": "<s>{question}\n{options}"})
    assert list_control(PromptRenderer(build_tokenizer(None), form).render(QUESTION)) == ["<s>"]


# --- text of a question is data ----------------------------------------------------------------------------------

FRAGMENTS = [*SPECIAL, *MARKUP, "<", "<|", "|>", "im_end", "[", "]", " ", "\n", "a drop", "<<s>>", "é", "\ue000", "{"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@settings(max_examples=40)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12), st.lists(st.sampled_from(FRAGMENTS), max_size=6))
def test_no_text_of_a_question_is_a_control_token(template, preset, stem, option):
    prompts = make(template, preset)
    question = Question.make("Q" + "".join(stem), ["a" + "".join(option), "b"], source="test")
    found = prompts.render(question)
    assert list_control(found) == list_control(prompts.render(QUESTION))
    decoded = tokenizer_of(template).decode(found.ids)
    assert decoded in (found.text, "<s>" + found.text)  # and the model reads the same characters
    assert question.stem in found.text


def test_a_tokenizer_that_reads_control_tokens_anyway_is_refused(monkeypatch):
    prompts = make(CHAT)
    monkeypatch.setattr(prompts, "_mark_control", lambda text, mark: text)
    question = Question.make("Which <|im_end|>?", ["a", "b"], source="test")
    with pytest.raises(InputError, match="has text that this tokenizer reads as control tokens; remove the question"):
        prompts.render(question)


def test_a_space_in_front_of_each_text_is_not_added_inside():
    """As SentencePiece tokenizers do it, which replace spaces and put one in front of a text."""
    from tokenizers import pre_tokenizers

    tokenizer = build_tokenizer(None)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    prompts = PromptRenderer(tokenizer, load_prompt_form("direct"))
    cut = prompts.render(Question.make("a <think> b", ["x", "y"], source="test"))
    assert tokenizer.decode(cut.ids).startswith("<s> a <think> b\n")


# --- the template ------------------------------------------------------------------------------------------------


def test_a_template_that_refuses_the_system_turn():
    with pytest.raises(
        InputError, match="refuses the prompt .System role not supported.; .* set policy.system_prompt=''"
    ):
        make(NO_SYSTEM, system_prompt="You are a physician.")


def test_a_template_that_drops_the_system_turn():
    with pytest.raises(InputError, match="drops the system turn; set policy.system_prompt=''"):
        make(DROPS_SYSTEM, system_prompt="You are a physician.")


def test_a_template_that_drops_the_question():
    with pytest.raises(InputError, match="drops or changes the user turn"):
        make("{% for turn in messages %}<|im_start|>{% endfor %}")


def test_a_template_that_fails():
    with pytest.raises(InputError, match="chat template fails .*; correct policy.chat_template_kwargs"):
        make("{{ messages[7].content }}")


def test_the_date_of_a_template_is_fixed():
    assert render(DATED).text.startswith("Today Date: 26 Jul 2024\n")
    assert make(DATED).identity != make(CHAT).identity


# --- hashes, and the second pass -----------------------------------------------------------------------------------


def test_direct_is_identified_as_by_earlier_versions():
    assert make(CHAT, "direct").identity == "Choose the best option and reply with: The answer is (letter)."
    tokenizer = build_tokenizer(None, adds_bos=False)
    assert PromptRenderer(tokenizer, load_prompt_form("direct")).identity == make(CHAT, "direct").identity


def test_the_identity_covers_all_that_changes_a_prompt():
    found = {
        make(CHAT, "direct").identity,
        make(None, "direct").identity,  # with the start token
        make(CHAT, "reason").identity,
        make(CHAT, "base").identity,
        make(CHAT, "direct", system_prompt="x").identity,
        make(CHAT, "direct", system_prompt="y").identity,
        make(CHAT, "direct", template_kwargs={"enable_thinking": False}).identity,
        make(DATED, "direct").identity,
    }
    assert len(found) == 8


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_prompt_is_extended_by_a_reply(template):
    prompts, tokenizer = make(template), build_tokenizer(template)
    prompt = prompts.render(QUESTION)
    longer = prompts.extend(prompt, "It is <|im_end|> a </think> B", "\n</think>\nThe answer is (")
    assert longer.text == prompt.text + "It is <|im_end|> a </think> B\n</think>\nThe answer is ("
    assert longer.ids[: len(prompt.ids)] == prompt.ids
    assert tokenizer.decode(longer.ids[len(prompt.ids) :]) == longer.text[len(prompt.text) :]
    assert list_control(longer)[len(list_control(prompt)) :] == ["</think>", "</think>"]


def test_marks_are_characters_that_the_text_lacks():
    assert prompt_renderer._choose_mark("a\ue000\ue001") == "\ue002"
