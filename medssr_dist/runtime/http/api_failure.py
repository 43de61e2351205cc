"""What a failed try is about: one classification for chat requests, batches and voting servers.

The HTTP status alone does not say it: a 403 may be one moderated prompt, a 400 an account without credit, a 413 a limit
of tokens per minute, a 200 the error of a provider behind a gateway. Status, codes and words are read together: exact
codes first, then words in the message, then the status.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import SecretStr

from medssr_dist.runtime.api_key import scrub
from medssr_dist.runtime.failures import to_line
from medssr_dist.runtime.http.error_body import ErrorBody, read_error_body
from medssr_dist.runtime.http.failure_words import CODES, WORDS, Scope
from medssr_dist.runtime.http.http_answer import HttpAnswer
from medssr_dist.runtime.http.retry_hints import read_retry_after

ERROR_CHARS = 300  # of a server's error message


@dataclass(frozen=True)
class ApiFailure:
    """Why a try brought no reply.

    Attributes:
        reason: for people: the status and the server's words on one line, without the key.
        may_be_billed: the server received the request and may have charged for it.
        retry_after: seconds that the server asks to wait; None if it does not say.
        is_certain: a status or a code says what it is about, and not the words of a message alone.

    Example: ApiFailure(Scope.LOAD, "HTTP 429: slow down", retry_after=1.5)
    """

    scope: Scope
    reason: str
    may_be_billed: bool = False
    retry_after: float | None = None
    is_certain: bool = True


_LOAD_STATUSES = {429, 498, 503, 529}
_ADDRESS_STATUSES = {404, 405, 406, 407, 410, 415, 421, 426, 501, 505, 511}
_TRY_STATUSES = {408, 409, 423, 424, 425, 460, 499}
_BILLED_STATUSES = {408, 504, 524}  # a gateway stopped waiting; the server behind it may have finished the reply
_PASSED_ON = {200, 400, 500, 502}  # statuses with which a gateway passes on its provider's error, with its status

_ASKED_OF_LIMIT = re.compile(r"\blimit:? ([\d,]+)\b.{0,60}?\brequested:? ([\d,]+)", re.IGNORECASE)
_LIMIT_PARAMETER = re.compile(r"max_(?:completion_|new_|output_)?tokens")


def classify_answer(answer: HttpAnswer, api_key: SecretStr | None = None) -> ApiFailure:
    """Return what an answer is about that is no reply: any status but 2xx, or a 2xx whose body is an error."""
    said = read_error_body(answer.body, answer.headers.get("Content-Type", ""))
    return classify_error(answer, said, api_key)


def classify_error(answer: HttpAnswer, said: ErrorBody, api_key: SecretStr | None = None) -> ApiFailure:
    """Return what an answer is about whose body says `said`."""
    inner = said.status if answer.status in _PASSED_ON or 200 <= answer.status < 300 else None
    status = inner or (0 if 200 <= answer.status < 300 else answer.status)
    wait = read_retry_after(answer.headers, said)
    scope, is_certain = _find_scope(status, said, wait)
    billed = scope is Scope.TRY and (status in _BILLED_STATUSES or bool(CODES[Scope.TRY] & said.codes))
    return ApiFailure(scope, f"HTTP {answer.status}: {_tell(answer, said, api_key)}", billed, wait, is_certain)


def is_limit_refused(failure: ApiFailure) -> bool:
    """Return whether a failure is about the parameter that limits the tokens of a reply."""
    return failure.scope in (Scope.SETTINGS, Scope.REFUSED) and bool(_LIMIT_PARAMETER.search(failure.reason))


def quote_words(text: str, api_key: SecretStr | None) -> str:
    """Return a server's words on one printable line of at most 300 characters, without the key."""
    return to_line(scrub(" ".join(text.split()), api_key))[:ERROR_CHARS] or "(nothing)"


def _find_scope(status: int, said: ErrorBody, wait: float | None) -> tuple[Scope, bool]:
    """Return the scope, and whether it is certain. `status`: 0 for an error in a 2xx."""
    if said.is_html and status != 413:
        return (_by_status(status) if status >= 500 or status in _LOAD_STATUSES else Scope.ADDRESS), True
    if _is_above_limit(said.message):
        return Scope.CONTEXT, True
    for scope, codes in CODES.items():
        if codes & said.codes:
            return scope, True
    by_status = _by_status(status)
    by_words = next((scope for scope, words in WORDS.items() if words.search(said.message)), None)
    if by_words is Scope.CREDIT and wait is not None and not by_status.is_account:
        by_words = Scope.LOAD  # "quota" and "billing" stand in refusals for a minute too, which name a wait
    if by_status is Scope.LOAD:
        return (Scope.CREDIT, False) if by_words is Scope.CREDIT else (Scope.LOAD, True)
    if by_status.is_account:
        return (Scope.CREDIT if by_words is Scope.CREDIT else by_status), True
    if by_status is Scope.TRY and status:  # a fault of the server: its words tell of load at most
        return (Scope.LOAD if by_words is Scope.LOAD else by_status), True
    if by_words is None and wait is not None:
        return Scope.LOAD, True
    if by_words is None:
        return by_status, by_status is not Scope.REFUSED
    if by_status is Scope.ADDRESS and by_words is Scope.SETTINGS:
        return by_status, True
    return by_words, False


def _is_above_limit(message: str) -> bool:
    """Whether a request alone is above a limit of tokens per minute: no wait lets it pass."""
    found = _ASKED_OF_LIMIT.search(message)
    limit, asked = (int(number.replace(",", "") or 0) for number in found.groups()) if found else (0, 0)
    return asked > limit


def _by_status(status: int) -> Scope:
    if status in _LOAD_STATUSES:
        return Scope.LOAD
    if status == 401:
        return Scope.KEY
    if status == 402:
        return Scope.CREDIT
    if 300 <= status < 400 or status in _ADDRESS_STATUSES:
        return Scope.ADDRESS
    if status in _TRY_STATUSES or status >= 500 or status < 200:
        return Scope.TRY
    return Scope.REFUSED


def _tell(answer: HttpAnswer, said: ErrorBody, api_key: SecretStr | None) -> str:
    """Return the server's words; of a redirect, where it leads."""
    words = quote_words(said.message, api_key)
    target = answer.headers.get("Location", "")
    if 300 <= answer.status < 400 and target:
        words = f"it redirects to {quote_words(target, api_key)}"
    return words
