"""Ledgers of every kind, for one conformance suite; what the laws of the ledger need to look at."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from llmrouter.domain import Load, Reservation, Room
from llmrouter.routing.inflight import contribution, prefill_contribution
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.adapters.redis_ledger import RedisLedger, redis_client
from router_grpc.adapters.resilient_ledger import ResilientLedger
from router_grpc.ports import Bid, Ledger, ReserveAsk

TIMEOUT_S = 5.0
WIDE = Room(max_requests=1_000)


def bid(instance_id: str, *, seen: int = 0, room: Room = WIDE, cached: int = 0, prefill: Bid | None = None) -> Bid:
    return Bid(instance_id=instance_id, seen_requests=seen, room=room, cached_tokens=cached, prefill=prefill)


def ask(
    request_id: str,
    *bids: Bid,
    prompt_tokens: int = 100,
    predicted_output_tokens: float = 50.0,
    tolerance: int | None = 1,
    final: bool = False,
) -> ReserveAsk:
    return ReserveAsk(
        request_id=request_id,
        prompt_tokens=prompt_tokens,
        predicted_output_tokens=predicted_output_tokens,
        bids=bids,
        moved_tolerance=tolerance,
        final=final,
    )


def total(reservations: Iterable[Reservation]) -> dict[str, Load]:
    """The sum of contributions per instance, to the milli-token."""
    sums: dict[str, Load] = {}
    for reservation in reservations:
        sums[reservation.instance_id] = sums.get(reservation.instance_id, Load()).plus(contribution(reservation))
        if (part := prefill_contribution(reservation)) is not None:
            other = reservation.prefill_instance_id
            sums[other] = sums.get(other, Load()).plus(part)
    return {instance_id: exact(load) for instance_id, load in sums.items()}


def exact(load: Load) -> Load:
    """Sums of floats differ in their last bits, ledgers in whole milli-tokens."""
    return Load(
        requests=load.requests,
        context_tokens=load.context_tokens,
        queued_prefill_tokens=load.queued_prefill_tokens,
        remaining_decode_tokens=round(load.remaining_decode_tokens, 3),
    )


async def known(ledger: Ledger, request_ids: Iterable[str]) -> list[Reservation]:
    """The reservations that the ledger finds."""
    found = [await ledger.find(request_id) for request_id in request_ids]
    return [reservation for reservation in found if reservation is not None]


async def is_conserved(ledger: Ledger, request_ids: Iterable[str]) -> bool:
    """Whether loads are the sums of what the ledger holds under ``request_ids``."""
    return dict(await ledger.loads()) == total(await known(ledger, request_ids))


@dataclass
class Fleet:
    """Makes routers' ledgers over one common record."""

    make: Callable[[str], Ledger]
    made: list[Ledger] = field(default_factory=list)

    def router(self, router_id: str) -> Ledger:
        ledger = self.make(router_id)
        self.made.append(ledger)
        return ledger

    async def close(self) -> None:
        for ledger in self.made:
            await ledger.close()


def memory_ledger(router_id: str, book: MemoryBook | None = None) -> MemoryLedger:
    return MemoryLedger(router_id, MemoryBook() if book is None else book, lambda: 0.0)


def redis_ledger(router_id: str, url: str, *, timeout_s: float = TIMEOUT_S) -> RedisLedger:
    return RedisLedger(router_id, redis_client(url, timeout_s=timeout_s), "tests/suite", timeout_s)


def resilient_ledger(
    router_id: str,
    url: str,
    *,
    timeout_s: float = TIMEOUT_S,
    clock: Callable[[], float] = time.monotonic,
    on_change: Callable[[bool], None] | None = None,
) -> ResilientLedger:
    return ResilientLedger(
        redis_ledger(router_id, url, timeout_s=timeout_s),
        MemoryLedger(router_id, MemoryBook(), clock),
        heartbeat_ttl_s=30.0,
        clock=clock,
        on_change=on_change,
    )


async def emptied(url: str) -> str:
    """Makes a server forget everything, scripts as well; gives the URL back."""
    client = redis_client(url, timeout_s=TIMEOUT_S)
    await client.flushall()
    await client.script_flush()
    await client.aclose()
    return url
