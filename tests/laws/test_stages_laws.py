"""Whatever routers do at once with two stages, both are counted once and given back once."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
from support.ledgers import exact, total
from support.router_world import PROFILE, Bench, config_of

from llmrouter.domain import Role
from llmrouter.errors import NoInstanceError, SaturatedError
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
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
