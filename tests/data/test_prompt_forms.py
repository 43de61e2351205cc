"""Presets and users' files: what is read, what is refused, and with which words."""

from __future__ import annotations

import pytest
from config_builder import make_config, write_config

from medssr_dist.config.load import dump_config, load_config
from medssr_dist.config.schema import Config
from medssr_dist.data.prompt_forms import PRESETS, PromptForm, load_prompt_form
from medssr_dist.data.records import Question
from medssr_dist.errors import InputError

QUESTION = Question.make("Which {vitamin}?", ["C {0}", "D", "K"], source="test")
BODY = "user: '{question} {options}'\n"


def test_the_presets():
    assert PRESETS == ("base", "direct", "reason")
    assert [load_prompt_form(name).form for name in PRESETS] == ["completion", "chat", "chat"]
    assert all(load_prompt_form(name).name == name for name in PRESETS)
    assert load_prompt_form("base").stop and not load_prompt_form("reason").stop
    assert make_config().policy.prompt == load_prompt_form("reason")


def test_direct_is_the_wording_of_earlier_runs():
    instruction = "Choose the best option and reply with: The answer is (letter)."
    assert load_prompt_form("direct").fill_in(QUESTION) == (
        f"Which {{vitamin}}?\nA. C {{0}}\nB. D\nC. K\n\n{instruction}"
    )


def test_a_file_is_a_prompt(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('user: "Q: {question}\\n{options}\\nOne of {letters}, in {{braces}}."\nstop: ["\\nQ:"]\n')
    config = load_config(write_config(tmp_path / "c.yaml", policy={"prompt": str(file)}))
    prompt = config.policy.prompt
    assert (prompt.name, prompt.version, prompt.form, prompt.stop) == ("mine", 1, "chat", ("\nQ:",))
    expected = "Q: Which {vitamin}?\nA. C {0}\nB. D\nC. K\nOne of A, B or C, in {braces}."
    assert prompt.fill_in(QUESTION) == expected
    file.unlink()  # the config holds the text: nothing is read again
    assert Config.model_validate(dump_config(config)).policy.prompt == prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user: '{question} {optins}'", r"unknown placeholder \{optins\}; those known are \{question\}, \{options\}"),
        ("user: '{question}'", r"\{options\} 0 times; it must be there once"),
        ("user: '{options}'", r"\{question\} 0 times"),
        ("user: '{question} {question} {options}'", r"\{question\} 2 times"),
        (r"user: '{question} {options} \boxed{X}'", r"unknown placeholder \{X\}.* a brace itself is written twice"),
        ("user: '{question.id} {options}'", r"unknown placeholder \{question.id\}"),
        ("user: '{question!r} {options}'", r"unknown placeholder \{question!r:\}"),
        ("user: '{question} {options} {}'", r"unknown placeholder \{\}"),
        ("user: '{question} {options} {'", "a brace that opens or closes no placeholder"),
        ("user: '{question} {options} }'", "a brace that opens or closes no placeholder"),
        (BODY + "sytem: x", "unknown key 'sytem'; a prompt has name, version, form, system, user, stop"),
        (BODY + "form: turns", "form Input should be 'chat' or 'completion'"),
        (BODY + "stop: ['']", "an empty string, which would end every answer"),
        (BODY + "form: completion\nsystem: x", "form is completion, which has no turns"),
        (BODY + "version: 0", "version Input should be greater"),
        ("system: x", "user Field required"),
        ("just text", "holds no prompt; it needs the key user"),
        ("user: [", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(write_config(tmp_path / "c.yaml", policy={"prompt": str(file)}))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_neither_preset_nor_file(tmp_path):
    config = write_config(tmp_path / "c.yaml", policy={"prompt": "raeson"})
    with pytest.raises(InputError, match=r"policy.prompt = 'raeson' is neither a preset \(base, direct, reason\) nor"):
        load_config(config)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs: tokenize is set by the program"),
        ({"prompt": "base", "system_prompt": "x"}, "prompt base is a completion, which uses no chat template"),
        ({"prompt": "base", "chat_template_kwargs": {"x": 1}}, "prompt base is a completion"),
        ({"prompt": {"name": "x", "user": "{question}"}}, "policy.prompt: user has {options} 0 times"),
        ({"prompt": {"user": "{question} {options}"}}, "policy.prompt.name is missing"),
    ],
)
def test_keys_that_do_not_fit(tmp_path, policy, message):
    with pytest.raises(InputError) as caught:
        load_config(write_config(tmp_path / "c.yaml", policy=policy))
    assert message in str(caught.value)


def test_the_hash_is_of_the_whole_wording():
    form = PromptForm(name="x", user="{question} {options}")
    changes = [{"name": "y"}, {"version": 2}, {"user": "{question}  {options}"}, {"stop": ("a",)}, {"system": "s"}]
    hashes = {form.hash, *(PromptForm(**form.model_dump() | change).hash for change in changes)}
    assert len(hashes) == 6
