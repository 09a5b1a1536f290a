"""Connections of the OpenAI front to engines: one request, its answer's bytes, and what went wrong as one error."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
from yarl import URL

from router_grpc.openai.journey import Cause, EngineAnswer, InstanceFailedError
from router_grpc.openai.moving import LOOK_S
from router_grpc.picker.headers import DESTINATION, FORGEABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable

    from router_grpc.openai.moving import Watch

T = TypeVar("T")

CONNECT_S = 5.0
KEEP_ALIVE_S = 2.0
"""Idle connections are closed before engines close them, which some do after five seconds."""

REFUSED_FROM = 400
PIECE_BYTES = 256 * 1024
MAX_REFUSAL_BYTES = 1024 * 1024
REFUSAL_S = 5.0
SHOWN = 200

HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade")
)  # fmt: skip
OWN = frozenset(("host", "content-length", "accept-encoding", "expect", DESTINATION, *FORGEABLE))


def passed_on(headers: Iterable[tuple[str, str]], *, without: frozenset[str]) -> list[tuple[str, str]]:
    """Headers without those of the connection and ``without``."""
    given = list(headers)
    named = {one.strip().lower() for name, value in given if name.lower() == "connection" for one in value.split(",")}
    out = HOP_BY_HOP | named | without
    return [(name, value) for name, value in given if name.lower() not in out]


class Upstream:
    """All connections of one front. Answers come as they are: not unpacked, not followed elsewhere."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Content-Type"),
        )

    async def close(self) -> None:
        """Gives all connections up."""
        await self._session.close()

    async def send(
        self, method: str, endpoint: str, path: str, *, headers: list[tuple[str, str]], body: bytes, watch: Watch | None
    ) -> aiohttp.ClientResponse:
        """The head of the engine's answer; the caller releases it.

        Raises:
            InstanceFailedError: nobody is there, the engine refuses, or ``watch`` says that the request should move.
        """
        url = URL(f"http://{endpoint}{path}", encoded=True)
        sent = [*headers, ("Accept-Encoding", "identity")]
        data: bytes | AsyncIterator[bytes] | None = body or None
        if len(body) > PIECE_BYTES:
            sent.append(("Content-Length", str(len(body))))
            data = _pieces(body)
        request = self._session.request(method, url, headers=sent, data=data, allow_redirects=False)
        try:
            response: aiohttp.ClientResponse = await watched(_opened(request), watch)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise InstanceFailedError(Cause.UNREACHABLE, f"{endpoint}: {_shown(error)}") from error
        if response.status >= REFUSED_FROM:
            raise await _refusal(endpoint, response)
        return response


async def next_chunk(response: aiohttp.ClientResponse, *, watch: Watch | None, stall_s: float) -> bytes:
    """The answer's next bytes; empty at its end. ``watch`` is ``None`` from the first token on; 0 s are for ever.

    Raises:
        InstanceFailedError: nothing came for ``stall_s`` after the first token, the connection broke, or ``watch``.
    """
    try:
        if watch is not None:
            return await watched(response.content.readany(), watch)
        async with asyncio.timeout(stall_s or None):
            return await response.content.readany()
    except TimeoutError as error:
        raise InstanceFailedError(Cause.STALLED, f"nothing came for {stall_s:g} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise InstanceFailedError(Cause.BROKEN, f"the answer broke off: {_shown(error)}") from error


async def watched(step: Coroutine[Any, Any, T], watch: Watch | None) -> T:
    """The step's result, unless its request is better off elsewhere before it is there."""
    if watch is None:
        return await step
    task = asyncio.ensure_future(step)
    try:
        while True:
            done, _ = await asyncio.wait({task}, timeout=LOOK_S)
            if done:
                return task.result()
            if (cause := watch.look()) is not None:
                raise InstanceFailedError(cause, f"{watch.placed.endpoint}: left before its first token")
    finally:
        task.cancel()


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """A long body, as fast as the engine takes it."""
    for at in range(0, len(body), PIECE_BYTES):
        yield body[at : at + PIECE_BYTES]


async def _opened(request: Any) -> aiohttp.ClientResponse:  # noqa: ANN401 - aiohttp's awaitable of a response
    response: aiohttp.ClientResponse = await request
    return response


async def _refusal(endpoint: str, response: aiohttp.ClientResponse) -> InstanceFailedError:
    body = bytearray()
    async with response:
        try:
            async with asyncio.timeout(REFUSAL_S):
                while len(body) < MAX_REFUSAL_BYTES and (chunk := await response.content.readany()):
                    body += chunk
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError among them
            return InstanceFailedError(Cause.BROKEN, f"{endpoint}: status {response.status}: {_shown(error)}")
        headers = passed_on(response.headers.items(), without=frozenset(("content-length",)))
    answer = EngineAnswer(response.status, dict(headers), bytes(body))
    return InstanceFailedError(Cause.REFUSED, f"{endpoint}: status {response.status}", answer=answer)


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__} {error}"[:SHOWN]
