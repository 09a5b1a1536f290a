"""Requests on the native way: a router is asked, the engine called, and everything reported back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio

from llmrouter.testbed.completion_stream import CompletionError, CompletionStream, completion_request, open_completion
from llmrouter.testbed.replay_client import RequestFailedError
from router_grpc.v1 import router_pb2 as messages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmrouter.testbed.replay_client import Life, ReplayCounts
    from llmrouter.testbed.replay_routers import RouterLink, Routers, Tracked

PROGRESS_INTERVAL_S = 0.5
ROUTE_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
RETRY_WITHIN_S = 15.0
MAX_RETRY_WAIT_S = 2.0
DEFAULT_RETRY_WAIT_S = 0.05
MAX_ATTEMPTS = 2
RETRIED_ROUTE_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
    }
)


class ThroughRouters:
    """A client that spreads its requests over ``routers`` itself."""

    def __init__(self, routers: Routers, model: str) -> None:
        self._routers = routers
        self._model = model

    async def serve(self, life: Life, counts: ReplayCounts) -> None:
        """Routes and completes; what fails at an instance is routed once more, away from it, under a new id."""
        request_id = life.request_id
        for attempt in range(1, MAX_ATTEMPTS + 1):
            link, answer = await self._route(life, request_id, counts)
            tracked = self._routers.track(answer.request_id, link)
            life.policy, life.instance_id = answer.policy, answer.instance_id
            life.predictor = answer.predictor
            life.predicted_tokens = [round(tokens, 1) for tokens in answer.predicted_output_quantiles]
            try:
                await self._complete(life, answer, tracked, counts=counts)
            except CompletionError as error:
                self._routers.failed(tracked, str(error))
                if attempt == MAX_ATTEMPTS:
                    raise RequestFailedError(f"{answer.instance_id}: {error}") from error
                life.excluded.append(answer.instance_id)
                request_id = f"{life.request_id}-again"
                _count_retry(life, counts)
            except BaseException:
                self._routers.cancelled(tracked)
                raise
            else:
                return

    async def _route(
        self, life: Life, request_id: str, counts: ReplayCounts
    ) -> tuple[RouterLink, messages.RouteResponse]:
        """Asks a router; where that fails, once another, with the same request id."""
        request = messages.RouteRequest(
            request_id=request_id,
            model=self._model,
            prompt_tokens=life.prompt_tokens,
            application=life.application,
            excluded_instance_ids=life.excluded,
        )
        link = await self._some_router(None)
        try:
            return link, await link.stub.Route(request, timeout=ROUTE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() not in RETRIED_ROUTE_CODES:
                raise RequestFailedError(f"Route: {error.code().name} {error.details()}") from error
            _count_retry(life, counts)
            await asyncio.sleep(_retry_after_s(error))
        link = await self._some_router(link)
        try:
            return link, await link.stub.Route(request, timeout=ROUTE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise RequestFailedError(f"Route, second try: {error.code().name} {error.details()}") from error

    async def _some_router(self, failed: RouterLink | None) -> RouterLink:
        deadline_s = asyncio.get_running_loop().time() + RETRY_WITHIN_S
        while (link := self._routers.pick(other_than=failed)) is None:
            if asyncio.get_running_loop().time() > deadline_s:
                raise RequestFailedError("no router answers")
            await asyncio.sleep(0.1)
        return link

    async def _complete(
        self, life: Life, answer: messages.RouteResponse, tracked: Tracked, *, counts: ReplayCounts
    ) -> None:
        request = completion_request(
            endpoint=answer.endpoint,
            model=self._model,
            request_id=answer.request_id,
            prompt_tokens=life.prompt_tokens,
            output_tokens=life.output_tokens,
        )
        life.stream = stream = await open_completion(answer.endpoint, request, timeout_s=CONNECT_TIMEOUT_S)
        try:
            await stream.first.wait()
            if stream.first_token_at_s is not None:
                self._routers.first_token(tracked)
            await self._follow(stream, tracked)
            usage = stream.usage()
        finally:
            counts.chunks += stream.chunks
            stream.abort()
        life.usage_output_tokens = usage.output_tokens
        self._routers.finished(tracked, prompt_tokens=usage.prompt_tokens, output_tokens=usage.output_tokens)

    async def _follow(self, stream: CompletionStream, tracked: Tracked) -> None:
        while not stream.closed.is_set():
            waiter = asyncio.ensure_future(stream.closed.wait())
            done, _ = await asyncio.wait((waiter,), timeout=PROGRESS_INTERVAL_S)
            if not done:
                waiter.cancel()
                self._routers.progress(tracked, stream.events)


def _count_retry(life: Life, counts: ReplayCounts) -> None:
    life.retries += 1
    counts.retries += 1


def _retry_after_s(error: grpc.aio.AioRpcError) -> float:
    """What the router asked for, bounded; a moment where it said nothing."""
    trailers = dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()))
    asked = str(trailers.get("retry-after-ms", ""))
    return min(int(asked) / 1e3, MAX_RETRY_WAIT_S) if asked.isdigit() else DEFAULT_RETRY_WAIT_S
