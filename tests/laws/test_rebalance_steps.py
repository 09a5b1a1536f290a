"""Replicas move within the budget, whatever order pods come and go in; they get where they should, and then rest."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.planning.steps import Memory, Phase, PoolState, Rules, Step, heard, next_step, taken_gpus


@dataclass
class Pool:
    """A pool and its controller, which makes and ends replicas whenever it likes."""

    name: str
    gpus: int
    declared: int
    most: int | None = None
    least: int = 0
    ready: int = 0
    starting: int = 0
    terminating: int = 0
    draining: int = 0
    drained: int = 0

    def state(self) -> PoolState:
        return PoolState(
            pool=self.name,
            gpus_per_replica=self.gpus,
            declared=self.declared,
            ready=self.ready,
            starting=self.starting,
            terminating=self.terminating,
            drained=self.drained,
            min_replicas=self.least,
            max_replicas=self.most,
        )

    @property
    def held_gpus(self) -> int:
        return self.gpus * (self.ready + self.starting + self.terminating)

    def happens(self, event: int) -> None:
        """One thing that may happen next, if it can."""
        if event == 0 and self.ready + self.starting < self.declared:
            self.starting += 1
        elif event == 1 and self.starting:
            self.starting, self.ready = self.starting - 1, self.ready + 1
        elif event == 2 and self.ready + self.starting > self.declared:
            self._ends()
        elif event == 3 and self.terminating:
            self.terminating -= 1
        elif event == 4:
            self.drained = min(self.drained + 1, self.draining)

    def _ends(self) -> None:
        if self.starting:
            self.starting -= 1
        else:
            self.ready -= 1
        self.terminating += 1


@dataclass
class Fleet:
    """Pools under one budget, and what was done."""

    pools: list[Pool]
    rules: Rules
    memory: Memory = field(default_factory=Memory)
    now_s: float = 0.0
    changes: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def held_gpus(self) -> int:
        return sum(pool.held_gpus for pool in self.pools)

    def look(self, wanted: dict[str, int]) -> Step:
        observed = [pool.state() for pool in self.pools]
        self.memory = heard(self.memory, observed, wanted, now_s=self.now_s)
        step = next_step(observed, self.rules, self.memory, now_s=self.now_s)
        for pool in self.pools:
            pool.draining = step.draining.get(pool.name, 0)
            pool.drained = min(pool.drained, pool.draining)
        if step.replicas is not None:
            pool = next(one for one in self.pools if one.name == step.pool)
            if step.replicas > pool.declared:
                room = self.rules.gpu_budget - taken_gpus(observed)
                assert (step.replicas - pool.declared) * pool.gpus <= room, "a pool grew into GPUs that are taken"
            assert abs(step.replicas - pool.declared) <= self.rules.max_step
            self.changes.append((pool.name, pool.declared, step.replicas))
            pool.declared = step.replicas
            self.memory = self.memory.after(step, now_s=self.now_s)
        return step

    def settle(self, wanted: dict[str, int], *, looks: int = 400) -> Step:
        """Everything that may happen does, between looks."""
        for _ in range(looks):
            step = self.look(wanted)
            for pool in self.pools:
                for event in (0, 1, 2, 3, 4) * 8:
                    pool.happens(event)
                    assert self.held_gpus <= self.rules.gpu_budget
            self.now_s += max(step.again_after_s or 0.0, 1.0)
            if step.phase is Phase.SETTLED:
                return step
        return step


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Fleet, dict[str, int]]:
    """A fleet that fits its budget, and a split that fits it as well."""
    count = draw(st.integers(1, 4))
    gpus = [draw(st.sampled_from((1, 1, 2, 4))) for _ in range(count)]
    now = [draw(st.integers(0, 5)) for _ in range(count)]
    wanted = [draw(st.integers(0, 5)) for _ in range(count)]
    needed = max(1, *(sum(g * n for g, n in zip(gpus, counts, strict=True)) for counts in (now, wanted)))
    rules = Rules(
        gpu_budget=needed + draw(st.integers(0, 3)),
        stabilization_s=draw(st.sampled_from((0.0, 10.0))),
        cooldown_s=draw(st.sampled_from((0.0, 30.0))),
        max_step=draw(st.integers(1, 3)),
    )
    pools = [Pool(f"p{n}", gpus[n], now[n], ready=now[n]) for n in range(count)]
    return Fleet(pools, rules), {f"p{n}": wanted[n] for n in range(count)}


happenings = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=60)


@given(fleet=fleets(), chance=st.data())
@settings(deadline=None)
def test_the_budget_holds_whatever_comes_when(fleet: tuple[Fleet, dict[str, int]], chance: st.DataObject) -> None:
    world, wanted = fleet
    for look in range(chance.draw(st.integers(1, 12))):
        if look % 4 == 3:  # the plan changes its mind
            wanted = {name: chance.draw(st.integers(0, 6)) for name in wanted}
        world.look(wanted)
        for at, event in chance.draw(happenings):
            world.pools[at % len(world.pools)].happens(event)
            assert world.held_gpus <= world.rules.gpu_budget
        world.now_s += chance.draw(st.sampled_from((0.0, 1.0, 60.0)))


counts = st.integers(0, 4)
states = st.builds(
    PoolState,
    pool=st.sampled_from("abcd"),
    gpus_per_replica=st.sampled_from((1, 2)),
    declared=counts,
    ready=counts,
    starting=st.integers(0, 1),
    terminating=st.integers(0, 2),
    drained=counts,
    is_held=st.booleans(),
)


@given(st.lists(states, min_size=1, max_size=4, unique_by=lambda one: one.pool), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=400)
def test_no_state_lets_a_pool_grow_into_gpus_that_are_taken_or_may_be(
    observed: list[PoolState], spare: int, chance: st.DataObject
) -> None:
    budget = spare + sum(one.gpus_per_replica * (one.present + one.terminating) for one in observed)
    wanted = {state.pool: chance.draw(st.integers(0, 6)) for state in observed}
    memory = heard(Memory(), observed, wanted, now_s=0.0)

    step = next_step(observed, Rules(gpu_budget=budget, stabilization_s=0.0, max_step=3), memory, now_s=0.0)

    if step.phase is Phase.GROWING and step.replicas is not None:
        declared = {state.pool: state.declared for state in observed} | {step.pool: step.replicas}
        most = [max(declared[one.pool], one.ready + one.starting) + one.terminating for one in observed]
        assert sum(one.gpus_per_replica * count for one, count in zip(observed, most, strict=True)) <= budget
    if step.replicas is not None:
        assert not next(one for one in observed if one.pool == step.pool).is_held


@given(fleet=fleets())
@settings(deadline=None)
def test_what_is_wanted_is_reached_and_then_nothing_moves(fleet: tuple[Fleet, dict[str, int]]) -> None:
    world, wanted = fleet
    away = {pool.name: abs(pool.declared - wanted[pool.name]) for pool in world.pools}
    directions = {pool.name: wanted[pool.name] - pool.declared for pool in world.pools}

    last = world.settle(wanted)

    assert last.phase is Phase.SETTLED
    assert {pool.name: pool.declared for pool in world.pools} == wanted
    assert all((after - before) * directions[name] > 0 for name, before, after in world.changes), "no step goes back"
    assert sum(abs(after - before) for _, before, after in world.changes) == sum(away.values())
    for _ in range(20):
        assert world.look(wanted).phase is Phase.SETTLED
        world.now_s += 100.0


@given(fleet=fleets(), least=st.integers(0, 3), most=st.integers(1, 3))
@settings(deadline=None)
def test_bounds_of_pools_hold(fleet: tuple[Fleet, dict[str, int]], least: int, most: int) -> None:
    world, wanted = fleet
    for pool in world.pools:
        pool.least, pool.most = min(least, most), most
        pool.declared = pool.ready = min(max(pool.declared, pool.least), most)
    world.rules = Rules(gpu_budget=world.rules.gpu_budget + world.held_gpus, max_step=2)

    world.settle(wanted)

    assert all(pool.least <= after <= most for pool in world.pools for _, _, after in world.changes)


def prefill_to_decode(**rules: float) -> Fleet:
    pools = [Pool("prefill", 1, 4, ready=4), Pool("decode", 1, 2, ready=2)]
    return Fleet(pools, Rules(gpu_budget=6, stabilization_s=60.0, cooldown_s=30.0, **rules))  # type: ignore[arg-type]


def test_a_full_budget_is_shrunk_before_anything_grows() -> None:
    world = prefill_to_decode()

    world.settle({"prefill": 2, "decode": 4})

    assert world.changes == [("prefill", 4, 3), ("decode", 2, 3), ("prefill", 3, 2), ("decode", 3, 4)]


def test_a_pool_is_drained_before_it_shrinks_and_takes_requests_again_where_the_plan_changes() -> None:
    world = prefill_to_decode()
    world.look({"prefill": 2, "decode": 4})
    world.now_s = 60.0

    assert world.look({"prefill": 2, "decode": 4}).draining == {"prefill": 1}
    assert world.look({"prefill": 4, "decode": 2}).draining == {}
    assert world.changes == []


def test_nothing_moves_for_what_is_asked_for_only_a_while() -> None:
    world = prefill_to_decode()
    for _ in range(20):
        assert world.look({"prefill": 3, "decode": 3}).phase is Phase.STABILIZING
        world.now_s += 50.0
        assert world.look({"prefill": 4, "decode": 2}).phase is Phase.SETTLED
        world.now_s += 50.0
    assert world.changes == []


def test_of_a_plan_that_wavers_the_smallest_change_is_made() -> None:
    world = prefill_to_decode(max_step=3)
    for decode in (5, 3, 4, 5, 5):
        world.look({"prefill": 6 - decode, "decode": decode})
        world.now_s += 20.0
        for pool in world.pools:
            for event in (4,) * 8:
                pool.happens(event)

    assert world.changes == [("prefill", 4, 3)]


def test_a_pool_that_is_left_alone_counts_against_the_budget() -> None:
    states = [
        PoolState(pool="a", gpus_per_replica=2, declared=2, ready=2, terminating=1, is_held=True),
        PoolState(pool="b", gpus_per_replica=1, declared=1, ready=1),
    ]
    memory = heard(Memory(), states, {"a": 0, "b": 2}, now_s=0.0)

    step = next_step(states, Rules(gpu_budget=7, stabilization_s=0.0), memory, now_s=0.0)

    assert (step.phase, step.replicas) == (Phase.SHRINKING, None), "the GPUs of what is going are not free yet"
    assert next_step(states[1:], Rules(gpu_budget=7, stabilization_s=0.0), memory, now_s=0.0).replicas == 2


def test_what_cannot_fit_is_said_and_nothing_is_given_up_for_it() -> None:
    states = [
        PoolState(pool="small", gpus_per_replica=1, declared=2, ready=2),
        PoolState(pool="large", gpus_per_replica=4, declared=1, ready=1),
    ]
    memory = heard(Memory(), states, {"small": 1, "large": 2}, now_s=0.0)

    step = next_step(states, Rules(gpu_budget=6, stabilization_s=0.0), memory, now_s=0.0)

    assert (step.phase, step.replicas, step.draining) == (Phase.BLOCKED, None, {})
    assert "needs 4 GPUs" in step.message
