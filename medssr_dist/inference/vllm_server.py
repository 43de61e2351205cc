"""A running OpenAI-compatible vLLM server as an engine of the pool.

A lease is one streamed POST to /completions. The prompt goes as token ids, and every sampling parameter that a server
would otherwise take from the model's generation_config.json is spelled out, so that a sample is the one that an
engine of our own draws from the same seed. Samples are handed over as they finish; in between each chunk carries its
sample's token count, by which the pool sees the server at work. Closing the connection is what aborts a lease: vLLM
then ends its samples. Connections are direct (no proxy), one a lease, as a kept one may be closed by the server at
the very moment it is used again.

The key travels in the Authorization header only, and is cut out of whatever the server says back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from medssr_dist.config.schema import Policy, Server
from medssr_dist.errors import InputError
from medssr_dist.inference.engine_slot import EngineOutput
from medssr_dist.inference.requests import Completion, SampleRequest, find_choice_ids, make_empty_completions
from medssr_dist.inference.server_model import ModelCard, find_policy
from medssr_dist.runtime.api_key import SAID_CHARS, authorization, scrub, words_of

_CONNECT_S = 30.0
_START_S = 180.0  # a server that is busy for others answers the first request late
_BEAT_S = 1.0  # tokens without a finished sample are told this often
_CHUNK_TOKENS = 16  # a token a chunk costs a server more than the token; ignored by older ones
_OF_THE_REQUEST = {400, 413, 422}  # statuses that are about this request, not about the server


class ServerLost(Exception):
    """The server is no engine any more: the connection broke, it is overloaded, or it no longer knows key or model."""


class RequestRefused(Exception):
    """The server refuses this request for good; others may pass."""


class _ModelList(msgspec.Struct):
    data: list[ModelCard]


class _Choice(msgspec.Struct):
    index: int
    text: str
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class ServerEngine:
    """Handle of one server; see `slots.Engine`.

    Args:
        server: where it is, under which name it serves the policy, and its key.
        policy: the policy as configured.
        folder: its model directory on this machine.
        fingerprint: of that directory when the run began (`models.model_fingerprint`).
        tokenize: text -> token ids, no special tokens added.

    Raises:
        InputError: the address or the key cannot be used.
    """

    def __init__(
        self, server: Server, policy: Policy, folder: Path, fingerprint: str, tokenize: Callable[[str], list[int]]
    ):
        self._url = _base_url(server)
        self._headers = {
            "Content-Type": "application/json",
            **authorization(server.api_key, f"voting.servers: {server.base_url}"),
        }
        self._server, self._policy, self._folder, self._fingerprint = server, policy, folder, fingerprint
        self._tokenize = tokenize
        self.name = f"server {server.base_url}"
        self._model = ""  # the name it serves the policy under
        self._has_been_up = False
        self._session: aiohttp.ClientSession | None = None
        self._leases: dict[int, asyncio.Task] = {}
        self._news = asyncio.Event()
        self._taken = EngineOutput()
        self._lost: Exception | None = None

    async def start(self) -> None:
        """Check that it serves the policy, and that a request for two tokens comes back.

        Raises:
            InputError: it serves another model, refuses the key, is no vLLM server, or has never answered.
            ServerLost: it has been up before, and does not answer now.
        """
        await self.stop()
        if isinstance(self._lost, InputError):
            raise self._lost  # its settings are what they were
        self._taken, self._lost = EngineOutput(), None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(sock_connect=_CONNECT_S),  # a server that hangs is the pool's to notice
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        try:
            await asyncio.wait_for(self._check(), _START_S)
        except (ServerLost, RequestRefused, asyncio.TimeoutError) as error:
            await self.stop()
            self._raise_not_up(error)
        except BaseException:
            await self.stop()
            raise
        self._has_been_up = True

    def submit(self, requests: list[tuple[int, SampleRequest]], aborted: list[int]) -> None:
        """Send each request on a connection of its own; close those of `aborted`. Samples that finished stay."""
        for lease in aborted:
            if task := self._leases.pop(lease, None):
                task.cancel()
        for lease, request in requests:
            self._leases[lease] = asyncio.create_task(self._serve(lease, request))

    async def collect(self) -> EngineOutput:
        """Samples and refusals as soon as there are any; else, every second, the tokens if any came.

        Raises ServerLost once the server is lost and all that came before has been taken, and InputError when
        its settings make other votes than the run's.
        """
        while not (self._taken.samples or self._taken.failed or self._lost):
            try:
                await asyncio.wait_for(self._news.wait(), _BEAT_S)
            except asyncio.TimeoutError:
                if self._taken.tokens:
                    break
            self._news.clear()
        taken, self._taken = self._taken, EngineOutput()
        if self._lost and not (taken.samples or taken.failed):
            await self.stop()
            raise self._lost
        return taken

    async def stop(self) -> None:
        """Close all connections, whatever the server does; it aborts what it was generating for them."""
        tasks, self._leases = list(self._leases.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session, self._session = self._session, None
        if session:
            await session.close()

    # --- coming up ---------------------------------------------------------------------------------

    async def _check(self) -> None:
        cards = await self._served()
        self._model = find_policy(cards, self._server, self._policy, self._folder, self._fingerprint)
        # The list of models is answered by a server whose engine hangs, too.
        trial = SampleRequest(key="", prompt="The answer is", n=2, max_tokens=1)
        await self._stream(-1, trial, self._body(trial, self._tokenize(trial.prompt), 1))
        self._taken = EngineOutput()

    async def _served(self) -> list[ModelCard]:
        try:
            async with self._session.get(self._url / "models", allow_redirects=False) as response:
                status, answer = response.status, await response.read()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._broken(error) from None
        if status != 200:
            raise self._refusal(status, answer)
        try:
            return msgspec.json.decode(answer, type=_ModelList).data
        except msgspec.DecodeError:
            raise InputError(
                f"voting.servers: {self._server.base_url}/models does not answer with a list of models, but "
                f"{self._said(answer)}; base_url is that of a vLLM server's OpenAI API, as http://node7:8000/v1"
            ) from None

    def _raise_not_up(self, error: Exception) -> None:
        """Raise InputError for what another start cannot mend, or the first did not find; else ServerLost."""
        where = f"voting.servers: {self._server.base_url}"
        status = getattr(error, "status", None)
        words = str(error) or f"no sample within {_START_S:g} s"
        if status in (401, 403):
            raise InputError(f"{where} refuses the key ({words}); set api_key to the key it was started with") from None
        if status in (404, 405) or isinstance(error, RequestRefused):
            raise InputError(
                f"{where} does not serve completions of the policy ({words}); base_url is that of a vLLM server's "
                "OpenAI API, as http://node7:8000/v1"
            ) from None
        if self._has_been_up:
            raise ServerLost(words) from None
        raise InputError(
            f"{where} does not answer ({words}); start it, correct base_url, or take it out of voting.servers"
        ) from None

    # --- a lease -----------------------------------------------------------------------------------

    async def _serve(self, lease: int, request: SampleRequest) -> None:
        """Serve one lease; how it ends is for `collect` to tell."""
        try:
            await self._complete(lease, request)
        except RequestRefused as refusal:
            self._taken.failed.append((lease, str(refusal)))
        except Exception as error:  # of our own making too: nothing else would show it
            self._lost = self._lost or error
        finally:
            self._leases.pop(lease, None)
            self._news.set()

    async def _complete(self, lease: int, request: SampleRequest) -> None:
        try:
            ids = self._tokenize(request.prompt)
            room = self._policy.max_model_len - len(ids)
            body = self._body(request, ids, room)
        except (TypeError, ValueError) as error:  # a prompt that has no UTF-8 form, a choice of several tokens
            raise RequestRefused(f"{type(error).__name__}: {error}") from None
        if room < 1:
            self._taken.samples += [(lease, sample) for sample in make_empty_completions(request)]
            return
        await self._stream(lease, request, body)

    def _body(self, request: SampleRequest, ids: list[int], room: int) -> dict[str, Any]:
        body = {
            "model": self._model,
            "prompt": ids,
            "n": request.n,
            "seed": request.seed,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "max_tokens": min(request.max_tokens, room),
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "stream_interval": _CHUNK_TOKENS,
        }
        if request.choices:
            greedy = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 1}
            return body | greedy | {"allowed_token_ids": find_choice_ids(request.choices, self._tokenize)}
        return body

    async def _stream(self, lease: int, request: SampleRequest, body: dict[str, Any]) -> None:
        """Ask, and hand over each sample when it is whole. Raises ServerLost, RequestRefused or InputError."""
        growing = _Growing(request, body["max_tokens"])
        data = msgspec.json.encode(body)
        try:
            async with self._session.post(self._url / "completions", data=data, allow_redirects=False) as response:
                if response.status != 200:
                    raise self._refusal(response.status, await response.read())
                async for event in _events(response.content):
                    before = growing.tokens
                    sample = growing.add(self._chunk(event))
                    self._taken.tokens += growing.tokens - before
                    if sample:
                        self._taken.samples.append((lease, sample))
                        self._news.set()
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            raise self._broken(error) from None
        except _Unusable as error:
            raise InputError(f"voting.servers: {self._server.base_url} {error}") from None
        if growing.missing:
            raise ServerLost(f"it ended a stream with {growing.missing} of {request.n} samples missing")

    def _chunk(self, event: bytes) -> _Chunk:
        try:
            chunk = msgspec.json.decode(event, type=_Chunk)
        except msgspec.DecodeError:
            raise ServerLost(f"it sent what is no completion: {self._said(event)}") from None
        if chunk.error is not None:
            code = chunk.error.get("code") if isinstance(chunk.error, dict) else None
            raise self._refusal(code if isinstance(code, int) else 500, event)
        return chunk

    # --- what went wrong, in words -----------------------------------------------------------------

    def _refusal(self, status: int, answer: bytes) -> Exception:
        """What an HTTP status other than 200 stands for; `status` is kept on the exception."""
        kind = RequestRefused if status in _OF_THE_REQUEST else ServerLost
        error = kind(f"HTTP {status}: {self._said(answer)}")
        error.status = status
        return error

    def _broken(self, error: Exception) -> ServerLost:
        return ServerLost(scrub(f"{type(error).__name__}: {error}", self._server.api_key)[:SAID_CHARS])

    def _said(self, answer: bytes) -> str:
        return words_of(answer, self._server.api_key)


class _Unusable(Exception):
    """What the server sends cannot be votes of this run; completes 'http://... '."""


class _Growing:
    """The samples of one lease as their pieces come in."""

    def __init__(self, request: SampleRequest, max_tokens: int):
        self._request, self._max_tokens = request, max_tokens
        self._texts: list[list[str]] = [[] for _ in range(request.n)]
        self._counts = [0] * request.n
        self.missing = request.n
        self.tokens = 0

    def add(self, chunk: _Chunk) -> Completion | None:
        """Take in a chunk; returns the sample that it ends. Raises ServerLost, _Unusable."""
        if not chunk.choices:  # the usage of the whole request, at its end
            return None
        if len(chunk.choices) > 1 or chunk.usage is None:
            raise _Unusable("does not count the tokens of each sample in its stream; the vote needs a vLLM server")
        choice, tokens = chunk.choices[0], chunk.usage.completion_tokens
        index = choice.index
        if not 0 <= index < self._request.n:
            raise ServerLost(f"it sent sample {index} of {self._request.n}")
        self._texts[index].append(choice.text)
        self.tokens += tokens - self._counts[index]
        self._counts[index] = tokens
        return self._end(index, choice.finish_reason) if choice.finish_reason else None

    def _end(self, index: int, reason: str) -> Completion:
        tokens = self._counts[index]
        if reason not in ("stop", "length"):  # "abort": it shuts down, or someone else ended it
            raise ServerLost(f"it ended a sample early, with finish_reason {reason!r}")
        if reason == "length" and tokens < self._max_tokens:
            raise _Unusable(
                f"cuts answers at {tokens} tokens where {self._max_tokens} were asked for; restart it without "
                "max_new_tokens in its generation config, or take it out of voting.servers"
            )
        self.missing -= 1
        text = "".join(self._texts[index])
        return Completion.from_text(self._request, self._request.seed + index, text, tokens, reason == "length")


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events, one line each, until the end mark. Comments keep a connection alive, no more."""
    rest = b""
    async for piece in stream.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                yield data


def _base_url(server: Server) -> URL:
    """Raises InputError, without repeating the address, where it holds a secret."""
    try:
        url = URL(server.base_url.rstrip("/"))
    except ValueError:
        url = URL()
    if url.user or url.password or url.query_string:
        raise InputError("a base_url in voting.servers holds a user name, a key or a query; give the key as api_key")
    if not url.host:
        raise InputError(f"voting.servers: base_url = {server.base_url!r} is not of the form http://node7:8000/v1")
    return url
