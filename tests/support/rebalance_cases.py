"""Specs with ``rebalance`` that both the API server and the library must refuse, and such that both must take."""

from __future__ import annotations

from support.crd_cases import Case, Spec, pool

TARGET = {"kind": "Deployment", "name": "a"}
SLO = {"ttftSeconds": 1, "tpotSeconds": 0.1}


def rebalanced(target: Spec | None = TARGET, gpus: int | None = 1, **changes: object) -> Spec:
    moved = pool(endpoints=None, selector={"matchLabels": {"app": "x"}}, scaleTargetRef=target, gpusPerReplica=gpus)
    return moved | {"rebalance": {"mode": "Auto", "gpuBudget": 8, "slo": SLO} | changes}


BAD_REBALANCES = [
    Case("rebalance without a target", rebalanced(None), "rebalance.mode", "need"),
    Case("a target without GPUs", rebalanced(gpus=None), "spec.pools[0]", "needs gpusPerReplica"),
    Case(
        "a target of endpoints",
        pool(scaleTargetRef=TARGET, gpusPerReplica=1),
        "spec.pools[0]",
        "endpoints are no pods",
    ),
    Case(
        "a target of another group", rebalanced({"kind": "LeaderWorkerSet", "name": "a"}), "scaleTargetRef", "must be"
    ),
    Case(
        "a target twice",
        rebalanced() | {"pools": [rebalanced()["pools"][0] | {"name": name} for name in "ab"]},
        "scaleTargetRef",
        "two pools must not name the same object",
    ),
    Case("most below least", pool(minReplicas=3, maxReplicas=2), "spec.pools[0]", "must be at least minReplicas"),
    Case("no budget", rebalanced(gpuBudget=0), "rebalance.gpuBudget", "greater than or equal to 1"),
    Case("a budget of nothing said", rebalanced(gpuBudget=None), "rebalance.gpuBudget", ""),
    Case("steps of nothing", rebalanced(maxStep=0), "rebalance.maxStep", "greater than or equal to 1"),
    Case("all requests in time", rebalanced(slo=SLO | {"attainment": 1}), "slo.attainment", "less than or equal to 0"),
    Case("an instant first token", rebalanced(slo=SLO | {"ttftSeconds": 0}), "ttftSeconds", "greater than or equal to"),
]

GOOD_REBALANCES: list[Spec] = [
    rebalanced(),
    rebalanced({"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "a"}, mode="Recommend"),
]
