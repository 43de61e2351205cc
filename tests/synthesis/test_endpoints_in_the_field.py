"""Whole synthesis steps against servers as they are found in the field: what is accepted, paid for, and said."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from synthesis_run import config, journaled, run

from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary


def question(prompt: str) -> str:
    """A question of its own for each prompt, without knowledge of it."""
    word = hashlib.sha256(prompt.encode()).hexdigest()
    stem = f"A patient of ward {word} takes {word[:4]} tablets daily and asks which of these is most likely now?"
    return json.dumps({"question": stem, "options": [f"{word[n : n + 3]} {n}" for n in range(4)]})


def completion(text, end="stop", usage=True):
    body = {"choices": [{"message": {"content": text}, "finish_reason": end}]}
    return body | ({"model": "m", "usage": {"prompt_tokens": 100, "completion_tokens": 50}} if usage else {})


@contextmanager
def serving(answer):
    """Serve `answer(prompt, number)`: a body, or (status, headers, body)."""
    asked = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = request["messages"][-1]["content"]
            with lock:
                asked.append(prompt)
                number = len(asked)
            found = answer(prompt, number)
            status, headers, body = found if isinstance(found, tuple) else (200, {}, found)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def settings(url, accepted=10, **fields):
    return config(url, accepted=accepted, alpha=0.0, endpoint={"concurrency": 4}, **fields)


def test_moderated_prompts_cost_these_prompts_alone(tmp_path):
    flagged = set()

    def answer(prompt, number):
        if number in (3, 6, 9):
            flagged.add(prompt)
        body = {"error": {"message": "input was flagged"}}
        return (403, {}, body) if prompt in flagged else completion(question(prompt))

    with serving(answer) as (url, asked):
        summary = run(settings(url, candidates=60), tmp_path)
    assert summary.accepted == 10 and summary.rejected_by_reason == {"refused_by_api": len(flagged)}
    assert 0 < len(flagged) <= 3 and len(asked) <= summary.requested + summary.surplus + 10


def test_a_prompt_above_the_limit_per_minute_ends_nothing(tmp_path):
    refused = []

    def answer(prompt, number):
        if not refused:
            refused.append(prompt)
        words = "tokens per minute (TPM): Limit 6000, Requested 7500"
        error = {"error": {"message": words, "code": "rate_limit_exceeded"}}
        return (413, {}, error) if prompt in refused else completion(question(prompt))

    with serving(answer) as (url, asked):
        summary = run(settings(url, candidates=40), tmp_path)
    assert summary.accepted == 10 and summary.rejected_by_reason == {"refused_by_api": 1}
    assert len(asked) == len(set(asked))


def test_replies_of_another_api_are_not_bought_for_long(tmp_path):
    words = "is no OpenAI-compatible API .the reply is JSON, but not a chat completion"
    reply = {"message": {"content": "A question"}, "done": True}
    with serving(lambda *_: reply) as (url, asked), pytest.raises(InputError, match=words):
        run(settings(url), tmp_path)
    assert len(asked) < 10


def test_credit_that_ends_midway_gives_nothing_up(tmp_path):
    has_credit = False

    def answer(prompt, number):
        if number > 6 and not has_credit:
            return 400, {}, {"error": {"message": "Your credit balance is too low", "type": "invalid_request_error"}}
        return completion(question(prompt))

    with serving(answer) as (url, _):
        with pytest.raises(InputError, match="no credit or quota left.*same command resumes"):
            run(settings(url, accepted=30), tmp_path)
        assert len(journaled(tmp_path)) == 6
        has_credit = True
        summary = run(settings(url, accepted=30), tmp_path)
    assert summary.accepted == 30 and summary.rejected_by_reason == {} and summary.requests_replayed == 6


ONCE_UNREADABLE = {
    "502 in GBK": lambda text: (502, {}, '{"error": {"message": "网关错误"}}'.encode("gbk")),
    "200 in Latin-1": lambda text: json.dumps(
        completion(text.replace("patient", "malade guéri")), ensure_ascii=False
    ).encode("latin-1"),
    "200 with half a surrogate": lambda text: json.dumps(completion(text.replace("patient", "\ud800"))).encode(),
    "stream": lambda text: (
        b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\ndata: [DONE]\n\n"
    ),
    "no choices": lambda text: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}},
}


@pytest.mark.parametrize("kind", ONCE_UNREADABLE)
def test_an_odd_reply_is_used_or_rejected_and_the_step_ends_well(tmp_path, kind):
    def answer(prompt, number):
        return ONCE_UNREADABLE[kind](question(prompt)) if number == 7 else completion(question(prompt))

    with serving(answer) as (url, asked):
        summary = run(settings(url), tmp_path)
    assert summary.accepted == 10 and summary.lost == 0
    repeated = len(asked) - len(set(asked))
    assert repeated == (1 if kind == "502 in GBK" else 0)


NOTHING = {
    "no question": (completion("I would rather talk about the weather."), "not_parsable"),
    "cut": (
        {"choices": [{"message": {"role": "assistant"}, "finish_reason": "length"}]},
        "truncated.*synthesis.max_tokens",
    ),
    "no choices": ({"choices": []}, "empty"),
    "refusals": ({"choices": [{"message": {"content": None, "refusal": "No."}}]}, "refused"),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_a_step_that_accepted_nothing_is_a_failure(tmp_path, kind):
    body, words = NOTHING[kind]
    with serving(lambda prompt, number: body) as (url, asked):
        for _ in range(2):  # again, without a further request
            with pytest.raises(InputError, match=f"20 of 20 replies were rejected .mostly: {words}") as error:
                run(settings(url, candidates=20), tmp_path)
    assert len(asked) == 20 and not (tmp_path / "summary.json").exists()
    assert "rejected.jsonl" in str(error.value) and len(str(error.value)) < 700
    if kind == "no question":
        assert "an example: 'I would rather talk about the weather.'" in str(error.value)


def test_hardly_any_question_is_a_failure_unless_asked_for(tmp_path):
    def answer(prompt, number):
        return completion(question(prompt) if number == 3 else "No.")

    with serving(answer) as (url, _):
        with pytest.raises(InputError, match="29 of 30 replies were rejected"):
            run(settings(url, candidates=30), tmp_path)
        summary = run(settings(url, candidates=30, max_reject_share=0.99), tmp_path)
    assert summary.accepted == 1 and summary.stopped_by == "cap"
    assert read_synthesis_summary(tmp_path / "summary.json").accepted == 1


USAGES = {
    "absent": None,
    "infinite": {"prompt_tokens": float("inf"), "completion_tokens": float("inf")},
    "negative": {"prompt_tokens": -(10**9), "completion_tokens": -(10**9)},
    "absurd": {"prompt_tokens": 10**15, "completion_tokens": 10**15},
    "text": {"prompt_tokens": "many", "completion_tokens": "few"},
    "zero": {"prompt_tokens": 0, "completion_tokens": 0},
}


@pytest.mark.parametrize("kind", USAGES)
def test_the_budget_holds_whatever_usage_says(tmp_path, kind):
    def answer(prompt, number):
        return completion(question(prompt), usage=False) | ({"usage": USAGES[kind]} if USAGES[kind] else {})

    with serving(answer) as (url, asked):
        summary = run(settings(url, accepted=40, max_tokens=100, budget={"tokens": 5000}), tmp_path)
    assert summary.stopped_by == "budget" and 3 < len(asked) < 40
    assert 500 < summary.prompt_tokens + summary.completion_tokens <= 5000
    rows = list(read_jsonl(tmp_path / "journal.jsonl"))
    assert all(0 < row["prompt_tokens"] < 1000 and 0 < row["completion_tokens"] <= 100 for row in rows)


def test_names_of_models_are_text_in_the_card(tmp_path):
    def answer(prompt, number):
        return completion(question(prompt)) | {"model": "x`|\n\n# INJECTED\n<script>\x1b[31m"}

    with serving(answer) as (url, _):
        run(settings(url), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "\n# INJECTED" not in card and "\x1b" not in card and "`x'\\| # INJECTED <script>" in card
