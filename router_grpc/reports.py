"""What clients report of their requests, brought to the ledger: first token, progress and every way a request ends."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidRequestError
from llmrouter.quick import quick
from llmrouter.routing.late_starts import lateness
from router_grpc.calls import MAX_REQUEST_ID_LENGTH
from router_grpc.costing import observe_cost
from router_grpc.mixing import note_finish
from router_grpc.staging import first_token, instances_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain import Reservation
    from router_grpc.open_requests import Charge, GivenUp, OpenRequest
    from router_grpc.world import World

MAX_REPORTED_TOKENS = 10_000_000
MAX_REASON_LENGTH = 256
PROGRESS_TOKENS = 64
"""A listener tells progress after so many tokens: more often it would cost more than it is worth."""

REVISED_FROM = 0.5
"""Share of its expected tokens from which on an answer's length is foretold anew at every report of progress."""

_log = logging.getLogger(__name__)


class ReportKind(StrEnum):
    """What happened to a request."""

    STARTED = "started"
    FIRST_TOKEN = "first_token"  # noqa: S105 - a token of text
    PROGRESS = "progress"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS = frozenset({ReportKind.FINISHED, ReportKind.FAILED, ReportKind.CANCELLED})


@quick
@dataclass(frozen=True, slots=True)
class Report:
    """One event; ``output_tokens`` is ``None`` where the event does not say."""

    request_id: str
    kind: ReportKind
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    reason: str = ""
    is_fault: bool = True
    """Of a failure: whether the instance is to blame, and not the request."""
    is_part: bool = False
    """Whether the answer has more parts, of other reservations: no part's length or time is the answer's."""
    is_late: bool = False
    """Of a cancellation: whether the first token was waited for too long, so that it is at least so late."""


class ReportService:
    """Applies reports. ``kick`` is called whenever one may have made room, ``settle`` with a charge that has ended."""

    def __init__(self, world: World, kick: Callable[[], None], settle: Callable[[Charge, float], None]) -> None:
        self._world = world
        self._kick = kick
        self._settle = settle
        self._streams = 0
        self._open_streams: set[int] = set()

    def open_stream(self) -> int:
        """A new report stream's number."""
        self._streams += 1
        self._open_streams.add(self._streams)
        return self._streams

    def close_stream(self, stream_id: int) -> None:
        """A stream ended: what it had not finished is unattended from now on."""
        self._open_streams.discard(stream_id)
        left = self._world.open_requests.stream_broke(stream_id, now_s=self._world.clock())
        if left:
            _log.info("report stream ended with requests in flight", extra={"requests": left})

    async def report(self, report: Report, *, stream_id: int) -> bool:
        """Applies one event, to its end; returns whether its request is known.

        Raises:
            InvalidRequestError: a field is out of its bound.
        """
        check_report(report)
        if self._world.ledger.is_immediate:
            return await self._apply(report, stream_id)
        return await self._world.unbroken.run(self._apply(report, stream_id))

    async def give_up(self, lost: list[GivenUp]) -> None:
        """Releases requests that nobody reports any more, unless another router has taken them over."""
        for entry in lost:
            reservation = await self._world.ledger.find(entry.request_id)
            if self._is_attended(entry.request_id):
                continue
            if reservation is None or reservation.router_id != self._world.ledger.router_id:
                self._world.open_requests.closed(entry.request_id)
                continue
            known = self._world.open_requests.get(entry.request_id)
            released = await self._world.release(entry.request_id)
            if released is None:
                continue
            self._settle_with(known, released.generated_tokens)
            self._world.metrics.reservations.labels(entry.event).inc()
            _log.warning("reservation given up", extra={"request_id": entry.request_id, "why": entry.event})
            self._kick()

    def _is_attended(self, request_id: str) -> bool:
        entry = self._world.open_requests.get(request_id)
        return entry is None or entry.stream_id is not None

    async def _apply(self, report: Report, stream_id: int) -> bool:
        known = await (self._end(report) if report.kind in ENDS else self._advance(report, stream_id))
        self._world.metrics.reports.labels(report.kind, "true" if known else "false").inc()
        return known

    async def _advance(self, report: Report, stream_id: int) -> bool:
        reservation = await self._world.ledger.progress(
            report.request_id,
            prefilled=report.kind is not ReportKind.STARTED,
            generated_tokens=report.output_tokens or 0,
            predicted_output_tokens=self._foretold_anew(report),
        )
        if reservation is None:
            self._world.open_requests.closed(report.request_id)
            return False
        now_s = self._world.clock()
        reporter = stream_id if stream_id in self._open_streams else None
        entry = self._world.open_requests.reported(reservation, stream_id=reporter, now_s=now_s)
        if report.kind is ReportKind.FIRST_TOKEN and not entry.has_first_token:
            entry.has_first_token = True
            if entry.arrived_at_s is not None and not report.is_part:
                self._world.metrics.ttft_seconds.observe(now_s - entry.arrived_at_s)
            if entry.life is not None and not report.is_part:
                self._world.trial.first_token(self._world, entry, now_s)
            if entry.record is not None:
                entry.record.started(now_s)
            self._note_start(entry, now_s)
            if first_token(self._world, reservation):
                self._kick()
        if report.kind is not ReportKind.STARTED:
            self._world.answered(reservation.instance_id, report.request_id)
            self._world.calibrating.advanced(report.request_id, report.output_tokens, now_s=now_s)
        return True

    def _foretold_anew(self, report: Report) -> float | None:
        """The length that is expected of an answer that is well under way: what there is, and its mean residual life.

        ``None`` where the first prediction still serves: before half of it is there, or where others made it.
        """
        entry, generated_tokens = self._world.open_requests.get(report.request_id), report.output_tokens
        if entry is None or entry.foretold is None or generated_tokens is None:
            return None
        law = entry.foretold.law
        if generated_tokens < REVISED_FROM * law.expected_tokens:
            return None
        return generated_tokens + law.residual_tokens(generated_tokens)

    async def _end(self, report: Report) -> bool:
        world, request_id, kind = self._world, report.request_id, report.kind
        entry, now_s = world.open_requests.get(request_id), world.clock()
        world.calibrating.ended(request_id, report.output_tokens, now_s=now_s)
        if entry is not None:
            self._note_end(report, entry, now_s)
        released = await world.release(request_id)
        if released is None:
            return False
        now_s = world.clock()
        world.metrics.reservations.labels(kind).inc()
        if entry is not None:
            self._observe_end(report, entry, released, now_s)
        if kind is ReportKind.FINISHED:
            for instance_id in instances_of(released):
                world.answered(instance_id, request_id)
        elif kind is ReportKind.FAILED:
            for instance_id in instances_of(released, at_work=True):
                self._blame(report, instance_id)
            _log.info(
                "request failed",
                extra={"request_id": request_id, "reason": report.reason, "instance": released.instance_id},
            )
        self._kick()
        return True

    def _note_end(self, report: Report, entry: OpenRequest, now_s: float) -> None:
        """A request is reported as ended, whether or not the ledger still knows it."""
        if report.is_late:
            self._note_start(entry, now_s)
        if entry.record is not None:
            entry.record.ended(report, now_s)

    def _observe_end(self, report: Report, entry: OpenRequest, released: Reservation, now_s: float) -> None:
        """A request has ended that this router knew: who learns from it, and who pays."""
        tokens, is_whole = report.output_tokens, report.kind is ReportKind.FINISHED
        if entry.life is not None:
            self._world.trial.ended(self._world, entry, report, now_s)
        if tokens is not None or not is_whole:
            self._settle_with(entry, released.generated_tokens if tokens is None else tokens)
        if is_whole:
            self._observe_finish(report, entry, now_s)

    def _settle_with(self, entry: OpenRequest | None, output_tokens: int) -> None:
        """Has the tenant pay for what there was, within what can be; one that another router charged pays there."""
        if entry is not None and entry.charge is not None:
            self._settle(entry.charge, min(max(0, output_tokens), MAX_REPORTED_TOKENS))

    def _blame(self, report: Report, instance_id: str) -> None:
        world = self._world
        if not report.is_fault:
            world.answered(instance_id, report.request_id)
        elif world.outliers.failed(instance_id, now_s=world.clock(), instances=len(world.instances.current())):
            self._left_out(instance_id)

    def judge(self) -> None:
        """Leaves out instances whose first tokens come far later than the others'; to be called every second."""
        world, now_s = self._world, self._world.clock()
        waiting: dict[str, list[float]] = {}
        for entry in world.open_requests.without_start():
            late = _lateness(entry, now_s)
            if late is not None:
                waiting.setdefault(entry.reservation.instance_id, []).append(late)
        for instance_id in world.outliers.judge(waiting, now_s=now_s, instances=len(world.instances.current())):
            self._left_out(instance_id)

    def _note_start(self, entry: OpenRequest, now_s: float) -> None:
        late, reservation = _lateness(entry, now_s), entry.reservation
        if late is None:
            return
        if self._world.outliers.started(reservation.instance_id, reservation.request_id, late, now_s=now_s):
            self._left_out(reservation.instance_id)

    def _left_out(self, instance_id: str) -> None:
        why = self._world.outliers.why(instance_id)
        self._world.metrics.ejections.labels("" if why is None else why.value).inc()
        _log.warning("instance left out", extra={"instance": instance_id, "reason": why})

    def _observe_finish(self, report: Report, entry: OpenRequest, now_s: float) -> None:
        world, output_tokens, foretold = self._world, report.output_tokens, entry.foretold
        cached_tokens = report.cached_prompt_tokens
        if cached_tokens is not None and entry.prefix is not None and not entry.reservation.prefill_instance_id:
            world.prefixes.reported(entry.prefix, cached_tokens, world.metrics.prefixes)  # else of whose cache unsaid
        if entry.arrived_at_s is not None and not report.is_part:
            world.metrics.e2e_seconds.observe(now_s - entry.arrived_at_s)
        observe_cost(world, entry, now_s=now_s)
        if output_tokens is not None and foretold is not None:
            if not report.is_part:
                world.lengths.finished(foretold, output_tokens=output_tokens, prompt_tokens=report.prompt_tokens)
            note_finish(world, entry, output_tokens, now_s=now_s)


def _lateness(entry: OpenRequest, now_s: float) -> float | None:
    """How late a first token is that comes now, or has not come.

    ``None`` where another instance computes the prompt, or nothing was foretold.
    """
    cost = entry.cost
    if cost is None or entry.reservation.prefill_instance_id:
        return None
    return lateness(took_s=now_s - cost.dispatched_at_s, foretold_s=cost.first_token_s)


def check_report(report: Report) -> None:
    """Raises InvalidRequestError naming the first field out of its bound.

    The usage of a request that ended may be whatever it is: the end stands, and who learns from usage judges it.
    """
    if not report.request_id:
        raise InvalidRequestError("request_id: must be set")
    if len(report.request_id) > MAX_REQUEST_ID_LENGTH:
        raise InvalidRequestError(f"request_id: longer than {MAX_REQUEST_ID_LENGTH} characters")
    tokens = report.output_tokens
    if report.kind not in ENDS and tokens is not None and not 0 <= tokens <= MAX_REPORTED_TOKENS:
        raise InvalidRequestError(f"output_tokens: {tokens} is not within 0 and {MAX_REPORTED_TOKENS}")
    if len(report.reason) > MAX_REASON_LENGTH:
        raise InvalidRequestError(f"reason: longer than {MAX_REASON_LENGTH} characters")
