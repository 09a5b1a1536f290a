"""Names, types of RoutingPolicy, and the room that a router gives each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from support.pools import view
from support.router_world import FakeClock, bundle_of, config_of

from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX
from llmrouter.resources import PlainPolicyType, PolicyType, PredictingPolicyType
from llmrouter.routing.catalogue import COMPARISONS, COUNTING, POLICIES, PREDICTING, make_policy
from llmrouter.routing.rooms import MAX_KNOWN, kv_gate, per_profile, request_bound
from llmrouter.routing.rules import marginal_cost_row
from router_grpc.runtime import RuntimeBuilder

BOUND = request_bound(8)


def test_the_types_of_a_routing_policy_are_the_catalogue_s() -> None:
    assert set(get_args(PlainPolicyType)) == set(COUNTING)
    assert set(get_args(PredictingPolicyType)) == set(PREDICTING)
    assert set(get_args(PolicyType)) == {"Onnx", "Learned", *POLICIES} - set(COMPARISONS)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_made_by_its_name_and_says_where_it_fails(name: str) -> None:
    assert make_policy(name, BOUND).name == name
    said = f"{POLICIES[name].__doc__}"
    assert "ail" in said, f"{name} does not say where it fails"


def test_an_unknown_name_is_one_line_that_lists_the_known() -> None:
    with pytest.raises(InvalidInputError, match=r"'Magic' is none of RoundRobin, .*Dedicated$"):
        make_policy("Magic", BOUND)


class TestRoom:
    def max_requests(self, policy: dict[str, Any]) -> int:
        runtime = RuntimeBuilder(FakeClock()).build(bundle_of(config_of(policy=policy)))
        return runtime.guard.room_of(view("a")).max_requests

    @pytest.mark.parametrize("name", sorted({*COUNTING, *PREDICTING} - {"WorkloadImpact"}))
    def test_requests_bound_what_is_not_told_otherwise(self, name: str) -> None:
        assert self.max_requests({"type": name}) == 4

    def test_kv_bounds_policies_by_cost_that_may_hold(self) -> None:
        onnx = {"type": "Onnx", "model": {"builtin": "marginal-cost"}}
        for policy in (onnx, {"type": "WorkloadImpact"}):
            assert self.max_requests(policy) == H100_MIX.max_sequences
            assert self.max_requests(policy | {"hold": {"enabled": False}}) == 4

    def test_the_policy_may_say(self) -> None:
        assert self.max_requests({"type": "LeastInFlight", "hold": {"room": "Kv"}}) == H100_MIX.max_sequences
        assert self.max_requests({"type": "WorkloadImpact", "hold": {"room": "Requests"}}) == 4

    def test_a_room_that_is_not_told_changes_no_digest(self) -> None:
        assert b"room" not in bundle_of(config_of()).content

    def test_the_weights_reach_the_formula(self) -> None:
        seen = []
        for weight in (0.0, 100.0):
            section = {"type": "WorkloadImpact", "objective": {"stallWeight": weight, "slowdownWeight": weight}}
            runtime = RuntimeBuilder(FakeClock()).build(bundle_of(config_of(policy=section)))
            row = (5, 500, 0, 500.0, 100, 50.0, 1e5, 64, 0.01, 1e-4, 0, 0, 0, 0, 0)
            seen.append(marginal_cost_row(row, runtime.guard.primary._weights))  # type: ignore[attr-defined]
        assert seen[1] == pytest.approx(seen[0] + 100 * 5 * 0.01)


class TestPerProfile:
    def test_asks_once_and_forgets_in_time(self) -> None:
        asked = []
        of = per_profile(lambda profile: asked.append(profile) or len(asked))  # type: ignore[func-returns-value]
        first = view("a")
        assert of(first) == of(first) == of(view("b")) == 1
        for number in range(MAX_KNOWN):
            assert of(view("c", profile=replace(H100_MIX, name=f"other-{number}"))) == number + 2
        assert of(first) == MAX_KNOWN + 2

    def test_the_gate_leaves_a_block(self) -> None:
        room = kv_gate(0.5)(view("a"))
        assert room.kv_limit_tokens == H100_MIX.kv_tokens // 2 - H100_MIX.block_tokens
