"""Paid replies in all their forms, over real HTTP: used, or rejected once, and never bought again."""

import gzip
import json
import zlib

import pytest
from aiohttp import web
from chat_calls import KEY, ask, ask_server_that, failure_of, serving

from medssr_dist.runtime.http import http_answer
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.synthesis.checks.parse import read_reply
from medssr_dist.synthesis.checks.reply_parts import Rejection
from medssr_dist.synthesis.client.chat_reply import NoReply

TEXT = '{"question": "Which vitamin prevents scurvy?", "options": ["C", "D", "K", "A"]}'


def completion(message, end="stop", **fields):
    choice = {"message": message, "finish_reason": end}
    return {"choices": [choice], "usage": {"prompt_tokens": 30, "completion_tokens": 5}, "model": "m-2"} | fields


def thinking(text):
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def events(*chunks, end=b"data: [DONE]\n\n"):
    return b": comment\n\n" + b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in chunks) + end


def delta(text, end=None, **fields):
    return {"choices": [{"delta": {"content": text}, "finish_reason": end}]} | fields


async def reply_to(body, **response):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask_server_that(lambda _: web.Response(body=data, **response))


FORMS = {
    "text": completion({"content": TEXT}),
    "list of parts": completion({"content": [thinking("hm"), {"type": "text", "text": TEXT}]}),
    "two text parts": completion({"content": [{"type": "text", "text": TEXT[:9]}, {"type": "text", "text": TEXT[9:]}]}),
    "texts in a list": completion({"content": [TEXT[:9], TEXT[9:]]}),
    "one part": completion({"content": {"type": "text", "text": TEXT}}),
    "text with a value": completion({"content": [{"type": "text", "text": {"value": TEXT, "annotations": []}}]}),
    "parsed JSON": completion({"content": json.loads(TEXT)}),
    "completions form": {"choices": [{"text": TEXT, "finish_reason": "stop"}]},
    "one choice, no list": {"choices": {"message": {"content": TEXT}}},
    "stream": events(delta(TEXT[:7]), delta(TEXT[7:], "stop"), {"choices": [], "usage": {"prompt_tokens": 30}}),
    "stream without end mark": events(delta(TEXT, "stop"), end=b""),
    "stream without finish reason": events(delta(TEXT)),
    "stream after a byte order mark": b"\xef\xbb\xbfdata: " + json.dumps(delta(TEXT, "stop")).encode() + b"\n\n",
    "comments before a plain body": b": wait\n\n: wait\n\n" + json.dumps(completion({"content": TEXT})).encode(),
    "NUL behind the body": json.dumps(completion({"content": TEXT})).encode() + b"\0",
    "success beside choices": completion({"content": TEXT}, base_resp={"status_code": 0, "status_msg": "success"}),
    "wrapped in data": {"code": 0, "data": completion({"content": TEXT})},
    "wrapped in result": {"result": completion({"content": TEXT}), "errors": [], "success": True},
    "wrapped in output, with usage outside": {
        "output": {"choices": [{"message": {"content": TEXT}}]},
        "usage": {"input_tokens": 30},
    },
    "body as text": {"statusCode": 200, "body": json.dumps(completion({"content": TEXT}))},
    "JSON as text": json.dumps(json.dumps(completion({"content": TEXT}))).encode(),
    "list of one": [completion({"content": TEXT})],
    "chunk marks behind the body": json.dumps(completion({"content": TEXT})).encode() + b"\r\n0\r\n\r\n",
    "comment behind the body": json.dumps(completion({"content": TEXT})).encode() + b"<!-- edge 7 -->",
    "further object behind the body": json.dumps(completion({"content": TEXT})).encode() + b'\n{"x": 1}',
    "finish reason as an object": completion({"content": TEXT}, {"type": "stop", "matched": 2}),
    "no error beside choices": completion({"content": TEXT}, error=None),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(completion({"content": TEXT})).encode(),
    "UTF-16": json.dumps(completion({"content": TEXT})).encode("utf-16"),
    "NaN and huge numbers": json.dumps(completion({"content": TEXT}, score=float("nan"))).encode()[:-1]
    + b', "n": '
    + b"9" * 5000
    + b"}",
    "key twice": b'{"choices": [], "choices": [{"message": {"content": ' + json.dumps(TEXT).encode() + b"}}]}",
}


@pytest.mark.parametrize("form", FORMS)
async def test_forms_of_a_reply_that_are_used(form):
    assert json.loads((await reply_to(FORMS[form])).text) == json.loads(TEXT)


EMPTY = {
    "absent content, at the limit": (completion({"role": "assistant"}, "length"), "truncated"),
    "null content, at the limit": (completion({"content": None, "reasoning_content": "hm"}, "length"), "truncated"),
    "thoughts alone, at the limit": (completion({"content": [thinking("hm")]}, "MAX_TOKENS"), "truncated"),
    "object as finish reason, at the limit": (completion({"content": TEXT[:20]}, {"type": "length"}), "truncated"),
    "window of the model is full": (completion({"content": TEXT[:20]}, "model_context_window_exceeded"), "truncated"),
    "withheld, with a kind": (completion({}, "content_filter: PROHIBITED_CONTENT"), "refused"),
    "end mark alone": (b"data: [DONE]\n\n", "empty"),
    "no choices": ({"choices": [], "usage": {"prompt_tokens": 9}}, "empty"),
    "choices null": ({"choices": None, "usage": {"prompt_tokens": 9}}, "empty"),
    "no message": (completion(None), "empty"),
    "refusal": (completion({"content": None, "refusal": "I will not."}), "refused"),
    "refusal as a part": (completion({"content": [{"type": "refusal", "refusal": "No."}]}), "refused"),
    "withheld": (completion({"content": ""}, "content_filter"), "refused"),
    "a number": (completion({"content": 5}), "not_parsable"),
    "NUL bytes": (completion({"content": "\0" * 9}), "not_parsable"),
}


@pytest.mark.parametrize("form", EMPTY)
async def test_forms_of_a_reply_that_are_rejected_once(form):
    body, reason = EMPTY[form]
    reply = await reply_to(body)
    rejection = read_reply(reply.text, reply.finish_reason)
    assert isinstance(rejection, Rejection) and rejection.reason == reason


async def test_words_of_a_refusal_are_kept():
    assert (await reply_to(completion({"content": None, "refusal": "I will not."}))).text == "I will not."


@pytest.mark.parametrize("charset", ["gbk", "latin-1"])
async def test_letters_of_another_encoding_are_marked_lost(charset):
    text = {"gbk": "患者缺乏维生素乗", "latin-1": "Ménière crème"}[charset]
    body = json.dumps(completion({"content": TEXT.replace("scurvy", text)}), ensure_ascii=False).encode(charset)
    reply = await reply_to(body)
    assert "\ufffd" in reply.text and text not in reply.text
    assert read_reply(reply.text).reason == "garbled"
    declared = await reply_to(body, headers={"Content-Type": f"application/json; charset={charset}"})
    assert text in declared.text
    assert text in (await reply_to(body.decode(charset).encode(), content_type="text/html", charset="no-such")).text


async def test_half_a_surrogate_pair_is_marked_lost():
    body = b'{"model": "m\\ud800", "choices": [{"message": {"content": "cut \\ud83d"}, "finish_reason": "\\udfff"}]}'
    reply = await reply_to(body)
    assert (reply.text, reply.model, reply.finish_reason) == ("cut \ufffd", "m\ufffd", "\ufffd")


async def test_names_are_short_and_printable():
    reply = await reply_to(completion({"content": "ok"}, model="x`|\n\n# A\n<b>\x1b[31m" + "m" * 10**6))
    assert reply.model.isprintable() and "\x1b" not in reply.model and len(reply.model) <= 200
    for odd in ({"a": [1]}, None, 5, True):
        assert (await reply_to(completion({"content": "ok"}, model=odd))).model == "m"


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 3}, (12, 3)),
        ({"input_tokens": 12, "output_tokens": 3}, (12, 3)),
        ({"prompt_tokens": "12", "completion_tokens": "x"}, (12, 0)),
        ({"prompt_tokens": 12.0, "completion_tokens": 2.5}, (12, 0)),
        ({"prompt_tokens": -(10**9), "completion_tokens": -1}, (0, 0)),
        ({"prompt_tokens": 10**30, "completion_tokens": float("inf")}, (0, 0)),
        ({"prompt_tokens": True, "completion_tokens": None}, (0, 0)),
        ([1], (0, 0)),
        ("many", (0, 0)),
        (None, (0, 0)),
    ],
)
async def test_usage_holds_counts_or_nothing(usage, counts):
    reply = await reply_to(completion({"content": "ok"}, usage=usage))
    assert (reply.prompt_tokens, reply.completion_tokens) == counts and reply.text == "ok"


@pytest.mark.parametrize("status", [200, 201, 206, 299])
async def test_a_reply_counts_with_any_status_of_success(status):
    assert (await reply_to(completion({"content": "ok"}), status=status)).text == "ok"


ERRORS = {
    "error in a 200": ({"error": {"message": "slow", "code": 429}}, Scope.LOAD, False),
    "error beside choices": ({"choices": [], "error": {"message": "broke"}}, Scope.TRY, False),
    "code and message": ({"code": 50505, "message": "Model service overloaded", "data": None}, Scope.LOAD, False),
    "credit in a 200": (
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        Scope.CREDIT,
        False,
    ),
    "limit beside null choices": (
        {"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}},
        Scope.LOAD,
        False,
    ),
    "error within a choice": ({"choices": [{"error": {"message": "x", "code": 502}}]}, Scope.TRY, True),
    "error within a stream": (events(delta("Half"), {"error": {"message": "broke"}}), Scope.TRY, True),
    "stream that ends early": (events(delta("Half"), end=b""), Scope.TRY, True),
    "broken off": (completion({"content": "Half"}, "abort"), Scope.TRY, True),
    "error as text within a choice": ({"choices": [{"error": "broke"}]}, Scope.TRY, True),
    "error as text within a stream": (b'data: {"error": "the model is overloaded"}\n\n', Scope.LOAD, True),
    "lost on its way within the server": (completion({"content": "Half"}, "network_error"), Scope.TRY, True),
    "status of a wrapped body": ({"statusCode": 429, "body": "{}"}, Scope.LOAD, False),
    "other JSON": ({"object": "list", "data": []}, Scope.ADDRESS, True),
    "reply of another API": ({"message": {"content": TEXT}, "done": True}, Scope.ADDRESS, True),
    "list": ([], Scope.ADDRESS, True),
    "null": (b"null", Scope.ADDRESS, True),
    "text": (b'"x"', Scope.ADDRESS, True),
    "choices of numbers": ({"choices": [5]}, Scope.TRY, True),
    "nothing": (b"", Scope.TRY, True),
    "half": (b'{"choices": [{"mess', Scope.TRY, True),
    "bytes": (b"\xff\xfe", Scope.TRY, True),
    "deep": (b"[" * 200_000, Scope.TRY, True),
    "deep in choices": (b'{"choices":' + b"[" * 200_000 + b"]" * 200_000 + b"}", Scope.TRY, True),
    "page": (b"\n<html>Log in</html>", Scope.ADDRESS, False),
}


@pytest.mark.parametrize("form", ERRORS)
async def test_a_200_without_a_reply_says_what_it_is_about(form):
    body, scope, may_be_billed = ERRORS[form]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    failure = await failure_of(lambda _: web.Response(body=data))
    assert (failure.scope, failure.may_be_billed) == (scope, may_be_billed)
    assert failure.reason.isprintable() and len(failure.reason) < 450


# --- the body on its way -------------------------------------------------------------------------------


def deflate(data, wbits):
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return packer.compress(data) + packer.flush()


BODY = json.dumps(completion({"content": "ok"})).encode()
PACKED = {
    "gzip": ("gzip", gzip.compress(BODY)),
    "gzip in two members": ("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
    "gzip with padding": ("x-gzip", gzip.compress(BODY) + b"\0" * 8),
    "zlib": ("deflate", deflate(BODY, 15)),
    "raw deflate": ("deflate", deflate(BODY, -15)),
    "not packed at all": ("gzip", BODY),
    "identity": ("identity", BODY),
}


def packed(encoding, data):
    return lambda _: web.Response(body=data, headers={"Content-Encoding": encoding})


@pytest.mark.parametrize("form", PACKED)
async def test_packed_bodies(form):
    assert (await ask_server_that(packed(*PACKED[form]))).text == "ok"


@pytest.mark.parametrize(
    ("encoding", "data", "scope", "words"),
    [
        ("br", b"x", Scope.ADDRESS, "Content-Encoding: br, which was not asked for"),
        ("gzip", gzip.compress(BODY)[:-12], Scope.TRY, "ends early"),
        ("gzip", b"\x1f\x8b" + b"x" * 99, Scope.TRY, "is not gzip"),
    ],
)
async def test_bodies_that_cannot_be_unpacked(encoding, data, scope, words):
    failure = await failure_of(packed(encoding, data))
    assert (failure.scope, failure.may_be_billed) == (scope, True) and words in failure.reason


@pytest.mark.parametrize("is_packed", [True, False])
async def test_an_endless_body_ends_at_the_limit(monkeypatch, is_packed):
    monkeypatch.setattr(http_answer, "MOST_BODY_BYTES", 2**20)
    sent = 0

    async def pour(request):
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"} if is_packed else {})
        await response.prepare(request)
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        for _ in range(200):  # 200 MiB of spaces
            data = packer.compress(b" " * 2**20) if is_packed else b" " * 2**20
            sent += 1
            await response.write(data or b"")
        return response

    async with serving(pour) as url:
        with pytest.raises(NoReply, match="longer than 1 MiB") as error:
            await ask(url)
    assert error.value.failure.may_be_billed and (is_packed or sent < 100)


async def test_the_key_is_taken_out_of_replies():
    reply = await reply_to(completion({"content": f"Authorization: Bearer {KEY}"}, model=f"m {KEY}"))
    assert reply.text == "Authorization: Bearer ***" and reply.model == "m ***"
