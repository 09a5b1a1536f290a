"""Learned agents as policies: what they see, what the shield lets them do, and which models run as one."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.agents import paper_agent, shared_agent
from support.models import shipped_manifest
from support.pools import request, snapshot, view
from support.router_world import FakeClock, bundle_of, config_of

from llmrouter.artefacts import builtin_model
from llmrouter.domain import Hold, NoCandidate, Placement, Preferences, Reservation
from llmrouter.errors import ModelRejectedError
from llmrouter.feature_set import LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES, paper_state_names
from llmrouter.profiles import H100_MIX
from llmrouter.routing.learned import Learned, PaperAgent, SharedAgent, paper_state_of
from llmrouter.routing.policies import MissingFeatureError, NonFiniteScoreError
from llmrouter.routing.rooms import kv_gate
from llmrouter.routing.sight import HOLD_S, LONGEST_HOLD_S
from router_grpc.adapters.onnx_model import load_network, load_scorer
from router_grpc.runtime import Runtime, RuntimeBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, PoolSnapshot

FULL = view("full", 10_000)
PREFERENCES = Preferences(ttft=1.0, tpot=0.0, e2e=1.0, fairness=0.0)


class Seen:
    """A network that answers what it is told to, and keeps what it saw."""

    def __init__(self, answer: Callable[[NDArray[np.float32]], list[float]]) -> None:
        self.answer = answer
        self.instances_IF = np.zeros(0, np.float32)
        self.line_H = np.zeros(0, np.float32)

    def scores(self, instances_IF: NDArray[np.float32], line_H: NDArray[np.float32]) -> NDArray[np.float32]:
        self.instances_IF, self.line_H = instances_IF, line_H
        return np.array(self.answer(instances_IF), np.float32)


def learned(network: Seen) -> Learned:
    return Learned(kv_gate(1.0), SharedAgent(network, PREFERENCES))


def fewest(hold: float) -> Seen:
    """Values the fewest requests in flight most, and hold as told."""
    return Seen(lambda rows: [*(-rows[:, 0]).tolist(), hold])


def at(views: list[InstanceView], *, now_s: float = 100.0, since_s: float | None = None, held: int = 3) -> PoolSnapshot:
    return replace(snapshot(views), taken_at_s=now_s, head_since_s=since_s, held=held)


class TestTheShield:
    def test_the_highest_value_goes_first(self) -> None:
        decision = learned(fewest(-99.0)).decide(request(), at([view("a", 3), view("b", 1), view("c", 2)]), _rng())
        assert isinstance(decision, Placement)
        assert [one.instance_id for one in decision.candidates] == ["b", "c", "a"]
        assert [one.score for one in decision.candidates] == [1.0, 2.0, 3.0]
        assert decision.reason == "Learned: b valued -1; 3 of 3 have room"

    def test_an_instance_without_room_is_seen_and_never_chosen(self) -> None:
        network = Seen(lambda rows: [*rows[:, 0].tolist(), -1e9])
        decision = learned(network).decide(request(), at([FULL, view("a", 1)]), _rng())
        assert isinstance(decision, Placement)
        assert [one.instance_id for one in decision.candidates] == ["a"]
        assert network.instances_IF[:, -1].tolist() == [0.0, 1.0]

    def test_no_room_holds_for_an_event_and_no_instance_is_said(self) -> None:
        policy = learned(fewest(1.0))
        assert policy.decide(request(), at([FULL]), _rng()) == Hold("none of 1 instances has room")
        assert isinstance(policy.decide(request(model="other"), at([FULL]), _rng()), NoCandidate)
        excluded = request(excluded_instance_ids=frozenset({"full"}))
        assert isinstance(policy.decide(excluded, at([FULL]), _rng()), NoCandidate)

    def test_hold_lasts_a_moment(self) -> None:
        decision = learned(fewest(1.0)).decide(request(), at([view("a", 3)]), _rng())
        assert isinstance(decision, Hold)
        assert decision.until_s == 100.0 + HOLD_S

    def test_nobody_is_held_while_an_instance_is_idle(self) -> None:
        assert isinstance(learned(fewest(1.0)).decide(request(), at([view("a", 3), view("b")]), _rng()), Placement)

    def test_nobody_is_held_for_ever(self) -> None:
        policy, views = learned(fewest(1.0)), [view("a", 3)]
        before = at(views, since_s=100.0 - 0.99 * LONGEST_HOLD_S)
        assert isinstance(policy.decide(request(), before, _rng()), Hold)
        assert isinstance(policy.decide(request(), at(views, since_s=100.0 - LONGEST_HOLD_S), _rng()), Placement)
        assert isinstance(policy.decide(request(), at(views, since_s=200.0), _rng()), Hold), "a clock that went back"

    def test_equal_values_are_decided_by_chance(self) -> None:
        policy, rng = learned(Seen(lambda rows: [0.0] * (len(rows) + 1))), _rng()
        firsts = set()
        for _ in range(50):
            decision = policy.decide(request(), at([view("a", 1), view("b", 1)]), rng)
            assert isinstance(decision, Placement)
            firsts.add(decision.candidates[0].instance_id)
        assert firsts == {"a", "b"}

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
    def test_a_value_that_is_no_number_is_refused(self, wrong: float) -> None:
        for answer in ([wrong, 0.0, 0.0], [0.0, 0.0, wrong]):
            policy = learned(Seen(lambda _, answer=answer: answer))  # type: ignore[misc]
            with pytest.raises(NonFiniteScoreError, match="1 of 3"):
                policy.decide(request(), at([view("a", 1), view("b", 1)]), _rng())


def test_what_the_network_sees() -> None:
    network = fewest(0.0)
    asked = request(cached_tokens={"a": 40})
    learned(network).decide(asked, at([view("a", 2), view("b", 1)], since_s=99.0), _rng())
    row = dict(zip(LEARNED_INSTANCE_NAMES, network.instances_IF[0].tolist(), strict=True))
    assert (row["requests"], row["context_tokens"], row["prompt_tokens"]) == (2.0, 1_000.0, 100.0)
    assert (row["cached_prompt_tokens"], row["has_room"]) == (40.0, 1.0)
    assert row["kv_tokens"] == H100_MIX.kv_tokens
    line = dict(zip(LEARNED_LINE_NAMES, network.line_H.tolist(), strict=True))
    assert (line["line/held"], line["line/head_age_s"]) == (3.0, 1.0)
    assert (line["line/prefer_ttft"], line["line/prefer_e2e"], line["line/prefer_tpot"]) == (0.5, 0.5, 0.0)


class TestThePapersState:
    def test_by_hand(self) -> None:
        views = [view("a", 2), view("b")]
        inflight = [
            _reservation("1", "a", predicted=100.0, generated=0),
            _reservation("2", "a", predicted=600.0, generated=200),
            _reservation("3", "gone", predicted=9.0, generated=0),
        ]
        state = paper_state_of(request(prompt_tokens=250, predicted_output_tokens=300.0), 700, views, inflight)
        named = dict(zip(paper_state_names(2), state, strict=True))
        assert named["instance=0/prompt_phase"] == 0.1
        assert named["instance=0/decode_medium"] == 0.02
        assert named["instance=0/decode_short"] == named["instance=0/decode_long"] == 0.0
        assert named["instance=0/capacity"] == round(1 - 1_000 / H100_MIX.kv_tokens, 2)
        step_s = H100_MIX.base_decode_s + 2 * H100_MIX.sequence_s + 1_000 * H100_MIX.context_s_per_token
        assert named["instance=0/earliest_completion"] == pytest.approx(100 * step_s / 10)
        assert named["instance=1/capacity"] == 1.0
        assert named["instance=1/earliest_completion"] == 0.0
        assert (named["queue/length"], named["queue/head_prompt_tokens"], named["queue/head_bucket"]) == (
            5.12,
            0.5,
            0.5,
        )

    def test_instances_stand_in_the_order_of_their_ids(self) -> None:
        policy = paper_policy({"0": {"queue/head_bucket": 1.0}, "1": {"queue/head_bucket": 2.0}})
        asked = request(predicted_output_tokens=2_000.0)
        decision = policy.decide(asked, known([view("b", 1), view("a", 1)]), _rng())
        assert isinstance(decision, Placement)
        assert [(one.instance_id, one.score) for one in decision.candidates] == [("b", -2.0), ("a", -1.0)]

    def test_another_number_of_instances_is_refused(self) -> None:
        with pytest.raises(MissingFeatureError, match="for 2 instances, not 3"):
            paper_policy({}).decide(request(), known([view("a"), view("b"), view("c")]), _rng())

    def test_requests_that_are_not_known_are_refused(self) -> None:
        with pytest.raises(MissingFeatureError, match="not known one by one"):
            paper_policy({}).decide(request(), at([view("a"), view("b")]), _rng())


class TestWhichModelsRun:
    def test_a_shared_agent(self) -> None:
        runtime = built(shared_agent({"requests": -1.0}, {}, hold=-1e6))
        assert runtime.policy_readiness.ready
        decision = runtime.guard.decide(request(), at([view("a", 3), view("b", 1)]), _rng()).decision
        assert isinstance(decision, Placement)
        assert decision.candidates[0].instance_id == "b"

    def test_the_preferences_reach_it(self) -> None:
        """A preset, and a number in its place: hold is worth what TTFT does not count."""
        model = shared_agent({"requests": -1.0}, {"line/prefer_e2e": 10.0}, hold=-5.0)
        views, asked = at([view("a", 3)]), request(arrived_at_s=99.0)
        held = built(model, objective={"preset": "E2E"}).guard.decide(asked, views, _rng()).decision
        assert isinstance(held, Hold)
        chosen = {"preset": "E2E", "preferences": {"e2e": 0.0, "ttft": 1.0}}
        assert isinstance(built(model, objective=chosen).guard.decide(asked, views, _rng()).decision, Placement)

    def test_an_agent_of_the_papers_state_needs_the_only_router(self) -> None:
        model = paper_agent({})
        assert isinstance(built(model).guard.primary, Learned)
        with pytest.raises(ModelRejectedError, match="only router") as refused:
            built(model, state={"redis": {"address": "redis:6379"}})
        assert refused.value.reason == "SingleRouterOnly"

    def test_agents_and_costs_are_not_taken_for_each_other(self) -> None:
        with pytest.raises(ModelRejectedError, match="type Learned, not Onnx"):
            load_scorer(*shared_agent({}, {}), expected_sha256=None)
        with pytest.raises(ModelRejectedError, match="type Onnx, not Learned"):
            load_network(*builtin_model("policy", "marginal-cost"), expected_sha256=None)

    def test_a_network_that_answers_nan_is_refused(self) -> None:
        with pytest.raises(ModelRejectedError) as refused:
            load_network(*shared_agent({"requests": float("nan")}, {}), expected_sha256=None)
        assert refused.value.reason == "NotFinite"

    def test_another_signature_is_refused(self) -> None:
        model, _ = shared_agent({}, {})
        _, manifest = paper_agent({})
        with pytest.raises(ModelRejectedError):
            load_network(model, manifest, expected_sha256=None)
        costs = shipped_manifest()
        assert costs.feature_version < 100  # agents' versions are far from those of costs


def built(model: tuple[bytes, bytes], **changes: object) -> Runtime:
    objective = changes.pop("objective", {})
    sha256 = hashlib.sha256(model[0]).hexdigest()
    source = {"configMap": {"name": "mine"}, "sha256": sha256}
    policy = {"type": "Learned", "model": source, "objective": objective}
    config = config_of(policy=policy, model_sha256=sha256, **changes)
    return RuntimeBuilder(FakeClock()).build(bundle_of(config, model=model[0], manifest=model[1]))


def paper_policy(values: dict[str, dict[str, float]]) -> Learned:
    network, _ = load_network(*paper_agent(values), expected_sha256=None)
    assert not hasattr(network, "scores")
    return Learned(kv_gate(1.0), PaperAgent(network))


def known(views: list[InstanceView]) -> PoolSnapshot:
    return replace(at(views), reservations=list)


def _reservation(name: str, instance_id: str, *, predicted: float, generated: int) -> Reservation:
    return Reservation(name, "r", instance_id, 500, predicted, prefilled=generated > 0, generated_tokens=generated)


def _rng() -> random.Random:
    return random.Random(1)
