"""One router, composed: the service, its ledger, what it follows and the loops that keep it fresh."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmrouter.config import digest_of
from llmrouter.errors import InvalidConfigError, LLMRouterError, ModelRejectedError
from llmrouter.metrics import MAX_INSTANCE_LABELS
from router_grpc.listeners.native import NativeListener, RouterServicer
from router_grpc.reports import ReportService
from router_grpc.runtime import ConfigBundle, Readiness, Runtime, digest_of_policy
from router_grpc.service import RouterService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from llmrouter.acknowledgement import RouterAcknowledgement
    from router_grpc.adapters.engine_metrics import EngineScraper
    from router_grpc.adapters.instances import InstanceDirectory
    from router_grpc.runtime import RuntimeBuilder
    from router_grpc.service import World

REFRESH_S = 0.1
"""How often the loads of the ledger are read: one call, whatever the number of instances."""

ACKNOWLEDGE_S = 5.0
"""How often a router says that all is as it was; a change is said at once."""

SETTLE_S = 1.0
"""How long a draining router still answers, so that whoever still believes it ready is served."""

_log = logging.getLogger(__name__)


class ConfigSource(Protocol):
    """Where configurations come from."""

    def bundles(self) -> AsyncIterator[ConfigBundle]:
        """Every configuration that appears, the present one first."""
        ...


@dataclass(frozen=True, slots=True)
class Outside:
    """What a router follows and tells. ``acknowledge`` is ``None`` where nobody listens."""

    source: ConfigSource
    directory: InstanceDirectory
    scraper: EngineScraper
    builder: RuntimeBuilder
    acknowledge: Callable[[RouterAcknowledgement], Awaitable[None]] | None
    describe: Callable[[RouterApp], RouterAcknowledgement | None]


class RouterApp:
    """Runs until told to drain. Each loop survives its own failures, which are logged and counted."""

    def __init__(self, world: World, outside: Outside, *, host: str, port: int) -> None:
        self.world = world
        self.service = RouterService(world)
        self.reports = ReportService(world, self.service.kick)
        self._outside = outside
        self.listener = NativeListener(RouterServicer(world, self.service, self.reports), host=host, port=port)
        self._good: Runtime | None = None
        self._deciding = ""
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def changed(self) -> None:
        """Something that an acknowledgement shows is different now."""
        self._changed.set()
        self.service.kick()

    async def start(self) -> None:
        """Begins to listen and to follow; ready with the first configuration."""
        await self.listener.start()
        loops: dict[str, Coroutine[None, None, None]] = {
            "config": self._follow_config(),
            "refresh": self._every(lambda: REFRESH_S, self._refresh, "refresh"),
            "heartbeat": self._every(self._heartbeat_s, self._beat, "heartbeat"),
            "scrape": self._every(self._scrape_s, self._scrape, "scrape"),
        }
        if self._outside.acknowledge is not None:
            loops["acknowledge"] = self._acknowledge_changes(self._outside.acknowledge)
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        for task in self._tasks:
            task.add_done_callback(_log_end)

    async def drain(self, grace_s: float) -> None:
        """Stops taking requests, lets reports end or move to other routers, and leaves.

        Reservations that are still open stay for one heartbeat time-out, so that another router can take them over.
        """
        _log.info("draining", extra={"in_flight": len(self.world.open_requests)})
        await self.listener.set_ready(ready=False)
        await asyncio.sleep(SETTLE_S)
        await self.listener.drain(grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._outside.directory.close()
        if not len(self.world.open_requests):
            await self.world.ledger.leave()
        await self.world.ledger.close()

    async def adopt(self, bundle: ConfigBundle) -> None:
        """Puts a configuration in force, or keeps the last good one and says why."""
        digest = digest_of(bundle.content)
        try:
            runtime = await self._runtime_for(bundle, digest)
        except (InvalidConfigError, ModelRejectedError) as error:
            self._refuse(digest, error)
            return
        self._good = runtime
        self._put_in_force(runtime)
        await self.listener.set_ready(ready=True)

    async def _runtime_for(self, bundle: ConfigBundle, digest: str) -> Runtime:
        if self._good is not None and self._good.digest == digest and bundle.declared_digest in (None, digest):
            return self._good
        try:
            return await asyncio.to_thread(self._outside.builder.build, bundle)
        except ModelRejectedError as error:
            if self._good is not None:
                raise
            self.world.metrics.config_refused.labels(error.reason).inc()
            _log.error("the policy's model is refused: the fallback decides", extra={"reason": error.reason,
                                                                                  "detail": str(error)})  # fmt: skip
            return await asyncio.to_thread(self._outside.builder.build_on_fallback, bundle, error)

    def _refuse(self, digest: str, error: LLMRouterError) -> None:
        self.world.metrics.config_refused.labels(error.reason).inc()
        _log.error("configuration refused: the last good one stays", extra={"reason": error.reason, "digest": digest,
                                                                         "detail": str(error)})  # fmt: skip
        if self._good is not None:
            readiness = Readiness(ready=False, reason=error.reason, message=str(error))
            self._put_in_force(self._good.refusing(digest, readiness))

    def _put_in_force(self, runtime: Runtime) -> None:
        self.service.swap(runtime)
        self._outside.directory.apply(runtime.config)
        logging.getLogger().setLevel(runtime.config.log_level)
        self._show_policy(runtime)
        _log.info(
            "configuration in force",
            extra={
                "digest": runtime.digest[:12],
                "policy": runtime.config.policy.name,
                "deciding": runtime.deciding,
                "provider": runtime.provider or "none",
            },
        )
        self.changed()

    def _show_policy(self, runtime: Runtime) -> None:
        self._deciding = runtime.deciding
        digest, provider = digest_of_policy(runtime.config)[:12], runtime.provider or "none"
        self.world.metrics.policy_info.clear()
        self.world.metrics.policy_info.labels(runtime.config.policy.name, digest, provider, runtime.deciding).set(1)

    async def _follow_config(self) -> None:
        async for bundle in self._outside.source.bundles():
            await self.adopt(bundle)

    async def _refresh(self) -> None:
        world = self.world
        loads = await world.ledger.loads()
        if world.replica.replace(loads, now_s=world.clock()):
            self.service.kick()
        world.metrics.held_requests.set(self.service.held)
        world.metrics.load_age_seconds.set(world.replica.age_s(world.clock()))
        world.metrics.scrape_age_seconds.set(world.replica.oldest_signal_age_s(world.clock()) or 0.0)
        runtime = self.service.runtime
        if runtime is not None and runtime.deciding != self._deciding:
            self._show_policy(runtime)
            self.changed()
        instances = world.instances.current()
        world.metrics.instances.labels("ready").set(len(instances))
        world.metrics.instances.labels("total").set(world.instances.total)
        world.metrics.in_flight_requests.clear()
        world.metrics.in_flight_tokens.clear()
        for instance in instances[:MAX_INSTANCE_LABELS]:
            load = world.replica.load_of(instance.instance_id)
            world.metrics.in_flight_requests.labels(instance.pool, instance.instance_id).set(load.requests)
            world.metrics.in_flight_tokens.labels(instance.pool, instance.instance_id).set(load.context_tokens)

    async def _beat(self) -> None:
        world, runtime = self.world, self.service.runtime
        if runtime is None:
            return
        state, limits = runtime.config.state, runtime.config.limits
        await world.ledger.heartbeat(state.heartbeat_timeout_seconds)
        for router_id, count in (await world.ledger.expire()).items():
            world.metrics.reservations.labels("expired").inc(count)
            _log.warning("reservations of a lost router released", extra={"router": router_id, "reservations": count})
        lost = world.open_requests.given_up(
            now_s=world.clock(), claim_timeout_s=limits.claim_timeout_seconds, grace_s=limits.report_grace_seconds
        )
        await self.reports.give_up(lost)

    async def _scrape(self) -> None:
        outside = self._outside
        await outside.scraper.round(outside.directory.all_instances(), interval_s=self._scrape_s())
        outside.directory.set_unreachable(outside.scraper.unreachable)
        self.world.replica.forget_except(i.instance_id for i in outside.directory.all_instances())

    def _heartbeat_s(self) -> float:
        runtime = self.service.runtime
        return runtime.config.state.heartbeat_seconds if runtime else REFRESH_S

    def _scrape_s(self) -> float:
        runtime = self.service.runtime
        return runtime.config.limits.scrape_interval_seconds if runtime else REFRESH_S

    async def _every(self, interval_s: Callable[[], float], step: Callable[[], Awaitable[None]], part: str) -> None:
        while True:
            try:
                await step()
            except Exception:  # noqa: BLE001 - a loop outlives its failures; counted and logged
                self.world.metrics.errors.labels(part).inc()
                _log.exception("background work failed", extra={"part": part})
            await asyncio.sleep(interval_s())

    async def _acknowledge_changes(self, acknowledge: Callable[[RouterAcknowledgement], Awaitable[None]]) -> None:
        while True:
            self._changed.clear()
            acknowledgement = self._outside.describe(self)
            if acknowledgement is not None:
                try:
                    await acknowledge(acknowledgement)
                except Exception as error:  # noqa: BLE001 - whatever the API says, the router routes on; counted, retried
                    self.world.metrics.errors.labels("acknowledge").inc()
                    _log.warning("acknowledgement not written", extra={"error": f"{type(error).__name__}: {error}"})
                    await asyncio.sleep(REFRESH_S)
                    self._changed.set()
            try:
                async with asyncio.timeout(ACKNOWLEDGE_S):
                    await self._changed.wait()
            except TimeoutError:
                continue


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a loop ended", exc_info=error, extra={"loop": task.get_name()})
