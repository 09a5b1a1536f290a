"""Laws of two stages: who may be picked for which, and that both are counted once and given back once."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledgers import exact, total
from support.pools import MODEL, request, snapshot, view
from support.router_world import PROFILE, Bench, config_of

from llmrouter.domain import Hold, Load, NoCandidate, ObjectiveWeights, Placement, Role
from llmrouter.errors import NoInstanceError, SaturatedError
from llmrouter.profiles import PROFILES
from llmrouter.routing.catalogue import make_policy
from llmrouter.routing.inflight import has_room
from llmrouter.routing.rooms import kv_gate
from llmrouter.routing.stages import Staged, StageRules, uncached_tokens
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from llmrouter.domain import InstanceView, Request
    from router_grpc.calls import RouteAnswer
    from router_grpc.ports import ReserveAsk, ReserveResult

LIMIT = 3
LEAST = 256
POOLS = [
    {"name": role.lower(), "role": role, "endpoints": [f"{role[0].lower()}{n}:1" for n in range(count)]}
    | {"profile": {"name": PROFILE}}
    for role, count in (("Prefill", 2), ("Decode", 3), ("Mixed", 1))
]


class Loitering(MemoryLedger):
    """A ledger whose calls take a while, so that those of several routers fall between each other."""

    def __init__(self, router_id: str, book: MemoryBook, draw: random.Random) -> None:
        super().__init__(router_id, book, lambda: 0.0)
        self._draw = draw

    is_immediate = False

    async def reserve(self, ask: ReserveAsk) -> ReserveResult:
        for _ in range(self._draw.randrange(4)):
            await asyncio.sleep(0)
        return await super().reserve(ask)


def router(name: str, book: MemoryBook, draw: random.Random, policy: str) -> Bench:
    section = {"type": policy, "hold": {"enabled": False, "room": "Requests"}}
    config = config_of(pools=POOLS, policy=section, limits={"maxInFlightPerInstance": LIMIT})
    return Bench(config, router_id=name, ledger=Loitering(name, book, draw))


async def place(bench: Bench, request_id: str, tokens: int) -> RouteAnswer | None:
    try:
        return await bench.route(request_id, prompt_tokens=tokens)
    except (SaturatedError, NoInstanceError):
        return None


def check_roles(bench: Bench, answer: RouteAnswer, tokens: int) -> None:
    chosen = bench.instances.get(answer.instance_id)
    assert chosen is not None
    assert chosen.role is not Role.PREFILL
    if answer.prefill_instance_id:
        prefill = bench.instances.get(answer.prefill_instance_id)
        assert prefill is not None
        assert prefill.role is Role.PREFILL
        assert tokens >= LEAST
    else:
        assert chosen.role is Role.MIXED or tokens < LEAST


async def check_books(benches: list[Bench], book: MemoryBook) -> None:
    reservations = list(book.reservations.values())
    loads = {name: exact(load) for name, load in (await benches[0].world.ledger.loads()).items()}
    assert loads == total(reservations)
    assert all(load.requests <= LIMIT for load in loads.values())


@pytest.mark.parametrize("policy", ["LeastInFlight", "WorkloadImpact", "Random"])
@pytest.mark.parametrize("seed", range(4))
async def test_both_stages_are_counted_once_and_given_back_once(policy: str, seed: int) -> None:
    draw, book = random.Random(seed), MemoryBook()
    benches = [router(name, book, draw, policy) for name in "abc"]
    placed: set[str] = set()
    for turn in range(25):
        asked = [(f"{turn}-{n}", draw.choice([10, 300, 3_000]), draw.choice(benches)) for n in range(5)]
        twice = [(request_id, tokens, draw.choice(benches)) for request_id, tokens, _ in asked[:2]]
        rows = asked + twice
        answers = await asyncio.gather(*(place(bench, request_id, tokens) for request_id, tokens, bench in rows))
        for (request_id, tokens, bench), answer in zip(rows, answers, strict=True):
            if answer is not None:
                placed.add(request_id)
                check_roles(bench, answer, tokens)
        await check_books(benches, book)
        for bench in benches:
            bench.world.replica.replace(await bench.world.ledger.loads(), now_s=bench.clock())
        for request_id in draw.sample(sorted(placed), min(len(placed), 6)):
            kind = draw.choice([ReportKind.FIRST_TOKEN, *ReportKind])
            at_once = draw.sample(benches, draw.choice([1, 2]))
            await asyncio.gather(*(one.report(request_id, kind, output_tokens=turn) for one in at_once))
        await check_books(benches, book)
    for request_id in sorted(placed):
        await benches[0].report(request_id)
    assert await benches[0].world.ledger.loads() == {}
    assert not book.reservations


loads = st.builds(
    Load,
    requests=st.integers(0, 40),
    context_tokens=st.integers(0, 60_000),
    queued_prefill_tokens=st.integers(0, 30_000),
    remaining_decode_tokens=st.floats(0, 20_000),
)


@st.composite
def instances(draw: st.DrawFn) -> tuple[InstanceView, ...]:
    made = []
    for n in range(draw(st.integers(0, 9))):
        one = view(f"i{n}", profile=PROFILES[draw(st.sampled_from(["h100-mix", "llama-3.1-8b-rtx4090"]))])
        one = replace(one, load=draw(loads))
        role, locality = draw(st.sampled_from(Role)), draw(st.sampled_from(["", "a", "b"]))
        made.append(replace(one, instance=replace(one.instance, role=role, locality=locality)))
    return tuple(made)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    tokens = draw(st.integers(1, 20_000))
    names = st.sampled_from([f"i{n}" for n in range(9)])
    hits = draw(st.dictionaries(names, st.integers(0, tokens - 1), max_size=4))
    excluded = draw(st.frozensets(names, max_size=3))
    made = request(prompt_tokens=tokens, predicted_output_tokens=draw(st.floats(1, 4_000)))
    return replace(made, cached_tokens=hits, excluded_instance_ids=excluded)


def policies() -> list[Staged]:
    room, weights = kv_gate(1.0), ObjectiveWeights()
    by_cost = Staged(
        make_policy("WorkloadImpact", room, weights),
        decode=make_policy("WorkloadImpact", room, replace(weights, reuse=0.0)),
        weights=weights,
    )
    return [by_cost, *(Staged(make_policy(name, room)) for name in ("LeastInFlight", "PowerOfTwo", "RoundRobin"))]


@settings(max_examples=300, deadline=None)
@given(instances(), requests(), st.integers(0, 3), st.integers(0, 9))
def test_nobody_is_picked_for_what_is_not_its_own(
    views: tuple[InstanceView, ...], asked: Request, which: int, seed: int
) -> None:
    policy, least = policies()[which], StageRules().min_prefill_tokens
    by_id = {
        one.instance.instance_id: one
        for one in views
        if MODEL in one.instance.models and one.instance.instance_id not in asked.excluded_instance_ids
    }

    def roomy(one: InstanceView, output: float) -> bool:
        tokens = asked.prompt_tokens
        return has_room(one.total, policy.room_of(one), prompt_tokens=tokens, predicted_output_tokens=output)

    prefills = [one for one in by_id.values() if one.instance.role is Role.PREFILL]
    able = [
        one
        for one in by_id.values()
        if one.instance.role is not Role.PREFILL
        and roomy(one, asked.predicted_output_tokens)
        and (
            one.instance.role is Role.MIXED
            or not prefills
            or uncached_tokens(asked, one) < least
            or any(roomy(other, 0.0) for other in prefills)
        )
    ]
    decision = policy.decide(asked, snapshot(views), random.Random(seed))
    if not isinstance(decision, Placement):
        assert not able
        assert isinstance(decision, NoCandidate if len(prefills) == len(by_id) else Hold)
        return
    for candidate in decision.candidates:
        chosen = by_id[candidate.instance_id]
        assert chosen in able
        assert candidate.seen == chosen.load
        if candidate.prefill is None:
            is_mixed = chosen.instance.role is Role.MIXED
            assert is_mixed or not prefills or uncached_tokens(asked, chosen) < least
        else:
            helper = by_id[candidate.prefill.instance_id]
            assert helper.instance.role is Role.PREFILL
            assert roomy(helper, 0.0)
            assert uncached_tokens(asked, chosen) >= least
            assert candidate.prefill.seen == helper.load
            assert candidate.prefill.score >= 0.0
    if which == 0:
        scores = [one.score for one in decision.candidates]
        assert scores == sorted(scores)
    assert len({one.instance_id for one in decision.candidates}) == len(decision.candidates)
