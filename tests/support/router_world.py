"""Routers for tests: one in memory under a clock of the test's own, and composed ones on free ports."""

# ruff: noqa: ANN401 - keyword arguments are handed on to pydantic and protobuf, which check them

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry

from llmrouter.config import canonical_json, compile_policy, compile_router, digest_of
from llmrouter.lengths.prompt_tokens import PromptTokens
from llmrouter.lengths.served import ServedLengths
from llmrouter.metrics import RouterMetrics
from llmrouter.resources import LLMRouterSpec, RoutingPolicySpec
from router_grpc.acknowledging import acknowledgement_of
from router_grpc.adapters.memory_ledger import MemoryBook, MemoryLedger
from router_grpc.adapters.tokenizers import TokenizedPrompts
from router_grpc.calls import RouteAnswer, RouteAsk
from router_grpc.composition import Router, Settings, compose
from router_grpc.decision_log import DecisionLog
from router_grpc.length_service import LengthService
from router_grpc.open_requests import OpenRequests
from router_grpc.replica import LoadReplica
from router_grpc.reports import Report, ReportKind, ReportService
from router_grpc.runtime import ConfigBundle, RuntimeBuilder
from router_grpc.service import RouterService
from router_grpc.v1 import router_pb2 as pb
from router_grpc.v1 import router_pb2_grpc as pb_grpc
from router_grpc.world import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from llmrouter.acknowledgement import RouterAcknowledgement
    from llmrouter.config import RouterConfig
    from llmrouter.domain import Instance
    from llmrouter.errors import InvalidConfigError
    from llmrouter.lengths.drift import Drift
    from llmrouter.planning.mix import TrafficMix
    from router_grpc.ports import Ledger
    from router_grpc.runtime import Runtime

MODEL = "llama"
PROFILE = "llama-3.1-8b-rtx4090"
WITHIN_S = 20.0
EPOCH_S = 1_000_000.0
"""What a bench's decision log adds to its clock."""


async def until(condition: Callable[[], bool | Awaitable[bool]], *, what: str = "", within_s: float = WITHIN_S) -> None:
    """Polls; fails naming ``what`` when the time is up."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                held = condition()
                if held if isinstance(held, bool) else await held:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None


def router_spec(endpoints: tuple[str, ...] = ("a:1", "b:1"), **parts: Any) -> LLMRouterSpec:
    """A spec of one pool; ``parts`` replace top-level fields of the resource (camelCase)."""
    return LLMRouterSpec.model_validate(
        {
            "models": [{"name": MODEL}],
            "pools": [{"name": "main", "endpoints": list(endpoints), "profile": {"name": PROFILE}}],
            "policyRef": {"name": "policy"},
            "router": {"replicas": 1},
            "predictor": {"type": "Constant", "constantTokens": 100},
            "limits": {"maxInFlightPerInstance": 4},
            **parts,
        }
    )


def config_of(
    *endpoints: str, policy: dict[str, Any] | None = None, model_sha256: str | None = None, **parts: Any
) -> RouterConfig:
    """A compiled configuration; the policy is LeastInFlight unless told."""
    spec = router_spec(endpoints or ("a:1", "b:1"), **parts)
    section = RoutingPolicySpec.model_validate({"type": "LeastInFlight", **(policy or {})})
    compiled = compile_policy("policy", section, model_sha256=model_sha256)
    return compile_router(spec, name="llm", namespace="ns", generation=1, policy=compiled)


def bundle_of(config: RouterConfig, *, model: bytes | None = None, manifest: bytes | None = None) -> ConfigBundle:
    """As the operator declares it."""
    content = canonical_json(config)
    return ConfigBundle(content, digest_of(content), model, manifest)


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FixedInstances:
    """An ``InstanceSource`` whose instances the test sets."""

    instances: tuple[Instance, ...] = ()
    draining: frozenset[str] = frozenset()

    def current(self) -> tuple[Instance, ...]:
        return self.instances

    def get(self, instance_id: str) -> Instance | None:
        return next((i for i in self.instances if i.instance_id == instance_id), None)

    @property
    def total(self) -> int:
        return len(self.instances)


def instances_of(config: RouterConfig) -> tuple[Instance, ...]:
    """The declared endpoints of a configuration, all ready."""
    from router_grpc.adapters.instances import InstanceDirectory  # noqa: PLC0415

    directory = InstanceDirectory(None, namespace="", on_change=lambda: None, on_error=lambda _error: None)
    directory.apply(config)
    return directory.current()


def said_of(
    runtime: Runtime,
    *,
    resting: bool = False,
    drift: Drift | None = None,
    drift_known: bool = True,
    mixes: Mapping[str, TrafficMix] | None = None,
) -> RouterAcknowledgement:
    """What a router that runs this acknowledges; one of its two instances is ready."""
    return acknowledgement_of(
        runtime,
        router_id="r",
        shared_state_ready=None,
        instances=(1, 2),
        in_flight=0,
        resting=resting,
        drift=drift,
        drift_known=drift_known,
        mixes=mixes or {},
        at_s=0.0,
    )


class Bench:
    """One router in memory: its services, its ledger and its clock in the test's hands."""

    def __init__(
        self,
        config: RouterConfig,
        *,
        book: MemoryBook | None = None,
        router_id: str = "r1",
        clock: Callable[[], float] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.registry = CollectorRegistry()
        self.instances = FixedInstances(instances_of(config))
        self.degraded = False
        now = clock or self.clock
        metrics = RouterMetrics(self.registry)
        self.world = World(
            ledger=ledger or MemoryLedger(router_id, book or MemoryBook(), now),
            is_degraded=lambda: self.degraded,
            replica=LoadReplica(),
            instances=self.instances,
            open_requests=OpenRequests(),
            lengths=LengthService(
                ServedLengths(),
                TokenizedPrompts(PromptTokens()),
                clock=now,
                metrics=metrics,
            ),
            metrics=metrics,
            clock=now,
            rng=random.Random(1),
            decisions=DecisionLog(router_id, metrics=metrics, clock=now, now=lambda: EPOCH_S + now()),
        )
        self.service = RouterService(self.world)
        self.reports = ReportService(self.world, self.service.kick, self.service.settle)
        self.builder = RuntimeBuilder(now)
        self.put(config)

    def put(self, config: RouterConfig) -> None:
        self.service.swap(self.builder.build(bundle_of(config)))

    async def route(self, request_id: str = "", *, deadline_s: float | None = None, **fields: Any) -> RouteAnswer:
        ask = RouteAsk(**{"model": MODEL, "prompt_tokens": 100, "request_id": request_id, **fields})
        return await self.service.route(ask, deadline_s=deadline_s)

    async def report(
        self, request_id: str, kind: ReportKind = ReportKind.FINISHED, *, stream_id: int = 0, **fields: Any
    ) -> bool:
        return await self.reports.report(Report(request_id, kind, **fields), stream_id=stream_id)

    async def sweep(self, *, claim_timeout_s: float = 30.0, grace_s: float = 5.0) -> None:
        """One round of giving up."""
        lost = self.world.open_requests.given_up(
            now_s=self.world.clock(), claim_timeout_s=claim_timeout_s, grace_s=grace_s
        )
        await self.reports.give_up(lost)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@dataclass
class PushedSource:
    """A source of configurations that the test feeds."""

    queue: asyncio.Queue[ConfigBundle] = field(default_factory=asyncio.Queue)

    async def bundles(self, on_refused: Callable[[InvalidConfigError], None]) -> AsyncIterator[ConfigBundle]:
        del on_refused
        while True:
            yield await self.queue.get()

    def push(self, config: RouterConfig) -> None:
        self.queue.put_nowait(bundle_of(config))


@dataclass
class LiveRouter:
    """A composed router that serves, and a client of it."""

    router: Router
    source: PushedSource
    acknowledgements: list[RouterAcknowledgement]
    channel: grpc.aio.Channel
    stub: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.router.app.listener.port}"

    def count(self, name: str, **labels: str) -> float:
        return self.router.registry.get_sample_value(name, labels) or 0.0

    async def route(self, request_id: str = "", *, timeout_s: float = 10.0, **fields: Any) -> pb.RouteResponse:
        request = pb.RouteRequest(**{"model": MODEL, "prompt_tokens": 100, "request_id": request_id, **fields})
        answer: pb.RouteResponse = await self.stub.Route(request, timeout=timeout_s)
        return answer

    async def report(self, *events: pb.ReportEvent) -> list[pb.ReportAcknowledgement]:
        """One stream of these events, closed after."""
        return [acknowledgement async for acknowledgement in self.stub.Report(iter(events), timeout=10)]

    async def finish(self, request_id: str, *, output_tokens: int = 10) -> bool:
        event = pb.ReportEvent(request_id=request_id, finished=pb.Finished(output_tokens=output_tokens))
        return bool((await self.report(event))[0].known)


@asynccontextmanager
async def live_router(
    config: RouterConfig,
    *,
    router_id: str = "r1",
    source: Any = None,
    core: Any = None,
    acknowledge: Any = None,
    namespace: str = "",
    grace_s: float = 0.0,
    **changes: Any,
) -> AsyncIterator[LiveRouter]:
    """A router on free ports, ready with ``config`` (or what ``source`` gives); ``changes`` replace its settings."""
    pushed = PushedSource()
    acknowledgements: list[RouterAcknowledgement] = []

    async def keep(acknowledgement: RouterAcknowledgement) -> None:
        acknowledgements.append(acknowledgement)

    settings = Settings(
        router_id=router_id,
        namespace=namespace,
        ledger_namespace="tests/routers",
        host="127.0.0.1",
        grpc_port=0,
        seed=1,
        **changes,
    )
    router = compose(settings, state=config.state, source=source or pushed, core=core, acknowledge=acknowledge or keep)
    if source is None:
        pushed.push(config)
    await router.app.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{router.app.listener.port}")
    live = LiveRouter(router, pushed, acknowledgements, channel, pb_grpc.RouterStub(channel))  # type: ignore[no-untyped-call]
    try:
        await until(lambda: router.app.listener.is_ready, what="router ready")
        yield live
    finally:
        await channel.close(None)
        await router.app.drain(grace_s, settle_s=0)
        await router.close()


def wall_s() -> float:
    """The clock of composed routers."""
    return time.monotonic()
