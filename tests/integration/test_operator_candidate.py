"""A candidate against a real API server: tried, taken back, not tried again by another operator; another promoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support.arms import arm
from support.operator_process import llm_router, routing_policy, watched
from support.played_routers import acknowledge, config_of, policy_in_force

from llmrouter.acknowledgement import RouterCandidate
from llmrouter.rollout.wire import wire_of

if TYPE_CHECKING:
    from pathlib import Path

    from support.operator_process import Space

    from llmrouter.testbed.cluster.control_plane import ControlPlane

pytest_plugins = ["support.control_plane"]

LOOSE = {"maxTtftRatio": 2, "maxTpotRatio": 2, "maxE2eRatio": 2, "maxErrorFractionIncrease": 0.5}
CANDIDATE = {
    "policyRef": {"name": "next"},
    "mode": "Canary",
    "percent": 50,
    "guardrails": LOOSE,
    "autoPromote": {"enabled": True, "afterSeconds": 1, "minRequests": 100},
}


def try_it(space: Space, times: float, count: int) -> None:
    """Both routers say that they try the candidate, and what came of it."""
    config = config_of(space)[1]
    assert config.candidate is not None
    said = RouterCandidate(
        trial=config.trial,
        policy_name=config.candidate.policy.name,
        policy_digest=config.candidate.policy.digest,
        mode="Canary",
        ready=True,
        reason="Active",
        arms={"current": wire_of(arm(1.0, count)), "candidate": wire_of(arm(times, count))},
    )
    acknowledge(space, candidate=said)


def said(space: Space) -> dict[str, Any]:
    found: dict[str, Any] = space.status("fleet").get("candidate", {})
    return found


def tell(space: Space, phase: str, name: str = "next") -> None:
    space.wait(lambda: (said(space).get("phase"), said(space).get("name")) == (phase, name), f"{name} is {phase}")


def test_a_worse_one_is_taken_back_for_good_and_a_good_one_promoted(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    ours = watched(control_plane, "trial")
    space = ours.space
    for policy in (routing_policy("plain"), routing_policy("next", type="Random")):
        space.apply(policy)
    space.apply(llm_router("fleet", candidate=CANDIDATE))
    with ours.operator(tmp_path / "first.log") as first:
        tell(space, "Pending")
        try_it(space, 5.0, 2)
        tell(space, "Running")
        try_it(space, 5.0, 60)
        tell(space, "RolledBack")
        space.wait(lambda: config_of(space)[1].candidate is None, "routers are told no more of it")
        (event,) = space.events("fleet", "CandidateRolledBack")
        assert event["type"] == "Warning"
        condition = space.condition("fleet", "CandidateHealthy")
        assert (condition["status"], condition["reason"]) == ("False", said(space)["reason"])
        assert [one["requests"] for one in said(space)["arms"]] == [120, 120]
        first.kill()
    kept = said(space)
    with ours.operator(tmp_path / "second.log"):
        space.apply(routing_policy("other", type="PowerOfTwo"))
        space.apply(llm_router("fleet", candidate=CANDIDATE, limits={"claimTimeoutSeconds": 7}))
        space.wait(lambda: config_of(space)[1].limits.claim_timeout_seconds == 7, "the other operator acts")
        assert config_of(space)[1].candidate is None
        assert said(space) == kept

        space.apply(llm_router("fleet", candidate=CANDIDATE | {"policyRef": {"name": "other"}}))
        tell(space, "Pending", "other")
        try_it(space, 1.0, 60)
        tell(space, "Running", "other")
        tell(space, "Promoted", "other")
        space.wait(lambda: policy_in_force(space) == "other", "it serves all")
        assert space.get("LLMRouter", "fleet")["spec"]["policyRef"]["name"] == "plain"
        assert len(space.events("fleet", "CandidatePromoted")) == 1

        space.apply(llm_router("fleet", policyRef={"name": "other"}))
        space.wait(lambda: said(space) == {}, "the spec has taken it over")
        assert policy_in_force(space) == "other"
        assert len(space.events("fleet", "PromotionCompleted")) == 1
