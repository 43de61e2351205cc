"""What a failed try is about, from status, codes, words, metadata and headers together."""

import json

import pytest
from pydantic import SecretStr

from medssr_dist.runtime.http.api_failure import classify_answer, is_limit_refused
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.runtime.http.http_answer import HttpAnswer


def classify(status, body, headers=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return classify_answer(HttpAnswer(status, headers or {}, data))


def error(message="no", **fields):
    return {"error": {"message": message, **fields}}


@pytest.mark.parametrize(
    ("status", "scope", "may_be_billed"),
    [
        (429, Scope.LOAD, False),
        (503, Scope.LOAD, False),
        (529, Scope.LOAD, False),
        (498, Scope.LOAD, False),
        (500, Scope.TRY, False),
        (502, Scope.TRY, False),
        (408, Scope.TRY, True),
        (504, Scope.TRY, True),
        (524, Scope.TRY, True),
        (400, Scope.REFUSED, False),
        (403, Scope.REFUSED, False),
        (413, Scope.REFUSED, False),
        (422, Scope.REFUSED, False),
        (401, Scope.KEY, False),
        (402, Scope.CREDIT, False),
        (404, Scope.ADDRESS, False),
        (405, Scope.ADDRESS, False),
        (302, Scope.ADDRESS, False),
        (409, Scope.TRY, False),
        (424, Scope.TRY, False),
        (425, Scope.TRY, False),
        (426, Scope.ADDRESS, False),
        (451, Scope.REFUSED, False),
        (511, Scope.ADDRESS, False),
        *((status, Scope.TRY, False) for status in (520, 521, 522, 523, 525, 526, 527, 530)),
        (101, Scope.TRY, False),
        (999, Scope.TRY, False),
    ],
)
def test_a_status_alone(status, scope, may_be_billed):
    failure = classify(status, b"")
    assert (failure.scope, failure.may_be_billed, failure.reason) == (scope, may_be_billed, f"HTTP {status}: (nothing)")


# Forms of several APIs and gateways, in words of our own.
KINDS = {
    "moderated prompt, 403": (403, error("the input was flagged by our filter"), Scope.CONTENT),
    "moderated, reasons in metadata": (
        403,
        error("Forbidden", metadata={"reasons": ["violence"], "flagged_input": "a text"}),
        Scope.CONTENT,
    ),
    "filter in an inner error": (
        400,
        {"error": {"message": "bad", "innererror": {"code": "ResponsibleAIPolicyViolation"}}},
        Scope.CONTENT,
    ),
    "policy of use": (400, error("the prompt may violate our usage policy", code="invalid_prompt"), Scope.CONTENT),
    "data inspection": (400, {"code": "DataInspectionFailed", "message": "x"}, Scope.CONTENT),
    "expired key, 400": (400, error("API key expired. Renew it.", status="INVALID_ARGUMENT"), Scope.KEY),
    "key by reason in details": (
        400,
        [{"error": {"code": 400, "message": "bad", "details": [{"reason": "API_KEY_INVALID"}]}}],
        Scope.KEY,
    ),
    "key by type, 500 of a gateway": (500, error("provider error", type="authentication_error"), Scope.KEY),
    "rights of the key": (403, error("no right to this resource", type="permission_error"), Scope.KEY),
    "rights of a cloud account": (403, {"__type": "AccessDeniedException", "message": "no such right"}, Scope.KEY),
    "limit of the key": (403, error("Key limit exceeded (total limit)", code=403), Scope.CREDIT),
    "volume of a gateway": (403, {"statusCode": 403, "message": "Out of call volume quota"}, Scope.CREDIT),
    "cancelled by the server": (499, error("cancelled", status="CANCELLED"), Scope.TRY),
    "large request": (413, {"error": {"type": "request_too_large", "message": "x"}}, Scope.CONTEXT),
    "suspended account": (403, error("Your account has been suspended"), Scope.KEY),
    "token of a cloud": (403, {"message": "The security token in the request is expired"}, Scope.KEY),
    "credit, 400": (400, error("Your credit balance is too low"), Scope.CREDIT),
    "credit, code": (429, error("no", code="insufficient_quota"), Scope.CREDIT),
    "credit, wrapped by a gateway": (400, error("gateway: credit balance too low, BadRequest: billing"), Scope.CREDIT),
    "credit, 403": (403, {"code": 30001, "message": "Sorry, account balance is insufficient"}, Scope.CREDIT),
    "credit, base_resp": (
        200,
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        Scope.CREDIT,
    ),
    "credit, in Chinese": (400, error("账户余额不足"), Scope.CREDIT),
    "budget of a proxy": (400, error("Budget has been exceeded! Max budget: 5", type="budget_exceeded"), Scope.CREDIT),
    "quota of a day without a wait": (429, error("quota exceeded, check your plan and billing details"), Scope.CREDIT),
    "quota of a minute with a wait": (
        429,
        [{"error": {"message": "quota exceeded, check billing", "details": [{"retryDelay": "17s"}]}}],
        Scope.LOAD,
    ),
    "tokens per minute, 413": (413, error("Request too large on tokens per minute (TPM)", type="tokens"), Scope.LOAD),
    "load, 413 with a code": (413, error("too large", code="rate_limit_exceeded"), Scope.LOAD),
    "load, 400": (400, error("Too many concurrent requests for this key"), Scope.LOAD),
    "load, 403": (403, error("You have exceeded a secondary rate limit"), Scope.LOAD),
    "load, 400 with a wait alone": (400, {"error": {"message": "later", "retry_after": 3}}, Scope.LOAD),
    "overloaded, 500": (500, error("the engine is overloaded"), Scope.LOAD),
    "overloaded, 200": (200, {"error": {"type": "overloaded_error", "message": "x"}}, Scope.LOAD),
    "loading model": (503, {"error": "Model x is currently loading", "estimated_time": 20.5}, Scope.LOAD),
    "status in the body": (200, error("slow", code=429), Scope.LOAD),
    "status as text in the body": (500, error("slow", code="429"), Scope.LOAD),
    "error in a 200": (200, error("provider failed", code=502), Scope.TRY),
    "error in a 200, plain": (200, {"error": "something broke"}, Scope.TRY),
    "context, code": (400, error("too long", code="context_length_exceeded"), Scope.CONTEXT),
    "context, vLLM's form": (
        400,
        {"object": "error", "message": "longer than the maximum context length of 2048 tokens", "code": 400},
        Scope.CONTEXT,
    ),
    "context with max_tokens named": (
        400,
        error("max_tokens is too large: 900. The maximum context length is 1000 tokens, the prompt has 200"),
        Scope.CONTEXT,
    ),
    "context, of a provider as text": (
        400,
        error("Provider returned error", metadata={"raw": json.dumps(error("prompt is too long: 9 tokens > 8"))}),
        Scope.CONTEXT,
    ),
    "parameter": (400, error("Unsupported parameter: 'temperature'", code="unsupported_parameter"), Scope.SETTINGS),
    "parameter, validation": (
        422,
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "x"], "msg": "no", "input": "billing"}]},
        Scope.SETTINGS,
    ),
    "limit of the reply": (400, error("max_tokens must be at most 512"), Scope.SETTINGS),
    "model": (404, error("The model `m` does not exist", code="model_not_found"), Scope.ADDRESS),
    "model, 400": (400, error("unknown model: m"), Scope.ADDRESS),
    "page of a firewall": (403, b"<!DOCTYPE html><title>Just a moment</title>", Scope.ADDRESS),
    "page of an overloaded proxy": (503, b"<html><title>Busy</title></html>", Scope.LOAD),
    "page about a large request": (413, b"<html><title>413 Request Entity Too Large</title>", Scope.CONTEXT),
    "page of a network that wants a login": (511, b"<html><title>Log in</title></html>", Scope.ADDRESS),
    "request alone above the tokens per minute": (
        413,
        error("on tokens per minute (TPM): Limit 6,000, Requested 7,500; see billing", code="rate_limit_exceeded"),
        Scope.CONTEXT,
    ),
    "tokens per minute used up by others": (
        429,
        error("on tokens per minute: Limit 6000, Used 5500, Requested 1500", code="rate_limit_exceeded"),
        Scope.LOAD,
    ),
    "JSON that was not valid": (400, error("write it anew", code="json_validate_failed"), Scope.TRY),
    "generation that failed": (424, {"error": "Request failed during generation", "error_type": "x"}, Scope.TRY),
    "context, sum of input and output": (
        422,
        {
            "error": "`inputs` tokens + `max_new_tokens` must be <= 8193. Given: 8000 and 512",
            "error_type": "validation",
        },
        Scope.CONTEXT,
    ),
    "context, input alone": (422, {"error": "`inputs` must have less than 1024 tokens. Given: 1500"}, Scope.CONTEXT),
    "model, by its id": (400, {"message": "The given model identifier is invalid."}, Scope.ADDRESS),
    "no such path, 200": (200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}, Scope.ADDRESS),
    "rights of a role": (403, {"Message": "User: x is not authorized to perform: invoke"}, Scope.KEY),
    "problem by title": (403, {"title": "Authorization failed", "detail": "Forbidden"}, Scope.KEY),
    "limits of use": (400, error("You have reached your specified API usage limits, until 1 December."), Scope.CREDIT),
    "limits of use with a wait": (403, error("You have hit your usage limit. Try again in 3 hours."), Scope.LOAD),
    "new team": (403, {"code": "no right", "error": "Your team doesn't have any credits yet."}, Scope.CREDIT),
    "suspended by its bills": (412, {"error": "suspended, by the spending limit; see billing"}, Scope.CREDIT),
    "error as a number": (200, {"error": 429, "message": "slow"}, Scope.LOAD),
    "error as a list": (400, {"error": ["rate limit"]}, Scope.LOAD),
    "error as true": (500, {"error": True, "message": "broke"}, Scope.TRY),
    "status in camel case": (200, {"statusCode": 429, "message": "later"}, Scope.LOAD),
    "error as text in the message": (500, error(json.dumps(error("no", code=429))), Scope.LOAD),
    "error as text behind words": (500, error("Proxy: Provider - " + json.dumps(error(code=429))), Scope.LOAD),
    "error as Python prints it": (500, error("Error code: 429 - {'error': {'x': None, 'code': 429}}"), Scope.LOAD),
    "whole body as text": (500, json.dumps(json.dumps(error(code="insufficient_quota"))).encode(), Scope.CREDIT),
    "something behind the JSON": (
        400,
        json.dumps(error(code="context_length_exceeded")).encode() + b"<!-- edge -->",
        Scope.CONTEXT,
    ),
    "braces that are no error": (400, error("cannot read {'code': 'access_denied'}"), Scope.REFUSED),
    "plain text": (400, b"nope", Scope.REFUSED),
    "what was sent is not read": (
        422,
        {"detail": [{"msg": "no", "input": "rate limit, billing, api key"}]},
        Scope.REFUSED,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_status_codes_and_words_together(kind):
    status, body, scope = KINDS[kind]
    assert classify(status, body).scope is scope


@pytest.mark.parametrize(
    "body",
    [
        "模型错误".encode("gbk"),
        b'{"error": {"message": "\xc4\xa3\xd0\xcd"}}',
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"error":' * 5000,
        b'{"error": {"message": {"a": [1, null, true]}}}',
        b'{"error": {"message": "x", "code": ' + b"9" * 5000 + b"}}",
        b'{"error": {"code": [1], "type": {"a": 1}, "status": null}}',
        json.dumps({"errors": [{"message": str(n)} for n in range(10_000)]}).encode(),
        b'"x"',
        b"null",
        b"7",
        b"\0" * 100,
        b'{"error": {"message": "\\ud800 half"}}',
        b"\x1b[31mred\x07\n\n",
    ],
)
def test_no_body_breaks_the_classification(body):
    for status in (200, 400, 429, 500):
        failure = classify(status, body)
        assert failure.reason.isprintable() and len(failure.reason) < 400
        failure.reason.encode()


def test_words_are_short_and_without_the_key():
    key = "sk-very-secret-0123456789"
    body = json.dumps({"error": {"message": f"bad {key} \x1b]0;title\x07\nRED" + "x" * 5000}})
    escaped = body.replace("sk-very", "\\u0073k-very").encode()
    for data in (body.encode(), escaped):
        reason = classify_answer(HttpAnswer(400, {}, data), SecretStr(key)).reason
        assert "secret" not in reason and "\x1b" not in reason and "\n" not in reason and len(reason) <= 320


def test_a_redirect_names_its_target():
    failure = classify(301, b"moved", {"Location": "https://x.example/login\x1b[0m"})
    assert (
        failure.reason.startswith("HTTP 301: it redirects to https://x.example/login") and "\x1b" not in failure.reason
    )


def test_which_refusals_are_about_the_limit_of_the_reply():
    assert is_limit_refused(classify(400, error("max_tokens must be at most 512")))
    assert is_limit_refused(classify(400, error("'max_completion_tokens' is too large")))
    assert not is_limit_refused(classify(400, error("temperature must be 1")))
    assert not is_limit_refused(classify(429, error("max_tokens per minute", code="rate_limit_exceeded")))
