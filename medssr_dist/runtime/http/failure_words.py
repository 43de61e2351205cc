"""The codes and words with which servers say what a failure is about, by scope.

A code decides by itself. Words are searched for in the message alone, never in what may repeat the prompt; the first
scope whose words are found counts, so the order of WORDS matters.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Scope(StrEnum):
    """What a failure concerns, and so what is done about it.

    TRY: this try; another may pass. LOAD: the load; after a wait another passes. CONTENT: what this prompt says.
    CONTEXT: how long this prompt is. SETTINGS: a parameter, so probably every request. REFUSED: the request, for a
    reason that is not known. KEY: the key or the rights of its account. CREDIT: the account's money or quota.
    ADDRESS: no such API, path or model. UNREACHABLE: no connection, so nothing was sent.
    """

    TRY = "try"
    LOAD = "load"
    CONTENT = "content"
    CONTEXT = "context"
    SETTINGS = "settings"
    REFUSED = "refused"
    KEY = "key"
    CREDIT = "credit"
    ADDRESS = "address"
    UNREACHABLE = "unreachable"

    @property
    def is_refusal(self) -> bool:
        """Whether the same request would be refused again, for its own sake or because every request is."""
        return self in (Scope.CONTENT, Scope.CONTEXT, Scope.SETTINGS, Scope.REFUSED)

    @property
    def is_account(self) -> bool:
        """Whether the key or its account is refused."""
        return self in (Scope.KEY, Scope.CREDIT)


# In small letters.
CODES = {
    Scope.TRY: {  # the model's tokens did not become a reply; other tokens may
        "incomplete_generation",
        "json_validate_failed",
        "modelerrorexception",
        "output_parse_failed",
    },
    Scope.CREDIT: {
        "arrearage",
        "billing_hard_limit_reached",
        "billing_not_active",
        "budget_exceeded",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "insufficient_credits",
        "insufficient_quota",
        "insufficient_user_quota",
    },
    Scope.CONTENT: {
        "content_filter",
        "content_policy_violation",
        "contentpolicyviolationerror",
        "cyber_policy_violation",
        "data_inspection_failed",
        "datainspectionfailed",
        "flagged",
        "flagged_input",
        "moderation_blocked",
        "prompt_blocked",
        "responsibleaipolicyviolation",
    },
    Scope.LOAD: {
        "capacity_exceeded",
        "engine_overloaded",
        "engine_overloaded_error",
        "overloaded_error",
        "rate_limit_error",
        "rate_limit_exceeded",
        "rate_limit_reached_error",
        "ratelimitreached",
        "server_overloaded",
        "slow_down",
        "throttling",
        "throttling_error",
        "throttlingexception",
        "too_many_requests",
    },
    Scope.CONTEXT: {
        "context_length_exceeded",
        "context_window_exceeded",
        "contextwindowexceedederror",
        "prompt_too_long",
        "request_too_large",
        "string_above_max_length",
    },
    Scope.KEY: {
        "access_denied",
        "accessdenied",
        "accessdeniedexception",
        "account_deactivated",
        "api_key_expired",
        "api_key_invalid",
        "auth_error",
        "authentication_error",
        "authenticationerror",
        "expiredtokenexception",
        "invalid_api_key",
        "invalid_authentication_error",
        "invalid_token",
        "permission_denied",
        "permission_error",
        "token_expired",
        "unauthenticated",
    },
    Scope.ADDRESS: {"deploymentnotfound", "model_not_found", "modelnotfound", "no_such_model"},
    Scope.SETTINGS: {"extra_forbidden", "unknown_parameter", "unsupported_parameter", "unsupported_value"},
}
_PHRASES = {
    Scope.CONTENT: (
        r"content[ _]?(?:filter|polic|management|moderat)",
        r"moderation|\bflagged\b|guardrail|responsible ?ai",
        r"safety (?:system|polic|filter|setting)",
        r"(?:inappropriate|prohibited|sensitive|harmful) (?:content|material|words?)",
        r"violat\w+ .{0,60}(?:polic|terms|guideline|rules)",
        r"\buse?(?:age)? polic",
        r"blocked (?:by|due to|because of) .{0,40}(?:filter|polic|safety)",
        r"敏感|违规",
    ),
    Scope.CREDIT: (
        r"insufficient[ _](?:account )?(?:balance|credit|fund|quota)",
        r"credit balance|\bbilling\b|arrear|overdue|\bhard limit\b",
        r"(?:out of|no|not enough|more|remaining|any) credits?\b|used all .{0,30}credits",
        r"payment (?:is )?required",
        r"(?:key|usage) limits? (?:is |has been )?(?:exceeded|reached)|out of .{0,30}quota",
        r"(?:hit|reached|exceeded) your .{0,40}usage limit",
        r"quota (?:is |has been )?(?:exhausted|used up)",
        r"spend(?:ing)? limit|budget (?:has been |is )?exceeded|exceeded .{0,30}budget",
        r"balance (?:is )?(?:too low|insufficient|not enough|exhausted)",
        r"free (?:tier|trial|quota) .{0,40}(?:exhausted|expired|ended|used up)",
        r"余额|欠费",
    ),
    Scope.KEY: (
        r"(?:invalid|incorrect|expired|missing|revoked|unknown|wrong|disabled|bad)[ _-](?:x-)?"
        r"(?:api|access|auth)[ _-]?(?:key|token)",
        r"(?:api|access)[ _-]?key\b.{0,60}\b(?:expired|invalid|not valid|incorrect|revoked|disabled|missing|required|"
        r"not found|not provided|deleted|leaked)",
        r"authenticat|unauthori[sz]ed|not authori[sz]ed|authori[sz]ation (?:failed|required|denied)",
        r"\btoken .{0,40}(?:expired|is invalid|is not valid|revoked)",
        r"(?:account|organi[sz]ation|project|workspace) .{0,40}"
        r"(?:deactivated|disabled|suspended|banned|terminated|locked)",
    ),
    Scope.LOAD: (
        r"rate[ _-]?limit|too many (?:concurrent |parallel )?requests|overload|throttl|resource[ _]exhausted",
        r"(?:over|at|no|exceed\w*) capacity|capacity (?:is )?exceeded",
        r"per (?:second|minute|hour|day)\b|\b[rt]p[md]\b|concurren",
        r"queue (?:is )?full|currently loading|slow down|high (?:demand|load|traffic)",
        r"(?:server|service|model|engine|system) (?:is )?(?:busy|unavailable|loading)",
        r"并发|限流|繁忙|过载",
    ),
    Scope.CONTEXT: (
        r"context[ _-]?(?:length|window|size)|max_model_len",
        r"maximum (?:model|input|prompt|sequence) (?:length|tokens)",
        r"(?:prompt|input|request|message)s?\b.{0,40}\btoo (?:long|large)",
        r"too many (?:input |prompt )?tokens",
        r"\binputs?\b.{0,40}must (?:be <|have (?:less|fewer|at most))",
        r"reduce (?:the |your )?(?:length|prompt|message|input)",
        r"longer than the (?:model|maximum|context)",
        r"exceed\w* .{0,60}(?:context|input|prompt) .{0,20}(?:length|limit|tokens)",
    ),
    Scope.ADDRESS: (
        r"(?:model|deployment|engine|endpoint)\b.{0,80}"
        r"(?:not found|not exist|no longer|deprecated|retired|decommissioned|not (?:been )?deployed)",
        r"(?:unknown|invalid|no such) (?:model|deployment|engine)|no endpoints? found|unexpected endpoint",
        r"model (?:identifier|id|name) (?:is )?(?:invalid|not valid|unknown)",
    ),
    Scope.SETTINGS: (
        r"unsupported|not support|unrecognized|unknown (?:parameter|argument|field)|unexpected keyword",
        r"extra (?:inputs|fields)|not permitted|not allowed|response_format|json_schema|temperature",
        r"max_(?:completion_|new_|output_)?tokens",
    ),
}
WORDS = {scope: re.compile("|".join(phrases), re.IGNORECASE) for scope, phrases in _PHRASES.items()}
