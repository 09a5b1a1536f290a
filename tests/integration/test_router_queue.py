"""The queue over a real channel: what a call says of priority, tenant and deadline, and which bound refuses it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from support.router_world import LiveRouter, config_of, live_router, until

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL = {"maxInFlightPerInstance": 1}


async def served_order(live: LiveRouter, asks: Sequence[dict[str, Any]]) -> list[str]:
    """Who is served one after the other, where all are held behind one that then finishes."""
    await live.route("first")
    calls = {}
    for number, fields in enumerate(asks):
        calls[f"h{number}"] = asyncio.ensure_future(live.route(f"h{number}", **fields))
        await until(lambda count=number + 1: live.router.app.service.held == count)  # type: ignore[misc]
    order: list[str] = []
    done = "first"
    while calls:
        await live.finish(done)
        finished, _ = await asyncio.wait(calls.values(), return_when=asyncio.FIRST_COMPLETED)
        (done,) = [name for name, call in calls.items() if call in finished]
        del calls[done]
        order.append(done)
    return order


async def test_priorities_deadlines_and_lengths_order_the_held() -> None:
    policy = {"queue": {"order": "EarliestDeadline"}}
    asks = [{"deadline_ms": 60_000}, {"deadline_ms": 30_000}, {}, {"priority": 3}]
    async with live_router(config_of("127.0.0.1:1", limits=FULL, policy=policy)) as live:
        assert await served_order(live, asks) == ["h3", "h2", "h1", "h0"]


async def test_the_batch_class_goes_last() -> None:
    asks: list[dict[str, Any]] = [{"batch": True, "priority": 9}, {}, {"batch": True}, {"priority": -9}]
    async with live_router(config_of("127.0.0.1:1", limits=FULL)) as live:
        assert await served_order(live, asks) == ["h1", "h3", "h0", "h2"]


async def test_tenants_take_turns() -> None:
    policy = {"queue": {"fairness": {"enabled": True}}}
    asks = [{"tenant": "all"}] * 3 + [{"tenant": "few"}]
    async with live_router(config_of("127.0.0.1:1", limits=FULL, policy=policy)) as live:
        assert (await served_order(live, asks)).index("h3") <= 1


@pytest.mark.parametrize(
    ("queue", "fields", "reason"),
    [
        ({"maxDepth": 1}, {}, "QueueFull"),
        ({"maxBytes": 40_000}, {"prompt": b"x" * 5_000}, "QueueBytes"),
        ({"maxDepth": 2, "fairness": {"enabled": True}}, {"tenant": "all"}, "TenantQueueFull"),
    ],
)
async def test_the_bound_that_refuses_is_named(queue: dict[str, Any], fields: dict[str, Any], reason: str) -> None:
    async with live_router(config_of("127.0.0.1:1", limits=FULL, policy={"queue": queue})) as live:
        await live.route("first")
        held = asyncio.ensure_future(live.route("held", **fields))
        await until(lambda: live.router.app.service.held == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await live.route("refused", **fields)
        said: Any = caught.value.trailing_metadata()
        trailers = dict(said)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (trailers["llmrouter-reason"], trailers["retry-after-ms"]) == (reason, "1000")
        assert live.count("llmrouter_requests_total", outcome=reason) == 1
        await live.finish("first")
        await held
