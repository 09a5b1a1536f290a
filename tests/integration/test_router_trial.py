"""A candidate in routers that serve: over the native service and the endpoint picker, and from a real API server."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from support.gateway import chat, request_body, request_headers, response_body, response_headers
from support.router_space import Space
from support.router_world import bundle_of, config_of, live_router, until
from support.trials import trial_config

from llmrouter.artefacts import builtin_model
from llmrouter.config import CANDIDATE_MANIFEST_KEY, CANDIDATE_MODEL_KEY, CONFIG_KEY
from llmrouter.rollout.arms import ARMS, CANDIDATE, CURRENT, arm_of
from router_grpc.shadowing import Shadow
from router_grpc.v1 import ext_proc_pb2_grpc as pb_grpc
from router_grpc.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from support.router_world import LiveRouter

    from llmrouter.acknowledgement import RouterCandidate
    from llmrouter.config import RouterConfig
    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]

QUIET = {"maxInFlightPerInstance": 500, "scrapeIntervalSeconds": 60}
USAGE = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 7}}'
SERVED = 40


def said_by(live: LiveRouter) -> RouterCandidate:
    found = live.acknowledgements[-1].candidate
    assert found is not None
    return found


async def asked_natively(live: LiveRouter, request_id: str) -> str:
    answer = await live.route(request_id)
    events = [
        pb.ReportEvent(request_id=request_id, first_token=pb.FirstToken()),
        pb.ReportEvent(request_id=request_id, finished=pb.Finished(output_tokens=10)),
    ]
    assert all(one.known for one in await live.report(*events))
    return str(answer.policy)


async def asked_by_a_gateway(live: LiveRouter) -> None:
    address = f"127.0.0.1:{live.router.app.listener.ports['extProc.port']}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb_grpc.ExternalProcessorStub(channel)  # type: ignore[no-untyped-call]
        stream = stub.Process()
        for message in (
            request_headers(),
            request_body(chat()),
            response_headers(),
            response_body(USAGE, ends=True),
        ):
            await stream.write(message)
        await stream.done_writing()
        async for _ in stream:
            pass


async def test_both_arms_are_served_and_told_of_over_both_listeners() -> None:
    config = trial_config(limits=QUIET)
    async with live_router(config, ext_proc_port=0) as live:
        decided = {f"r{number}": await asked_natively(live, f"r{number}") for number in range(SERVED)}
        digest = config.candidate.policy.digest if config.candidate else ""
        expected = {CURRENT: "LeastInFlight", CANDIDATE: "RoundRobin"}
        assert decided == {name: expected[arm_of(name, salt=digest, percent=50)] for name in decided}
        await asyncio.gather(*(asked_by_a_gateway(live) for _ in range(SERVED)))

        def finished() -> int:
            return sum(said_by(live).arms[arm].finished for arm in ARMS)

        await until(lambda: finished() == 2 * SERVED, what="both arms are acknowledged")
        said = said_by(live)
        assert (said.ready, said.paused, said.trial, said.mode) == (True, False, config.trial, "Canary")
        assert all(said.arms[arm].stats().ttft.count for arm in ARMS)
        assert live.count("llmrouter_arm_requests_total", arm=CANDIDATE, event="finished") > 0
        in_force = {"policy": "next", "digest": digest[:12], "provider": "none"}
        assert live.count("llmrouter_policy_info", **in_force, deciding="RoundRobin", arm=CANDIDATE) == 1


async def test_a_shadow_is_told_of_and_decides_nothing() -> None:
    config = trial_config(mode="Shadow", limits=QUIET)
    async with live_router(config) as live:
        live.router.app.world.trial.shadow = Shadow(behind_s=math.inf)
        for number in range(SERVED):
            assert await asked_natively(live, f"r{number}") == "LeastInFlight"

        def shadowed() -> bool:
            shadow = said_by(live).shadow
            return shadow is not None and shadow.decisions > 1

        await until(shadowed, what="the shadow is acknowledged")
        assert said_by(live).arms == {}
        live.source.push(config_of(limits=QUIET))
        await until(lambda: live.acknowledgements[-1].candidate is None, what="the trial is over")


class TestOfAConfigMap:
    @pytest.fixture
    def space(self, control_plane: ControlPlane) -> Space:
        return Space(control_plane)

    @staticmethod
    def configure(space: Space, config: RouterConfig, model: bytes, manifest: bytes) -> str:
        """What the operator writes of a candidate with a model."""
        bundle = bundle_of(config)
        data = {CONFIG_KEY: bundle.content.decode(), CANDIDATE_MANIFEST_KEY: manifest.decode()}
        binary = {CANDIDATE_MODEL_KEY: base64.b64encode(model).decode()}
        space.put("config", data, binary=binary, digest=bundle.declared_digest or "")
        return bundle.declared_digest or ""

    async def test_a_model_that_is_refused_is_the_candidates_affair_alone(self, space: Space) -> None:
        """The current policy serves on and is well; the candidate's repair is taken up."""
        model, manifest = builtin_model("policy", "marginal-cost")
        sha256 = str(json.loads(manifest)["sha256"])
        candidate = {"type": "Onnx", "model": {"configMap": {"name": "m"}, "sha256": sha256}}
        config = trial_config("127.0.0.1:1", candidate=candidate, percent=99, model_sha256=sha256, limits=QUIET)
        digest = self.configure(space, config, model[: len(model) // 2], manifest)
        async with space.router(config) as live:
            said = await space.says(configDigest=digest, policyReady=True)
            assert (said["candidate"]["ready"], said["candidate"]["reason"]) == (False, "ModelCorrupt")
            assert {(await live.route()).policy for _ in range(20)} == {"LeastInFlight"}
            self.configure(space, config, model, manifest)
            await until(lambda: bool(space.acknowledged()["candidate"]["ready"]), what="the candidate is well")
            assert "Onnx" in {(await live.route()).policy for _ in range(20)}
