"""The batch class in a router, yields between routers, and charges that settle. In memory, under a test's clock."""

# ruff: noqa: ANN401 - keyword arguments are handed on to values that check them

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import pytest
from support.router_world import MODEL, Bench, config_of, until

from llmrouter.errors import SaturatedError
from router_grpc.adapters.memory_ledger import MemoryBook
from router_grpc.reports import MAX_REPORTED_TOKENS, ReportKind

if TYPE_CHECKING:
    from llmrouter.config import RouterConfig


def config(*endpoints: str, most: int = 1, batch: dict[str, Any] | None = None, **queue: Any) -> RouterConfig:
    """Instances with room for so many requests each."""
    limits = {"maxInFlightPerInstance": most}
    return config_of(*(endpoints or ("a:1",)), limits=limits, policy={"queue": {"batch": batch or {}, **queue}})


async def held(bench: Bench, name: str, **fields: Any) -> asyncio.Task[Any]:
    count = bench.service.held + 1
    task = asyncio.create_task(bench.route(name, **fields))
    await until(lambda: bench.service.held == count, what=f"{name} held")
    return task


async def test_batch_requests_go_after_all_others_whatever_their_priority() -> None:
    bench = Bench(config())
    await bench.route("first")
    batch = await held(bench, "batch", batch=True, priority=100)
    ours = await held(bench, "ours", priority=-100)
    await bench.report("first")
    await ours
    assert not batch.done()
    await bench.report("ours")
    assert (await batch).held_s > 0


async def test_a_batch_request_goes_only_where_it_leaves_headroom() -> None:
    """An instance on which a prompt waits has room, but no gap; an idle one has both."""
    bench = Bench(config("a:1", most=4))
    await bench.route("first")
    batch = await held(bench, "batch", batch=True)
    assert (await bench.route("ours")).held_s == pytest.approx(0.0, abs=1e-6)
    await bench.report("ours")
    await bench.report("first", ReportKind.FIRST_TOKEN)
    await refresh(bench)
    assert (await batch).instance_id == "a:1"


async def test_the_fill_fraction_bounds_what_the_batch_class_takes() -> None:
    """All of a batch request's 200 tokens count, those that are expected too; who is waited for may fill the rest."""
    bench = Bench(config("a:1", most=512, batch={"fillFraction": 0.02, "maxQueuedTokens": 100_000}))
    profile = bench.instances.current()[0].profile
    fits = min(int(0.02 * profile.kv_tokens / 200), math.ceil(0.02 * profile.max_sequences))
    assert fits > 1
    for number in range(fits):
        await asyncio.wait_for(bench.route(f"b{number}", batch=True), 5)
    waits = await held(bench, "waits", batch=True)
    await bench.route("ours")
    await bench.report("b0")
    await bench.report("ours")
    await waits


async def test_after_its_patience_a_batch_request_goes_first_once_in_a_while() -> None:
    """Others keep the only instance full: after nine dispatches of others it has the next."""
    bench = Bench(config(batch={"patienceSeconds": 5, "leastShare": 0.1}))
    await bench.route("r0")
    batch = await held(bench, "batch", batch=True)
    tasks, served = {"batch": batch}, ["r0"]

    def newly() -> list[str]:
        return [name for name, task in tasks.items() if task.done() and name not in served]

    for number in range(1, 14):
        tasks[f"r{number}"] = await held(bench, f"r{number}")
        bench.clock.now_s += 1.0
        await bench.report(served[-1])
        await until(lambda: bool(newly()), within_s=5)
        served += newly()
    assert served.index("batch") == 9
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_the_batch_class_has_its_own_longest_hold_and_share_of_the_queue() -> None:
    bench = Bench(config(batch={"maxWaitSeconds": 0, "depthFraction": 0.5}, maxDepth=2))
    await bench.route("first")
    with pytest.raises(SaturatedError, match=r"queue\.batch\.maxWaitSeconds") as late:
        await bench.route("late", batch=True)
    assert late.value.reason == "HoldTimeout"
    bench.put(config(batch={"depthFraction": 0.5}, maxDepth=2))
    batch = await held(bench, "b0", batch=True)
    with pytest.raises(SaturatedError, match=r"depthFraction leaves them 0\.5 of 2 places") as full:
        await bench.route("b1", batch=True)
    assert full.value.reason == "BatchQueueFull"
    ours = await held(bench, "ours")
    for task in (ours, batch):
        task.cancel()
    await asyncio.gather(ours, batch, return_exceptions=True)


async def test_a_policy_is_told_of_those_that_wait_alike() -> None:
    """Batch requests that wait are no crowd for who is waited for."""
    bench = Bench(config())
    await bench.route("first")
    tasks = [await held(bench, "b0", batch=True), await held(bench, "b1", batch=True), await held(bench, "ours")]
    line = bench.service._holding.line(MODEL)
    assert {name: line.waiting(task_request(line, name)) for name in ("b0", "ours")} == {"b0": 2, "ours": 1}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def task_request(line: Any, name: str) -> Any:
    return next(one.request for one in line._tickets if one.request.request_id == name)


# --- several routers ---


async def test_a_router_leaves_a_place_to_who_waits_longer_at_another_and_takes_it_back_when_nobody_does() -> None:
    book = MemoryBook()
    one, two = (Bench(config(), book=book, router_id=name) for name in ("r1", "r2"))
    two.clock = one.clock
    two.world = two.world
    await one.route("first")
    await refresh(one, two)
    old = await held(one, "old")
    one.clock.now_s += 5.0
    await refresh(one, two)
    await two.world.ledger.release("first")
    await refresh(two)
    young = await held(two, "young")
    assert two.service.has_yielded
    await refresh(one)
    await old
    await one.report("old")
    await refresh(one, two)
    await young
    assert two.count("llmrouter_reservations_total", event="yielded") >= 1


async def refresh(*benches: Bench) -> None:
    """As a composed router's refresh loop does."""
    for bench in benches:
        loads = await bench.world.ledger.loads(bench.service.claims())
        if bench.world.replica.replace(loads, now_s=bench.clock()) or bench.service.has_yielded:
            bench.service.kick()
        await asyncio.sleep(0.02)


# --- settling ---


@pytest.mark.parametrize(
    ("kind", "said", "output_tokens"),
    [
        (ReportKind.FINISHED, {"output_tokens": 700}, 700),
        (ReportKind.FINISHED, {"output_tokens": 10}, 10),
        (ReportKind.FINISHED, {}, 100),
        (ReportKind.CANCELLED, {}, 0),
        (ReportKind.FAILED, {"output_tokens": -5}, 0),
        (ReportKind.FINISHED, {"output_tokens": 10**15}, MAX_REPORTED_TOKENS),
    ],
)
async def test_a_tenant_pays_for_what_there_was(kind: ReportKind, said: dict[str, int], output_tokens: int) -> None:
    """100 prompt tokens and 100 predicted ones; what was not said of a finish stays as predicted."""
    bench = Bench(config(fairness={"enabled": True}))
    line = bench.service._holding.line(MODEL)._line
    await bench.route("r", tenant="t")
    assert line.served("t") == 100 + 2 * 100
    await bench.report("r", kind, **said)
    assert line.served("t") == 100 + 2 * output_tokens


async def test_a_tenant_of_long_answers_gets_fewer_of_them() -> None:
    """Both are predicted alike; one's answers are nine times as long: it has a turn where the other has several."""
    bench = Bench(config(fairness={"enabled": True}))
    await bench.route("first")
    tasks = {}
    for number in range(12):
        for tenant in ("long", "short"):
            name = f"{tenant}{number}"
            tasks[name] = await held(bench, name, tenant=tenant)
    served: list[str] = []
    running = "first"
    while len(served) < 12:
        await bench.report(running, output_tokens=900 if running.startswith("long") else 100)
        await until(lambda: any(task.done() for name, task in tasks.items() if name not in served))
        running = next(name for name, task in tasks.items() if task.done() and name not in served)
        served.append(running)
    assert sum(name.startswith("short") for name in served) >= 9
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_an_orphaned_request_is_settled_too() -> None:
    bench = Bench(config(fairness={"enabled": True}))
    line = bench.service._holding.line(MODEL)._line
    await bench.route("r", tenant="t")
    bench.clock.now_s += 100.0
    await bench.sweep()
    assert line.served("t") == 100
