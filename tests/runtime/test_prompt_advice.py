"""Where prompt, model and token limits do not fit, the advice says so; where they fit, it says nothing."""

from __future__ import annotations

import json

import pytest
from config_builder import make_config
from tiny_templates import TEMPLATES, build_tokenizer, write_tokenizer

from medssr_dist.commands.doctor.inputs import check_prompt
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer
from medssr_dist.runtime.prompt_advice import find_thinking, list_prompt_advice

OFF = {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.fixture
def advise(tmp_path):
    """Return a function (kind of template, policy, limits) -> the advice, one text each."""

    def run(kind, max_tokens=2048, **policy):
        folder = tmp_path / kind
        write_tokenizer(folder, kind)
        config = make_config(
            policy={"model": str(folder), "max_model_len": 32768, **policy},
            voting={"max_tokens": max_tokens},
            evaluation={"max_tokens": max_tokens},
            training={"stage1": {"max_new_tokens": max_tokens}},
        )
        prompts = make_prompt_renderer(load_tokenizer(folder, config.policy), config.policy)
        found = list_prompt_advice(config, prompts, folder)
        result = check_prompt(config, tmp_path)
        assert (result.status, result.detail) == (
            ("warn", "; ".join(each.detail for each in found)) if found else ("pass", config.policy.prompt.label)
        )
        return [f"{each.detail}; {each.fix}" for each in found]

    return run


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("chat", {}),
        ("chat", {"prompt": "direct", "max_tokens": 1}),
        ("no_system", {}),
        ("none", {"prompt": "base"}),
        ("thinking", OFF),
        ("thinking", {"max_tokens": 8192}),
    ],
)
def test_what_fits(advise, kind, options):
    assert advise(kind, **options) == []


def test_thoughts_need_room(advise):
    (line,) = advise("thinking")
    assert line.startswith("the model thinks before it answers")
    limits = "voting.max_tokens = 2048, evaluation.max_tokens = 2048, training.stage1.max_new_tokens = 2048"
    assert limits in line and "8192" in line and "enable_thinking: false" in line


def test_reasoning_needs_room(advise):
    (line,) = advise("chat", max_tokens=64)
    assert "asks for reasoning" in line and "voting.max_tokens = 64" in line and "policy.prompt=direct" in line


def test_a_chat_prompt_without_a_chat_template(advise):
    (line,) = advise("none")
    assert line == (
        "policy.prompt = reason is for chat models, but the model has no chat template; use policy.prompt=base"
    )


def test_a_completion_for_a_chat_model(advise):
    (line,) = advise("chat", prompt="base")
    assert "is for base models" in line and line.endswith("use policy.prompt=reason")


@pytest.mark.parametrize(("prompt", "expected"), [("reason", ["use policy.prompt=base"]), ("base", [])])
def test_a_base_model_may_have_a_chat_template(tmp_path, prompt, expected):
    """As Qwen3-8B-Base, whose stop token does not end a turn of its template."""
    folder = tmp_path / "base_model"
    tokenizer = build_tokenizer(TEMPLATES["chat"])
    tokenizer.eos_token = "</s>"
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id]}))
    config = make_config(policy={"model": str(folder), "prompt": prompt})
    prompts = make_prompt_renderer(load_tokenizer(folder, config.policy), config.policy)
    assert [each.fix for each in list_prompt_advice(config, prompts, folder)] == expected


@pytest.mark.parametrize("name", ["enable_thinkng", "thinking_budget"])
def test_an_argument_that_the_template_does_not_take(advise, name):
    lines = advise("chat", chat_template_kwargs={name: False})
    assert lines == [
        f"policy.chat_template_kwargs.{name} changes nothing: the model's chat template does not take it; "
        "remove it, or correct its name"
    ]


@pytest.mark.parametrize(
    ("template", "kwargs", "expected"),
    [
        (TEMPLATES["thinking"], {}, "on"),
        (TEMPLATES["thinking"], {"enable_thinking": True}, "on"),
        (TEMPLATES["thinking"], {"enable_thinking": False}, "off"),
        (TEMPLATES["chat"], {}, "never"),
        (TEMPLATES["chat"] + "{% if add_generation_prompt %}<think>\n{% endif %}", {}, "on"),
        (TEMPLATES["chat"] + "{% if thinking | default(false) %}<think>{% endif %}", {}, "off"),
        (None, {}, "never"),
    ],
)
def test_thinking_is_seen_in_the_template(template, kwargs, expected):
    prompts = PromptRenderer(build_tokenizer(template), load_prompt_form("reason"), template_kwargs=kwargs)
    assert find_thinking(prompts) == expected
