"""A router's line of held requests: found without a look at all as with one, bounded waits, served = simulated."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sim_books import check_books
from support.sim_worlds import ONE_AT_A_TIME, Case, interpret

from llmrouter.domain import Request
from llmrouter.routing.batch import MOST_IN_A_ROW, BatchRules, has_turn, kinship
from llmrouter.routing.fairness import charged, settled
from llmrouter.routing.lines import Held, HeldLine, QueueRules, least_work_s
from llmrouter.routing.orders import HEAD_START_S, Order
from llmrouter.routing.rules import Rule
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from llmrouter.sim.outcomes import Outcomes

pytestmark = pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it

WEIGHTS = {"b": 3.0}


def request(number: int, arrived_at_s: float, **fields: object) -> Request:
    given: dict[str, object] = {"prompt_tokens": 100, "predicted_output_tokens": 50.0, **fields}
    return Request(request_id=f"r{number}", model="m", arrived_at_s=arrived_at_s, **given)  # type: ignore[arg-type]


@dataclass
class Plain:
    """The same line, by its definition: a list, searched whole."""

    rules: QueueRules
    held: list[Held] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=dict)
    served_last: float = 0.0
    last: tuple[int, ...] = ()
    in_a_row: int = 0
    since_batch: int = 0

    def came(self, held: Held) -> None:
        tenant = held.request.tenant
        active = {one.request.tenant for one in self.held}
        if tenant not in active:
            floor = min((self.served[name] for name in active), default=self.served_last)
            self.served[tenant] = max(self.served.get(tenant, 0.0), floor)
        self.held.append(held)

    def charge(self, asked: Request) -> None:
        self.served[asked.tenant] = charged(
            self.served[asked.tenant],
            asked.prompt_tokens,
            asked.predicted_output_tokens,
            self.rules.weights.get(asked.tenant, 1.0),
        )
        self.since_batch += 1
        if asked.batch:
            is_kin = self.in_a_row < MOST_IN_A_ROW and near(asked, self.last) > 0
            self.last, self.since_batch = asked.prefix_hashes, 0
            self.in_a_row = self.in_a_row + 1 if is_kin else 0

    def settle(self, asked: Request, output_tokens: float) -> None:
        weight = self.rules.weights.get(asked.tenant, 1.0)
        served = self.served[asked.tenant]
        self.served[asked.tenant] = settled(served, asked.predicted_output_tokens, output_tokens, weight)

    def left(self, held: Held) -> None:
        self.held.remove(held)
        self.served_last = self.served[held.request.tenant]

    def best(self, now_s: float) -> Held | None:
        if not self.held:
            return None
        batch = [one for one in self.held if one.request.batch]
        if batch:
            rule, waited_s = self.rules.batch, now_s - batch[0].request.arrived_at_s
            if has_turn(waited_s, rule.patience_s, self.since_batch, rule.least_share):
                return batch[0]
        top = max((not one.request.batch, one.request.priority) for one in self.held)
        level = [one for one in self.held if (not one.request.batch, one.request.priority) == top]
        if self.rules.fair:
            turn = min(level, key=lambda one: (self.served[one.request.tenant], one.number))
            level = [one for one in level if one.request.tenant == turn.request.tenant]
        if not top[0]:
            last = self.last if self.in_a_row < MOST_IN_A_ROW else ()
            return min(level, key=lambda one: (-near(one.request, last), one.request.arrived_at_s, one.number))
        return min(level, key=lambda one: (one.key(self.rules, now_s), one.number))


def near(asked: Request, last: tuple[int, ...]) -> int:
    common = 0
    for mine, theirs in zip(asked.prefix_hashes, last, strict=False):
        if mine != theirs:
            break
        common += 1
    return kinship(common)


BEGINNINGS = st.sampled_from([(), (), (1,), (1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 9, 8), (7, 6), (7,)])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "serve", "serve", "leave", "follow", "settle"]),
        st.sampled_from([0.0, 0.0, 0.01, 0.5, 3.0, 40.0]),
        st.integers(0, 10**6),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([0, 0, 0, 5, -100]),
        st.sampled_from([0.01, 0.4, 0.4, 2.0, 30.0]),
        st.sampled_from([None, -5.0, 1.0, 20.0, 1e9]),
        st.one_of(st.none(), BEGINNINGS),
    ),
    max_size=120,
)
RULES = st.builds(
    QueueRules,
    order=st.sampled_from(Order),
    aging_s=st.sampled_from([0.5, 10.0]),
    fair=st.booleans(),
    weights=st.just(WEIGHTS),
    batch=st.builds(BatchRules, patience_s=st.sampled_from([0.0, 1.0, 60.0]), least_share=st.sampled_from([0.0, 0.3])),
)


@given(rules=RULES, other=RULES, steps=STEPS)
@settings(max_examples=150, deadline=None)
def test_a_line_finds_who_a_search_of_all_finds(
    rules: QueueRules, other: QueueRules, steps: list[tuple[object, ...]]
) -> None:
    """Requests come, are served, leave and meet other rules: who goes first is who the definition says."""
    line, plain, now_s = HeldLine(rules), Plain(rules), 0.0
    paying: list[Request] = []
    for number, (what, gap_s, pick, tenant, priority, work_s, deadline_s, begins) in enumerate(steps):
        now_s += gap_s  # type: ignore[operator]
        best = line.best(now_s)
        assert best is plain.best(now_s)
        if what == "add":
            due_s = None if deadline_s is None else now_s + deadline_s  # type: ignore[operator]
            said = {} if begins is None else {"batch": True, "prefix_hashes": begins}
            asked = request(number, now_s, tenant=tenant, priority=priority, deadline_at_s=due_s, **said)
            plain.came(line.add(asked, work_s))  # type: ignore[arg-type]
        elif what == "follow":
            rules, other = other, rules
            line.follow(rules)
            plain.rules = rules
        elif what == "settle":
            if paying:
                asked = paying.pop(pick % len(paying))  # type: ignore[operator]
                output_tokens = float(pick % 200)  # type: ignore[operator]
                line.settle(asked.tenant, asked.predicted_output_tokens, output_tokens)
                plain.settle(asked, output_tokens)
        elif best is not None:
            chosen = best if what == "serve" else plain.held[pick % len(plain.held)]  # type: ignore[operator]
            if what == "serve":
                line.charge(chosen.request)
                plain.charge(chosen.request)
                paying.append(chosen.request)
            line.remove(chosen)
            plain.left(chosen)
        assert len(line) == len(plain.held)
        for name, served in plain.served.items():
            assert line.served(name) == served
            assert line.held_by(name) == sum(one.request.tenant == name for one in plain.held)


# --- served = simulated ---

ONE = EngineModel(replace(ONE_AT_A_TIME, prefill_s_per_token=1e-4, base_prefill_s=0.05))
ONE_EACH = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1)


def crowd(seed: int, count: int = 50) -> Workload:
    """Three tenants, priorities, deadlines, ranks and a batch class of prompts with common beginnings, far too much."""
    rng = np.random.default_rng(seed)
    output = rng.integers(1, 9, count)
    begins = [[(), (1,), (1, 2, 3), (1, 2, 4, 5), (6, 7)][kind] for kind in rng.integers(0, 5, count)]
    return Workload.of(
        np.cumsum(rng.exponential(0.2, count)).round(3),
        rng.integers(100, 900, count),
        output,
        prefix_start=np.cumsum([0, *map(len, begins)]),
        prefix_blocks=[block for one in begins for block in one],
        prefix_block_tokens=16,
        batch=rng.choice([0, 1], count),
        predicted_output_tokens=np.maximum(1, output + rng.integers(-3, 4, count)),
        tenant=rng.choice(3, count, p=[0.7, 0.2, 0.1]),
        tenants=("a", "b", "c"),
        priority=rng.choice([0, 1], count, p=[0.8, 0.2]),
        deadline_s=rng.choice([np.inf, 1.0, 10.0, -1.0], count),
        predicted_rank=rng.choice([np.nan, 1.0, 5.0, 9.0], count),
    )


def as_request(workload: Workload, row: int) -> Request:
    assert workload.priority is not None
    assert workload.deadline_s is not None
    assert workload.predicted_rank is not None
    assert workload.batch is not None
    arrived_s, within_s, rank = (
        float(column[row]) for column in (workload.arrived_at_s, workload.deadline_s, workload.predicted_rank)
    )
    return request(
        row,
        arrived_s,
        prompt_tokens=int(workload.prompt_tokens[row]),
        predicted_output_tokens=float(workload.predicted_output_tokens[row]),
        tenant=workload.tenants[workload.tenant[row]],
        priority=int(workload.priority[row]),
        deadline_at_s=arrived_s + within_s if math.isfinite(within_s) else None,
        predicted_rank=None if math.isnan(rank) else rank,
        batch=bool(workload.batch[row]),
        prefix_hashes=tuple(workload.prefix_blocks[slice(*workload.prefix_start[row : row + 2])].tolist()),
    )


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("seed", [1, 2])
def test_the_simulator_dispatches_in_the_order_of_the_routers_line(order: Order, seed: int, *, fair: bool) -> None:
    """At each dispatch of a simulated run the line that routers hold requests in names the very same request."""
    workload, batch = crowd(seed), BatchRules(patience_s=3.0, least_share=0.2)
    side = RouterSide(order=order, aging_s=2.0, fair=fair, tenant_weights=tuple(WEIGHTS.items()), batch=batch)
    outcomes = interpret(Case(Setup(engines=(ONE,), routers=side), workload, lambda: ONE_EACH), check_books)
    line = HeldLine(QueueRules(order, 2.0, fair, WEIGHTS, batch))
    waiting: dict[int, Held] = {}
    rows = range(len(workload))
    happened = [(float(outcomes.finished_at_s[row]), 0, row) for row in rows]
    happened += [(float(workload.arrived_at_s[row]), 1, row) for row in rows]
    happened += [(float(outcomes.dispatched_at_s[row]), 2, row) for row in rows]
    for at_s, what, row in sorted(happened):
        asked = as_request(workload, row)
        if what == 0:
            line.settle(asked.tenant, asked.predicted_output_tokens, float(workload.output_tokens[row]))
        elif what == 1:
            waiting[row] = line.add(asked, least_work_s(asked, [ONE.profile]))
        else:
            assert line.best(at_s) is waiting[row]
            line.charge(asked)
            line.remove(waiting[row])
    assert (outcomes.wait_s > 1.0).sum() > 15


# --- nobody starves ---


def overload(order: Order, *, aging_s: float, max_wait_s: float = math.inf) -> tuple[Workload, Outcomes]:
    """Short requests at twice what the engine can do, and a few long ones."""
    rng = np.random.default_rng(5)
    count = 400
    output = np.where(np.arange(count) % 20 == 3, 40, rng.integers(1, 4, count))
    workload = Workload.of(
        np.cumsum(rng.exponential(0.15, count)),
        np.full(count, 10),
        output,
        predicted_output_tokens=output,
        deadline_s=np.where(np.arange(count) % 3 == 0, 5.0, np.inf),
    )
    side = RouterSide(order=order, aging_s=aging_s, max_wait_s=max_wait_s)
    return workload, simulate(Setup(engines=(EngineModel(ONE_AT_A_TIME),), routers=side), workload, ONE_EACH)


@pytest.mark.parametrize("order", list(Order))
def test_nobody_waits_longer_than_the_longest_hold(order: Order) -> None:
    """Whatever the order: served within it, or shed at its end."""
    _, outcomes = overload(order, aging_s=10.0, max_wait_s=4.0)
    assert (outcomes.status == 2).any()
    assert np.nanmax(outcomes.wait_s) <= 4.0


@pytest.mark.parametrize("aging_s", [0.5, 5.0])
@pytest.mark.parametrize("order", [Order.SHORTEST_PREDICTED, Order.PREDICTED_RANK])
def test_who_came_much_later_never_passes(order: Order, aging_s: float) -> None:
    """j passes an earlier i only within τ·log(w_i / w_j) of its arrival: the bound that the order states."""
    workload, outcomes = overload(order, aging_s=aging_s)
    profile = ONE_AT_A_TIME
    work_s = np.array([least_work_s(as_plain(workload, row), [profile]) for row in range(len(workload))])
    arrived_s, dispatched_s = workload.arrived_at_s, outcomes.dispatched_at_s
    passes = 0
    for i in range(len(workload)):
        later = np.flatnonzero((arrived_s > arrived_s[i]) & (dispatched_s < dispatched_s[i]))
        passes += len(later)
        within_s = aging_s * np.log(work_s[i] / work_s[later])
        assert (arrived_s[later] - arrived_s[i] <= within_s + 1e-9).all()
    assert passes > 50


def as_plain(workload: Workload, row: int) -> Request:
    return request(
        row,
        float(workload.arrived_at_s[row]),
        prompt_tokens=int(workload.prompt_tokens[row]),
        predicted_output_tokens=float(workload.predicted_output_tokens[row]),
    )


@pytest.mark.parametrize("order", [Order.LEAST_SLACK, Order.EARLIEST_DEADLINE])
def test_nobody_who_comes_after_a_deadline_passes_it(order: Order) -> None:
    """A deadline ages by itself: who comes after it goes after it."""
    workload, outcomes = overload(order, aging_s=2.0)
    assert workload.deadline_s is not None
    due_s = workload.arrived_at_s + workload.deadline_s
    for i in np.flatnonzero(np.isfinite(due_s)).tolist():
        later = workload.arrived_at_s > due_s[i]
        assert (outcomes.dispatched_at_s[later] > outcomes.dispatched_at_s[i]).all()


# --- tenants ---


def flood(*, fair: bool, max_held: int = 1_000, weights: tuple[tuple[str, float], ...] = ()) -> Outcomes:
    """One tenant sends ten times as much as another, together three times what the engine can do."""
    rng = np.random.default_rng(2)
    count = 1_100
    workload = Workload.of(
        np.cumsum(rng.exponential(1 / 30, count)),
        np.full(count, 10),
        np.full(count, 1),
        predicted_output_tokens=np.full(count, 1),
        tenant=(np.arange(count) % 11 == 0).astype(int),
        tenants=("all", "few"),
    )
    side = RouterSide(fair=fair, max_wait_s=5.0, max_held=max_held, tenant_weights=weights)
    return simulate(Setup(engines=(EngineModel(ONE_AT_A_TIME),), routers=side), workload, ONE_EACH)


def served_shares(outcomes: Outcomes) -> tuple[float, float]:
    """The share of each tenant's requests that was served."""
    tenant, done = outcomes.workload.tenant, outcomes.finished
    return float(done[tenant == 0].mean()), float(done[tenant == 1].mean())


@pytest.mark.parametrize("max_held", [1_000, 20])
def test_a_tenant_that_sends_everything_takes_nothing_from_one_within_its_share(max_held: int) -> None:
    """Fairly, all of the small tenant's requests are served, and soon; else they share the flood's fate."""
    outcomes = flood(fair=True, max_held=max_held)
    many, few = served_shares(outcomes)
    assert few == 1.0
    assert many < 0.5
    assert outcomes.wait_s[outcomes.workload.tenant == 1].max() < 0.5
    assert served_shares(flood(fair=False, max_held=max_held))[1] < 0.6


def test_served_tokens_follow_the_weights() -> None:
    """Two tenants that send all the time are served by their weights."""
    count = 600
    workload = Workload.of(
        np.cumsum(np.full(count, 1e-3)),
        np.full(count, 10),
        np.full(count, 1),
        tenant=np.arange(count) % 2,
        tenants=("a", "b"),
    )
    side = RouterSide(fair=True, tenant_weights=tuple(WEIGHTS.items()))
    setup = Setup(engines=(EngineModel(ONE_AT_A_TIME),), routers=side)
    order = np.argsort(simulate(setup, workload, ONE_EACH).dispatched_at_s)
    first = workload.tenant[order[:200]]
    assert (first == 1).sum() == pytest.approx(150, abs=2)


def test_a_tenant_that_comes_back_has_earned_nothing_by_absence() -> None:
    """After an hour away a tenant does not go first until it has caught up: it is lifted to the least active."""
    line = HeldLine(QueueRules(fair=True))
    asked = request(0, 0.0, tenant="a", prompt_tokens=1000)
    for _ in range(50):
        held = line.add(asked, 1.0)
        line.charge(asked)
        line.remove(held)
    line.add(asked, 1.0)
    back = line.add(request(1, 3600.0, tenant="b"), 1.0)
    assert line.served("b") == line.served("a")
    line.charge(back.request)
    assert line.best(3600.0) is not back


def test_counters_are_bounded_and_forget_who_is_ahead_least() -> None:
    """10^5 tenants of one request each leave no more than the bound behind."""
    line = HeldLine(QueueRules(fair=True))
    for number in range(30_000):
        line.pass_by(request(number, 0.0, tenant=f"t{number}"))
    assert len(line._counters) <= 10_001


def test_a_higher_priority_goes_first_whatever_was_served() -> None:
    """Priority stands before fairness and before every order."""
    for order in Order:
        line = HeldLine(QueueRules(order, fair=True))
        line.add(request(0, 0.0, tenant="a"), 0.001)
        urgent = line.add(request(1, 5.0, tenant="b", priority=1), 900.0)
        line.charge(urgent.request)
        assert line.best(6.0) is urgent


# --- several routers ---


@pytest.mark.parametrize("routers", [1, 2, 3])
def test_the_lines_of_several_routers_drain_in_turn(routers: int) -> None:
    """With exact loads every router's line gets its turn: together they serve first come first served."""
    workload = Workload.of(np.zeros(30), np.full(30, 10), np.full(30, 1))
    setup = Setup(engines=(EngineModel(ONE_AT_A_TIME),), routers=RouterSide(routers=routers))
    outcomes = interpret(Case(setup, workload, lambda: ONE_EACH), check_books)
    assert np.argsort(outcomes.dispatched_at_s).tolist() == list(range(30))


def test_of_several_routers_none_waits_for_another_to_be_empty() -> None:
    """Exact loads, twice what the engine can do: the mean waits of four routers differ by a fifth at most."""
    rng = np.random.default_rng(4)
    workload = Workload.of(np.cumsum(rng.exponential(0.05, 800)), np.full(800, 10), np.full(800, 1))
    setup = Setup(engines=(EngineModel(ONE_AT_A_TIME),), routers=RouterSide(routers=4))
    outcomes = simulate(setup, workload, ONE_EACH)
    waits = [outcomes.wait_s[np.arange(800) % 4 == router].mean() for router in range(4)]
    assert max(waits) < 1.2 * min(waits)


def eight(order: Order, *, even: bool, routers: int = 8) -> Outcomes:
    """Routers that read the ledger ten times a second, before ten engines with 1.3 of what these can do."""
    rng = np.random.default_rng(6)
    count = 1_200
    output = rng.integers(5, 40, count)
    workload = Workload.of(
        np.cumsum(rng.exponential(output.mean() * 0.01 / 1.3, count)),
        np.full(count, 10),
        output,
        predicted_output_tokens=output,
    )
    side = RouterSide(order=order, routers=routers, refresh_s=0.1 if routers > 1 else 0.0, even=even)
    engines = (EngineModel(ONE_AT_A_TIME),) * 10
    return simulate(Setup(engines=engines, routers=side), workload, ONE_EACH)


def waits_of(outcomes: Outcomes) -> list[float]:
    """The mean wait of the requests of each of eight routers."""
    router = np.arange(len(outcomes.wait_s)) % 8
    return [float(outcomes.wait_s[router == one].mean()) for one in range(8)]


@pytest.mark.parametrize("order", [Order.FIRST_COME_FIRST_SERVED, Order.SHORTEST_PREDICTED])
def test_routers_drain_evenly_and_as_one_would(order: Order) -> None:
    """They leave places to who came first elsewhere: waits alike, the whole hardly slower than behind one router."""
    even, one = eight(order, even=True), eight(order, even=True, routers=1)
    assert even.finished.all()
    assert max(waits_of(even)) < 1.25 * min(waits_of(even))
    assert max(waits_of(eight(order, even=False))) > 1.5 * min(waits_of(eight(order, even=False)))
    assert even.e2e_s.mean() < 1.1 * one.e2e_s.mean()


def test_first_come_goes_first_across_routers_but_for_the_head_start() -> None:
    """Nobody is passed by who came more than a head start and a reading of the ledger later."""
    outcomes = eight(Order.FIRST_COME_FIRST_SERVED, even=True)
    arrived_s, dispatched_s = outcomes.arrived_at_s, outcomes.dispatched_at_s
    for row in range(0, len(arrived_s), 7):
        passed_by = dispatched_s < dispatched_s[row] - 1e-9
        assert arrived_s[passed_by].max(initial=0.0) <= arrived_s[row] + HEAD_START_S + 0.3
