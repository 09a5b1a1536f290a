"""Drives one ``Exchange`` between a transport and the services: bytes of messages in, bytes of messages out.

The pick is all that a message can wait for. It goes as far as it can at once, with the others of its turn, and in a
task only where it has to wait for a place. While one is under way ``is_waiting`` says so, and messages that come all
the same are kept in their order: a transport must not let its peer send more than a window of them. What is told to
the ledger never keeps the answer waiting: it goes one after the other beside it. However a stream ends, what it had
reserved is given back exactly once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

from llmrouter.errors import LLMRouterError
from router_grpc.calls import length_request
from router_grpc.counted import counted, counted_forward
from router_grpc.picker.exchange import (
    BODY_S,
    Exchange,
    Forward,
    Leave,
    Pick,
    ProtocolError,
    Refused,
    Send,
    ServedElsewhere,
    Tell,
    Unheard,
)
from router_grpc.picker.intake import Intake
from router_grpc.picker.observation import Observed, observed_by
from router_grpc.status import Status
from router_grpc.unbroken import at_once, begun

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from router_grpc.calls import Admitted, RouteAsk
    from router_grpc.length_service import Foretold
    from router_grpc.picker.exchange import Effect
    from router_grpc.reports import Report, ReportService
    from router_grpc.runtime import Runtime
    from router_grpc.service import RouterService
    from router_grpc.world import World

_log = logging.getLogger(__name__)


class Outlet(Protocol):
    """Where a session's answers go."""

    def send(self, message: bytes) -> None:
        """The next message for the gateway."""
        ...

    def finish(self, status: Status, detail: str) -> None:
        """The stream ends; called at most once, and nothing is sent after it."""
        ...

    def resumed(self) -> None:
        """A pick is over: messages are taken again."""
        ...


class PickerDesk:
    """Opens sessions; keeps what they leave to be done until it is done."""

    def __init__(self, world: World, service: RouterService, reports: ReportService) -> None:
        self.world, self.service, self.reports = world, service, reports
        self.intake = Intake()
        self._observed: tuple[Runtime | None, Observed] = (None, Observed())
        self._open: dict[PickerSession, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, outlet: Outlet) -> PickerSession:
        """A session of a new stream."""
        session = PickerSession(self, outlet, Exchange(observed=self._observes(), intake=self.intake))
        self._open[session] = self.world.clock()
        return session

    def _observes(self) -> Observed:
        """Whose answers are seen, by the configuration in force."""
        runtime, observed = self.service.runtime, self._observed
        if runtime is not observed[0]:
            found = Observed() if runtime is None else observed_by(runtime.config.listeners)
            observed = self._observed = (runtime, found)
        return observed[1]

    def end_turn(self) -> None:
        """All of a read has been received: what was asked in it is foretold together, and placed."""
        self.world.lengths.take_turn()

    def closed(self, session: PickerSession) -> None:
        """A session is over."""
        self._open.pop(session, None)

    def sweep(self) -> None:
        """Gives up bodies that have been under way for too long; to be called every few seconds."""
        opened_by_s = self.world.clock() - BODY_S
        late = list(takewhile(lambda one: self._open[one] < opened_by_s, self._open))
        for session in late:
            del self._open[session]
            session.overdue()

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begins work of a session."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self) -> None:
        """Returns when nothing is left to be done."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


class PickerSession:
    """One stream. ``receive`` takes its messages; ``half_closed`` or ``broken`` says that no more come."""

    __slots__ = ("_awaited", "_desk", "_exchange", "_is_over", "_is_picking", "_is_settled", "_outlet", "_pick",
                 "_stream_id", "_telling", "_told", "_waiting")  # fmt: skip

    def __init__(self, desk: PickerDesk, outlet: Outlet, exchange: Exchange) -> None:
        self._desk, self._outlet, self._exchange = desk, outlet, exchange
        self._stream_id = desk.reports.open_stream()
        self._waiting: deque[bytes | None] = deque()
        self._told: deque[Report] = deque()
        self._is_picking = False
        self._pick: asyncio.Task[None] | None = None
        self._awaited: asyncio.Future[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._is_over = self._is_settled = False

    @property
    def is_waiting(self) -> bool:
        """Whether a pick is under way: what comes now is kept."""
        return self._is_picking

    @property
    def is_done(self) -> bool:
        """Whether all is said, so that the stream may end in whatever way."""
        return self._exchange.is_over

    async def picked(self) -> None:
        """Returns when no pick is under way."""
        while self._is_picking:
            if self._awaited is None or self._awaited.done():
                self._awaited = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._awaited})

    def receive(self, message: bytes) -> None:
        """Takes the gateway's next message."""
        if self._is_over:
            return
        if self._is_picking:
            self._waiting.append(message)
            return
        try:
            self._follow(self._exchange.receive(message))
        except Exception as error:  # noqa: BLE001 - ends this stream alone, is counted and logged
            self._failed(error)

    def half_closed(self) -> None:
        """The gateway has no more to say: the stream ends well, after the pick that is under way."""
        if self._is_picking:
            self._waiting.append(None)
        elif not self._is_over:
            self._finish(Status.OK, "")

    def broken(self) -> None:
        """The stream is gone; also after it has ended."""
        self._close()

    def overdue(self) -> None:
        """The stream has been open for ``BODY_S``."""
        if not self._is_over:
            self._follow(self._exchange.overdue())

    def _follow(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._outlet.send(effect.wire)
            elif isinstance(effect, Tell):
                self._tell(effect.report)
            elif isinstance(effect, Pick):
                self._begin(effect.ask)
            elif isinstance(effect, Unheard):
                self._desk.world.presuming.unheard(self._desk.world, effect.request_id)
            else:
                self._follow_seldom(effect)

    def _follow_seldom(self, effect: Forward | Refused | Leave | ServedElsewhere) -> None:
        world = self._desk.world
        if isinstance(effect, Forward):
            self._follow(self._forward(effect))
        elif isinstance(effect, Refused):
            world.metrics.requests.labels(effect.reason).inc()
        elif isinstance(effect, Leave):
            self._leave(effect.request_id)
        else:
            world.metrics.served_elsewhere.inc()
            world.decisions.served(self._exchange.request_id, effect.endpoint)
            said = {"request_id": self._exchange.request_id, "endpoint": effect.endpoint}
            _log.info("served elsewhere", extra=said)

    def _leave(self, request_id: str) -> None:
        """Ends the stream well, the answer unseen."""
        self._desk.world.presuming.left(self._desk.world, request_id)
        self._finish(Status.OK, "")

    def _begin(self, ask: RouteAsk) -> None:
        """A pick: it is asked how long the answer will be, which is told in a moment or before this returns."""
        world = self._desk.world
        since_s = world.clock()
        try:
            admitted = self._desk.service.admit(ask)
        except LLMRouterError as error:
            world.metrics.requests.labels(error.reason).inc()
            self._follow(self._exchange.refused(error))
            return
        self._is_picking = True
        world.lengths.ask(length_request(ask), ask.prompt, partial(self._foretold, admitted, since_s))

    def _foretold(self, admitted: Admitted, since_s: float, foretold: Foretold) -> None:
        """The pick goes on: to its end where it need not wait for a place or a ledger elsewhere."""
        if self._is_over:
            return
        step = self._picking(admitted, foretold, since_s)
        if self._desk.world.ledger.is_immediate:
            self._pick = begun(step, self._desk.keep)
        else:
            self._pick = self._desk.keep(step)

    async def _picking(self, admitted: Admitted, foretold: Foretold, since_s: float) -> None:
        try:
            effects = await self._place(admitted, foretold, since_s)
            self._picked()
            if not self._is_over:
                self._follow(effects)
                self._take_waiting()
        except Exception as error:  # noqa: BLE001 - ends this stream alone, is counted and logged
            self._picked()
            self._failed(error)
        finally:
            self._picked()
            if self._is_over:
                self._settle()
            else:
                self._outlet.resumed()

    def _picked(self) -> None:
        """No pick is under way any more."""
        self._is_picking, self._pick = False, None
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    async def _place(self, admitted: Admitted, foretold: Foretold, since_s: float) -> Sequence[Effect]:
        world = self._desk.world
        try:
            answer = await counted(world, self._desk.service.place(admitted, foretold), since_s=since_s)
        except LLMRouterError as error:
            return self._exchange.refused(error)
        tells_start = self._exchange.streams
        world.open_requests.attended(answer.request_id, stream_id=self._stream_id, tells_start=tells_start)
        return self._exchange.picked(answer.endpoint, answer.request_id, answer.prefill_endpoint)

    def _take_waiting(self) -> None:
        while self._waiting and not self._is_picking and not self._is_over:
            message = self._waiting.popleft()
            if message is None:
                self._finish(Status.OK, "")
            else:
                self._follow(self._exchange.receive(message))

    def _forward(self, effect: Forward) -> Sequence[Effect]:
        try:
            endpoint = counted_forward(self._desk.world, effect.subset)
        except LLMRouterError as error:
            return self._exchange.refused(error)
        return self._exchange.picked(endpoint, "")

    def _failed(self, error: Exception) -> None:
        metrics = self._desk.world.metrics
        if isinstance(error, LLMRouterError):
            if not isinstance(error, ProtocolError):
                _log.warning("a picker's stream failed", extra={"reason": error.reason, "detail": str(error)[:500]})
            metrics.requests.labels(error.reason).inc()
            is_peers = isinstance(error, ProtocolError)
            self._finish(Status.INVALID_ARGUMENT if is_peers else Status.INTERNAL, str(error))
        else:
            metrics.requests.labels("Error").inc()
            metrics.errors.labels("picker").inc()
            _log.error("a picker's stream failed", exc_info=error)
            self._finish(Status.INTERNAL, "the router failed")

    def _finish(self, status: Status, detail: str) -> None:
        if not self._is_over:
            self._close()
            self._outlet.finish(status, detail)

    def _close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._desk.closed(self)
            self._waiting.clear()
            if self._pick is None:
                self._picked()
                self._settle()
            else:
                self._pick.add_done_callback(lambda _: self._settle())  # one that had not begun says nothing itself
                self._pick.cancel()

    def _settle(self) -> None:
        """The last words of the stream, once: what is still reserved is given back."""
        if self._is_settled:
            return
        self._is_settled = True
        for effect in self._exchange.closed():
            if isinstance(effect, Tell):
                self._tell(effect.report)
        if self._telling is None:
            self._desk.reports.close_stream(self._stream_id)

    def _tell(self, report: Report) -> None:
        self._told.append(report)
        if self._desk.world.ledger.is_immediate:
            at_once(self._tell_all())
        elif self._telling is None:
            self._telling = self._desk.keep(self._tell_all())

    async def _tell_all(self) -> None:
        reports = self._desk.reports
        while self._told:
            report = self._told.popleft()
            try:
                await reports.report(report, stream_id=self._stream_id)
            except Exception:  # noqa: BLE001 - counted and logged; a reservation that nobody reports is given up in time
                self._desk.world.metrics.errors.labels("report").inc()
                _log.exception("a report of a picker's stream failed")
        self._telling = None
        if self._is_settled:
            reports.close_stream(self._stream_id)
