"""Specs that both the API server and the library must refuse, and specs that both must take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
SHA256 = "a" * 64


@dataclass(frozen=True)
class Case:
    """A bad spec, and what the API server's refusal must say: the field and the bound."""

    name: str
    spec: Spec
    field: str
    bound: str


def router(**changes: object) -> Spec:
    pool = {"name": "a", "endpoints": ["10.0.0.1:8000"], "profile": {"name": "llama-3.1-8b-rtx4090"}}
    spec: Spec = {
        "models": [{"name": "llama"}],
        "pools": [pool],
        "policyRef": {"name": "p"},
        "router": {"replicas": 1},
    }
    return {name: value for name, value in (spec | changes).items() if value is not None}


CLAIM = {"persistentVolumeClaim": {"claimName": "tokenizers"}}


def tokenizer(path: str, **changes: object) -> Spec:
    mounted: Spec = {"router": {"replicas": 1, "tokenizers": CLAIM}}
    return router(models=[{"name": "llama", "tokenizer": path}], **(mounted | changes))


def pool(**changes: object) -> Spec:
    value = router()["pools"][0] | changes
    return router(pools=[{name: part for name, part in value.items() if part is not None}])


def inline(**changes: object) -> Spec:
    coefficients = {
        "baseDecodeSeconds": 0.01,
        "basePrefillSeconds": 0.01,
        "prefillSecondsPerToken": 1e-5,
        "contextSecondsPerToken": 1e-7,
        "sequenceSeconds": 1e-5,
        "kvTokens": 40000,
        "maxSequences": 256,
    }
    return pool(profile={"inline": coefficients | changes})


def candidate(**changes: object) -> Spec:
    return router(candidate={"policyRef": {"name": "q"}, "mode": "Canary"} | changes)


BAD_ROUTERS = [
    Case("no models", router(models=[]), "spec.models", "at least 1 items"),
    Case("no pools", router(pools=None), "spec.pools", "Required value"),
    Case("no policyRef", router(policyRef=None), "spec.policyRef", "Required value"),
    Case("a model twice", router(models=[{"name": "llama"}, {"name": "llama"}]), "spec.models[1]", "Duplicate value"),
    Case(
        "a pool twice",
        router(pools=router()["pools"] * 2),
        "spec.pools[1]",
        "Duplicate value",
    ),
    Case(
        "neither selector nor endpoints",
        pool(endpoints=None),
        "spec.pools[0]",
        "exactly one of selector, inferencePoolRef and endpoints",
    ),
    Case(
        "both selector and endpoints",
        pool(selector={"matchLabels": {"app": "x"}}),
        "spec.pools[0]",
        "exactly one of selector, inferencePoolRef and endpoints",
    ),
    Case(
        "an empty selector", pool(endpoints=None, selector={"matchLabels": {}}), "matchLabels", "at least 1 properties"
    ),
    Case(
        "a bad label key",
        pool(endpoints=None, selector={"matchLabels": {"-bad": "x"}}),
        "matchLabels",
        "must be label keys",
    ),
    Case(
        "a bad label value",
        pool(endpoints=None, selector={"matchLabels": {"app": "no spaces"}}),
        "matchLabels.app",
        "should match",
    ),
    Case("port 0", pool(targetPort=0), "targetPort", "greater than or equal to 1"),
    Case("port 65536", pool(targetPort=65536), "targetPort", "less than or equal to 65535"),
    Case("an endpoint without a port", pool(endpoints=["10.0.0.1"]), "endpoints[0]", "should match"),
    Case("a pool name in capitals", pool(name="Pool"), "spec.pools[0].name", "should match"),
    Case(
        "a pool of an unknown model", pool(models=["other"]), "pools[].models", "must name only models of spec.models"
    ),
    Case("neither profile", pool(profile={}), "spec.pools[0].profile", "exactly one of name and inline"),
    Case(
        "an unknown calibration",
        pool(profile={"name": "llama-3.1-8b-rtx4090", "calibrate": "Maybe"}),
        "profile.calibrate",
        'supported values: "None", "Slowness", "Full"',
    ),
    Case("a step of no time", inline(baseDecodeSeconds=0), "baseDecodeSeconds", "greater than 0"),
    Case("a negative coefficient", inline(sequenceSeconds=-1), "sequenceSeconds", "greater than or equal to 0"),
    Case("no room for KV", inline(kvTokens=1), "kvTokens", "greater than or equal to 16"),
    Case("an unknown engine mode", inline(mode="Magic"), "mode", 'supported values: "Chunked", "PrefillFirst"'),
    Case("replicas without redis", router(router={"replicas": 2}), "router.replicas", "above 1 needs state.redis"),
    Case("the default replicas without redis", router(router=None), "router.replicas", "above 1 needs state.redis"),
    Case(
        "processes without redis", router(router={"replicas": 1, "processes": 2}), "router.processes", "above 1 needs"
    ),
    Case(
        "no processes", router(router={"replicas": 1, "processes": 0}), "router.processes", "greater than or equal to 1"
    ),
    Case(
        "too many processes", router(router={"replicas": 1, "processes": 17}), "processes", "less than or equal to 16"
    ),
    Case(
        "a port of a process that is taken",
        router(
            router={"replicas": 1, "processes": 4},
            state={"redis": {"address": "redis:6379"}},
            listeners={"extProc": {"port": 9086}},
        ),
        "router.processes",
        "must be free",
    ),
    Case("negative replicas", router(router={"replicas": -1}), "spec.router.replicas", "greater than or equal to 0"),
    Case("too many replicas", router(router={"replicas": 257}), "spec.router.replicas", "less than or equal to 256"),
    Case(
        "a bad quantity",
        router(router={"replicas": 1, "resources": {"requests": {"cpu": "lots"}}}),
        "requests.cpu",
        "should match",
    ),
    Case(
        "a negative quantity",
        router(router={"replicas": 1, "resources": {"limits": {"cpu": -1}}}),
        "limits.cpu",
        "greater than or equal to 0",
    ),
    Case("an unknown log level", router(router={"replicas": 1, "logLevel": "LOUD"}), "logLevel", "supported values"),
    Case("an unknown predictor", router(predictor={"type": "Oracle"}), "predictor.type", "supported values"),
    Case("no constant tokens", router(predictor={"constantTokens": 0}), "constantTokens", "greater than or equal to 1"),
    Case(
        "no time to predict",
        router(predictor={"deadlineMilliseconds": 0}),
        "deadlineMilliseconds",
        "greater than or equal to 0.1",
    ),
    Case(
        "too long a prediction",
        router(predictor={"deadlineMilliseconds": 101}),
        "deadlineMilliseconds",
        "less than or equal to 100",
    ),
    Case("too much exploration", router(predictor={"exploration": 6}), "exploration", "less than or equal to 5"),
    Case(
        "a predictor's model without a digest",
        router(predictor={"model": {"configMap": {"name": "m"}}}),
        "spec.predictor.model.sha256",
        "Required value",
    ),
    Case(
        "a predictor's model from nowhere",
        router(predictor={"model": {"sha256": SHA256}}),
        "spec.predictor.model",
        "exactly one of configMap, persistentVolumeClaim",
    ),
    Case(
        "a model of a predictor without one",
        router(predictor={"type": "Applications", "model": {"configMap": {"name": "m"}, "sha256": SHA256}}),
        "spec.predictor",
        "model: may be set for the types Text and RandomForest alone",
    ),
    *(
        Case(f"the tokenizer {path}", tokenizer(path), "spec.models[0].tokenizer", "should match")
        for path in ("", "/etc/passwd", "../secret.json", "llama/../../x", "llama//x", ".hidden")
    ),
    Case(
        "a tokenizer in no folder",
        tokenizer("llama.json", router={"replicas": 1}),
        "models[].tokenizer",
        "needs router.tokenizers",
    ),
    Case(
        "tokenizers from nowhere",
        tokenizer("llama.json", router={"replicas": 1, "tokenizers": {}}),
        "spec.router.tokenizers",
        "exactly one of persistentVolumeClaim and configMap",
    ),
    Case(
        "tokenizers from two places",
        tokenizer(
            "t", router={"tokenizers": {"persistentVolumeClaim": {"claimName": "c"}, "configMap": {"name": "m"}}}
        ),
        "spec.router.tokenizers",
        "exactly one of persistentVolumeClaim and configMap",
    ),
    Case(
        "a hasty time-out",
        router(state={"heartbeatSeconds": 3, "heartbeatTimeoutSeconds": 5}),
        "heartbeatTimeoutSeconds",
        "at least twice heartbeatSeconds",
    ),
    Case("no heartbeat", router(state={"heartbeatSeconds": 0}), "heartbeatSeconds", "greater than or equal to 0.1"),
    Case(
        "no pause between scrapes",
        router(limits={"scrapeIntervalSeconds": 0}),
        "scrapeIntervalSeconds",
        "greater than or equal to 0.1",
    ),
    Case("redis without a port", router(state={"redis": {"address": "redis"}}), "address", "should match"),
    Case(
        "prompts for nobody",
        pool(role="Prefill"),
        "pools[].role",
        "a model with Prefill pools needs Decode or Mixed pools",
    ),
    Case("a locality without a name", pool(locality=""), "pools[0].locality", "at least 1 chars long"),
    Case("decoding alone", pool(role="Decode"), "pools[].role", "a model with Decode pools needs Prefill pools"),
    Case(
        "two models that share no stage",
        router(
            models=[{"name": "llama"}, {"name": "qwen"}],
            pools=[
                router()["pools"][0] | {"role": "Decode", "models": ["llama"]},
                router()["pools"][0] | {"name": "b", "role": "Prefill", "models": ["qwen"]},
                router()["pools"][0] | {"name": "c", "models": ["qwen"]},
            ],
        ),
        "pools[].role",
        "a model with Decode pools needs Prefill pools",
    ),
    Case("fewer tokens than none", router(prefillDecode={"minPrefillTokens": -1}), "minPrefillTokens", "equal to 0"),
    Case(
        "too far to cross",
        router(prefillDecode={"crossLocalitySeconds": 61}),
        "crossLocalitySeconds",
        "less than or equal to 60",
    ),
    Case(
        "a share above 1", router(outliers={"maxEjectedFraction": 2}), "maxEjectedFraction", "less than or equal to 1"
    ),
    Case("a failure that is none", router(outliers={"consecutiveFailures": -1}), "consecutiveFailures", "equal to 0"),
    Case(
        "a factor below 1.5",
        router(outliers={"ttftFactor": 1.2}),
        "ttftFactor",
        "must be 0 or at least 1.5",
    ),
    Case("a start slower than 600 s", router(outliers={"slowStartSeconds": 601}), "slowStartSeconds", "equal to 600"),
    Case("more decisions than all", router(decisionLog={"fraction": 1.5}), "decisionLog.fraction", "equal to 1"),
    Case("a log to nowhere", router(decisionLog={"sink": "Printer"}), "decisionLog.sink", "supported values"),
    Case("a store without a url", router(decisionLog={"sink": "ObjectStore"}), "decisionLog", "url must be set"),
    Case("a url for nothing", router(decisionLog={"url": "s3://a/b"}), "decisionLog", "url must be set"),
    Case(
        "a url with a query",
        router(decisionLog={"sink": "ObjectStore", "url": "s3://a/b?key=x"}),
        "decisionLog.url",
        "should match",
    ),
    Case("a secret for a line", router(decisionLog={"secretRef": {"name": "s"}}), "decisionLog", "alone"),
    Case("a volume for a store", router(decisionLog={"claimName": "c"}), "decisionLog", "sink File alone"),
    Case("a log of few bytes", router(decisionLog={"maxBytes": 1}), "maxBytes", "greater than or equal to 65536"),
    Case("records of nobody", router(decisionLog={"maxCandidates": 0}), "maxCandidates", "equal to 1"),
    Case("two listeners on a port", router(listeners={"extProc": {"port": 9000}}), "listeners", "must differ"),
    Case(
        "two fronts on a port",
        router(listeners={"extProc": {"port": 8080}, "openai": {}}),
        "listeners",
        "must differ",
    ),
    Case(
        "a certificate in plain text",
        router(listeners={"extProc": {"secureServing": False, "certificateSecretRef": {"name": "x"}}}),
        "listeners.extProc",
        "certificateSecretRef needs secureServing",
    ),
    Case(
        "slices that cannot go on",
        router(listeners={"openai": {"sliceTokens": 64}}),
        "listeners.openai",
        "sliceTokens needs resume: Tokens",
    ),
    Case(
        "engines that cannot go on",
        router(listeners={"openai": {"resume": "Tokens"}}),
        "listeners.openai.resume",
        "Tokens needs continuesChat of every pool",
    ),
    Case("endless resumes", router(listeners={"openai": {"maxResumes": 11}}), "maxResumes", "less than or equal to 10"),
    Case("a percent of 101", candidate(percent=101), "candidate.percent", "less than or equal to 99"),
    Case("a percent of nothing", candidate(percent=0), "candidate.percent", "greater than or equal to 1"),
    Case(
        "two candidates",
        router(candidate=[{"policyRef": {"name": name}, "mode": "Canary"} for name in "qr"]),
        "spec.candidate",
        "must be of type object",
    ),
    Case("a candidate of itself", candidate(policyRef={"name": "p"}), "candidate.policyRef.name", "must name another"),
    Case("a trial of no kind", router(candidate={"policyRef": {"name": "q"}}), "candidate.mode", "Required value"),
    Case("an unknown trial", candidate(mode="BlueGreen"), "candidate.mode", 'supported values: "Shadow", "Canary"'),
    Case(
        "a guardrail below no change",
        candidate(guardrails={"maxTtftRatio": 0.9}),
        "maxTtftRatio",
        "greater than or equal to 1",
    ),
    Case(
        "an alarm that is never false",
        candidate(guardrails={"falseAlarmProbability": 0}),
        "falseAlarmProbability",
        "greater than or equal to 0.0001",
    ),
    Case("a guardrail of no request", candidate(guardrails={"minRequests": 0}), "minRequests", "equal to 1"),
    Case(
        "a shadow that is promoted",
        candidate(mode="Shadow", autoPromote={"enabled": True}),
        "candidate",
        "autoPromote.enabled needs mode Canary",
    ),
    Case(
        "promoted before it was judged",
        candidate(guardrails={"minRequests": 500}, autoPromote={"enabled": True, "minRequests": 100}),
        "candidate",
        "autoPromote.minRequests must be at least guardrails.minRequests",
    ),
    Case("no prompt admitted", router(limits={"maxPromptTokens": 0}), "maxPromptTokens", "greater than or equal to 1"),
    Case("words for numbers", router(limits={"maxPromptTokens": "many"}), "maxPromptTokens", "must be of type integer"),
]

BAD_ROUTERS += [
    Case(
        "a predictor on a volume that is not mounted",
        router(predictor={"model": {"persistentVolumeClaim": {"claimName": "m", "path": "t"}, "sha256": SHA256}}),
        "predictor.model.persistentVolumeClaim.claimName",
        "must be that of router.models",
    ),
]

GOOD_ROUTERS: list[Spec] = [
    router(),
    router(router={"replicas": 0}),
    router(decisionLog={"fraction": 0.01, "sink": "File", "claimName": "decisions", "maxBytes": 10_000_000}),
    router(decisionLog={"sink": "ObjectStore", "url": "s3://bucket/folder", "secretRef": {"name": "s"}}),
    router(
        router={"replicas": 1, "processes": 4},
        state={"redis": {"address": "redis:6379"}},
        listeners={"extProc": {"port": 9002}},
    ),
    router(router=None, state={"redis": {"address": "[::1]:6379", "passwordSecretRef": {"name": "s", "key": "k"}}}),
    pool(models=["llama"]),
    pool(endpoints=None, selector={"matchLabels": {"example.com/app": "x", "tier": ""}}),
    inline(mode="PrefillFirst"),
    router(router={"replicas": 1, "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "500m"}}}),
    router(state={"heartbeatSeconds": 1, "heartbeatTimeoutSeconds": 2}),
    router(predictor={"model": {"configMap": {"name": "m", "modelKey": "text.onnx"}, "sha256": SHA256}}),
    router(predictor={"type": "Applications", "deadlineMilliseconds": 0.5, "exploration": 1}),
    router(
        predictor={"model": {"persistentVolumeClaim": {"claimName": "m", "path": "text/3"}, "sha256": SHA256}},
        router={"replicas": 1, "models": {"persistentVolumeClaim": {"claimName": "m"}}},
    ),
    router(
        predictor={
            "model": {
                "http": {"url": "https://models.test:8443/t/model.onnx?v=3", "secretRef": {"name": "s"}},
                "sha256": SHA256,
            }
        }
    ),
    router(
        pools=pool(continuesChat=True)["pools"],
        listeners={"openai": {"resume": "Tokens", "sliceTokens": 256, "redispatchAfterSeconds": 0.5}},
    ),
    *(
        router(
            pools=[
                router()["pools"][0] | {"role": "Prefill", "locality": "rack 1"},
                router()["pools"][0] | {"name": "b", "role": role, "models": ["llama"]},
            ],
            prefillDecode={"minPrefillTokens": 0, "crossLocalitySeconds": 2},
        )
        for role in ("Decode", "Mixed")
    ),
    candidate(mode="Shadow"),
    candidate(percent=99, guardrails={"maxE2eRatio": 2}, autoPromote={"enabled": True, "afterSeconds": 0}),
    tokenizer("meta-llama/Llama-3.1-8B/tokenizer.json"),
    tokenizer("llama.json", router={"replicas": 1, "tokenizers": {"configMap": {"name": "tokenizers"}}}),
]
