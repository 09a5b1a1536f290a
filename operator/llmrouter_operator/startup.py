"""Starts the operator: checks, health, leadership, then kopf."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import kopf
from prometheus_client import CollectorRegistry

from llmrouter.errors import LLMRouterError
from llmrouter.fetching.child import fetch
from llmrouter_operator.cluster import Cluster, ClusterError
from llmrouter_operator.controller import Controller
from llmrouter_operator.handlers import OWNED_SELECTOR, register
from llmrouter_operator.health import serve_health
from llmrouter_operator.leadership import Leadership
from llmrouter_operator.metrics import OperatorMetrics
from llmrouter_operator.models import LLM_ROUTER, OWNED_KINDS, ROUTING_POLICY
from llmrouter_operator.permissions import missing_permissions
from llmrouter_operator.reconcile import Reconciler
from llmrouter_operator.remote_models import RemoteModels
from llmrouter_operator.seen import SeenObjects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from llmrouter_operator.models import RouterDefaults

logger = logging.getLogger(__name__)
WATCH_S = 120
"""A watch is opened anew after this long, whatever it says."""
SILENCE_S = 60
"""A watch that says nothing for this long, not even a bookmark, is taken for dead and opened anew."""


class StartupError(LLMRouterError):
    """The operator cannot start; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run. ``namespaces`` is empty for all."""

    namespaces: tuple[str, ...]
    own_namespace: str
    identity: str
    defaults: RouterDefaults
    lease_name: str
    lease_s: int
    http_port: int
    allowed_hosts: tuple[str, ...] = ()
    """Where models may be fetched from."""

    @property
    def scopes(self) -> Sequence[str | None]:
        """Namespaces, or the one scope ``None`` for all."""
        return self.namespaces or (None,)


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf as a source of events alone: no finalizers, no annotations, no events of its own, no watch that hangs."""
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = WATCH_S
    settings.watching.client_timeout = WATCH_S + 10
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = SILENCE_S + 10
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = 20
    for kind in OWNED_KINDS:
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = OWNED_SELECTOR
    return settings


async def run(options: Options) -> None:
    """Runs until SIGTERM or SIGINT; raises StartupError, or LLMRouterError when leadership is lost."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    cluster = await Cluster.connect()
    metrics = OperatorMetrics(CollectorRegistry())
    checked = asyncio.Event()
    try:
        health = await serve_health(metrics.registry, checked.is_set, port=options.http_port)
        try:
            await _check(cluster, options)
            checked.set()
            async with _leading(cluster, options, stop) as leadership:
                if leadership is not None:
                    metrics.leading.set(1)
                    await _operate(cluster, options, metrics, leadership)
        finally:
            await health.cleanup()
    finally:
        await cluster.close()


async def _check(cluster: Cluster, options: Options) -> None:
    """Fails at once, in one line, where something that the operator needs is missing."""
    try:
        for kind in (LLM_ROUTER, ROUTING_POLICY):
            if not await cluster.serves(kind):
                raise StartupError(f"the API server does not know {kind.plural}.{kind.group}: install the CRDs first")
        missing = await missing_permissions(
            cluster, options.scopes, lease_namespace=options.own_namespace, lease_name=options.lease_name
        )
    except ClusterError as error:
        raise StartupError(f"the API server cannot be asked: {error}") from error
    if missing:
        raise StartupError(f"missing permissions: {', '.join(missing)}; grant them to the operator's ServiceAccount")


@contextlib.asynccontextmanager
async def _leading(cluster: Cluster, options: Options, stop: asyncio.Event) -> AsyncIterator[Leadership | None]:
    """Waits to lead; gives ``None`` where the replica is told to stop before that, and the Lease back at the end."""
    leadership = Leadership(
        cluster,
        namespace=options.own_namespace,
        name=options.lease_name,
        identity=options.identity,
        lease_s=options.lease_s,
        clock_s=time.monotonic,
    )
    acquiring, stopping = asyncio.create_task(leadership.acquire()), asyncio.create_task(stop.wait())
    await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    acquiring.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await acquiring
    try:
        yield None if stop.is_set() else leadership
    finally:
        await leadership.give_back()


async def _operate(cluster: Cluster, options: Options, metrics: OperatorMetrics, leadership: Leadership) -> None:
    """Watches and reconciles for as long as this replica leads; kopf takes the signals over and ends on them."""
    remote = RemoteModels(cluster, options.allowed_hosts, fetch=fetch, clock_s=time.monotonic)
    seen = SeenObjects(cluster, time.monotonic)
    reconciler = Reconciler(cluster, options.defaults, metrics, now=lambda: datetime.now(UTC), remote=remote, seen=seen)
    controller = Controller(reconciler.reconcile, metrics)
    remote.listen(controller.nudge)
    registry = kopf.OperatorRegistry()
    register(registry, controller, seen)
    kopf.on.login(registry=registry)(_login)

    ended = asyncio.Event()

    async def end(**_: object) -> None:
        ended.set()  # kopf waits for whoever waits for this
        await controller.stop()

    kopf.on.cleanup(registry=registry)(end)
    keeping = asyncio.create_task(leadership.keep())
    keeping.add_done_callback(lambda _: ended.set())
    try:
        await kopf.operator(
            registry=registry,
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not options.namespaces,
            namespaces=options.namespaces,
            stop_flag=ended,
        )
    finally:
        await controller.stop()
        await remote.stop()
    if keeping.done():
        raise LLMRouterError("another replica may lead now: this one ends and is to be started again")
    keeping.cancel()


def _login(*, settings: kopf.OperatorSettings, **_: object) -> kopf.ConnectionInfo | None:
    """Kopf's own credentials: the mounted service account, else the kubeconfig."""
    return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
