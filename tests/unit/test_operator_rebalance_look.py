"""What a look at the replicas does and says, against an API server that the test plays."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from support.played_engines import SUMMARIES, fleet_spec

from llmrouter.acknowledgement import RouterAcknowledgement
from llmrouter.planning.mix import TrafficMix
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.instants import instant_of
from llmrouter_operator.models import MANAGER, ObjectKey, Plan
from llmrouter_operator.rebalance import Rebalancer
from llmrouter_operator.rebalance_metrics import RebalanceMetrics
from llmrouter_operator.scaling_view import DRAINING_ANNOTATION
from llmrouter_operator.status import Acknowledgements, Facts

if TYPE_CHECKING:
    from llmrouter_operator.models import Kind
    from llmrouter_operator.rebalance_status import Report

Object = dict[str, Any]
NOW_S = 1_800_000_000.0
MIX = TrafficMix(**SUMMARIES.model_dump())


@dataclass
class PlayedCluster:
    """Deployments ``prefill`` and ``decode`` with ready pods; ``refuses`` raises instead of changing a scale."""

    replicas: dict[str, int] = field(default_factory=lambda: {"prefill": 2, "decode": 4})
    annotations: dict[str, dict[str, str]] = field(default_factory=dict)
    refuses: ClusterError | None = None
    forbidden: bool = False
    denied: frozenset[str] = frozenset()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        assert (kind.kind, namespace) == ("Deployment", "ns")
        labels = {"app": name}
        owned = {"manager": MANAGER, "fieldsV1": {"f:spec": {"f:replicas": {}}}}
        spec = {"replicas": self.replicas[name], "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}}}  # fmt: skip
        return {"metadata": {"name": name, "resourceVersion": "1", "managedFields": [owned]}, "spec": spec}

    async def find(self, kind: Kind, _namespace: str, *, labels: dict[str, str] | None = None) -> list[Object]:
        if self.forbidden:
            raise ClusterError("pods is forbidden", 403)
        if kind.kind != "Pod" or labels is None:
            return []
        names = [f"{labels['app']}-{n}" for n in range(self.replicas[labels["app"]])]
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        return [
            {"metadata": {"name": name, "annotations": self.annotations.get(name)}, "status": ready} for name in names
        ]

    async def merge(self, _kind: Kind, _namespace: str, name: str, body: Object) -> Object:
        known = self.annotations.setdefault(name, {})
        known |= body["metadata"]["annotations"]
        self.annotations[name] = {key: value for key, value in known.items() if value is not None}
        return {}

    async def replace_scale(self, _kind: Kind, _namespace: str, scale: Object) -> Object:
        if self.refuses is not None:
            raise self.refuses
        self.replicas[scale["metadata"]["name"]] = scale["spec"]["replicas"]
        return {}

    async def may(self, *, verb: str, resource: str, **_: object) -> bool:
        return f"{verb} {resource}" not in self.denied

    @property
    def draining(self) -> list[str]:
        return sorted(name for name, known in self.annotations.items() if DRAINING_ANNOTATION in known)


@dataclass
class World:
    """One LLMRouter that is looked at again and again."""

    cluster: PlayedCluster = field(default_factory=PlayedCluster)
    spec: Object = field(default_factory=lambda: {"stabilizationSeconds": 0})
    mixes: dict[str, TrafficMix] = field(default_factory=lambda: {"llama": MIX})
    in_flight: int = 0
    now_s: float = NOW_S
    status: Object = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rebalancer = Rebalancer(self.cluster, RebalanceMetrics(self.registry))  # type: ignore[arg-type]

    async def look(self) -> Report:
        spec = LLMRouterSpec.model_validate(fleet_spec(**self.spec)["spec"])
        router = {"metadata": {"name": "fleet", "namespace": "ns", "generation": 1}, "status": self.status}
        plan = Plan(key=ObjectKey("ns", "fleet"), spec=spec, choice=None, config_digest="d")
        said = {"r1": self._says()}
        facts = Facts(1, 1, 1, rolled_out=True, said=Acknowledgements(said), plan=plan, mixes=self.mixes)
        report = await self.rebalancer.look(router, facts, {}, self.now_s)
        self.status = {} if report.status is None else {"rebalance": report.status}
        self.now_s += 3.0
        return report

    def _says(self) -> RouterAcknowledgement:
        names = {"policy_name": "p", "policy_type": "Random", "policy_digest": "d", "deciding": "p"}
        return RouterAcknowledgement.model_validate(
            {"router_id": "r1", "config_digest": "d", "generation": 1, "policy_ready": True, "policy_reason": "Active",
             "instances_ready": 6, "instances_total": 6, "in_flight": 0, "at_s": self.now_s,
             "draining": dict.fromkeys(self.cluster.draining, self.in_flight)} | names
        )  # fmt: skip

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"namespace": "ns", "name": "fleet"} | labels)


def reasons(report: Report) -> list[str]:
    return [note.reason for note in report.notes]


async def test_a_move_is_told_step_by_step() -> None:
    world = World(spec={"stabilizationSeconds": 0, "maxStep": 3}, in_flight=1)

    first = await world.look()
    assert reasons(first) == ["RebalanceProposed", "RebalanceDraining"]
    assert len(world.cluster.draining) == 3
    assert (first.status or {})["phase"] == "Draining"
    assert first.again_after_s == 2.0

    await world.look()
    assert world.cluster.replicas == {"prefill": 2, "decode": 4}
    world.in_flight = 0
    shrunk = await world.look()
    assert reasons(shrunk) == ["RebalanceApplied"]
    assert world.cluster.replicas == {"prefill": 2, "decode": 1}
    grown = await world.look()
    assert reasons(grown) == ["RebalanceApplied"]
    assert world.cluster.replicas == {"prefill": 5, "decode": 1}
    rested = await world.look()
    assert rested.verdict is not None
    assert (rested.verdict.status, rested.verdict.reason, rested.again_after_s) == ("True", "Settled", 2.0)
    assert world.value("llmrouter_rebalance_changes_total", pool="prefill", direction="up") == 1
    assert world.value("llmrouter_rebalance_changes_total", pool="decode", direction="down") == 1
    assert world.value("llmrouter_rebalance_proposed_replicas", pool="prefill") == 5
    assert world.value("llmrouter_rebalance_taken_gpus") == 6


async def test_recommending_touches_nothing_and_gives_back_what_drained() -> None:
    world = World(in_flight=1)
    await world.look()
    assert world.cluster.draining

    world.spec = {"mode": "Recommend", "stabilizationSeconds": 0}
    report = await world.look()

    assert report.verdict is not None
    assert report.verdict.reason == "Recommending"
    assert (world.cluster.draining, world.cluster.replicas) == ([], {"prefill": 2, "decode": 4})


async def test_turned_off_it_gives_back_what_drained_and_says_nothing() -> None:
    world = World(in_flight=1)
    await world.look()
    world.spec = {"mode": "Off"}

    report = await world.look()

    assert (report.status, report.verdict, world.cluster.draining) == (None, None, [])
    assert world.value("llmrouter_rebalance_taken_gpus") is None


async def test_where_nothing_is_known_of_the_traffic_replicas_stay() -> None:
    world = World(mixes={})

    report = await world.look()

    assert report.verdict is not None
    assert (report.verdict.status, report.verdict.reason) == ("Unknown", "NoMix")
    assert world.cluster.replicas == {"prefill": 2, "decode": 4}


async def test_a_budget_below_the_least_replicas_is_said_once() -> None:
    world = World(spec={"gpuBudget": 1})

    first, second = await world.look(), await world.look()

    assert first.verdict is not None
    assert (first.verdict.status, first.verdict.reason) == ("False", "BudgetTooSmall")
    assert "take 2 GPUs, gpuBudget is 1" in first.verdict.message
    assert (reasons(first), reasons(second)) == (["RebalanceBlocked"], [])


async def test_missing_rights_are_named() -> None:
    denied = frozenset({"update deployments/scale", "patch pods"})
    world = World(PlayedCluster(forbidden=True, denied=denied))

    report = await world.look()

    assert report.verdict is not None
    assert (report.verdict.status, report.verdict.reason) == ("False", "Forbidden")
    assert "update deployments/scale.apps (namespace ns), patch pods (namespace ns)" in report.verdict.message
    assert "rebalance.enabled=true" in report.verdict.message
    assert world.value("llmrouter_rebalance_failures_total", reason="Forbidden") == 1


async def test_a_conflict_is_looked_at_again_and_a_refusal_later() -> None:
    world = World(spec={"stabilizationSeconds": 0, "maxStep": 3})
    await world.look()
    world.cluster.refuses = ClusterError("the object has been modified", 409)

    conflict = await world.look()
    assert conflict.verdict is not None
    assert (conflict.verdict.status, conflict.again_after_s) == ("True", 2.0)
    assert "was changed meanwhile" in conflict.verdict.message

    world.cluster.refuses = ClusterError('admission webhook "freeze" denied the request', 403)
    refused = await world.look()
    assert refused.verdict is not None
    assert (refused.verdict.status, refused.verdict.reason) == ("False", "ChangeRefused")
    assert reasons(refused) == ["RebalanceBlocked"]
    blocked = (refused.status or {})["blocked"][0]
    assert blocked["until"] == instant_of(world.now_s - 3.0 + 60.0)
    world.cluster.refuses = None
    waiting = await world.look()
    assert world.cluster.replicas == {"prefill": 2, "decode": 4}
    assert reasons(waiting) == []
    world.now_s += 60.0
    for _ in range(4):
        await world.look()
    assert world.cluster.replicas == {"prefill": 5, "decode": 1}


async def test_an_api_server_that_does_not_answer_changes_nothing_that_is_said_of_replicas() -> None:
    world = World()
    await world.look()
    before = json.loads(json.dumps(world.status["rebalance"]))
    world.cluster.refuses = None
    world.cluster.forbidden = False

    async def gone(*_: object, **__: object) -> list[Object]:
        raise ClusterError("GET: TimeoutError", 0)

    world.cluster.find = gone  # type: ignore[method-assign]
    report = await world.look()

    assert report.status is not None
    assert {name: report.status[name] for name in ("applied", "proposed", "gpus")} == {
        name: before[name] for name in ("applied", "proposed", "gpus")
    }
    assert (report.status["phase"], report.status["reason"]) == ("Unknown", "ApiServerError")
