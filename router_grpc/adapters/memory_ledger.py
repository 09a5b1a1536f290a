"""The ledger of one process: for standalone routers, and the mirror that a router falls back on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmrouter.domain import Load, Reservation
from llmrouter.routing.claims import CLAIM_LIFETIME_S
from llmrouter.routing.inflight import contribution, prefill_contribution
from router_grpc.adapters.ledger_values import (
    FIRST_TTL_S,
    MILLI,
    TAKEN_MAX,
    check_bids,
    choose,
    milli_tokens,
    whole_tokens,
)
from router_grpc.ports import NO_CLAIMS, ReserveOutcome, ReserveResult

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llmrouter.routing.claims import Claim
    from router_grpc.ports import ReserveAsk


_NOTHING = Load()


@dataclass(slots=True)
class _Sum:
    """The exact load of one instance; what remains to decode is in milli-tokens."""

    requests: int = 0
    context_tokens: int = 0
    queued_prefill_tokens: int = 0
    remaining_decode_milli: int = 0
    seen: Load | None = None
    """The sum as a load, since it changed last and somebody asked."""

    def load(self) -> Load:
        if self.seen is None:
            left_tokens = self.remaining_decode_milli / MILLI
            self.seen = Load(self.requests, self.context_tokens, self.queued_prefill_tokens, left_tokens)
        return self.seen


@dataclass(slots=True)
class MemoryBook:
    """Reservations and their sums; several routers of one process may share a book. Not thread-safe."""

    reservations: dict[str, Reservation] = field(default_factory=dict)
    lapses_at_s: dict[str, float] = field(default_factory=dict)
    claims: dict[tuple[str, str], tuple[Claim, float]] = field(default_factory=dict)
    """What routers told of whoever goes first, by model and router id, and when (s)."""
    _sums: dict[str, _Sum] = field(default_factory=dict)
    _parts: dict[str, tuple[Load, Load | None]] = field(default_factory=dict)
    """What each reservation counts for, on its instance and on the one that computes its prompt, by request id."""
    _owned: dict[str, dict[str, None]] = field(default_factory=dict)
    _taken: dict[str, dict[str, None]] = field(default_factory=dict)

    def load(self, instance_id: str) -> Load:
        """The load of one instance; zero where nothing is reserved."""
        total = self._sums.get(instance_id)
        return _NOTHING if total is None else total.load()

    def loads(self) -> dict[str, Load]:
        """The load of every instance with a reservation."""
        return {instance_id: total.load() for instance_id, total in self._sums.items()}

    def owned(self, router_id: str) -> tuple[str, ...]:
        """Request ids that a router holds, oldest first."""
        return tuple(self._owned.get(router_id, ()))

    def taken(self, router_id: str) -> tuple[str, ...]:
        """Request ids that other routers took over from a router, or released, and that it has not learned of."""
        return tuple(self._taken.get(router_id, ()))

    def put(self, reservation: Reservation) -> None:
        """Adds a reservation, or replaces the one of its request id; a former owner is left word."""
        old = self.take_out(reservation.request_id)
        if old is not None and old.router_id != reservation.router_id:
            self.tell_owner(old)
        self.add(reservation)

    def add(self, reservation: Reservation) -> None:
        """As ``put``, of a request id without a reservation."""
        request_id, router_id = reservation.request_id, reservation.router_id
        self.reservations[request_id] = reservation
        owned = self._owned.get(router_id)
        if owned is None:
            owned = self._owned[router_id] = {}
        owned[request_id] = None
        if self._taken:
            self._taken.get(router_id, {}).pop(request_id, None)
        prefill_part = prefill_contribution(reservation) if reservation.prefill_instance_id else None
        self._parts[request_id] = parts = contribution(reservation), prefill_part
        self._count(reservation, parts, 1)

    def take_out(self, request_id: str) -> Reservation | None:
        """Removes a reservation and what it counted for; ``None`` if unknown."""
        reservation = self.reservations.pop(request_id, None)
        if reservation is None:
            return None
        owned = self._owned[reservation.router_id]
        del owned[request_id]
        if not owned:
            del self._owned[reservation.router_id]
        self._count(reservation, self._parts.pop(request_id), -1)
        return reservation

    def _count(self, reservation: Reservation, parts: tuple[Load, Load | None], sign: int) -> None:
        part, prefill_part = parts
        self._add(reservation.instance_id, part, sign)
        if prefill_part is not None:
            self._add(reservation.prefill_instance_id, prefill_part, sign)

    def _add(self, instance_id: str, part: Load, sign: int) -> None:
        total = self._sums.get(instance_id)
        if total is None:
            total = self._sums[instance_id] = _Sum()
        total.seen = None
        total.requests += sign * part.requests
        total.context_tokens += sign * part.context_tokens
        total.queued_prefill_tokens += sign * part.queued_prefill_tokens
        total.remaining_decode_milli += sign * round(part.remaining_decode_tokens * MILLI)
        if total.requests == 0:
            del self._sums[instance_id]

    def tell_owner(self, reservation: Reservation) -> None:
        """Leaves word for the owner that another router took the reservation over, or released it."""
        taken = self._taken.setdefault(reservation.router_id, {})
        taken[reservation.request_id] = None
        if len(taken) > TAKEN_MAX:
            del taken[next(iter(taken))]

    def forget(self, router_id: str) -> None:
        """Drops the heartbeat of a router."""
        self.lapses_at_s.pop(router_id, None)

    def acknowledge(self, router_id: str, kept: frozenset[str]) -> None:
        """Drops the word of take-overs that the router has learned of: those outside ``kept``."""
        taken = {request_id: None for request_id in self._taken.pop(router_id, {}) if request_id in kept}
        if taken:
            self._taken[router_id] = taken


class MemoryLedger:
    """A ``Ledger`` over a book in this process. ``clock`` gives seconds and never goes back."""

    is_immediate = True

    def __init__(self, router_id: str, book: MemoryBook, clock: Callable[[], float]) -> None:
        self.router_id = router_id
        self._book = book
        self._clock = clock

    def put(self, reservation: Reservation) -> None:
        """Records a reservation that another ledger committed."""
        self._live(FIRST_TTL_S)
        self._book.put(replace(reservation, router_id=self.router_id))

    def drop(self, request_id: str) -> Reservation | None:
        """Takes a reservation out if it is this router's, telling nobody."""
        reservation = self._book.reservations.get(request_id)
        if reservation is None or reservation.router_id != self.router_id:
            return None
        return self._book.take_out(request_id)

    def own(self) -> tuple[Reservation, ...]:
        """This router's reservations, oldest first."""
        return tuple(self._book.reservations[request_id] for request_id in self._book.owned(self.router_id))

    async def reserve(self, ask: ReserveAsk) -> ReserveResult:
        """See ``Ledger``; raises InvalidRequestError where token counts are out of bounds."""
        prompt_tokens = whole_tokens(ask.prompt_tokens)
        predicted_output_tokens = milli_tokens(ask.predicted_output_tokens) / MILLI
        check_bids(ask.bids)
        existing = self._book.reservations.get(ask.request_id)
        if existing is not None:
            adopted = self._adopted(existing)
            return ReserveResult(ReserveOutcome.EXISTING, adopted, self._loads(ask))
        loads = self._loads(ask)
        chosen = ReserveOutcome.YIELDED if self._yields(ask) else choose(ask, loads, predicted_output_tokens)
        if isinstance(chosen, ReserveOutcome):
            self._claim(ask.model, ask.claim)
            return ReserveResult(chosen, None, loads)
        reservation = Reservation(
            ask.request_id,
            self.router_id,
            chosen.instance_id,
            prompt_tokens,
            predicted_output_tokens,
            cached_tokens=chosen.cached_tokens,
            prefill_instance_id="" if chosen.prefill is None else chosen.prefill.instance_id,
            prefill_cached_tokens=0 if chosen.prefill is None else chosen.prefill.cached_tokens,
        )
        if ask.claim is not None:
            self._book.claims.pop((ask.model, self.router_id), None)
        self._live(FIRST_TTL_S)
        self._book.add(reservation)
        loads[chosen.instance_id] = self._book.load(chosen.instance_id)
        if chosen.prefill is not None:
            loads[chosen.prefill.instance_id] = self._book.load(chosen.prefill.instance_id)
        return ReserveResult(ReserveOutcome.COMMITTED, reservation, loads)

    async def progress(
        self,
        request_id: str,
        *,
        prefilled: bool,
        generated_tokens: int,
        predicted_output_tokens: float | None = None,
    ) -> Reservation | None:
        """See ``Ledger``."""
        generated_tokens = whole_tokens(generated_tokens)
        told = None if predicted_output_tokens is None else milli_tokens(predicted_output_tokens) / MILLI
        known = self._book.reservations.get(request_id)
        if known is None:
            return None
        if told is None or generated_tokens < known.generated_tokens:
            told = known.predicted_output_tokens
        return self._adopted(
            replace(
                known,
                prefilled=known.prefilled or prefilled,
                generated_tokens=max(known.generated_tokens, generated_tokens),
                predicted_output_tokens=told,
            )
        )

    async def release(self, request_id: str) -> Reservation | None:
        """See ``Ledger``."""
        reservation = self._book.take_out(request_id)
        if reservation is not None and reservation.router_id != self.router_id:
            self._book.tell_owner(reservation)
        return reservation

    async def find(self, request_id: str) -> Reservation | None:
        """See ``Ledger``."""
        return self._book.reservations.get(request_id)

    async def loads(self, claims: Mapping[str, Claim] = NO_CLAIMS) -> Mapping[str, Load]:
        """See ``Ledger``."""
        for key in [key for key in self._book.claims if key[1] == self.router_id]:
            del self._book.claims[key]
        for model, claim in claims.items():
            self._claim(model, claim)
        return self._book.loads()

    async def heartbeat(self, ttl_s: float) -> int:
        """See ``Ledger``."""
        self._book.lapses_at_s[self.router_id] = self._clock() + ttl_s
        return len(self._book.owned(self.router_id))

    async def expire(self) -> Mapping[str, int]:
        """See ``Ledger``; this router is alive, whatever its heartbeat."""
        now_s = self._clock()
        lapsed = [
            router_id
            for router_id, at_s in self._book.lapses_at_s.items()
            if at_s <= now_s and router_id != self.router_id
        ]
        return {router_id: self._remove(router_id) for router_id in lapsed}

    async def reconcile(self, own: Sequence[Reservation]) -> frozenset[str]:
        """See ``Ledger``."""
        kept = frozenset(reservation.request_id for reservation in own)
        lost = frozenset(request_id for request_id in kept if self._is_taken(request_id))
        for reservation in own:
            if reservation.request_id not in lost:
                self._restore(reservation)
        for request_id in self._book.owned(self.router_id):
            if request_id not in kept:
                self._book.take_out(request_id)
        self._book.acknowledge(self.router_id, kept)
        return lost

    async def leave(self) -> int:
        """See ``Ledger``."""
        self._book.acknowledge(self.router_id, frozenset())
        return self._remove(self.router_id)

    async def close(self) -> None:
        """Nothing to give back."""

    def _claim(self, model: str, claim: Claim | None) -> None:
        if claim is not None:
            self._book.claims[model, self.router_id] = claim, self._clock()

    def _yields(self, ask: ReserveAsk) -> bool:
        """Whether another router told lately of a request of this model that goes first."""
        mine = ask.claim
        if mine is None or not self._book.claims:
            return False
        since_s = self._clock() - CLAIM_LIFETIME_S
        return any(
            mine.yields_to(claim)
            for (model, router_id), (claim, told_at_s) in self._book.claims.items()
            if model == ask.model and router_id != self.router_id and told_at_s > since_s
        )

    def _live(self, ttl_s: float) -> None:
        if self.router_id not in self._book.lapses_at_s:
            self._book.lapses_at_s[self.router_id] = self._clock() + ttl_s

    def _adopted(self, reservation: Reservation) -> Reservation:
        is_mine = reservation.router_id == self.router_id
        mine = reservation if is_mine else replace(reservation, router_id=self.router_id)
        self._live(FIRST_TTL_S)
        self._book.put(mine)
        return mine

    def _loads(self, ask: ReserveAsk) -> dict[str, Load]:
        """The loads of all bids' instances now."""
        loads, load = {}, self._book.load
        for bid in ask.bids:
            loads[bid.instance_id] = load(bid.instance_id)
            if bid.prefill is not None:
                loads[bid.prefill.instance_id] = load(bid.prefill.instance_id)
        return loads

    def _remove(self, router_id: str) -> int:
        owned = self._book.owned(router_id)
        for request_id in owned:
            self._book.take_out(request_id)
        self._book.forget(router_id)
        return len(owned)

    def _is_taken(self, request_id: str) -> bool:
        present = self._book.reservations.get(request_id)
        if present is not None and present.router_id == self.router_id:
            return False
        if request_id in self._book.taken(self.router_id):
            return True
        return present is not None and self._book.lapses_at_s.get(present.router_id, 0.0) > self._clock()

    def _restore(self, reservation: Reservation) -> None:
        present = self._book.reservations.get(reservation.request_id, reservation)
        milli = milli_tokens(reservation.predicted_output_tokens)
        self._adopted(
            replace(
                reservation,
                predicted_output_tokens=milli / MILLI,
                prefilled=reservation.prefilled or present.prefilled,
                generated_tokens=max(whole_tokens(reservation.generated_tokens), present.generated_tokens),
            )
        )
