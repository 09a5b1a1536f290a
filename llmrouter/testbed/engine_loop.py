"""Drives one simulated engine in wall-clock time: sleeps through each step, then hands the tokens out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from llmrouter.sim.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain import EngineProfile
    from llmrouter.sim.engine import EngineCounters, EngineRequest, StepResult


class TokenSink(Protocol):
    """Where the tokens of one request go. Called from the stepping task: must neither block nor raise."""

    def token(self) -> bool:
        """Takes one token that is not the last; ``False`` means nobody takes them any more."""
        ...

    def finish(self) -> None:
        """Takes the last token."""
        ...

    def abandon(self, reason: str) -> None:
        """Learns that no more tokens will come."""
        ...


class EngineLoop:
    """One engine and the task that steps it.

    Steps end at absolute deadlines, so the sleeps' inaccuracy does not add up. A host that is late by more than one
    step's duration does not get the rest back: the engine is then slower than its profile says, not bursty.
    """

    def __init__(
        self, profile: EngineProfile, *, speed: float = 1.0, on_first_token: Callable[[float], None] = lambda _: None
    ) -> None:
        self._engine = Engine(profile)
        self._speed = speed
        self._on_first_token = on_first_token
        self._sinks: dict[str, TokenSink] = {}
        self._arrived_at_s: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._failed = False
        self.late_steps_total = 0
        """Steps that began more than their own duration behind schedule."""

    @property
    def counters(self) -> EngineCounters:
        """The engine's counters."""
        return self._engine.counters

    @property
    def profile(self) -> EngineProfile:
        """The profile it steps by."""
        return self._engine.profile

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output it takes."""
        return self._engine.max_request_tokens

    @property
    def in_flight(self) -> int:
        """Requests submitted and neither finished nor cancelled."""
        return len(self._sinks)

    @property
    def failed(self) -> bool:
        """Whether the stepping task died."""
        return self._failed

    def submit(self, request: EngineRequest, sink: TokenSink) -> None:
        """Queues a request.

        Raises:
            InvalidRequestError: the engine refuses it.
        """
        self._engine.add(request)
        self._sinks[request.request_id] = sink
        self._empty.clear()
        self._arrived_at_s[request.request_id] = asyncio.get_running_loop().time()
        self._wake.set()

    def cancel(self, request_id: str) -> None:
        """Drops a request; of one that is not in flight there is nothing to drop."""
        if self._sinks.pop(request_id, None) is not None:
            self._arrived_at_s.pop(request_id, None)
            self._engine.cancel(request_id)
            self._note_empty()

    async def wait_empty(self) -> None:
        """Returns once nothing is in flight."""
        await self._empty.wait()

    async def run(self) -> None:
        """Steps for ever, sleeping while there is no work."""
        try:
            await self._run()
        finally:
            self._failed = True
            for sink in self._sinks.values():
                sink.abandon("the engine stopped")

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        deadline_s = clock()
        while True:
            if not self._engine.has_work:
                self._wake.clear()
                await self._wake.wait()
                deadline_s = clock()
            duration_s = self._engine.begin_step().duration_s / self._speed
            now_s = clock()
            if deadline_s < now_s - duration_s:
                self.late_steps_total += 1
                deadline_s = now_s - duration_s
            deadline_s += duration_s
            await asyncio.sleep(max(0.0, deadline_s - now_s))
            self._publish(self._engine.finish_step(), clock())

    def _publish(self, result: StepResult, now_s: float) -> None:
        for request_id in result.first_tokens:
            self._on_first_token(now_s - self._arrived_at_s.pop(request_id))
        sinks = self._sinks
        unread = [request_id for request_id in self._engine.continuing(result) if not sinks[request_id].token()]
        for request_id in result.finished:
            sinks.pop(request_id).finish()
        self._note_empty()
        for request_id in unread:
            sink = sinks[request_id]
            self.cancel(request_id)
            sink.abandon("nobody reads the tokens")

    def _note_empty(self) -> None:
        if not self._sinks:
            self._empty.set()
