from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from llmrouter.profiles import H100_MIX
from llmrouter.sim.engine import EngineRequest
from llmrouter.testbed.engine_loop import EngineLoop


class Sink:
    """Counts tokens; answers what it is told to."""

    def __init__(self, *, alive: bool = True, slow_s: float = 0.0, error: Exception | None = None) -> None:
        self.tokens = 0
        self.abandoned: list[str] = []
        self.done = asyncio.Event()
        self._alive = alive
        self._slow_s = slow_s
        self._error = error

    def token(self) -> bool:
        self.tokens += 1
        if self._error is not None:
            raise self._error
        if self._slow_s:
            time.sleep(self._slow_s)  # the host is busy with something else
            self._slow_s = 0.0
        return self._alive

    def finish(self) -> None:
        self.tokens += 1
        self.done.set()

    def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)
        self.done.set()


async def test_a_sink_gets_each_token_and_its_first_is_timed() -> None:
    first_tokens: list[float] = []
    loop = EngineLoop(H100_MIX, speed=100, on_first_token=first_tokens.append)
    stepping = asyncio.create_task(loop.run())
    sinks = [Sink(), Sink()]
    for index, sink in enumerate(sinks):
        loop.submit(EngineRequest(f"r{index}", 50, 7 + index), sink)
    async with asyncio.timeout(30):
        await loop.wait_empty()
    assert [sink.tokens for sink in sinks] == [7, 8]
    assert len(first_tokens) == 2
    assert min(first_tokens) >= H100_MIX.base_prefill_s / 100
    stepping.cancel()
    with suppress(asyncio.CancelledError):
        await stepping


async def test_a_sink_that_nobody_reads_is_dropped_and_the_others_go_on() -> None:
    loop = EngineLoop(H100_MIX, speed=100)
    stepping = asyncio.create_task(loop.run())
    dead, alive = Sink(alive=False), Sink()
    loop.submit(EngineRequest("dead", 50, 1_000), dead)
    loop.submit(EngineRequest("alive", 50, 20), alive)
    async with asyncio.timeout(30):
        await loop.wait_empty()
    assert (dead.tokens, alive.tokens) == (1, 20)
    assert dead.abandoned == ["nobody reads the tokens"]
    assert loop.counters.cancelled_total == 1
    stepping.cancel()
    with suppress(asyncio.CancelledError):
        await stepping


async def test_a_late_host_is_noticed_and_not_made_up_for() -> None:
    loop = EngineLoop(H100_MIX, speed=10)
    stepping = asyncio.create_task(loop.run())
    sink = Sink(slow_s=0.5)
    loop.submit(EngineRequest("r", 50, 3), sink)
    async with asyncio.timeout(30):
        await sink.done.wait()
    assert sink.tokens == 3
    assert loop.late_steps_total >= 1
    stepping.cancel()
    with suppress(asyncio.CancelledError):
        await stepping


async def test_an_engine_that_dies_says_so_to_everyone() -> None:
    loop = EngineLoop(H100_MIX, speed=100)
    stepping = asyncio.create_task(loop.run())
    broken, other = Sink(error=ZeroDivisionError("a defect")), Sink()
    loop.submit(EngineRequest("broken", 50, 10), broken)
    loop.submit(EngineRequest("other", 50, 10), other)
    with pytest.raises(ZeroDivisionError):
        await stepping
    assert loop.failed
    assert other.abandoned == ["the engine stopped"]
