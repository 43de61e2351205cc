"""A running OpenAI-compatible vLLM server as an engine of the pool.

A lease is one streamed POST to /completions. The prompt is sent as token ids, and every sampling parameter that the
server would otherwise take from the model's generation_config.json is set explicitly, so that a seed gives the same
sample as in an engine of our own. Samples are returned as they finish; until then, each chunk of the stream has the
token count of its sample, from which the pool sees progress. A lease is aborted by closing its connection: vLLM then
ends its samples. Connections are direct (no proxy). Each lease has a new one, as the server may close an idle
connection in the moment when it is used again.

The API key is sent in the Authorization header only, and removed from everything that the server answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from medssr_dist.config.schema import Policy
from medssr_dist.config.voting import Server
from medssr_dist.errors import InputError
from medssr_dist.inference.engine_protocol import EngineOutput, FailedLease, LeasedCompletion, LeasedRequest
from medssr_dist.inference.requests import SampleRequest, find_choice_ids, make_empty_completions
from medssr_dist.inference.server_model import ModelCard, find_policy
from medssr_dist.inference.server_stream import (
    LeaseRefused,
    ServerError,
    ServerLost,
    StreamChunk,
    StreamedSamples,
    UnusableServer,
)
from medssr_dist.runtime.api_key import build_auth_header
from medssr_dist.runtime.http.api_failure import ApiFailure, classify_answer, classify_error, quote_words
from medssr_dist.runtime.http.error_body import describe_error
from medssr_dist.runtime.http.event_stream import read_events
from medssr_dist.runtime.http.failure_words import Scope
from medssr_dist.runtime.http.http_answer import (
    ACCEPT_ENCODING,
    BadBody,
    HttpAnswer,
    decode_text,
    parse_json,
    read_answer,
    stream_body,
)

_CONNECT_S = 30.0
_START_S = 180.0  # a server that is busy for others answers the first request late
_REPORT_S = 1.0  # interval between two reports of tokens while no sample finishes
_CHUNK_TOKENS = 16  # per chunk: a chunk per token costs the server more than the token; older servers ignore it
# What a server would otherwise take from the model's generation config; its stop tokens stay.
_NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_REFUSALS_IN_A_ROW = 5  # without a sample between them: the server refuses everything


class _ModelList(msgspec.Struct):
    data: list[ModelCard]


class ServerEngine:
    """One server as an engine of the pool; see `engine_protocol.Engine`.

    Args:
        server: its address, its key, and the name under which it serves the policy.
        policy: the policy as configured.
        folder: the policy's directory on this machine.
        fingerprint: of that directory when the run began (`fingerprint_model`).
        tokenize: text -> token ids, without special tokens.

    Raises:
        InputError: the address or the key is not usable.
    """

    def __init__(
        self, server: Server, policy: Policy, folder: Path, fingerprint: str, tokenize: Callable[[str], list[int]]
    ):
        self._url = _parse_base_url(server)
        self._headers = {
            "Content-Type": "application/json",
            **ACCEPT_ENCODING,
            **build_auth_header(server.api_key, f"voting.servers: {server.base_url}"),
        }
        self._server, self._policy, self._folder, self._fingerprint = server, policy, folder, fingerprint
        self._tokenize = tokenize
        self.name = f"server {server.base_url}"
        self._model = ""  # the name under which it serves the policy
        self._has_been_up = False
        self._open_session: aiohttp.ClientSession | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by lease
        self._news = asyncio.Event()
        self._output = EngineOutput()
        self._error: Exception | None = None
        self._doubted: list[FailedLease] = []  # refused since the last sample

    async def start(self) -> None:
        """Check that the server has the policy and that it answers a request for two tokens.

        Raises:
            InputError: it serves another model, refuses the key, is not a vLLM server, or has never answered.
            ServerLost: it has been up before and does not answer now.
        """
        await self.stop()
        if isinstance(self._error, InputError):
            raise self._error  # a restart does not change the server's settings
        self._output, self._error, self._doubted = EngineOutput(), None, []
        self._open_session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(sock_connect=_CONNECT_S),  # the pool detects a server that hangs
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        try:
            await asyncio.wait_for(self._check(), _START_S)
        except (TimeoutError, ServerLost, LeaseRefused) as error:
            await self.stop()
            raise self._explain_failed_start(error) from None
        except BaseException:
            await self.stop()
            raise
        self._has_been_up = True

    def submit(self, requests: list[LeasedRequest], aborted: list[int]) -> None:
        """Send each request on a new connection; close those of `aborted`, whose finished samples are kept."""
        for lease_id in aborted:
            if task := self._tasks.pop(lease_id, None):
                task.cancel()
        for lease_id, request in requests:
            self._tasks[lease_id] = asyncio.create_task(self._answer(lease_id, request))

    async def collect(self) -> EngineOutput:
        """Return samples and refusals as soon as there are any; without any, the tokens of a second.

        Raises:
            ServerLost: the server is lost, and all that arrived before has been collected.
            InputError: the server's settings make other votes than the run's.
        """
        while not (self._output.samples or self._output.failed or self._error):
            try:
                await asyncio.wait_for(self._news.wait(), _REPORT_S)
            except TimeoutError:
                if self._output.tokens:
                    break
            self._news.clear()
        output, self._output = self._output, EngineOutput()
        if self._error and not (output.samples or output.failed):
            await self.stop()
            raise self._error
        return output

    async def stop(self) -> None:
        """Close all connections; the server then aborts what it was generating for them."""
        tasks, self._tasks = list(self._tasks.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session, self._open_session = self._open_session, None
        if session:
            await session.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            raise ServerLost("its engine has been stopped")
        return self._open_session

    # --- start -------------------------------------------------------------------------------------

    async def _check(self) -> None:
        cards = await self._list_models()
        self._model = find_policy(cards, self._server, self._policy, self._folder, self._fingerprint)
        # A server whose engine hangs still answers with its list of models.
        trial = SampleRequest(key="", prompt=self._tokenize("The answer is"), n=2, max_tokens=1)
        await self._stream(-1, trial, self._make_body(trial, 1))
        self._output = EngineOutput()

    async def _list_models(self) -> list[ModelCard]:
        try:
            async with self._session.get(self._url / "models", allow_redirects=False) as response:
                answer = await read_answer(response)
        except (TimeoutError, aiohttp.ClientError, OSError, BadBody) as error:
            raise self._make_lost(error) from None
        if answer.status != 200:
            raise self._make_error(classify_answer(answer, self._server.api_key))
        try:
            return msgspec.convert(parse_json(answer.body), _ModelList).data
        except (ValueError, RecursionError):
            raise InputError(
                f"voting.servers: {self._server.base_url}/models does not answer with a list of models, but "
                f"{self._quote(answer.body)}; base_url is that of a vLLM server's OpenAI API, as http://node7:8000/v1"
            ) from None

    def _explain_failed_start(self, error: Exception) -> Exception:
        """Return an InputError where a retry cannot help, or where the first start failed; else a ServerLost."""
        where = f"voting.servers: {self._server.base_url}"
        scope = error.scope if isinstance(error, ServerError) else Scope.TRY
        reason = str(error) or f"no sample within {_START_S:g} s"
        if self._has_been_up and scope is not Scope.KEY:
            return ServerLost(reason, scope)  # a gateway or a server that starts again may answer anything
        if scope.is_account:
            return InputError(f"{where} refuses the key ({reason}); set api_key to the key it was started with")
        if scope is Scope.ADDRESS or isinstance(error, LeaseRefused):
            return InputError(
                f"{where} does not serve completions of the policy ({reason}); base_url is that of a vLLM server's "
                "OpenAI API, as http://node7:8000/v1"
            )
        return InputError(
            f"{where} does not answer ({reason}); start it, correct base_url, or take it out of voting.servers"
        )

    # --- one lease ---------------------------------------------------------------------------------

    async def _answer(self, lease_id: int, request: SampleRequest) -> None:
        """Answer one lease; `collect` returns or raises the result."""
        try:
            await self._request_completions(lease_id, request)
        except LeaseRefused as refusal:
            self._doubted.append(FailedLease(lease_id, str(refusal)))
            if len(self._doubted) >= _REFUSALS_IN_A_ROW:  # the pool asks for all of them again, here or elsewhere
                self._error = self._error or ServerLost(f"it refuses every request now ({refusal})", refusal.scope)
        except Exception as error:  # a fault of our own too, which nothing else would show
            self._error = self._error or error
        finally:
            self._tasks.pop(lease_id, None)
            if not self._tasks and not self._error:  # nothing can show any more whether other requests pass
                self._report_refusals()
            self._news.set()

    def _report_refusals(self) -> None:
        """Report the refused leases: the server answers others, or there are no others."""
        self._output.failed += self._doubted
        self._doubted = []

    async def _request_completions(self, lease_id: int, request: SampleRequest) -> None:
        try:
            room = self._policy.max_model_len - len(request.prompt)
            body = self._make_body(request, room)
        except (TypeError, ValueError) as error:  # a choice of several tokens
            raise LeaseRefused(f"{type(error).__name__}: {error}") from None
        if room < 1:
            self._output.samples += [LeasedCompletion(lease_id, sample) for sample in make_empty_completions(request)]
            return
        await self._stream(lease_id, request, body)

    def _make_body(self, request: SampleRequest, room: int) -> dict[str, Any]:
        """Return the JSON body of a POST. `room`: tokens that the prompt leaves free in the context."""
        body = {
            "model": self._model,
            "prompt": list(request.prompt),
            "n": request.n,
            "seed": request.seed,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "max_tokens": min(request.max_tokens, room),
            "stop": list(request.stop),
            **({"logprobs": 0} if request.logprobs else {}),  # 0: of the sampled token alone
            **_NEUTRAL,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "stream_interval": _CHUNK_TOKENS,
        }
        if request.keep_tokens:
            body["return_token_ids"] = True
        if request.choices:
            greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 1}
            return body | greedy | {"allowed_token_ids": find_choice_ids(request.choices, self._tokenize)}
        return body

    async def _stream(self, lease_id: int, request: SampleRequest, body: dict[str, Any]) -> None:
        """Post the request and store each sample as it finishes. Raises ServerLost, LeaseRefused or InputError."""
        samples = StreamedSamples(request, body["max_tokens"])
        data = msgspec.json.encode(body)
        try:
            async with self._session.post(self._url / "completions", data=data, allow_redirects=False) as response:
                if response.status != 200:
                    raise self._make_error(classify_answer(await read_answer(response), self._server.api_key))
                async for event in read_events(stream_body(response)):
                    before = samples.tokens
                    finished = samples.add(self._parse_chunk(event))
                    self._output.tokens += samples.tokens - before
                    if finished:
                        self._output.samples.append(LeasedCompletion(lease_id, finished))
                        self._report_refusals()
                        self._news.set()
        except (TimeoutError, aiohttp.ClientError, OSError, BadBody) as error:
            raise self._make_lost(error) from None
        except UnusableServer as error:
            raise InputError(f"voting.servers: {self._server.base_url} {error}") from None
        if samples.missing:
            raise ServerLost(f"it ended a stream with {samples.missing} of {request.n} samples missing")

    def _parse_chunk(self, event: bytes) -> StreamChunk:
        try:
            chunk = msgspec.convert(parse_json(event), StreamChunk)
        except (ValueError, RecursionError):
            raise ServerLost(f"it sent what is no completion: {self._quote(event)}") from None
        if chunk.error is not None:
            said = describe_error(chunk.error)
            raise self._make_error(classify_error(HttpAnswer(said.status or 500), said, self._server.api_key))
        return chunk

    # --- error messages ----------------------------------------------------------------------------

    def _make_error(self, failure: ApiFailure) -> ServerError:
        """Return the exception for an answer that is no completion."""
        return (LeaseRefused if failure.scope.is_refusal else ServerLost)(failure.reason, failure.scope)

    def _make_lost(self, error: Exception) -> ServerLost:
        return ServerLost(quote_words(f"{type(error).__name__}: {error}", self._server.api_key))

    def _quote(self, answer: bytes) -> str:
        """Return what the server sent, on one line without the key."""
        return quote_words(decode_text(answer[:10_000]), self._server.api_key)


def _parse_base_url(server: Server) -> URL:
    """Raises InputError for an unusable address; one that holds a secret is not repeated in the message."""
    try:
        url = URL(server.base_url.rstrip("/"))
    except ValueError:
        url = URL()
    if url.user or url.password or url.query_string:
        raise InputError("a base_url in voting.servers holds a user name, a key or a query; give the key as api_key")
    if not url.host:
        raise InputError(f"voting.servers: base_url = {server.base_url!r} is not of the form http://node7:8000/v1")
    return url
