"""A policy on trial beside another one, for routers in memory and for those that serve."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from support.router_world import Bench, router_spec

from llmrouter.config import compile_policy, compile_router
from llmrouter.resources import RoutingPolicySpec
from llmrouter.rollout.arms import CANDIDATE, CURRENT, arm_of
from llmrouter.routing.guard import Guard
from llmrouter.routing.policies import LeastInFlight, request_bound

if TYPE_CHECKING:
    from llmrouter.config import RouterConfig
    from llmrouter.routing.policies import Policy
    from router_grpc.candidate import CandidateRuntime

Object = dict[str, Any]


def trial_config(
    *endpoints: str,
    policy: Object | None = None,
    candidate: Object | None = None,
    mode: str = "Canary",
    percent: int = 50,
    guardrails: Object | None = None,
    model_sha256: str | None = None,
    **parts: Any,  # noqa: ANN401 - pydantic checks it
) -> RouterConfig:
    """A compiled configuration with a candidate; LeastInFlight decides, RoundRobin is on trial, unless told.

    ``model_sha256`` is that of the candidate's model.
    """
    on_trial = {"policyRef": {"name": "next"}, "mode": mode, "percent": percent, "guardrails": guardrails or {}}
    spec = router_spec(endpoints or ("a:1", "b:1"), candidate=on_trial, **parts)
    now = RoutingPolicySpec.model_validate({"type": "LeastInFlight", **(policy or {})})
    then = RoutingPolicySpec.model_validate({"type": "RoundRobin", **(candidate or {})})
    return compile_router(
        spec,
        name="llm",
        namespace="ns",
        generation=1,
        policy=compile_policy("policy", now, model_sha256=None),
        candidate=compile_policy("next", then, model_sha256=model_sha256),
    )


def candidate_of(bench: Bench) -> CandidateRuntime:
    """The candidate that a router in memory runs."""
    runtime = bench.service.runtime
    assert runtime is not None
    assert runtime.candidate is not None
    return runtime.candidate


def put_on_trial(bench: Bench, primary: Policy) -> None:
    """Any policy in the candidate's place, in the same trial."""
    runtime, bound = bench.service.runtime, request_bound(8)
    assert runtime is not None
    guard = Guard(primary, LeastInFlight(bound), budget_s=1.0, clock=bench.clock)
    bench.service.swap(replace(runtime, candidate=replace(candidate_of(bench), guard=guard)))


def ids_of(bench: Bench, arm: str, count: int) -> list[str]:
    """Request ids that belong to an arm."""
    one = candidate_of(bench)
    names = (f"r{number}" for number in range(100 * count))
    found = [name for name in names if arm_of(name, salt=one.digest, percent=one.config.percent) == arm]
    return found[:count]


def pair_of(bench: Bench) -> tuple[str, str]:
    """One id of the current policy's arm, and one of the candidate's."""
    return ids_of(bench, CURRENT, 1)[0], ids_of(bench, CANDIDATE, 1)[0]
