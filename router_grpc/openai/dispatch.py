"""One part's reservation, from its dispatch to its end, which comes once whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router_grpc.counted import counted_route
from router_grpc.openai.journey import MOVES, Cause
from router_grpc.reports import MAX_REASON_LENGTH, PROGRESS_TOKENS, Report, ReportKind

if TYPE_CHECKING:
    from router_grpc.calls import RouteAnswer, RouteAsk
    from router_grpc.length_service import Foretold
    from router_grpc.openai.answers import PartUsage
    from router_grpc.openai.journey import InstanceFailedError
    from router_grpc.reports import ReportService
    from router_grpc.service import RouterService
    from router_grpc.world import World


class FrontDesk:
    """Places parts of requests."""

    def __init__(self, world: World, service: RouterService, reports: ReportService) -> None:
        self.world, self.service, self.reports = world, service, reports

    async def place(self, ask: RouteAsk, *, is_later: bool, streams: bool) -> Dispatch:
        """Reserves an instance; ``is_later`` says that there were parts before, ``streams`` that tokens are seen.

        Raises:
            LLMRouterError: there is none; counted.
        """
        answer = await counted_route(self.world, self.service, ask)
        dispatch = Dispatch(self, answer, is_later=is_later)
        if streams:
            self.world.trial.will_tell_start(self.world, answer.request_id)
        else:
            self.world.presuming.unheard(self.world, answer.request_id)
        return dispatch

    def taught(self, first: Dispatch, *, output_tokens: int, prompt_tokens: int | None) -> None:
        """What came of an answer made in parts, as of one: its first dispatch foretold it."""
        self.world.metrics.e2e_seconds.observe(self.world.clock() - first.placed_at_s)
        if first.foretold is not None:
            self.world.lengths.finished(first.foretold, output_tokens=output_tokens, prompt_tokens=prompt_tokens)


class Dispatch:
    """See the module's docstring. Ends are told once: the first counts."""

    def __init__(self, desk: FrontDesk, answer: RouteAnswer, *, is_later: bool) -> None:
        self._desk = desk
        self._is_later = is_later
        self._stream_id = desk.reports.open_stream()
        self._has_begun = self._is_over = False
        self._told_tokens = 0
        self.answer = answer
        self.placed_at_s = desk.world.clock()
        desk.world.open_requests.attended(answer.request_id, stream_id=self._stream_id)
        entry = desk.world.open_requests.get(answer.request_id)
        self.foretold: Foretold | None = None if entry is None else entry.foretold

    async def advanced(self, output_tokens: int | None) -> None:
        """A token is there: the first one is told at once, then progress now and then."""
        if not self._has_begun:
            self._has_begun = True
            await self._tell(ReportKind.FIRST_TOKEN)
        elif output_tokens is not None and output_tokens >= self._told_tokens + PROGRESS_TOKENS:
            self._told_tokens = output_tokens
            await self._tell(ReportKind.PROGRESS, output_tokens=output_tokens)

    async def finished(self, usage: PartUsage, *, is_part: bool) -> None:
        """The part is whole; ``is_part`` says that it was not, or will not be, the only one."""
        await self._end(
            Report(
                self.answer.request_id,
                ReportKind.FINISHED,
                output_tokens=usage.output_tokens,
                prompt_tokens=usage.prompt_tokens,
                cached_prompt_tokens=usage.cached_tokens,
                is_part=is_part,
            )
        )

    async def failed(self, error: InstanceFailedError) -> None:
        """The part failed at its instance, or is to be elsewhere."""
        request_id, reason = self.answer.request_id, str(error)[:MAX_REASON_LENGTH]
        if error.cause in MOVES:
            is_late = error.cause is Cause.LATE
            await self._end(Report(request_id, ReportKind.CANCELLED, reason=reason, is_late=is_late))
        else:
            await self._end(Report(request_id, ReportKind.FAILED, reason=reason, is_fault=error.is_fault))

    async def cancelled(self, reason: str) -> None:
        """Nobody wants the part any more."""
        await self._end(Report(self.answer.request_id, ReportKind.CANCELLED, reason=reason))

    async def _tell(self, kind: ReportKind, *, output_tokens: int | None = None) -> None:
        report = Report(self.answer.request_id, kind, output_tokens=output_tokens, is_part=self._is_later)
        await self._desk.reports.report(report, stream_id=self._stream_id)

    async def _end(self, report: Report) -> None:
        if self._is_over:
            return
        self._is_over = True
        try:
            await self._desk.reports.report(report, stream_id=self._stream_id)
        finally:
            self._desk.reports.close_stream(self._stream_id)
