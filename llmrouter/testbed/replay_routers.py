"""A replay's connections to routers: one report stream each, whose events move to another router when one dies."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import grpc
import grpc.aio

from router_grpc.v1 import router_pb2 as messages
from router_grpc.v1.router_pb2_grpc import RouterStub

RESOLVE_INTERVAL_S = 1.0
STREAM_RETRY_S = 0.5
POLL_S = 0.05
MAX_WAITING_EVENTS = 100_000
Resolve = Callable[[], Awaitable[Iterable[str]]]

_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)


async def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Whether the condition came true in time."""
    now = asyncio.get_running_loop().time
    deadline_s = now() + timeout_s
    while not (true := condition()) and now() < deadline_s:  # noqa: ASYNC110 - conditions span several objects
        await asyncio.sleep(min(POLL_S, max(deadline_s - now(), 0.0)))
    return true


@dataclass
class ReportCounts:
    """What became of the events of all streams."""

    sent: int = 0
    moved: int = 0
    unknown: int = 0
    refused: int = 0
    last_refusal: str = ""


@dataclass
class Tracked:
    """A routed request whose reports are still owed; ``link`` is the router that hears them now."""

    request_id: str
    link: RouterLink | None = None
    first_token: bool = False
    output_tokens: int = 0


@dataclass
class RouterLink:
    """One router: its channel, and the stream that keeps the reservations of ``tracked`` requests.

    Without ``reports`` there is no stream: the router is only asked how it is, and up while it is connected.
    """

    address: str
    counts: ReportCounts
    on_break: Callable[[RouterLink], None]
    reports: bool = True
    up: bool = False
    tracked: dict[str, Tracked] = field(default_factory=dict)
    unacknowledged: deque[messages.ReportEvent] = field(default_factory=deque)
    _queue: asyncio.Queue[messages.ReportEvent] = field(default_factory=asyncio.Queue)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        """Opens the channel; nothing is sent before ``start``."""
        self._channel = grpc.aio.insecure_channel(self.address, options=_CHANNEL_OPTIONS)
        self.stub = RouterStub(self._channel)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Keeps a report stream open until ``close``."""
        self._task = asyncio.create_task(self._keep_stream(), name=f"reports to {self.address}")

    def send(self, event: messages.ReportEvent) -> None:
        """Queues an event for the stream."""
        self.counts.sent += 1
        self._queue.put_nowait(event)

    async def drain(self, timeout_s: float) -> None:
        """Waits until every event is acknowledged, for a bounded time."""
        await wait_until(lambda: not self._queue.qsize() and not self.unacknowledged, timeout_s=timeout_s)

    async def close(self) -> None:
        """Ends the stream and the channel."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close(None)

    def take_unsent(self) -> list[messages.ReportEvent]:
        """Events that no acknowledgement covers, oldest first; the link forgets them."""
        events = list(self.unacknowledged)
        self.unacknowledged.clear()
        while not self._queue.empty():
            events.append(self._queue.get_nowait())
        return events

    async def _keep_stream(self) -> None:
        while True:
            await self._channel.channel_ready()
            with suppress(grpc.aio.AioRpcError):  # whatever the cause, what the stream kept moves to another router
                await (self._run_stream() if self.reports else self._while_connected())
            self.on_break(self)
            await asyncio.sleep(STREAM_RETRY_S)

    async def _run_stream(self) -> None:
        call = self.stub.Report()
        writing = asyncio.create_task(self._write_events(call))
        self.up = True
        try:
            async for acknowledgement in call:
                self._acknowledge(acknowledgement)
        finally:
            self.up = False
            call.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)  # it fails as the reader above does

    async def _while_connected(self) -> None:
        self.up = True
        try:
            await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        finally:
            self.up = False

    async def _write_events(
        self, call: grpc.aio.StreamStreamCall[messages.ReportEvent, messages.ReportAcknowledgement]
    ) -> None:
        while True:
            event = await self._queue.get()
            self.unacknowledged.append(event)
            await call.write(event)

    def _acknowledge(self, acknowledgement: messages.ReportAcknowledgement) -> None:
        if self.unacknowledged:
            self.unacknowledged.popleft()
        if acknowledgement.error:
            self.counts.refused += 1
            self.counts.last_refusal = acknowledgement.error
        elif not acknowledgement.known:
            self.counts.unknown += 1


class Routers:
    """All routers that answer now. Requests are spread over them in turn."""

    def __init__(self, resolve: Resolve, *, reports: bool = True) -> None:
        self._resolve = resolve
        self._reports = reports
        self._links: dict[str, RouterLink] = {}
        self._turn = itertools.count()
        self._orphans: list[Tracked] = []
        self._homeless: list[messages.ReportEvent] = []
        self._task: asyncio.Task[None] | None = None
        self._retired: set[asyncio.Task[None]] = set()
        self.counts = ReportCounts()

    @property
    def links(self) -> tuple[RouterLink, ...]:
        """Links that are up."""
        return tuple(link for link in self._links.values() if link.up)

    async def start(self, timeout_s: float) -> None:
        """Connects; raises TimeoutError where no router answers in time."""
        self._task = asyncio.create_task(self._follow(), name="resolve routers")
        if not await wait_until(self._all_up, timeout_s=timeout_s):
            raise TimeoutError(f"no router answered within {timeout_s:g} s")

    async def close(self) -> None:
        """Waits for the last acknowledgements, then leaves."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(link.drain(5.0) for link in self.links))
        await asyncio.gather(*self._retired, *(link.close() for link in self._links.values()), return_exceptions=True)

    def pick(self, *, other_than: RouterLink | None = None) -> RouterLink | None:
        """The next router in turn; another than ``other_than`` where there is one."""
        links = self.links
        others = tuple(link for link in links if link is not other_than) or links
        return others[next(self._turn) % len(others)] if others else None

    def track(self, request_id: str, link: RouterLink) -> Tracked:
        """Starts to report a request that ``link`` routed."""
        tracked = Tracked(request_id)
        self._adopt(tracked, link if link.up else self.pick())
        return tracked

    def first_token(self, tracked: Tracked) -> None:
        """Reports the first token."""
        tracked.first_token = True
        self._report(tracked, messages.ReportEvent(request_id=tracked.request_id, first_token=messages.FirstToken()))

    def progress(self, tracked: Tracked, output_tokens: int) -> None:
        """Reports output tokens so far."""
        tracked.output_tokens = output_tokens
        event = messages.ReportEvent(
            request_id=tracked.request_id, progress=messages.Progress(output_tokens=output_tokens)
        )
        self._report(tracked, event)

    def finished(self, tracked: Tracked, *, prompt_tokens: int, output_tokens: int) -> None:
        """Reports the end with its usage."""
        usage = messages.Finished(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        self._report(tracked, messages.ReportEvent(request_id=tracked.request_id, finished=usage))
        self._forget(tracked)

    def failed(self, tracked: Tracked, reason: str) -> None:
        """Reports a failure at the instance."""
        failed = messages.Failed(reason=reason[:256])
        self._report(tracked, messages.ReportEvent(request_id=tracked.request_id, failed=failed))
        self._forget(tracked)

    def cancelled(self, tracked: Tracked) -> None:
        """Reports that the client gave up."""
        self._report(tracked, messages.ReportEvent(request_id=tracked.request_id, cancelled=messages.Cancelled()))
        self._forget(tracked)

    def _all_up(self) -> bool:
        return bool(self._links) and all(link.up for link in self._links.values())

    def _report(self, tracked: Tracked, event: messages.ReportEvent) -> None:
        if tracked.link is not None and tracked.link.up:
            tracked.link.send(event)
        elif len(self._homeless) < MAX_WAITING_EVENTS:
            self._homeless.append(event)

    def _forget(self, tracked: Tracked) -> None:
        if tracked.link is not None:
            tracked.link.tracked.pop(tracked.request_id, None)
        if tracked in self._orphans:
            self._orphans.remove(tracked)
        tracked.link = None

    def _adopt(self, tracked: Tracked, link: RouterLink | None) -> None:
        tracked.link = link
        if link is None:
            self._orphans.append(tracked)
            return
        link.tracked[tracked.request_id] = tracked
        link.send(messages.ReportEvent(request_id=tracked.request_id, started=messages.Started()))

    def _moved(self, broken: RouterLink) -> None:
        """Gives what a broken stream kept to another router: its events first, in order, then its requests."""
        heir = self.pick(other_than=broken)
        events = broken.take_unsent()
        orphans = list(broken.tracked.values())
        broken.tracked.clear()
        if heir is not None and heir.up:
            for event in events:
                heir.send(event)
            self.counts.moved += len(orphans)
        else:
            self._homeless.extend(events)
        for tracked in orphans:
            self._adopt(tracked, heir)
            self._repeat(tracked)

    def _repeat(self, tracked: Tracked) -> None:
        if tracked.first_token and tracked.link is not None:
            self.first_token(tracked)
            self.progress(tracked, tracked.output_tokens)

    async def _follow(self) -> None:
        while True:
            try:
                addresses = set(await self._resolve())
            except OSError:
                addresses = set(self._links)  # a name that does not resolve now changes nothing
            self._update(addresses)
            self._settle_homeless()
            await asyncio.sleep(RESOLVE_INTERVAL_S)

    def _update(self, addresses: set[str]) -> None:
        for address in addresses - self._links.keys():
            link = RouterLink(address, self.counts, self._moved, reports=self._reports)
            self._links[address] = link
            link.start()
        for address in [address for address, link in self._links.items() if address not in addresses and not link.up]:
            retired = asyncio.create_task(self._links.pop(address).close())
            self._retired.add(retired)
            retired.add_done_callback(self._retired.discard)

    def _settle_homeless(self) -> None:
        link = self.pick()
        if link is None:
            return
        events, self._homeless = self._homeless, []
        orphans, self._orphans = self._orphans, []
        for event in events:
            link.send(event)
        for tracked in orphans:
            self._adopt(tracked, link)
            self._repeat(tracked)
