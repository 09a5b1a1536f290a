"""Routers against a real API server: policy swaps under load, what is refused, instances from pods, what they say."""

# ruff: noqa: ANN401 - keyword arguments are handed on to values that check them

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.router_space import Space, make_ready, pod
from support.router_world import bundle_of, config_of, until

from llmrouter.artefacts import builtin_model
from llmrouter.config import CONFIG_KEY, digest_of

if TYPE_CHECKING:
    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]

QUIET = {"maxInFlightPerInstance": 500, "scrapeIntervalSeconds": 60}
MODEL, MANIFEST = builtin_model("policy", "marginal-cost")
SHA256 = str(json.loads(MANIFEST)["sha256"])


@pytest.fixture
def space(control_plane: ControlPlane) -> Space:
    return Space(control_plane)


def plain(policy: str = "LeastInFlight", **parts: Any) -> RouterConfig:
    return config_of("127.0.0.1:1", "127.0.0.1:2", policy={"type": policy}, limits=QUIET, **parts)


def embedded(sha256: str = SHA256) -> RouterConfig:
    model = {"configMap": {"name": "m"}, "sha256": sha256}
    return config_of("127.0.0.1:1", policy={"type": "Onnx", "model": model}, model_sha256=sha256, limits=QUIET)


async def test_policies_are_swapped_under_load_without_a_failed_request(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        said = await space.says(configDigest=digest, policyReady=True)
        assert (said["deciding"], said["instancesReady"], said.get("stateBackendReady")) == ("LeastInFlight", 2, None)
        stop = asyncio.Event()
        policies: list[str] = []

        async def drive(name: str) -> None:
            n = 0
            while not stop.is_set():
                answer = await live.route(f"{name}-{n}")
                policies.append(answer.policy)
                assert await live.finish(answer.request_id)
                n += 1

        drivers = [asyncio.create_task(drive(name)) for name in ("a", "b", "c")]
        await until(lambda: bool(policies), what="requests flow")
        for policy in ("RoundRobin", "PowerOfTwo", "Random"):
            digest = await asyncio.to_thread(space.configure, plain(policy))
            said = await space.says(configDigest=digest, policyReady=True, deciding=policy)
            await until(lambda policy=policy: policies[-1] == policy)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*drivers)
        assert list(dict.fromkeys(policies)) == ["LeastInFlight", "RoundRobin", "PowerOfTwo", "Random"]
        assert await live.router.app.world.ledger.loads() == {}


async def test_a_configuration_edited_by_hand_is_refused_and_its_repair_is_clean(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        await space.says(configDigest=digest, policyReady=True)
        edited = bundle_of(plain("Random")).content.decode()
        space.patch_config({"data": {CONFIG_KEY: edited}})
        said = await space.says(policyReady=False, policyReason="DigestMismatch")
        assert said["configDigest"] == digest
        assert said["refusedDigest"]
        assert (await live.route()).policy == "LeastInFlight"
        assert live.count("llmrouter_config_refused_total", reason="DigestMismatch") == 1
        space.configure(plain())
        said = await space.says(configDigest=digest, policyReady=True, policyReason="Active")
        assert "refusedDigest" not in said


async def test_a_configuration_without_its_key_is_refused(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()):
        await space.says(configDigest=digest)
        space.patch_config({"data": {CONFIG_KEY: None}})
        said = await space.says(policyReason="InvalidConfiguration")
        assert said["configDigest"] == digest


async def test_a_deleted_configuration_stays_in_force(space: Space) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        space.api.call("DELETE", space.path("configmaps", "config"))
        assert (await live.route()).policy == "LeastInFlight"
        newer = space.configure(plain("Random"))
        assert newer != digest
        await space.says(configDigest=newer)


BAD_MODELS = {
    "half its bytes": (SHA256, MODEL[: len(MODEL) // 2], MANIFEST),
    "a wrong digest": ("0" * 64, MODEL, MANIFEST),
    "an extra feature": (SHA256, MODEL, MANIFEST.replace(b'"requests"', b'"requests", "star_sign"', 1)),
    "no manifest": (SHA256, MODEL, None),
}


@pytest.mark.parametrize("case", sorted(BAD_MODELS))
async def test_a_bad_model_leaves_the_last_good_policy_in_force(space: Space, case: str) -> None:
    sha256, model, manifest = BAD_MODELS[case]
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        await space.says(configDigest=digest, policyReady=True)
        refused = space.configure(embedded(sha256), model=model, manifest=manifest)
        said = await space.says(policyReady=False, refusedDigest=refused)
        assert (said["configDigest"], said["deciding"]) == (digest, "LeastInFlight")
        assert said["policyMessage"]
        assert (await live.route()).policy == "LeastInFlight"


@pytest.mark.parametrize("case", sorted(BAD_MODELS))
async def test_a_bad_first_model_is_stood_in_for_until_it_is_repaired(space: Space, case: str) -> None:
    sha256, model, manifest = BAD_MODELS[case]
    digest = space.configure(embedded(sha256), model=model, manifest=manifest)
    async with space.router(embedded(sha256)) as live:
        said = await space.says(policyReady=False, configDigest=digest, deciding="LeastInFlight")
        assert said["policyReason"] not in {"", "Active"}
        assert (await live.route()).policy == "LeastInFlight"
        digest = space.configure(
            embedded(), model=MODEL, manifest=MANIFEST
        )  # half its bytes: the same digest as before
        said = await space.says(policyReady=True, configDigest=digest, deciding="Onnx")
        assert said["provider"]
        assert (await live.route()).policy == "Onnx"


async def test_a_predictor_of_ones_own_is_run_and_a_bad_one_stood_in_for(space: Space) -> None:
    model, manifest = builtin_model("output_length", "random-forest")

    def declared(sha256: str) -> RouterConfig:
        return plain(predictor={"type": "RandomForest", "model": {"configMap": {"name": "m"}, "sha256": sha256}})

    config = declared(digest_of(model))
    digest = space.configure_lengths(config, model, manifest)
    async with space.router(config) as live:
        await space.says(configDigest=digest, predictorReady=True, predictorReason="Loaded", policyReady=True)
        digest = space.configure_lengths(declared("0" * 64), model, manifest)
        said = await space.says(configDigest=digest, predictorReady=False, predictorReason="DigestMismatch")
        assert said["policyReady"]
        assert said["predictorMessage"]
        assert (await live.route()).instance_id
        digest = space.configure_lengths(config, model, manifest)
        await space.says(configDigest=digest, predictorReady=True)


async def test_a_large_configuration_comes_through_the_watch(space: Space) -> None:
    space.configure(plain())
    async with space.router(plain()):
        digest = space.configure(plain("Random"), filler=600_000)
        await space.says(configDigest=digest, deciding="Random")
        digest = space.configure(plain("RoundRobin"), filler=500_000)
        await space.says(configDigest=digest, deciding="RoundRobin")


def selecting(label: str = "engine") -> RouterConfig:
    pool = {"name": "main", "selector": {"matchLabels": {"app": label}}, "profile": {"name": "llama-3.1-8b-rtx4090"}}
    return config_of(pools=[pool], limits=QUIET)


async def test_instances_are_the_ready_pods_of_the_selector(space: Space) -> None:
    for name in ("e1", "e2", "e3"):
        space.api.apply(space.path("pods", name), pod(name, "engine"))
    space.api.apply(space.path("pods", "other"), pod("other", "database"))
    make_ready(space, "e1", "127.1.0.1")
    make_ready(space, "other", "127.1.0.9")
    space.configure(selecting())
    async with space.router(selecting()) as live:
        await space.says(instancesReady=1, instancesTotal=3)
        assert (await live.route()).endpoint == "127.1.0.1:8000"
        make_ready(space, "e2", "127.1.0.2")
        await space.says(instancesReady=2)
        make_ready(space, "e1", "127.1.0.1", ready=False)
        await space.says(instancesReady=1)
        assert (await live.route()).endpoint == "127.1.0.2:8000"
        space.api.call("DELETE", f"{space.path('pods', 'e2')}?gracePeriodSeconds=0")
        await space.says(instancesReady=0, instancesTotal=2)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await live.route()
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        space.configure(selecting("database"))
        await space.says(instancesReady=1, instancesTotal=1)
        assert (await live.route()).endpoint == "127.1.0.9:8000"


async def test_a_router_that_may_not_acknowledge_keeps_routing(space: Space, control_plane: ControlPlane) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{space.name}"
    space.api.apply(
        space.path("serviceaccounts", "router"),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "router"}},
    )
    rule = {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["get", "list", "watch"]}
    group = "rbac.authorization.k8s.io"
    space.api.apply(
        f"{rbac}/roles/reader",
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "reader"}, "rules": [rule]},
    )
    space.api.apply(
        f"{rbac}/rolebindings/reader",
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "router", "namespace": space.name}],
        },
    )
    kubeconfig = control_plane.service_account_kubeconfig(space.name, "router")
    space.configure(plain())
    async with space.router(plain(), kubeconfig=str(kubeconfig)) as live:
        await until(lambda: live.count("llmrouter_errors_total", part="acknowledge") > 1, what="counted")
        assert (await live.route()).policy == "LeastInFlight"
        space.configure(plain("Random"))

        async def swapped() -> bool:
            return (await live.route()).policy == "Random"

        await until(swapped)
        assert space.acknowledged() == {}


async def test_the_api_server_goes_and_comes_back(space: Space, control_plane: ControlPlane) -> None:
    digest = space.configure(plain())
    async with space.router(plain()) as live:
        await space.says(configDigest=digest)
        await asyncio.to_thread(control_plane.stop_api_server)
        assert (await live.route()).policy == "LeastInFlight"
        control_plane.start_api_server()
        digest = space.configure(plain("Random"))
        await space.says(configDigest=digest, deciding="Random", policyReady=True)
