"""One request's way through the OpenAI front: its parts, one after the other, and one answer of them."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from aiohttp import web

from llmrouter.errors import LLMRouterError, NoInstanceError, SaturatedError
from router_grpc.counted import counted_forward
from router_grpc.listeners.openai_upstream import OWN, next_chunk, passed_on
from router_grpc.openai.answers import PartEnd
from router_grpc.openai.generation import Produced
from router_grpc.openai.journey import Cause, InstanceFailedError, Journey
from router_grpc.openai.moving import Watch
from router_grpc.picker.headers import PREFILLER, REQUEST_ID
from router_grpc.picker.replies import error_object, refused_with

if TYPE_CHECKING:
    import aiohttp

    from llmrouter.listener_specs import OpenAISpec
    from router_grpc.listeners.openai_upstream import Upstream
    from router_grpc.openai.answers import Answer
    from router_grpc.openai.dispatch import Dispatch, FrontDesk
    from router_grpc.openai.intent import Intent, Part

PATIENCE_S = 30.0
"""How long a request that had a place waits for its next one, where there is no room."""

BAD_GATEWAY, GATEWAY_TIMEOUT, FAILED, CLIENT_LEFT = 502, 504, 500, 499
AT_ONCE_BYTES = 32 * 1024
"""A connection that has less to send takes more at once: aiohttp waits from twice as much on."""

NO_LENGTH = frozenset(("content-length",))

_log = logging.getLogger(__name__)


class ClientLeftError(ConnectionError):
    """The client is gone, or takes nothing any more."""


class Passage:
    """See the module's docstring. ``run`` is called once."""

    def __init__(
        self, desk: FrontDesk, upstream: Upstream, request: web.Request, *, intent: Intent, rules: OpenAISpec
    ) -> None:
        self._desk = desk
        self._upstream = upstream
        self._request = request
        self._intent = intent
        self._journey = Journey(rules)
        self._headers = passed_on(request.headers.items(), without=OWN)
        self._answer: Answer | None = None
        self._parts: list[Dispatch] = []
        self._is_sliced = False
        self._first_output_tokens: int | None = None
        self._head: tuple[int, list[tuple[str, str]]] = (200, [])
        self._sent: web.StreamResponse | None = None

    async def run(self) -> web.StreamResponse:
        """Serves the request; the client's answer, also where it is an error."""
        metrics = self._desk.world.metrics.front
        try:
            return await self._run()
        except ClientLeftError:
            metrics.requests.labels("Left").inc()
            return self._sent or web.Response(status=CLIENT_LEFT)  # for nobody
        except asyncio.CancelledError:
            metrics.requests.labels("Left").inc()
            raise

    async def _run(self) -> web.StreamResponse:
        if self._intent.asked is None:
            return await self._forward()
        while True:
            part = self._next_part()
            try:
                dispatch = await self._place(part)
            except NoInstanceError as error:
                if self._journey.forgives():
                    continue
                return await self._refuse(error)
            except LLMRouterError as error:
                return await self._refuse(error)
            try:
                end = await self._serve(dispatch, part)
                if end is PartEnd.WHOLE:
                    return await self._close()
            except InstanceFailedError as error:
                await dispatch.failed(error)
                if (refusal := await self._after(error, dispatch)) is not None:
                    return refusal
            finally:
                await dispatch.cancelled("the client left, or the router failed")

    def _next_part(self) -> Part:
        produced = Produced() if self._answer is None else self._answer.produced
        return self._intent.part(produced, excluded=frozenset(self._journey.excluded))

    async def _place(self, part: Part) -> Dispatch:
        """A dispatch of the part; a request that had a place before waits for the next one for a while."""
        assert part.ask is not None  # noqa: S101 - for the type checker: ``_run`` forwards what has none
        clock = self._desk.world.clock
        until_s = clock() + PATIENCE_S
        while True:
            try:
                dispatch = await self._desk.place(part.ask, is_later=bool(self._parts), streams=self._intent.streams)
            except SaturatedError as error:
                if not self._parts or clock() > until_s:
                    raise
                await asyncio.sleep(min(error.retry_after_s, 1.0))
            else:
                break
        if self._is_sliced and self._parts:
            moved = dispatch.answer.instance_id != self._parts[-1].answer.instance_id
            self._desk.world.metrics.front.slices.labels(str(moved).lower()).inc()
        self._parts.append(dispatch)
        return dispatch

    async def _serve(self, dispatch: Dispatch, part: Part) -> PartEnd:
        """One part; raises InstanceFailedError where it broke off."""
        placed, watch = dispatch.answer, self._watch(dispatch)
        headers = self._headers
        if len(self._parts) > 1 or all(name.lower() != REQUEST_ID for name, _ in headers):
            headers = [(name, value) for name, value in headers if name.lower() != REQUEST_ID]
            headers.append((REQUEST_ID, placed.request_id))
        if placed.prefill_endpoint:
            headers = [*headers, (PREFILLER, placed.prefill_endpoint)]
        response = await self._upstream.send(
            self._request.method, placed.endpoint, self._intent.path, headers=headers, body=part.body, watch=watch
        )
        async with response:
            self._begin(response, part)
            return await self._pump(response, dispatch, watch)

    def _begin(self, response: aiohttp.ClientResponse, part: Part) -> None:
        if self._answer is None or not (self._sent or self._answer.produced.text):
            packed = "content-encoding" in response.headers
            self._answer = self._intent.answer("" if packed else response.headers.get("content-type", ""))
            self._head = response.status, passed_on(response.headers.items(), without=NO_LENGTH)
        self._is_sliced = self._is_sliced or part.slice_tokens is not None
        self._answer.begin_part(part.slice_tokens)

    async def _pump(self, response: aiohttp.ClientResponse, dispatch: Dispatch, watch: Watch) -> PartEnd:
        """Takes the part's bytes to its end, as fast as the client takes its own."""
        answer, broke = self._answer_now, None
        while True:
            try:
                chunk = await self._next(response, watch)
            except InstanceFailedError as error:
                if error.cause is not Cause.BROKEN:
                    raise
                broke, chunk = error, b""
            if not chunk:
                break
            try:
                await self._write(answer.feed(chunk))
            except ValueError as error:  # EventTooLongError
                raise InstanceFailedError(Cause.BROKEN, str(error)) from error
            if answer.has_begun:
                await dispatch.advanced(answer.part.output_tokens)
        end = answer.end_part(broke=broke is not None)
        if end is PartEnd.BROKEN:
            raise broke or InstanceFailedError(Cause.BROKEN, "the answer ended before its end")
        await self._part_ended(dispatch, end)
        return end

    async def _next(self, response: aiohttp.ClientResponse, watch: Watch) -> bytes:
        answer, stall_s = self._answer_now, self._journey.rules.stall_seconds
        stays = answer.has_begun or (answer.is_seen and bool(answer.why_whole))
        return await next_chunk(response, watch=None if stays else watch, stall_s=stall_s)

    async def _part_ended(self, dispatch: Dispatch, end: PartEnd) -> None:
        answer, is_only = self._answer_now, len(self._parts) == 1 and end is PartEnd.WHOLE
        usage = answer.part
        if self._first_output_tokens is None:
            self._first_output_tokens = usage.output_tokens
        await dispatch.finished(usage, is_part=not is_only)
        if end is PartEnd.MORE:
            await self._write(answer.between())
        elif not is_only:
            self._teach(answer.produced, usage.output_tokens)

    def _teach(self, produced: Produced, last_output_tokens: int | None) -> None:
        """Lengths are learned of answers, not of parts; of one in slices, what was foretold: its first slice."""
        tokens = self._first_output_tokens if self._is_sliced else produced.tokens or last_output_tokens
        if tokens is not None:
            self._desk.taught(self._parts[0], output_tokens=tokens, prompt_tokens=None)

    async def _after(self, error: InstanceFailedError, dispatch: Dispatch) -> web.StreamResponse | None:
        """After a failure: nothing where the request goes on elsewhere, else its end."""
        metrics, answer = self._desk.world.metrics.front, self._answer or self._intent.answer("")
        if why := self._journey.why_not(answer, error):
            metrics.not_resumed.labels(error.cause.value).inc()
            said = {"request_id": dispatch.answer.request_id, "cause": error.cause.value, "detail": str(error)}
            _log.info("request not resumed: %s", why, extra=said)
            return await self._refuse(error)
        metrics.resumes.labels(error.cause.value).inc()
        self._journey.goes_on(dispatch.answer.instance_id, error)
        return None

    async def _refuse(self, error: LLMRouterError) -> web.StreamResponse:
        """The error as the client is told: as an answer, or within the one that has begun."""
        failed = error if isinstance(error, InstanceFailedError) else self._journey.last
        self._desk.world.metrics.front.requests.labels("Failed" if failed and failed.is_fault else "Refused").inc()
        if self._sent is None:
            return refusal_of(failed or error)
        told = self._answer_now.error(error_object(failed or error, "server_error"))
        if not told:
            self._abort()
            return self._sent
        await self._write(told)
        await self._sent.write_eof()
        return self._sent

    async def _close(self) -> web.StreamResponse:
        self._desk.world.metrics.front.requests.labels("Whole").inc()
        last = self._answer_now.close()
        status, headers = self._head
        if self._sent is None and not self._answer_now.sends_at_once:
            return web.Response(status=status, headers=dict(headers), body=last)
        await self._write(last, also_empty=True)
        assert self._sent is not None  # noqa: S101 - for the type checker: the write above has begun it
        await self._sent.write_eof()
        return self._sent

    async def _forward(self) -> web.StreamResponse:
        """A request that makes no tokens: to any instance, once."""
        try:
            endpoint = counted_forward(self._desk.world, None)
            response = await self._upstream.send(
                self._request.method,
                endpoint,
                self._intent.path,
                headers=self._headers,
                body=self._intent.body,
                watch=None,
            )
            async with response:
                self._answer = self._intent.answer("")
                self._head = response.status, passed_on(response.headers.items(), without=frozenset())
                while chunk := await next_chunk(response, watch=None, stall_s=self._journey.rules.stall_seconds):
                    await self._write(chunk)
            return await self._close()
        except LLMRouterError as error:
            return await self._refuse(error)

    async def _write(self, data: bytes, *, also_empty: bool = False) -> None:
        """So many bytes for the client, whose answer begins with the first ones; waits until it has taken enough.

        Raises:
            ClientLeftError: it is gone, or took nothing for ``stallSeconds``.
        """
        if not data and not also_empty:
            return
        try:
            if self._sent is not None and self._takes(data):
                await self._sent.write(data)
                return
            async with asyncio.timeout(self._journey.rules.stall_seconds or None):
                if self._sent is None:
                    status, headers = self._head
                    self._sent = web.StreamResponse(status=status)
                    self._sent.headers.extend(headers)
                    await self._sent.prepare(self._request)
                if data:
                    await self._sent.write(data)
        except TimeoutError as error:
            self._abort()
            raise ClientLeftError from error
        except ConnectionError as error:
            raise ClientLeftError from error

    def _takes(self, data: bytes) -> bool:
        """Whether the connection takes so much without a wait."""
        transport = self._request.transport
        return transport is not None and transport.get_write_buffer_size() + len(data) < AT_ONCE_BYTES

    def _abort(self) -> None:
        """Cuts the connection: what has begun has no end that could be told."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def _watch(self, dispatch: Dispatch) -> Watch:
        world, asked = self._desk.world, self._intent.asked
        model = asked.model if asked is not None else ""
        return Watch(world, self._journey, model, dispatch.answer, placed_at_s=dispatch.placed_at_s)

    @property
    def _answer_now(self) -> Answer:
        if self._answer is None:
            raise AssertionError("an answer is asked for before its first part")
        return self._answer


def refusal_of(error: LLMRouterError) -> web.Response:
    """An error as an answer: the engine's own where it gave one."""
    if isinstance(error, InstanceFailedError):
        if error.answer is not None:
            return web.Response(status=error.answer.status, headers=dict(error.answer.headers), body=error.answer.body)
        status = GATEWAY_TIMEOUT if error.cause is Cause.STALLED else BAD_GATEWAY
        return _error_response(status, error)
    found = refused_with(error)
    if found is None:
        return _error_response(FAILED, error)
    status, headers, body = found
    return web.Response(status=status, headers=headers, body=body)


def _error_response(status: int, error: LLMRouterError) -> web.Response:
    said: dict[str, Any] = error_object(error, "server_error")
    headers = {"content-type": "application/json", "llmrouter-reason": error.reason}
    return web.Response(status=status, headers=headers, body=json.dumps(said).encode())
