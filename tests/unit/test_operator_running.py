"""What keeps the operator going: the controller's pauses, the Lease, kopf's settings, the command line."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING

import kopf
import pytest
from prometheus_client import CollectorRegistry

from llmrouter_operator.__main__ import read_options
from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.controller import Controller, pause_s
from llmrouter_operator.handlers import register
from llmrouter_operator.leadership import Leadership
from llmrouter_operator.metrics import OperatorMetrics
from llmrouter_operator.models import OWNED_KINDS, ObjectKey
from llmrouter_operator.news import News
from llmrouter_operator.reconcile import Outcome
from llmrouter_operator.seen import SeenObjects
from llmrouter_operator.startup import kopf_settings

if TYPE_CHECKING:
    from llmrouter_operator.cluster import Cluster
    from llmrouter_operator.models import Kind, Object

KEY = ObjectKey("team", "fleet")


def metrics() -> OperatorMetrics:
    return OperatorMetrics(CollectorRegistry())


class Reconciles:
    """Counts reconciles; ends the first ones as told, the others well."""

    def __init__(self, *outcomes: Outcome | Exception) -> None:
        self.outcomes = list(outcomes)
        self.count = 0
        self.changed = asyncio.Event()

    async def __call__(self, key: ObjectKey) -> Outcome:
        assert key == KEY
        self.count += 1
        self.changed.set()
        outcome = self.outcomes.pop(0) if self.outcomes else Outcome()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count < count:
                self.changed.clear()
                await self.changed.wait()


async def test_a_burst_of_events_is_one_reconcile_more() -> None:
    reconcile = Reconciles()
    controller = Controller(reconcile, metrics())
    for _ in range(100):
        controller.nudge(KEY)
    await reconcile.reach(1)
    for _ in range(100):
        controller.nudge(KEY)
    await reconcile.reach(2)
    await controller.stop()

    assert reconcile.count == 2


async def test_failures_are_tried_again_and_counted() -> None:
    reconcile = Reconciles(ClusterError("no", 403), RuntimeError("bug"))
    counted = metrics()
    controller = Controller(reconcile, counted)
    controller.nudge(KEY)
    await reconcile.reach(3)
    await controller.stop()

    assert counted.registry.get_sample_value("llmrouter_operator_reconciles_total", {"outcome": "forbidden"}) == 1
    assert counted.registry.get_sample_value("llmrouter_operator_reconciles_total", {"outcome": "failed"}) == 1


async def test_what_is_gone_is_forgotten_and_may_come_again() -> None:
    reconcile = Reconciles(Outcome(gone=True))
    counted = metrics()
    controller = Controller(reconcile, counted)
    controller.nudge(KEY)
    await reconcile.reach(1)
    async with asyncio.timeout(10):
        while counted.registry.get_sample_value("llmrouter_operator_llmrouters") != 0:  # noqa: ASYNC110 - a metric wakes nobody
            await asyncio.sleep(0)
    controller.nudge(KEY)
    await reconcile.reach(2)
    await controller.stop()


async def test_a_namespace_is_nudged_as_a_whole() -> None:
    reconcile = Reconciles()
    controller = Controller(reconcile, metrics())
    controller.nudge(KEY)
    await reconcile.reach(1)
    controller.nudge_namespace("elsewhere")
    controller.nudge_namespace("team")
    await reconcile.reach(2)
    await controller.stop()


async def test_it_looks_again_when_nothing_happens() -> None:
    reconcile = Reconciles(Outcome(again_after_s=0.01))
    controller = Controller(reconcile, metrics(), resync_s=0.01)
    controller.nudge(KEY)
    await reconcile.reach(4)
    await controller.stop()


def test_pauses_grow_to_a_bound() -> None:
    assert [pause_s(failures) for failures in (1, 2, 3, 20)] == [0.5, 1.0, 2.0, 30.0]


class OneLease:
    """The Lease of an API server, with its refusal of stale writes."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.version = 0
        self.broken = False

    async def get(self, _kind: Kind, _namespace: str, _name: str) -> Object | None:
        if self.broken:
            raise ClusterError("away", 0)
        return copy.deepcopy(self.lease)

    async def create(self, _kind: Kind, _namespace: str, value: Object) -> Object:
        if self.lease is not None:
            raise ClusterError("exists", 409)
        return self._store(value)

    async def replace(self, _kind: Kind, _namespace: str, value: Object) -> Object:
        if value["metadata"]["resourceVersion"] != str(self.version):
            raise ClusterError("stale", 409)
        return self._store(value)

    def _store(self, value: Object) -> Object:
        self.version += 1
        self.lease = copy.deepcopy(value)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return self.lease


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def replica(lease: Cluster | OneLease, identity: str, clock: Clock) -> Leadership:
    return Leadership(
        lease,  # type: ignore[arg-type] # the four calls that it makes
        namespace="system",
        name="operator",
        identity=identity,
        lease_s=10,
        clock_s=clock,
    )


async def test_one_replica_holds_the_lease_until_it_falls_silent() -> None:
    lease, clock = OneLease(), Clock()
    first, second = replica(lease, "first", clock), replica(lease, "second", clock)

    assert await first.attempt()
    assert not await second.attempt()
    clock.now_s = 9
    assert await first.attempt()
    assert not await second.attempt()
    clock.now_s = 18
    assert not await second.attempt()
    clock.now_s = 19.5
    assert await second.attempt()
    assert not await first.attempt()
    assert lease.lease is not None
    assert lease.lease["spec"]["leaseTransitions"] == 1


async def test_a_lease_given_back_is_free_at_once() -> None:
    lease, clock = OneLease(), Clock()
    first, second = replica(lease, "first", clock), replica(lease, "second", clock)
    assert await first.attempt()
    assert not await second.attempt()

    await second.give_back()
    assert not await second.attempt()
    await first.give_back()

    assert await second.attempt()


async def test_who_cannot_renew_stops_before_others_may_start() -> None:
    lease, clock = OneLease(), Clock()
    first = Leadership(
        lease,  # type: ignore[arg-type] # the four calls that it makes
        namespace="system",
        name="operator",
        identity="first",
        lease_s=0.01,  # type: ignore[arg-type] # so short that the test does not wait
        clock_s=clock,
    )
    assert await first.attempt()
    lease.broken = True
    clock.now_s = 0.009

    async with asyncio.timeout(10):
        await first.keep()


def test_watches_that_go_silent_are_opened_anew() -> None:
    watching = kopf_settings().watching

    assert watching.server_timeout is not None
    assert watching.client_timeout is not None
    assert watching.server_timeout < watching.client_timeout
    assert watching.inactivity_timeout < watching.client_timeout
    assert len(watching.label_selectors) == len(OWNED_KINDS)


def test_handlers_store_nothing_in_objects() -> None:
    registry = kopf.OperatorRegistry()
    register(registry, Controller(Reconciles(), metrics()), SeenObjects(None, lambda: 0.0))  # type: ignore[arg-type]

    assert len(registry._watching.get_all_handlers()) == len(OWNED_KINDS) + 2
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()


def test_options_come_from_arguments_and_environment() -> None:
    environment = {
        "LLMROUTER_ROUTER_IMAGE": "r:1",
        "LLMROUTER_ROUTER_IMAGE_PULL_SECRETS": "a,b",
        "POD_NAMESPACE": "system",
        "POD_NAME": "pod",
    }
    options, level = read_options(["--namespace=x", "--namespace=y", "--log-level=DEBUG"], environment)

    assert (options.namespaces, options.own_namespace, level) == (("x", "y"), "system", "DEBUG")
    assert options.defaults.pull_secrets == ("a", "b")
    assert options.identity.startswith("pod-")
    assert read_options(["--all-namespaces"], environment)[0].scopes == (None,)


@pytest.mark.parametrize("arguments", [[], ["--all-namespaces", "--lease-seconds=0"]])
def test_bad_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_options(arguments, {"LLMROUTER_ROUTER_IMAGE": "r:1"})
    assert ended.value.code == 2
    with pytest.raises(SystemExit):
        read_options(["--all-namespaces"], {})
    assert "LLMROUTER_ROUTER_IMAGE must name" in capsys.readouterr().err


def acknowledgements(**data: str) -> Object:
    metadata = {"name": "fleet-routers", "namespace": "team", "labels": {"llmrouter.dev/router": "fleet"}}
    return {"metadata": metadata, "data": data}


def test_what_routers_only_repeat_is_no_news() -> None:
    news = News()

    def tells(kind: str = "ConfigMap", *, deleted: bool = False, **data: str) -> bool:
        return news.in_event(kind, acknowledgements(**data), deleted=deleted)

    assert tells(a='{"configDigest":"x","atS":1,"inFlight":1}')
    assert not tells(a='{"configDigest":"x","atS":6,"inFlight":9}')
    assert tells(a='{"configDigest":"y","atS":6}')
    assert tells(a='{"configDigest":"y","mix":{"requests":1}}')
    assert not tells(a='{"configDigest":"y","mix":{"requests":2}}')
    assert tells(a="{")
    assert not tells(a="{")
    assert tells(a="{", b="[]")
    assert tells(deleted=True)
    assert tells(a="{", b="[]")
    assert tells("Deployment")
    assert tells("Deployment")
