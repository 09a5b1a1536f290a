"""Open-loop replay: every request goes out when the trace says so, whatever became of those before it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio

from llmrouter.testbed.completion_stream import CompletionError, CompletionStream, completion_request, open_completion
from llmrouter.testbed.measure import Outcome
from llmrouter.testbed.replay_routers import wait_until
from router_grpc.v1 import router_pb2 as messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llmrouter.testbed.replay_routers import RouterLink, Routers, Tracked
    from llmrouter.testbed.trace import TraceRequest

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


class RequestFailedError(Exception):
    """A request ended without its tokens, its retry used; the message is the last cause."""


@dataclass
class ReplayCounts:
    """Totals since the replay began."""

    sent: int = 0
    done: int = 0
    failed: int = 0
    retries: int = 0
    chunks: int = 0

    @property
    def in_flight(self) -> int:
        """Sent, not ended."""
        return self.sent - self.done - self.failed


@dataclass
class _Life:
    """What is known of a request while it lives."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    application: str
    retries: int = 0
    policy: str = ""
    instance_id: str = ""
    predictor: str = ""
    predicted_tokens: list[float] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    stream: CompletionStream | None = None
    usage_output_tokens: int = 0


class ReplayClient:
    """Sends requests through ``routers`` and follows each to its end."""

    def __init__(self, routers: Routers, *, model: str, run_id: str, request_timeout_s: float = 300.0) -> None:
        self._routers = routers
        self._model = model
        self._run_id = run_id
        self._request_timeout_s = request_timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts = ReplayCounts()

    async def replay(
        self,
        stretch: str,
        requests: Sequence[TraceRequest],
        *,
        on_outcome: Callable[[Outcome], None],
        until: Callable[[], bool] = lambda: False,
        duration_s: float = 0.0,
    ) -> None:
        """Sends the requests at their times, until ``until`` says so; returns ``duration_s`` after the start.

        Does not wait for the answers, see ``drain``.
        """
        now = asyncio.get_running_loop().time
        started_at_s = now()
        for number, request in enumerate(requests):
            due_s = started_at_s + request.arrived_at_s
            if (wait_s := due_s - now()) > 0:
                await asyncio.sleep(wait_s)
            if until():
                return
            self.counts.sent += 1
            life = _Life(
                f"{self._run_id}-{stretch}-{number}", request.prompt_tokens, request.output_tokens, request.application
            )
            task = asyncio.create_task(self._live(life, stretch=stretch, due_s=due_s, on_outcome=on_outcome))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        await wait_until(until, timeout_s=started_at_s + duration_s - now())

    async def drain(self, timeout_s: float) -> None:
        """Waits for the answers; those not whole in time are cancelled, which counts them as failed."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _live(self, life: _Life, *, stretch: str, due_s: float, on_outcome: Callable[[Outcome], None]) -> None:
        sent_at_s = asyncio.get_running_loop().time()
        error = ""
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._serve(life)
        except RequestFailedError as failure:
            error = str(failure) or "failed"
        except TimeoutError:
            error = f"not finished after {self._request_timeout_s:g} s"
        except asyncio.CancelledError:
            error = "the replay ended first"
        if error:
            self.counts.failed += 1
        else:
            self.counts.done += 1
        stream = life.stream
        on_outcome(
            Outcome(
                stretch=stretch,
                request_id=life.request_id,
                arrived_at_s=due_s,
                sent_at_s=sent_at_s,
                first_token_at_s=stream.first_token_at_s if stream else None,
                finished_at_s=stream.finished_at_s if stream else None,
                prompt_tokens=life.prompt_tokens,
                output_tokens=life.usage_output_tokens,
                retries=life.retries,
                policy=life.policy,
                instance_id=life.instance_id,
                error=error,
                predictor=life.predictor,
                predicted_tokens=life.predicted_tokens,
            )
        )

    async def _serve(self, life: _Life) -> None:
        """Routes and completes; what fails at an instance is routed once more, away from it, under a new id."""
        request_id = life.request_id
        for attempt in range(1, MAX_ATTEMPTS + 1):
            link, answer = await self._route(life, request_id)
            tracked = self._routers.track(answer.request_id, link)
            life.policy, life.instance_id = answer.policy, answer.instance_id
            life.predictor = answer.predictor
            life.predicted_tokens = [round(tokens, 1) for tokens in answer.predicted_output_quantiles]
            try:
                await self._complete(life, answer, tracked)
            except CompletionError as error:
                self._routers.failed(tracked, str(error))
                if attempt == MAX_ATTEMPTS:
                    raise RequestFailedError(f"{answer.instance_id}: {error}") from error
                life.excluded.append(answer.instance_id)
                request_id = f"{life.request_id}-again"
                self._count_retry(life)
            except BaseException:
                self._routers.cancelled(tracked)
                raise
            else:
                return

    async def _route(self, life: _Life, request_id: str) -> tuple[RouterLink, messages.RouteResponse]:
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
            self._count_retry(life)
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

    async def _complete(self, life: _Life, answer: messages.RouteResponse, tracked: Tracked) -> None:
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
            self.counts.chunks += stream.chunks
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

    def _count_retry(self, life: _Life) -> None:
        life.retries += 1
        self.counts.retries += 1


def _retry_after_s(error: grpc.aio.AioRpcError) -> float:
    """What the router asked for, bounded; a moment where it said nothing."""
    trailers = dict(cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()))
    asked = str(trailers.get("retry-after-ms", ""))
    return min(int(asked) / 1e3, MAX_RETRY_WAIT_S) if asked.isdigit() else DEFAULT_RETRY_WAIT_S
