"""The router's queue: who goes first, whom a newcomer passes, which bound refuses. In memory, under a test's clock."""

# ruff: noqa: ANN401 - keyword arguments are handed on to values that check them

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.router_world import MODEL, Bench, config_of, until

from llmrouter.domain import Hold, Request
from llmrouter.errors import SaturatedError
from llmrouter.resources import QueueSpec
from llmrouter.routing.lines import QueueRules
from llmrouter.routing.orders import ORDERS, Order
from llmrouter.routing.policies import LeastInFlight, request_bound
from router_grpc.holding import CALL_BYTES, Holding, HoldLine, kept_bytes
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from llmrouter.config import RouterConfig
    from llmrouter.domain import Decision, PoolSnapshot
    from router_grpc.holding import Ticket


def config(*endpoints: str, **queue: Any) -> RouterConfig:
    """Instances with room for one request each."""
    return config_of(*(endpoints or ("a:1",)), limits={"maxInFlightPerInstance": 1}, policy={"queue": queue})


async def served_order(bench: Bench, asks: Sequence[dict[str, Any]]) -> list[str]:
    """Who is served one after the other, where all are held behind one that then finishes."""
    await bench.route("first")
    order: list[str] = []

    async def held(name: str, fields: dict[str, Any]) -> None:
        await bench.route(name, **fields)
        order.append(name)

    tasks = []
    for number, fields in enumerate(asks):
        bench.clock.now_s += 0.01
        tasks.append(asyncio.create_task(held(f"h{number}", fields)))
        await until(lambda count=number + 1: bench.service.held == count, what="held")  # type: ignore[misc]
    done = "first"
    for count in range(len(asks)):
        await bench.report(done)
        await until(lambda count=count: len(order) == count + 1, what="served")  # type: ignore[misc]
        done = order[-1]
    await bench.report(done)
    await asyncio.gather(*tasks)
    assert await bench.world.ledger.loads() == {}
    return order


LONG, SHORT, MIDDLE = ({"max_output_tokens": tokens} for tokens in (90, 5, 40))


@pytest.mark.parametrize(
    ("order", "served"),
    [
        ("FirstComeFirstServed", ["h0", "h1", "h2", "h3"]),
        ("ShortestPredicted", ["h1", "h2", "h3", "h0"]),
        ("PredictedRank", ["h1", "h2", "h3", "h0"]),
        ("HighestResponseRatio", ["h1", "h0", "h2", "h3"]),
        ("LeastSlack", ["h2", "h0", "h1", "h3"]),
        ("EarliestDeadline", ["h2", "h0", "h1", "h3"]),
        ("ModifiedDueDate", ["h2", "h0", "h1", "h3"]),
    ],
)
async def test_held_requests_go_in_the_order_of_the_policy(order: str, served: list[str]) -> None:
    """Long, short, middle, middle; due in 60 s, an hour, 30 s, two hours."""
    asks = [
        LONG | {"deadline_ms": 60_000},
        SHORT | {"deadline_ms": 3_600_000},
        MIDDLE | {"deadline_ms": 30_000},
        MIDDLE | {"deadline_ms": 7_200_000},
    ]
    assert await served_order(Bench(config(order=order)), asks) == served


async def test_a_higher_priority_goes_first_and_ties_go_first_come() -> None:
    asks = [{}, {"priority": 1}, {"priority": -5}, {"priority": 1}, {}]
    assert await served_order(Bench(config()), asks) == ["h1", "h3", "h0", "h4", "h2"]


async def test_aging_lets_the_long_one_pass_who_came_much_later() -> None:
    bench = Bench(config(order="ShortestPredicted", agingSeconds=0.1))
    order = await served_order(bench, [LONG, *[SHORT] * 60])
    assert 0 < order.index("h0") < 60


async def test_tenants_take_turns_by_their_weights() -> None:
    fairness = {"enabled": True, "weights": [{"tenant": "b", "weight": 2}]}
    asks = [{"tenant": "a"}] * 4 + [{"tenant": "b"}] * 4
    order = await served_order(Bench(config(fairness=fairness)), asks)
    tenants = ["a" if int(name[1:]) < 4 else "b" for name in order]
    assert tenants[:6].count("b") == 4
    assert tenants[:3].count("a") == 1


async def test_another_policy_reorders_those_that_are_held() -> None:
    bench = Bench(config())
    await bench.route("first")
    tasks = []
    for number, fields in enumerate((LONG, SHORT)):
        tasks.append(asyncio.create_task(bench.route(f"h{number}", **fields)))
        await until(lambda count=number + 1: bench.service.held == count)  # type: ignore[misc]
    bench.put(config(order="ShortestPredicted"))
    await bench.report("first")
    await tasks[1]
    assert not tasks[0].done()
    await bench.report("h1")
    await tasks[0]


@pytest.mark.parametrize(("priority", "waits"), [(1, False), (0, True)])
async def test_a_newcomer_that_goes_first_tries_at_once(*, priority: int, waits: bool) -> None:
    """Who tried last cannot have the free place; who goes before it can, who goes after it waits in line."""
    bench = Bench(config("a:1", "b:1"))
    await bench.route("on-b", excluded_instance_ids=frozenset({"a:1"}))
    first = asyncio.create_task(bench.route("first", excluded_instance_ids=frozenset({"a:1"})))
    await until(lambda: bench.service.held == 1)
    late = asyncio.create_task(bench.route("late", priority=priority))
    if waits:
        await until(lambda: bench.service.held == 2)
    else:
        assert (await late).instance_id == "a:1"
    await bench.report("on-b")
    assert (await first).instance_id == "b:1"
    await late


async def refused(bench: Bench, **fields: Any) -> SaturatedError:
    with pytest.raises(SaturatedError) as refusal:
        await bench.route("x", **fields)
    return refusal.value


async def hold(bench: Bench, count: int, **fields: Any) -> list[asyncio.Task[Any]]:
    await bench.route("first")
    return await join(bench, count, **fields)


async def join(bench: Bench, count: int, **fields: Any) -> list[asyncio.Task[Any]]:
    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(bench.route(f"h{number}", **fields)))
        await until(lambda count=number + 1: bench.service.held == count)  # type: ignore[misc]
    return tasks


async def free(bench: Bench, tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bench.service.held == 0


async def test_the_bound_in_bytes_counts_prompts_and_is_named() -> None:
    prompt = b"word " * 2000
    room = 5 * kept_bytes(prompt) // 2  # for two, and the hashes of their prompts' beginnings
    bench = Bench(config(maxBytes=room))
    tasks = await hold(bench, 2, prompt=prompt)
    refusal = await refused(bench, prompt=prompt)
    assert refusal.reason == "QueueBytes"
    assert f"queue.maxBytes is {room}" in str(refusal)
    await free(bench, tasks)
    again = await hold(Bench(config(maxBytes=room)), 2, prompt=prompt)
    for task in again:
        task.cancel()
    await asyncio.gather(*again, return_exceptions=True)


async def test_a_tenant_that_sends_everything_leaves_places_for_others() -> None:
    bench = Bench(config(maxDepth=4, fairness={"enabled": True}))
    tasks = await hold(bench, 2, tenant="all")
    refusal = await refused(bench, tenant="all")
    assert refusal.reason == "TenantQueueFull"
    assert "2 requests of the tenant are held already and 2 places are free" in str(refusal)
    few = asyncio.create_task(bench.route("few", tenant="few"))
    await until(lambda: bench.service.held == 3)
    await bench.report("first")
    await tasks[0]  # both have been served nothing: who came first
    await bench.report("h0")
    await few
    await free(bench, tasks[1:])


async def test_the_depth_is_that_of_all_lines_together() -> None:
    holding = Holding(lambda: 0.0)
    queue = QueueSpec(max_depth=1)
    asked = Request("r", "a", 10, 10.0, 0.0)
    with holding.line("a").ticket(asked, work_s=1.0, kept=CALL_BYTES, since=0):
        with pytest.raises(SaturatedError, match="maxDepth is 1"):
            holding.check_bounds(Request("s", "b", 10, 10.0, 0.0), queue, CALL_BYTES)
        assert (len(holding), holding.kept_bytes) == (1, CALL_BYTES)
    assert (len(holding), holding.kept_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("deadline", "words"), [(None, "the policy's hold.maxWaitSeconds"), (1000.0, "the call's own deadline")]
)
async def test_a_wait_that_ends_names_what_bounded_it(deadline: float | None, words: str) -> None:
    bench = Bench(config_of("a:1", limits={"maxInFlightPerInstance": 1}, policy={"hold": {"maxWaitSeconds": 0.02}}))
    await bench.route("first")
    refusal = await refused(bench, deadline_s=deadline)
    assert refusal.reason == "HoldTimeout"
    assert words in str(refusal)


async def test_only_new_dispatches_are_charged() -> None:
    """A repeat that its first call's reservation answers costs its tenant nothing more."""
    bench = Bench(config("a:1", "b:1", fairness={"enabled": True}))
    line = bench.service._holding.line(MODEL)
    await bench.route("r", tenant="a")
    served = line._line.served("a")
    assert served > 0
    await bench.route("r", tenant="a")
    assert line._line.served("a") == served


# --- one line, without a service ---


class Crowd:
    """Many held requests in one line, each leaving as it gets the turn, or staying."""

    def __init__(self, rules: QueueRules) -> None:
        self.now_s = 0.0
        self.line = HoldLine(rules, lambda: self.now_s)
        self.entered: list[tuple[Any, Ticket]] = []

    def join(self, number: int, *, work_s: float, tenant: str = "", priority: int = 0) -> Ticket:
        asked = Request(f"r{number}", "m", 10, 10.0, self.now_s, tenant=tenant, priority=priority)
        context = self.line.ticket(asked, work_s=work_s, kept=1, since=self.line.events)
        ticket = context.__enter__()
        self.entered.append((context, ticket))
        return ticket

    def with_turn(self) -> list[Ticket]:
        return [ticket for _, ticket in self.entered if ticket.turn.is_set()]

    def leave(self, ticket: Ticket) -> None:
        place = next(place for place, (_, one) in enumerate(self.entered) if one is ticket)
        self.entered.pop(place)[0].__exit__(None, None, None)


def test_one_tries_at_a_time_and_an_event_meanwhile_is_not_missed() -> None:
    crowd = Crowd(QueueRules(Order.SHORTEST_PREDICTED))
    long, short = crowd.join(0, work_s=9.0), crowd.join(1, work_s=1.0)
    assert crowd.with_turn() == [short]  # it goes before the one that tried last
    shorter = crowd.join(2, work_s=0.5)
    crowd.line.kick()
    assert crowd.with_turn() == [short]
    short.stays()
    assert crowd.with_turn() == [shorter]
    shorter.stays()
    assert crowd.with_turn() == []
    crowd.line.kick()
    assert crowd.with_turn() == [shorter]
    crowd.leave(shorter)
    assert crowd.with_turn() == [short]
    crowd.leave(long)
    crowd.leave(short)
    assert len(crowd.line) == 0


@pytest.mark.parametrize("name", list(ORDERS))
def test_a_crowd_drains_by_priority_whoever_leaves_meanwhile(name: str) -> None:
    """A thousand held; every turn is served, every tenth request leaves early; nobody is lost or served twice."""
    crowd = Crowd(QueueRules(ORDERS[name], fair=True))
    for number in range(1_000):
        crowd.now_s += 0.01
        crowd.join(number, work_s=0.1 + number % 7, tenant=f"t{number % 13}", priority=number % 2)
    left = [ticket for place, (_, ticket) in enumerate(crowd.entered) if place % 10 == 3]
    for ticket in left:
        crowd.leave(ticket)
    crowd.line.kick()
    served = []
    while len(crowd.line):
        (ticket,) = crowd.with_turn()
        crowd.now_s += 0.05
        ticket.served()
        served.append(ticket.held.request)
        crowd.leave(ticket)
    assert len({one.request_id for one in served}) == len(served) == 900
    assert [one.priority for one in served] == sorted((one.priority for one in served), reverse=True)


@pytest.mark.parametrize(
    ("declared", "while_bad"),
    [("PredictedRank", "FIRST_COME_FIRST_SERVED"), ("EarliestDeadline", "EARLIEST_DEADLINE")],
)
async def test_an_order_by_lengths_gives_way_while_they_order_badly(declared: str, while_bad: str) -> None:
    bench = Bench(config_of(policy={"queue": {"order": declared}}))
    in_force = bench.service._holding
    good = in_force.order
    bench.world.lengths.watch.orders_well = False
    bench.service.reorder()
    assert in_force.order.name == while_bad
    assert bench.count("llmrouter_queue_order_off") == (in_force.order is not good)
    bench.world.lengths.watch.orders_well = True
    bench.service.reorder()
    assert in_force.order is good
    assert bench.count("llmrouter_queue_order_off") == 0


# --- holds until an instant ---


class Patient(LeastInFlight):
    """Holds every head until an instant of the bench's clock, and notes what it was shown."""

    def __init__(self, bench: Bench, hold_s: float) -> None:
        super().__init__(request_bound(8))
        self._bench, self._hold_s = bench, hold_s
        self.until_s = bench.clock.now_s + hold_s
        self.seen: list[tuple[str, int, float | None]] = []

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        self.seen.append((request.request_id, snapshot.held, snapshot.head_since_s))
        if self._bench.clock.now_s < self.until_s:
            return Hold("patient", self.until_s)
        return super().decide(request, snapshot, rng)


async def patient(hold_s: float) -> tuple[Bench, Patient]:
    """A router whose one instance is busy and has room."""
    bench = Bench(config_of("a:1", limits={"maxInFlightPerInstance": 8}))
    await bench.route("first")
    policy = Patient(bench, hold_s)
    bench.service.runtime.guard.primary = policy  # type: ignore[union-attr]
    return bench, policy


async def test_a_held_head_tries_again_at_the_instant_that_the_policy_named() -> None:
    """No event comes; those behind it follow as it leaves, and the timer is gone with the line."""
    bench, policy = await patient(0.02)
    came_s = bench.clock.now_s
    tasks = await join(bench, 2)
    bench.clock.now_s = policy.until_s
    answers = await asyncio.gather(*tasks)
    assert all(answer.held_s > 0 for answer in answers)
    assert policy.seen[0] == ("h0", 1, None)
    assert ("h0", 2, came_s) in policy.seen
    assert policy.seen[-1] == ("h1", 1, policy.until_s)
    assert bench.service._holding.line(MODEL)._timer is None


async def test_a_timer_that_comes_early_by_the_clock_is_set_again() -> None:
    bench, policy = await patient(0.005)
    (task,) = await join(bench, 1)
    await until(lambda: len(policy.seen) >= 3)
    assert not task.done()
    bench.clock.now_s = policy.until_s
    await task


async def test_an_event_lets_a_held_head_try_before_its_instant() -> None:
    bench, policy = await patient(1e6)
    (task,) = await join(bench, 1)
    for count in (2, 3):
        bench.service.kick()
        await until(lambda count=count: len(policy.seen) == count)  # type: ignore[misc]
    policy.until_s = bench.clock.now_s
    bench.service.kick()
    await task


@pytest.mark.parametrize("until_s", [float("nan"), float("inf"), -1.0, 0.0])
async def test_an_instant_that_does_not_come_sets_no_timer(until_s: float) -> None:
    crowd = Crowd(QueueRules())
    ticket = crowd.join(0, work_s=1.0)
    ticket.stays(Hold("never", until_s))
    assert crowd.line._timer is None
    ticket.stays(Hold("soon", 0.5))
    assert crowd.line._timer is not None
    crowd.leave(ticket)
    assert crowd.line._timer is None


def test_whoever_overtakes_takes_over_since_when_the_line_waits() -> None:
    crowd = Crowd(QueueRules(Order.SHORTEST_PREDICTED))
    crowd.now_s = 1.0
    long = crowd.join(0, work_s=9.0)
    crowd.now_s = 2.0
    short, longer = crowd.join(1, work_s=1.0), crowd.join(2, work_s=99.0)
    assert crowd.line.head_since_s == 1.0
    crowd.leave(longer)
    assert crowd.line.head_since_s == 1.0
    crowd.now_s = 3.0
    crowd.leave(short)
    assert crowd.line.head_since_s == 3.0
    crowd.leave(long)
    assert crowd.line.head_since_s is None


def test_a_line_that_is_long_enough_lets_its_first_try() -> None:
    """The policy said how many; who overtakes tries as ever, and an attempt puts an end to what was said before."""
    crowd = Crowd(QueueRules())
    head = crowd.join(0, work_s=1.0)
    head.stays(Hold("for a batch", until_held=3))
    crowd.join(1, work_s=1.0)
    assert crowd.with_turn() == []
    crowd.join(2, work_s=1.0)
    assert crowd.with_turn() == [head]
    head.stays()
    crowd.join(3, work_s=1.0)
    assert crowd.with_turn() == []


async def test_the_default_policy_holds_for_a_batch_and_sends_it_together() -> None:
    """On an engine that prefills first and decodes in long steps: three are held until the third comes."""
    policy = {"type": "WorkloadImpact", "hold": {"batchSize": 3, "batchWaitSeconds": 5}}
    slow = {
        "baseDecodeSeconds": 5.0,
        "basePrefillSeconds": 0.01,
        "prefillSecondsPerToken": 1e-4,
        "contextSecondsPerToken": 1e-7,
        "sequenceSeconds": 1e-4,
        "kvTokens": 20_000,
        "maxSequences": 128,
        "mode": "PrefillFirst",
    }
    pool = {"name": "main", "endpoints": ["a:1"], "profile": {"inline": slow}}
    bench = Bench(config_of("a:1", policy=policy, pools=[pool]))
    await bench.route("first")
    await bench.report("first", ReportKind.FIRST_TOKEN)
    bench.world.replica.absorb(await bench.world.ledger.loads())
    tasks = await join(bench, 2)
    assert not any(task.done() for task in tasks)
    await asyncio.gather(bench.route("third"), *tasks)
    assert bench.service.held == 0


async def test_a_call_with_little_time_is_not_held_at_will_until_it_is_over() -> None:
    """Half of its time is for a batch, the rest for want of room."""
    bench, policy = await patient(1e6)
    policy.until_s = bench.clock.now_s + 4.0
    task = asyncio.create_task(bench.route("hasty", deadline_s=bench.clock.now_s + 0.2))
    await until(lambda: bench.service.held == 1)
    timer = bench.service._holding.line(MODEL)._timer
    assert timer is not None
    assert timer.when() - asyncio.get_running_loop().time() <= 0.1
    bench.clock.now_s += 0.1
    await until(lambda: len(policy.seen) > 1)
    assert policy.seen[-1][2] == -float("inf")
    assert (await task).instance_id == "a:1"
