"""RoutingPolicies that both the API server and the library must refuse, and such that both must take."""

from __future__ import annotations

from support.crd_cases import SHA256, Case, Spec


def onnx(**model: object) -> Spec:
    return {"type": "Onnx", "model": model}


def queue(name: str, field: str, bound: str, **values: object) -> Case:
    return Case(name, {"type": "Random", "queue": values}, field, bound)


def fairness(name: str, field: str, bound: str, *weights: Spec) -> Case:
    return queue(name, field, bound, fairness={"enabled": True, "weights": list(weights)})


BAD_POLICIES = [
    Case("an unknown type", {"type": "Psychic"}, "spec.type", '"RoundRobin", "Random", "LeastInFlight", "PowerOfTwo"'),
    Case("no type", {}, "spec.type", "Required value"),
    Case(
        "a negative weight",
        {"type": "RoundRobin", "objective": {"stallWeight": -1}},
        "spec.objective.stallWeight",
        "greater than or equal to 0",
    ),
    Case(
        "a huge weight",
        {"type": "RoundRobin", "objective": {"overflowWeight": 101}},
        "spec.objective.overflowWeight",
        "less than or equal to 100",
    ),
    Case("Onnx without a model", {"type": "Onnx"}, "model", "must be set for types Onnx and Learned"),
    Case("Learned without a model", {"type": "Learned"}, "model", "must be set for types Onnx and Learned"),
    Case("costs for an agent", {"type": "Learned", "model": {"builtin": "marginal-cost"}}, "model.builtin", "learned"),
    Case(
        "a preference above 1",
        {"type": "RoundRobin", "objective": {"preferences": {"ttft": 2}}},
        "spec.objective.preferences.ttft",
        "less than or equal to 1",
    ),
    Case(
        "a model of a plain type",
        {"type": "Random", "model": {"builtin": "marginal-cost"}},
        "model",
        "and only for them",
    ),
    Case("a model from nowhere", onnx(), "spec.model", "exactly one of builtin, configMap"),
    Case(
        "a model from two places",
        onnx(builtin="marginal-cost", configMap={"name": "m"}, sha256=SHA256),
        "spec.model",
        "exactly one of builtin, configMap",
    ),
    Case(
        "a model from a server and a registry",
        onnx(http={"url": "https://a.test/m"}, oci={"reference": "b.test/m"}, sha256=SHA256),
        "spec.model",
        "exactly one of builtin, configMap",
    ),
    Case("a fetched model without a digest", onnx(http={"url": "https://a.test/m"}), "sha256", "that is not builtin"),
    Case("a password in a URL", onnx(http={"url": "https://me:pw@a.test/m"}, sha256=SHA256), "http.url", "match"),
    Case("a file as URL", onnx(http={"url": "file:///etc/passwd"}, sha256=SHA256), "http.url", "should match"),
    Case(
        "a path upwards", onnx(persistentVolumeClaim={"claimName": "m", "path": "../m"}, sha256=SHA256), "path", "match"
    ),
    Case("an image without a registry", onnx(oci={"reference": "cost"}, sha256=SHA256), "oci.reference", "match"),
    Case("an unknown builtin", onnx(builtin="magic"), "spec.model.builtin", 'supported values: "marginal-cost"'),
    Case("a model without a digest", onnx(configMap={"name": "m"}), "sha256", "required for a model that is not"),
    Case("half a digest", onnx(configMap={"name": "m"}, sha256="abc"), "spec.model.sha256", "should match"),
    Case(
        "a wait beyond the bound",
        {"type": "Random", "hold": {"maxWaitSeconds": 601}},
        "spec.hold.maxWaitSeconds",
        "less than or equal to 600",
    ),
    Case(
        "more than is expected",
        {"type": "Random", "hold": {"decodeReserveFraction": 1.5}},
        "decodeReserveFraction",
        "less than or equal to 1",
    ),
    Case("no batch", {"type": "Random", "hold": {"batchSize": 0}}, "batchSize", "greater than or equal to 1"),
    Case("a long batch", {"type": "Random", "hold": {"batchWaitSeconds": 6}}, "batchWaitSeconds", "equal to 5"),
    Case("no KV", {"type": "Random", "hold": {"kvFraction": 0}}, "kvFraction", "greater than or equal to 0.1"),
    Case(
        "an unknown room",
        {"type": "Random", "hold": {"room": "Big"}},
        "hold.room",
        'supported values: "Kv", "Requests"',
    ),
    Case(
        "a fallback that needs predictions",
        {"type": "Random", "guard": {"fallback": "OwnLatency"}},
        "guard.fallback",
        "supported values",
    ),
    Case("a negative queue", {"type": "Random", "queue": {"maxDepth": -1}}, "maxDepth", "greater than or equal to 0"),
    queue("an unknown order", "spec.queue.order", '"FirstComeFirstServed", "ShortestPredicted"', order="Random"),
    queue("no aging", "spec.queue.agingSeconds", "greater than or equal to 0.1", agingSeconds=0),
    queue("aging of a day", "spec.queue.agingSeconds", "less than or equal to 3600", agingSeconds=86400),
    queue("a queue of huge bytes", "spec.queue.maxBytes", "less than or equal to 1099511627776", maxBytes=2 * 10**12),
    queue("batch that fills nothing", "fillFraction", "greater than or equal to 0.01", batch={"fillFraction": 0}),
    queue("a batch class of everything", "leastShare", "less than or equal to 0.5", batch={"leastShare": 1}),
    queue("a batch class for ever", "maxWaitSeconds", "less than or equal to 86400", batch={"maxWaitSeconds": 1e12}),
    queue("an impatient batch class", "patienceSeconds", "greater than or equal to 0", batch={"patienceSeconds": -1}),
    queue("more than the queue", "depthFraction", "less than or equal to 1", batch={"depthFraction": 1.5}),
    queue("fewer than no tokens", "maxQueuedTokens", "greater than or equal to 0", batch={"maxQueuedTokens": -1}),
    fairness("a tenant without a weight", "weight", "Required value", {"tenant": "a"}),
    fairness("a weight without a tenant", "tenant", "at least 1 chars", {"tenant": "", "weight": 1}),
    fairness("a weight of nothing", "weight", "greater than or equal to 0.001", {"tenant": "a", "weight": 0}),
    fairness("a weight of everything", "weight", "less than or equal to 1000", {"tenant": "a", "weight": 10**12}),
    fairness("two weights of a tenant", "weights[1]", "Duplicate value", *[{"tenant": "a", "weight": 1}] * 2),
    Case("Onnx as fallback", {"type": "Random", "guard": {"fallback": "Onnx"}}, "guard.fallback", "supported values"),
    Case("a share below its own", {"type": "Random", "guard": {"maxShareFactor": 0.5}}, "maxShareFactor", "equal to 1"),
    Case("a hold of hours", {"type": "Random", "guard": {"maxHoldSeconds": 7200}}, "maxHoldSeconds", "equal to 60"),
    Case("loads of no age", {"type": "Random", "guard": {"staleAfterSeconds": 0}}, "staleAfterSeconds", "equal to 0.1"),
    Case(
        "affinity in part", {"type": "Random", "prefixAffinity": {"enabled": 0.5}}, "prefixAffinity.enabled", "boolean"
    ),
    Case("exploring all day", {"type": "Random", "exploration": {"fraction": 0.5}}, "fraction", "equal to 0.2"),
    Case("more than all", {"type": "Random", "guard": {"maxClampedFraction": 2}}, "maxClampedFraction", "equal to 1"),
    Case(
        "no time to decide",
        {"type": "Random", "guard": {"decisionBudgetMilliseconds": 0}},
        "decisionBudgetMilliseconds",
        "greater than or equal to 0.1",
    ),
]

GOOD_POLICIES: list[Spec] = [
    {"type": "LeastInFlight"},
    onnx(builtin="marginal-cost"),
    onnx(configMap={"name": "m"}, sha256=SHA256),
    onnx(persistentVolumeClaim={"claimName": "m", "path": "cost/3"}, sha256=SHA256),
    onnx(http={"url": "http://a.test/m.onnx", "manifestUrl": "http://a.test/m.json"}, sha256=SHA256),
    onnx(oci={"reference": f"r.test:5000/models/cost:3@sha256:{SHA256}", "secretRef": {"name": "s"}}, sha256=SHA256),
    {"type": "Random", "objective": {"preset": "SLO", "stallWeight": 0}, "hold": {"enabled": False}},
    {"type": "WorkloadImpact", "guard": {"fallback": "LMetric"}, "hold": {"room": "Requests"}},
    {"type": "WorkloadImpact", "guard": {"forceFallback": True, "maxHoldSeconds": 0, "maxShareFactor": 1000}},
    {"type": "LeastKvTokens", "hold": {"room": "Kv", "kvFraction": 0.9}},
    {"type": "WorkloadImpact", "hold": {"batchSize": 1, "batchWaitSeconds": 0.5}},
    {"type": "LMetric", "prefixAffinity": {"enabled": False}},
    {"type": "LMetric", "exploration": {"fraction": 0.05}},
]
