"""Open-loop replay: every request goes out when the trace says so, whatever became of those before it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llmrouter.testbed.measure import Outcome
from llmrouter.testbed.replay_routers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.testbed.completion_stream import CompletionStream
    from llmrouter.testbed.trace import TraceRequest


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
class Life:
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


class Way(Protocol):
    """How a request gets to an engine and its answer back."""

    async def serve(self, life: Life, counts: ReplayCounts) -> None:
        """Follows the request to its end, into ``life``; raises RequestFailedError."""


class ReplayClient:
    """Sends requests on their way and follows each to its end."""

    def __init__(self, way: Way, *, run_id: str, request_timeout_s: float = 300.0) -> None:
        self._way = way
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
            life = Life(
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

    async def _live(self, life: Life, *, stretch: str, due_s: float, on_outcome: Callable[[Outcome], None]) -> None:
        sent_at_s = asyncio.get_running_loop().time()
        error = ""
        try:
            async with asyncio.timeout(self._request_timeout_s):
                await self._way.serve(life, self.counts)
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
