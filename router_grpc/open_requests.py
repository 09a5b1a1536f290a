"""Requests this router dispatched or took over: who reports them, and when one without a reporter is given up.

A reservation never ends by its age. It ends when it is reported finished, failed or cancelled; when its report stream
broke and no other took it over within the grace period; when nobody ever reported it within the claim time; or with
its router's heartbeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.domain import Request, Reservation
    from llmrouter.planning.mix import Dispatched
    from llmrouter.routing.prefixes import Use
    from router_grpc.arms import Life
    from router_grpc.costing import ForetoldCost
    from router_grpc.decision_log import OpenRecord
    from router_grpc.length_service import Foretold


@quick
@dataclass(frozen=True, slots=True)
class Charge:
    """What a tenant was charged for with a dispatch: to be settled when it ends."""

    model: str
    tenant: str
    predicted_output_tokens: float


@dataclass(slots=True)
class OpenRequest:
    """One open request. ``stream_id`` is ``None`` before its first report and after its stream broke.

    ``foretold`` is ``None`` where another router foretold its length; ``dispatched`` is what the traffic's mix counted,
    ``cost`` what its decision foretold, ``prefix`` what was expected of the instance's prefix cache; ``life`` is what
    the trial of a candidate remembers of it, ``record`` what the decision log does.
    """

    reservation: Reservation
    arrived_at_s: float | None
    unattended_since_s: float
    stream_id: int | None = None
    claimed: bool = False
    has_first_token: bool = False
    tells_start: bool = False
    foretold: Foretold | None = None
    dispatched: Dispatched | None = None
    charge: Charge | None = None
    prefix: Use | None = None
    cost: ForetoldCost | None = None
    life: Life | None = None
    record: OpenRecord | None = None


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A request whose reservation is to be released, and why: ``unclaimed`` or ``orphaned``."""

    request_id: str
    event: str


class OpenRequests:
    """The book of open requests; time comes in as a parameter."""

    def __init__(self) -> None:
        self._open: dict[str, OpenRequest] = {}
        self._by_stream: dict[int, dict[str, None]] = {}
        """Request ids by the stream that answers for them."""

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def attended(self, request_id: str, *, stream_id: int, tells_start: bool = False) -> None:
        """A stream answers for an open request from its dispatch on, and may tell its first token when it comes."""
        entry = self._open.get(request_id)
        if entry is not None:
            entry.tells_start = tells_start
            self._attend(request_id, entry, stream_id)

    def without_start(self) -> Iterator[OpenRequest]:
        """Those whose first tokens have not come, and would be told at once."""
        return (one for one in self._open.values() if one.tells_start and not one.has_first_token)

    def entries(self) -> Iterator[OpenRequest]:
        """All of them; the book must not change meanwhile."""
        return iter(self._open.values())

    def reservations(self) -> list[Reservation]:
        """Those of all open requests."""
        return [one.reservation for one in self._open.values()]

    def get(self, request_id: str) -> OpenRequest | None:
        """The entry of a request."""
        return self._open.get(request_id)

    def opened(self, reservation: Reservation, *, arrived_at_s: float) -> OpenRequest:
        """A dispatch was committed, or its answer repeated: its time to be reported begins."""
        known = self._open.get(reservation.request_id)
        if known is None:
            known = self._open[reservation.request_id] = OpenRequest(reservation, arrived_at_s, arrived_at_s)
        else:
            known.reservation = reservation
            known.unattended_since_s = max(known.unattended_since_s, arrived_at_s)
        return known

    def charged(self, request: Request) -> None:
        """An open request's tenant was charged for its dispatch."""
        entry = self._open.get(request.request_id)
        if entry is not None:
            entry.charge = Charge(request.model, request.tenant, request.predicted_output_tokens)

    def reported(self, reservation: Reservation, *, stream_id: int | None, now_s: float) -> OpenRequest:
        """A stream reported a request that the ledger knows, ours or one taken over.

        ``stream_id`` is ``None`` where the stream has ended meanwhile.
        """
        entry = self._open.get(reservation.request_id)
        if entry is None:
            entry = self._open[reservation.request_id] = OpenRequest(reservation, None, now_s)
        self._attend(reservation.request_id, entry, stream_id)
        entry.reservation, entry.unattended_since_s = reservation, now_s
        return entry

    def closed(self, request_id: str) -> OpenRequest | None:
        """A request ended, or belongs to another router now."""
        entry = self._open.pop(request_id, None)
        if entry is not None:
            self._leave(request_id, entry)
            if entry.record is not None:
                entry.record.close()
        return entry

    def stream_broke(self, stream_id: int, *, now_s: float) -> int:
        """A report stream ended; returns how many requests it leaves unattended."""
        left = self._by_stream.pop(stream_id, {})
        for request_id in left:
            entry = self._open[request_id]
            entry.stream_id, entry.unattended_since_s = None, now_s
        return len(left)

    def _attend(self, request_id: str, entry: OpenRequest, stream_id: int | None) -> None:
        entry.claimed = True
        if entry.stream_id == stream_id:
            return
        self._leave(request_id, entry)
        entry.stream_id = stream_id
        if stream_id is not None:
            self._by_stream.setdefault(stream_id, {})[request_id] = None

    def _leave(self, request_id: str, entry: OpenRequest) -> None:
        """Nothing is noted any more of the stream that answered for a request."""
        if entry.stream_id is None:
            return
        attended = self._by_stream[entry.stream_id]
        del attended[request_id]
        if not attended:
            del self._by_stream[entry.stream_id]

    def given_up(self, *, now_s: float, claim_timeout_s: float, grace_s: float) -> list[GivenUp]:
        """Requests that nobody reports any more; they stay in the book until ``closed``."""
        lost = []
        for request_id, entry in self._open.items():
            if entry.stream_id is not None:
                continue
            bound_s = grace_s if entry.claimed else claim_timeout_s
            if now_s - entry.unattended_since_s > bound_s:
                lost.append(GivenUp(request_id, "orphaned" if entry.claimed else "unclaimed"))
        return lost
