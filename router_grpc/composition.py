"""Puts a router together from settings: the one place that knows every concrete part."""

from __future__ import annotations

import logging
import random
import secrets
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client import CollectorRegistry

from llmrouter.lengths.prompt_tokens import PromptTokens
from llmrouter.lengths.served import ServedLengths
from llmrouter.metrics import RouterMetrics
from llmrouter.planning.mix import Mixes
from router_grpc.acknowledging import acknowledgement_of
from router_grpc.adapters.calibration_store import RedisCalibrationStore
from router_grpc.adapters.engine_metrics import EngineScraper
from router_grpc.adapters.instances import InstanceDirectory
from router_grpc.adapters.length_exchange import RedisLengthStore, StoredLengthExchange
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.adapters.own_models import OwnModels
from router_grpc.adapters.prefix_exchange import RedisPrefixExchange
from router_grpc.adapters.redis_ledger import RedisLedger, redis_client
from router_grpc.adapters.resilient_ledger import ResilientLedger
from router_grpc.adapters.tokenizers import TokenizedPrompts
from router_grpc.app import Outside, RouterApp
from router_grpc.calibrating import Calibrating
from router_grpc.candidate_told import candidate_told
from router_grpc.certificates import Certificates
from router_grpc.changes import Changes
from router_grpc.decision_log import DecisionLog
from router_grpc.draining import in_flight_on_draining, quietest_pods
from router_grpc.length_service import LengthService
from router_grpc.length_sharing import LengthSharing
from router_grpc.listeners.server import OWN_PICKER_FIELD, PICKER_FIELD
from router_grpc.open_requests import OpenRequests
from router_grpc.prefix_sharing import KEY_BYTES, PrefixSharing
from router_grpc.prefixing import Prefixing
from router_grpc.probing import probe
from router_grpc.replica import LoadReplica
from router_grpc.runtime import RuntimeBuilder
from router_grpc.world import World

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from kubernetes.aio import client
    from redis.asyncio import Redis

    from llmrouter.acknowledgement import RouterAcknowledgement
    from llmrouter.resources import StateSpec
    from router_grpc.app import ConfigSource
    from router_grpc.certificates import Tls
    from router_grpc.ports import Ledger
    from router_grpc.processes import Place
    from router_grpc.telling import Turn

REDIS_TIMEOUT_S = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a router is told from outside its configuration. ``seed`` of ``None`` draws one from the system.

    ``tls`` is ``None`` where the endpoint picker's port is in plain text; ``ext_proc_is_fast`` says which transport
    serves it. ``place`` is that of one process among several, which share all ports but the one that is its own.
    """

    router_id: str
    namespace: str = ""
    ledger_namespace: str = ""
    host: str = "0.0.0.0"  # noqa: S104 - pods are reached from other pods
    grpc_port: int = 9000
    metrics_port: int = 9090
    ext_proc_port: int | None = None
    openai_port: int | None = None
    ext_proc_is_fast: bool = True
    tls: Tls | None = None
    redis_password: str | None = None
    tokenizers: Path | None = None
    models: Path | None = None
    """Where the volume of models is mounted."""
    kept_models: Path | None = None
    """Where copies of what is on that volume are kept."""
    decisions: Path | None = None
    seed: int | None = None
    place: Place | None = None

    @property
    def ports(self) -> dict[str, int]:
        """Ports of the gRPC server, by the field of ``spec.listeners`` that names each."""
        given = {"grpcPort": self.grpc_port, PICKER_FIELD: self.ext_proc_port}
        if self.place is not None and self.ext_proc_port is not None:
            given[OWN_PICKER_FIELD] = self.place.picker_port(self.ext_proc_port)
        return {field: port for field, port in given.items() if port is not None}


@dataclass(slots=True)
class Router:
    """A composed router and what has to be closed after it."""

    app: RouterApp
    registry: CollectorRegistry
    session: aiohttp.ClientSession

    async def close(self) -> None:
        """Gives connections back; the app is drained before."""
        await self.session.close()


def compose(
    settings: Settings,
    *,
    state: StateSpec,
    source: ConfigSource,
    core: client.CoreV1Api | None,
    acknowledge: Callable[[RouterAcknowledgement], Awaitable[Turn | None]] | None,
) -> Router:
    """A router that is not started yet; must be called on a running event loop."""
    registry = CollectorRegistry()
    metrics = RouterMetrics(registry)
    changes = Changes()

    def watch_failed(error: Exception) -> None:
        metrics.errors.labels("instances").inc()
        _log.warning("following pods failed", extra={"error": f"{type(error).__name__}: {error}"[:500]})

    redis = _redis(settings, state)
    ledger, is_degraded = _ledger(settings, state, redis, metrics=metrics, changes=changes)
    directory = InstanceDirectory(core, namespace=settings.namespace, on_change=changes.tell, on_error=watch_failed)
    rng = random.Random(settings.seed)
    lengths = LengthService(
        ServedLengths(shared=redis is not None),
        TokenizedPrompts(PromptTokens()),
        clock=time.monotonic,
        metrics=metrics,
    )
    world = World(
        ledger=ledger,
        is_degraded=is_degraded,
        replica=LoadReplica(),
        instances=directory,
        open_requests=OpenRequests(),
        lengths=lengths,
        metrics=metrics,
        clock=time.monotonic,
        rng=rng,
        mix=Mixes(time.monotonic()),
        is_alone=redis is None,
        prefixes=Prefixing(secrets.token_bytes(KEY_BYTES), is_shared=redis is not None),
        calibrating=Calibrating(None if redis is None else _calibrations(settings, redis)),
        decisions=DecisionLog(
            settings.router_id, folder=settings.decisions, metrics=metrics, clock=time.monotonic, now=time.time
        ),
    )
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64))
    scraper = EngineScraper(
        session,
        clock=time.monotonic,
        rng=rng,
        on_signal=world.heard,
        on_failure=lambda reason: metrics.scrape_failures.labels(reason).inc(),
    )
    outside = Outside(
        source=source,
        directory=directory,
        scraper=scraper,
        builder=RuntimeBuilder(
            time.monotonic, tokenizers=settings.tokenizers, own=OwnModels(settings.models, settings.kept_models, probe)
        ),
        changes=changes,
        sharing=None if redis is None else _sharing(settings, redis, lengths, metrics),
        prefix_sharing=None if redis is None else _prefix_sharing(settings, redis, world),
        acknowledge=acknowledge,
        describe=lambda app: describe(app, has_shared_state=state.redis is not None),
        certificates=None
        if settings.tls is None
        else Certificates(settings.tls, metrics=metrics, now=lambda: datetime.now(UTC)),
    )
    app = RouterApp(
        world,
        outside,
        host=settings.host,
        ports=settings.ports,
        is_fast=settings.ext_proc_is_fast,
        openai_port=settings.openai_port,
        is_shared=settings.place is not None,
    )
    return Router(app, registry, session)


def describe(app: RouterApp, *, has_shared_state: bool) -> RouterAcknowledgement | None:
    """The router's acknowledgement now; ``None`` before its first configuration."""
    runtime = app.service.runtime
    if runtime is None:
        return None
    instances = app.world.instances
    return acknowledgement_of(
        runtime,
        router_id=app.world.ledger.router_id,
        shared_state_ready=(not app.world.is_degraded()) if has_shared_state else None,
        instances=(sum(one.instance_id not in instances.draining for one in instances.current()), instances.total),
        in_flight=len(app.world.open_requests),
        resting=app.world.lengths.resting,
        drift=app.world.lengths.watch.drift,
        drift_known=app.world.lengths.watch.drift_known,
        mixes=app.world.mix.by_model(app.world.clock()),
        at_s=time.time(),
        calibration=app.world.calibrating.told(one.instance_id for one in instances.current()),
        certificate=app.certificate,
        candidate=candidate_told(app.world, runtime),
        decision_log=app.world.decisions.readiness,
        draining=in_flight_on_draining(app.world),
        quietest=quietest_pods(app.world),
    )


def _redis(settings: Settings, state: StateSpec) -> Redis | None:
    if state.redis is None:
        return None
    scheme = "rediss" if state.redis.tls else "redis"
    address = f"{scheme}://{state.redis.address}/0"
    return redis_client(address, password=settings.redis_password, timeout_s=REDIS_TIMEOUT_S)


def _sharing(settings: Settings, redis: Redis, lengths: LengthService, metrics: RouterMetrics) -> LengthSharing:
    store = RedisLengthStore(redis, settings.ledger_namespace, timeout_s=REDIS_TIMEOUT_S)
    return LengthSharing(StoredLengthExchange(store, _author(settings)), lengths, metrics=metrics)


def _prefix_sharing(settings: Settings, redis: Redis, world: World) -> PrefixSharing:
    namespace, author = settings.ledger_namespace, _author(settings)
    exchange = RedisPrefixExchange(redis, namespace, author, timeout_s=REDIS_TIMEOUT_S)
    return PrefixSharing(exchange, world.prefixes, world.instances, metrics=world.metrics.prefixes)


def _author(settings: Settings) -> str:
    """This router, in this life of its process."""
    return f"{settings.router_id}/{uuid.uuid4().hex}"


def _calibrations(settings: Settings, redis: Redis) -> RedisCalibrationStore:
    return RedisCalibrationStore(redis, settings.ledger_namespace, timeout_s=REDIS_TIMEOUT_S)


def _ledger(
    settings: Settings, state: StateSpec, redis: Redis | None, *, metrics: RouterMetrics, changes: Changes
) -> tuple[Ledger, Callable[[], bool]]:
    local = MemoryLedger(settings.router_id, MemoryBook(), time.monotonic)
    metrics.state_backend_up.set(1)
    if redis is None:
        return local, lambda: False

    def on_change(degraded: bool) -> None:  # noqa: FBT001 - the ledger's callback
        metrics.state_backend_up.set(0 if degraded else 1)
        level, said = (logging.WARNING, "gone: own counts decide") if degraded else (logging.INFO, "back")
        _log.log(level, "shared state is %s", said)
        changes.tell()

    shared = RedisLedger(settings.router_id, redis, settings.ledger_namespace, REDIS_TIMEOUT_S)
    resilient = ResilientLedger(
        shared,
        local,
        heartbeat_ttl_s=state.heartbeat_timeout_seconds,
        clock=time.monotonic,
        on_change=on_change,
    )
    return resilient, lambda: resilient.degraded
