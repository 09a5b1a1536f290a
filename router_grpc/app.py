"""One router, composed: the service, its ledger, what it follows and the loops that keep it fresh."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llmrouter.config import digest_of
from llmrouter.errors import InvalidConfigError, LedgerUnavailableError, LLMRouterError, ModelRejectedError
from llmrouter.routing.calibration_use import Calibrate
from router_grpc.candidate_told import arms_pause_s
from router_grpc.draining import EmptyWatch
from router_grpc.gauges import Gauges
from router_grpc.listeners.ext_proc import PickerServicer
from router_grpc.listeners.fast import FastServer
from router_grpc.listeners.native import RouterServicer
from router_grpc.listeners.openai import OpenAIFront
from router_grpc.listeners.server import GrpcServer
from router_grpc.openai.dispatch import FrontDesk
from router_grpc.picker.session import PickerDesk
from router_grpc.presuming import STEP_S
from router_grpc.readiness import Readiness
from router_grpc.reports import ReportService
from router_grpc.service import RouterService
from router_grpc.telling import QUIET_S, Telling
from router_grpc.unbroken import end_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping

    from llmrouter.acknowledgement import RouterAcknowledgement
    from router_grpc.adapters.engine_metrics import EngineScraper
    from router_grpc.adapters.instances import InstanceDirectory
    from router_grpc.certificates import Certificates
    from router_grpc.changes import Changes
    from router_grpc.length_sharing import LengthSharing
    from router_grpc.prefix_sharing import PrefixSharing
    from router_grpc.runtime import ConfigBundle, Runtime, RuntimeBuilder
    from router_grpc.telling import Turn
    from router_grpc.world import World

REFRESH_S = 0.1
"""How often the loads of the ledger are read: one call, whatever the number of instances."""

SHOW_S = 1.0
"""How often gauges are set."""

SHARE_S = 1.0
"""How often routers tell each other what they learned of output lengths."""

CALIBRATE_S = 5.0
"""How often what is learned of step times is taken up or saved, where there is something to do."""

RETRY_S = 1.0
"""How long a source of configurations that failed is left alone."""

MODELS_S = 5.0
"""How often a model that was not on its volume is looked for again."""

CERTIFICATE_S = 2.0
"""How often a mounted certificate is looked at."""

SETTLE_S = 1.0
"""How long a draining router still answers, so that whoever still believes it ready is served."""

_log = logging.getLogger(__name__)


class ConfigSource(Protocol):
    """Where configurations come from."""

    def bundles(self, on_refused: Callable[[InvalidConfigError], None]) -> AsyncIterator[ConfigBundle]:
        """Every configuration that appears, the present one first; what is none is told to ``on_refused``."""
        ...


@dataclass(frozen=True, slots=True)
class Outside:
    """What a router follows and tells. ``acknowledge`` and what shares are ``None`` where nobody listens.

    ``acknowledge`` may answer when it is this router's turn again. ``certificates`` are ``None`` where no port speaks
    TLS.
    """

    source: ConfigSource
    directory: InstanceDirectory
    scraper: EngineScraper
    builder: RuntimeBuilder
    changes: Changes
    sharing: LengthSharing | None
    prefix_sharing: PrefixSharing | None
    acknowledge: Callable[[RouterAcknowledgement], Awaitable[Turn | None]] | None
    describe: Callable[[RouterApp], RouterAcknowledgement | None]
    certificates: Certificates | None = None


class RouterApp:
    """Runs until told to drain. Each loop survives its own failures, which are logged and counted."""

    def __init__(
        self,
        world: World,
        outside: Outside,
        *,
        host: str,
        ports: Mapping[str, int],
        is_fast: bool = True,
        openai_port: int | None = None,
        is_shared: bool = False,
    ) -> None:
        self.world = world
        self.service = RouterService(world)
        self.reports = ReportService(world, self.service.kick, self.service.settle)
        self._outside = outside
        parts = (world, self.service, self.reports)
        self.desk = PickerDesk(*parts)
        tls = outside.certificates
        self.listener = GrpcServer(
            RouterServicer(*parts),
            PickerServicer(self.desk),
            host=host,
            ports=ports,
            certificates=tls,
            fast=FastServer(self.desk, tls=None if tls is None else tls.context) if is_fast else None,
            is_shared=is_shared,
        )
        self.front = None if openai_port is None else self._front(host, openai_port, is_shared=is_shared)
        self._gauges = Gauges(world, self.service)
        self._latest: ConfigBundle | None = None
        self._good: tuple[ConfigBundle, Runtime] | None = None
        self._deciding = ""
        self._empty = EmptyWatch()
        self._telling = None if outside.acknowledge is None else self._teller(outside.acknowledge)
        self._tasks: list[asyncio.Task[None]] = []
        outside.changes.listen(self._note_change)

    def _front(self, host: str, port: int, *, is_shared: bool) -> OpenAIFront:
        desk = FrontDesk(self.world, self.service, self.reports)
        return OpenAIFront(
            desk,
            intake=self.desk.intake,
            is_ready=lambda: self.listener.is_ready,
            host=host,
            port=port,
            is_shared=is_shared,
        )

    def _teller(self, acknowledge: Callable[[RouterAcknowledgement], Awaitable[Turn | None]]) -> Telling:
        return Telling(
            acknowledge,
            lambda: self._outside.describe(self),
            has_news=lambda: self.world.trial.has_news,
            news_s=lambda: arms_pause_s(self.service.runtime, longest_s=QUIET_S),
            failures=self.world.metrics.errors.labels("acknowledge"),
        )

    def _note_change(self) -> None:
        if self._telling is not None:
            self._telling.note_change()
        world = self.world
        world.slow_start.follow([one.instance_id for one in world.instances.current()], now_s=world.clock())
        self.service.kick()

    async def start(self) -> None:
        """Begins to listen and to follow; ready with the first configuration."""
        self.world.lengths.start()
        await self.listener.start()
        if self.front is not None:
            await self.front.start()
        loops: dict[str, Coroutine[None, None, None]] = {
            "config": self._follow_config(),
            "refresh": self._every(lambda: REFRESH_S, self._refresh, "refresh"),
            "heartbeat": self._every(self._heartbeat_s, self._beat, "heartbeat"),
            "sweep": self._every(self._heartbeat_s, self._sweep, "sweep"),
            "presume": self._every(lambda: STEP_S, self._presume, "presume"),
            "scrape": self._every(self._scrape_s, self._scrape, "scrape"),
            "gauges": self._every(lambda: SHOW_S, self._show, "gauges"),
            "calibration": self._every(lambda: CALIBRATE_S, self._calibrate, "calibration"),
            "models": self._every(lambda: MODELS_S, self._look_for_models, "models"),
        }
        if self._outside.sharing is not None:
            loops["share"] = self._every(lambda: SHARE_S, self._share, "share")
        if self._outside.prefix_sharing is not None:
            loops["prefixes"] = self._share_prefixes(self._outside.prefix_sharing)
        if self._outside.certificates is not None:
            loops["certificate"] = self._every(lambda: CERTIFICATE_S, self._look_at_certificate, "certificate")
        if self._telling is not None:
            loops["acknowledge"] = self._telling.run()
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        for task in self._tasks:
            task.add_done_callback(_log_end)

    async def drain(self, grace_s: float, *, settle_s: float = SETTLE_S) -> None:
        """Stops taking requests, lets reports end or move to other routers, and leaves.

        Reservations that are still open stay for one heartbeat time-out, so that another router can take them over.
        """
        _log.info("draining", extra={"in_flight": len(self.world.open_requests)})
        await self.listener.retire()
        await asyncio.sleep(settle_s)
        await asyncio.gather(self.listener.drain(grace_s), *([] if self.front is None else [self.front.drain(grace_s)]))
        await self.desk.settled()
        await self.world.unbroken.settled()
        await end_tasks(self._tasks)
        await self._last_share()
        await asyncio.to_thread(self.world.decisions.close)
        await self.world.lengths.close()
        await self._outside.directory.close()
        await self._outside.scraper.close()
        if not len(self.world.open_requests):
            await self.world.ledger.leave()
        await self.world.ledger.close()

    @property
    def certificate(self) -> Readiness | None:
        """Whether the declared certificate is served; ``None`` where no port speaks TLS."""
        return None if self._outside.certificates is None else self._outside.certificates.readiness

    async def adopt(self, bundle: ConfigBundle) -> None:
        """Puts a configuration in force, or keeps the last good one and says why."""
        self._latest = bundle
        try:
            runtime = await self._runtime_for(bundle)
        except (InvalidConfigError, ModelRejectedError) as error:
            self._refuse(error, digest_of(bundle.content))
            return
        if runtime is not self.service.runtime:
            self._put_in_force(runtime)

    async def _runtime_for(self, bundle: ConfigBundle) -> Runtime:
        """A runtime of the bundle; the last good one itself where it is of the same bytes."""
        if self._good is not None and self._good[0] == bundle:
            return self._good[1]
        try:
            runtime = await asyncio.to_thread(self._outside.builder.build, bundle)
        except ModelRejectedError as error:
            if self._good is not None:
                raise
            self.world.metrics.config_refused.labels(error.reason).inc()
            _log.error("the policy's model is refused: the fallback decides", extra={"reason": error.reason,
                                                                                  "detail": str(error)})  # fmt: skip
            return await asyncio.to_thread(self._outside.builder.build_on_fallback, bundle, error)
        self._good = (bundle, runtime)
        return runtime

    async def _look_for_models(self) -> None:
        """The latest configuration anew, where a model that it missed on the volume has come."""
        builder, bundle = self._outside.builder, self._latest
        if bundle is None or not await asyncio.to_thread(builder.own.has_come):
            return
        try:
            runtime = await asyncio.to_thread(builder.build, bundle)
        except (InvalidConfigError, ModelRejectedError) as error:
            self._refuse(error, digest_of(bundle.content))
            return
        if bundle is self._latest:
            self._good = (bundle, runtime)
            self._put_in_force(runtime)

    def _refuse(self, error: LLMRouterError, digest: str) -> None:
        self.world.metrics.config_refused.labels(error.reason).inc()
        _log.error("configuration refused: the last good one stays", extra={"reason": error.reason, "digest": digest,
                                                                         "detail": str(error)})  # fmt: skip
        stays = self._good[1] if self._good is not None else self.service.runtime
        if stays is not None:
            readiness = Readiness(ready=False, reason=error.reason, message=str(error))
            self._put_in_force(stays.refusing(digest, readiness))

    def _put_in_force(self, runtime: Runtime) -> None:
        self.service.swap(runtime)
        self._outside.directory.apply(runtime.config)
        self.world.calibrating.follow({pool.name: Calibrate(pool.calibrate) for pool in runtime.config.pools})
        logging.getLogger().setLevel(runtime.config.log_level)
        self._show_policy(runtime)
        _log.info(
            "configuration in force",
            extra={
                "digest": runtime.digest[:12],
                "policy": runtime.config.policy.name,
                "deciding": runtime.deciding,
                "provider": runtime.provider or "none",
                "predictor": runtime.config.predictor.type,
            },
        )
        said = runtime.predictor_readiness
        if said.message:
            level = logging.INFO if said.ready else logging.WARNING
            _log.log(level, "lengths are not foretold as declared", extra={"reason": said.reason,
                                                                           "detail": said.message})  # fmt: skip
        self._outside.changes.tell()

    def _show_policy(self, runtime: Runtime) -> None:
        self._deciding = runtime.deciding
        self._gauges.show_policy(runtime)

    async def _follow_config(self) -> None:
        """Never ends: a source that fails is followed anew."""
        while True:
            try:
                async for bundle in self._outside.source.bundles(lambda error: self._refuse(error, "")):
                    await self.adopt(bundle)
            except Exception:  # noqa: BLE001 - the configuration in force stays; counted, logged, tried again
                self.world.metrics.errors.labels("config").inc()
                _log.exception("following the configuration failed")
            await asyncio.sleep(RETRY_S)

    async def _refresh(self) -> None:
        world, runtime = self.world, self.service.runtime
        loads = await world.ledger.loads(self.service.claims())
        if world.replica.replace(loads, now_s=world.clock()) or self.service.has_yielded:
            self.service.kick()
        if not world.is_degraded():
            world.calibrating.refreshed(world.replica, now_s=world.clock())
        if runtime is None:
            return
        if not self.listener.is_ready and self._outside.directory.synced:
            await self._take_up()
            await self.listener.set_ready()
        if runtime.deciding != self._deciding:
            self._show_policy(runtime)
            self._outside.changes.tell()

    async def _show(self) -> None:
        self.service.reorder()
        self._gauges.show()
        self._believe()
        world, runtime = self.world, self.service.runtime
        if self._empty.has_changed(world) or world.trial.judge(world, None if runtime is None else runtime.candidate):
            self._outside.changes.tell()
        self.reports.judge()
        world.prefixes.show(world.instances.current(), world.metrics.prefixes)
        world.calibrating.show(world.metrics.calibration, (one.instance_id for one in world.instances.current()))

    async def _look_at_certificate(self) -> None:
        before = self.certificate
        if self._outside.certificates is not None:
            self._outside.certificates.refresh()
        if self.certificate != before:
            self._outside.changes.tell()

    async def _calibrate(self) -> None:
        await self.world.calibrating.keep(self.world.clock())

    def _believe(self) -> None:
        """Decisions see instances as they are believed to be."""
        world = self.world
        world.replica.believe(world.calibrating.believed(world.instances.current(), now_s=world.clock()))

    async def _take_up(self) -> None:
        """The first decision is made with what was learned before this router was there, if it can be had."""
        self._believe()
        if self._outside.prefix_sharing is not None:
            await self._outside.prefix_sharing.step()  # hashes of all routers are equal before the first request
        try:
            await self._calibrate()
        except LedgerUnavailableError as error:  # tried again by its own loop; until then the profile decides
            self.world.metrics.errors.labels("calibration").inc()
            _log.warning("saved step times are not known yet", extra={"error": str(error)[:500]})
        self._believe()

    async def _beat(self) -> None:
        world, runtime = self.world, self.service.runtime
        if runtime is None:
            return
        await world.ledger.heartbeat(runtime.config.state.heartbeat_timeout_seconds)

    async def _sweep(self) -> None:
        """Gives up what nobody holds any more; apart from the heartbeat, which it must not keep waiting."""
        world, runtime = self.world, self.service.runtime
        if runtime is None:
            return
        limits = runtime.config.limits
        for router_id, count in (await world.ledger.expire()).items():
            world.metrics.reservations.labels("expired").inc(count)
            level = logging.WARNING if count else logging.INFO
            _log.log(level, "a lost router's reservations released", extra={"router": router_id, "reservations": count})
        lost = world.open_requests.given_up(
            now_s=world.clock(), claim_timeout_s=limits.claim_timeout_seconds, grace_s=limits.report_grace_seconds
        )
        await self.reports.give_up(lost)

    async def _presume(self) -> None:
        await self.world.presuming.step(self.world, self.service.kick)
        self.desk.sweep()

    async def _share(self) -> None:
        if self._outside.sharing is not None:
            await self._outside.sharing.step(self.world.clock())

    async def _share_prefixes(self, sharing: PrefixSharing) -> None:
        """From when the router is ready: until then its instances are not known, and what is told of them is lost."""

        async def step() -> None:
            if self.listener.is_ready:
                await sharing.step()

        await self._every(lambda: sharing.pause_s, step, "prefixes")

    async def _last_share(self) -> None:
        """What was learned since the last step is not lost with this router, if it can be helped."""
        try:
            await self._share()
        except Exception:  # noqa: BLE001 - the drain goes on; counted and logged
            self.world.metrics.errors.labels("share").inc()
            _log.exception("sharing lengths failed")

    async def _scrape(self) -> None:
        outside = self._outside
        instances = outside.directory.all_instances()
        outside.scraper.begin_round(instances, interval_s=self._scrape_s())
        outside.directory.set_unreachable(outside.scraper.unreachable)
        self.world.replica.forget_except(instance.instance_id for instance in instances)
        self.world.prefixes.index.keep_only({instance.instance_id for instance in instances})
        self.world.outliers.keep_only({instance.instance_id for instance in instances})
        self.service.kick()  # what engines report may have made room

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


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("a loop ended", exc_info=error, extra={"loop": task.get_name()})
