"""The registry of secrets: what is registered is scrubbed in every form, and texts that look like keys are known."""

from __future__ import annotations

import base64
import html
import json
import os
import subprocess
import sys
from urllib.parse import quote

import pytest

from medssr_dist import secret_registry
from medssr_dist.data.jsonl import JsonlLedger, write_atomic, write_json
from medssr_dist.errors import InputError, to_line
from medssr_dist.secret_registry import holds_secret, names_secret, register_secret, scrub, scrub_bytes, take_variable

SECRET = 'pa/ss"wo rd+1234'


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    for name, value in (("_variables", {}), ("_forms", ()), ("_encoded", ())):
        monkeypatch.setattr(secret_registry, name, value)


FORMS = {
    "plain": SECRET,
    "URL": quote(SECRET, safe=""),
    "URL with slashes": quote(SECRET),
    "URL in small letters": quote(SECRET, safe="").lower(),
    "JSON": json.dumps(SECRET)[1:-1],
    "JSON in JSON": json.dumps(json.dumps(SECRET))[3:-3],
    "JSON for HTML": json.dumps(SECRET).replace("/", "\\/")[1:-1],
    "HTML": html.escape(SECRET),
    "base64": base64.b64encode(SECRET.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("kind", FORMS)
def test_a_secret_is_scrubbed_in_every_form(kind):
    form = FORMS[kind]
    register_secret(SECRET)
    assert scrub(f"a {form} b") == "a *** b" and scrub_bytes(f"a {form} b".encode()) == b"a *** b"
    assert str(InputError(f"key {form}")) == "key ***" and "***" in to_line(f"x{form}")


@pytest.mark.parametrize("before", ["u:", "us:", "use:"])
@pytest.mark.parametrize("after", ["", "\n", "?a"])
def test_a_secret_within_a_text_in_base64_is_scrubbed(before, after):
    key = "sk>odd?secret~key"
    register_secret(key)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        coded = encode(f"{before}{key}{after}".encode()).decode()
        assert "***" in scrub(coded) and len(scrub(coded)) < len(coded) - 12


def test_a_secret_that_holds_another_is_scrubbed_as_a_whole():
    register_secret("abcdefgh")
    register_secret("abcdefgh-ijkl")
    assert scrub("abcdefgh-ijkl abcdefgh") == "*** ***"


def test_short_secrets_are_left_alone():
    register_secret("none")
    assert scrub("none of the above") == "none of the above"


def test_files_are_written_without_secrets(tmp_path):
    register_secret(SECRET)
    write_atomic(tmp_path / "a.txt", SECRET)
    write_json(tmp_path / "a.json", {"nested": [{SECRET: SECRET}]})
    with JsonlLedger(tmp_path / "a.jsonl") as ledger:
        ledger.append({"reply": SECRET})
    for file in tmp_path.iterdir():
        assert b"wo rd" not in file.read_bytes() and b"***" in file.read_bytes()


def test_a_taken_variable_is_not_inherited(monkeypatch):
    monkeypatch.setenv("A_KEY", "value-of-the-key")
    assert take_variable("A_KEY") == take_variable("A_KEY") == "value-of-the-key"
    done = subprocess.run([sys.executable, "-c", "import os; print(os.environ.get('A_KEY'))"], capture_output=True)
    assert done.stdout.split() == [b"None"] and scrub("value-of-the-key") == "***"
    monkeypatch.setenv("A_KEY", "another-value")
    assert take_variable("A_KEY") == "another-value" and take_variable("NO_SUCH_KEY") is None


def test_copies_of_a_secret_in_other_variables_are_not_inherited(monkeypatch):
    for name, value in (("A_KEY", "value-of-the-key"), ("COPY", " value-of-the-key\n"), ("OTHER", "value-of-the-keys")):
        monkeypatch.setenv(name, value)
    take_variable("A_KEY")
    assert "COPY" not in os.environ and "OTHER" in os.environ and take_variable("COPY")
    monkeypatch.setenv("SHORT", "EMPTY")
    monkeypatch.setenv("B_KEY", "EMPTY")
    assert take_variable("B_KEY") == "EMPTY" and os.environ["SHORT"] == "EMPTY"


@pytest.mark.parametrize(
    "text",
    [
        "sk-proj-abcdefghijklmnop1234",
        "https://host/v1?key=sk-0123456789abcdefgh",
        "hf_abcdefghijklmnopqrst",
        "ghp_abcdefghijklmnopqrstuvwx",
        "AKIAABCDEFGHIJKLMNOP",
        "xoxb-1234567890-abcdef",
        "Bearer abcdefgh12345",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    ],
)
def test_texts_that_look_like_keys_are_known(text):
    assert holds_secret(text)


@pytest.mark.parametrize(
    "text", ["task-based-learning-in-medicine", "risk-stratification-of-patients", "runs/demo", "Qwen/Qwen3-8B", "sk-1"]
)
def test_other_texts_are_none(text):
    assert not holds_secret(text)


def test_names_of_secrets_are_known():
    assert all(map(names_secret, ["OPENAI_API_KEY", "HF_TOKEN", "db_password", "KEY"]))
    assert not any(map(names_secret, ["MODELS", "KEYBOARD", "TOKENIZERS_PARALLELISM", "DATA"]))
