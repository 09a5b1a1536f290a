"""Learned step times in the status: merged over routers, slow instances told once, written seldom."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from support.acknowledgements import said_by
from support.crd_cases import router

from llmrouter.acknowledgement import MAX_SLOW, RouterAcknowledgement, RouterCalibration
from llmrouter.config import PolicyConfig
from llmrouter.resources import LLMRouterSpec
from llmrouter_operator.calibration import WRITTEN_AFTER_S, calibration_status, slow_notes
from llmrouter_operator.lately import STALE_AFTER_S
from llmrouter_operator.models import ObjectKey, Plan, PolicyChoice
from llmrouter_operator.status import Acknowledgements, Facts, build_status, transitions

if TYPE_CHECKING:
    from llmrouter_operator.models import Object

START = datetime(2026, 1, 1, tzinfo=UTC)
KNOWN = RouterCalibration(
    pool="main", calibrate="Full", observations=1_000, relative_residual=0.05, profile_residual=0.6
)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def known(**changes: object) -> RouterCalibration:
    return KNOWN.model_copy(update=changes)


def said(*calibration: RouterCalibration, router_id: str = "a", at_s: float = 0.0) -> RouterAcknowledgement:
    return said_by(router_id, calibration=calibration, at_s=START.timestamp() + at_s)


def status(*what: RouterAcknowledgement, old: Object | None = None, now_s: float = 0.0) -> Object | None:
    return calibration_status(old, what, at(now_s))


def slow_of(what: Object | None) -> list[Object]:
    assert what is not None
    found: list[Object] = what["pools"][0].get("slowInstances", [])
    return found


def test_routers_are_merged_by_what_they_saw() -> None:
    other = known(observations=3_000, relative_residual=0.09, frozen="BadResiduals", slow={"x": 2.0})
    merged = status(said(known(slow={"x": 1.8, "y": 1.4})), said(other, router_id="b"))
    assert merged == {
        "pools": [
            {
                "pool": "main",
                "calibrate": "Full",
                "observations": 4_000,
                "relativeResidual": 0.08,
                "profileResidual": 0.6,
                "frozen": "BadResiduals",
                "slowInstances": [{"instance": "x", "slowness": 1.8}],
            }
        ],
        "observedAt": at(0),
    }


def test_one_router_of_three_makes_no_instance_slow() -> None:
    steady = [said(known(), router_id=name) for name in "ab"]
    assert slow_of(status(*steady, said(known(slow={"x": 3.0}), router_id="c"))) == []


def test_what_is_stale_or_nothing_is_omitted() -> None:
    assert status() is None
    assert status(said()) is None
    assert status(said(KNOWN, at_s=-STALE_AFTER_S - 1)) is None
    nothing = known(relative_residual=None, profile_residual=None, observations=0)
    assert status(said(nothing)) == {
        "pools": [{"pool": "main", "calibrate": "Full", "observations": 0}],
        "observedAt": at(0),
    }


def test_many_routers_may_take_longer_because_they_speak_in_turns() -> None:
    late = [said(KNOWN, router_id=f"r{place}", at_s=-STALE_AFTER_S - 1) for place in range(100)]
    merged = status(*late)
    assert merged is not None
    assert merged["pools"][0]["observations"] == 100 * KNOWN.observations


def test_an_instance_is_slow_until_it_clearly_is_not() -> None:
    first = status(said(known(slow={"x": 1.45})))
    assert slow_of(first) == []
    second = status(said(known(slow={"x": 1.6}), at_s=5), old=first, now_s=5)
    assert slow_of(second) == [{"instance": "x", "slowness": 1.6}]
    third = status(said(known(slow={"x": 1.35}), at_s=10), old=second, now_s=10)
    assert slow_of(third) == [{"instance": "x", "slowness": 1.35}]
    assert slow_of(status(said(KNOWN, at_s=15), old=third, now_s=15)) == []


def test_slow_instances_are_bounded() -> None:
    slow = {f"i{number}": 2.0 for number in range(MAX_SLOW)}
    assert len(slow_of(status(said(known(slow=slow)), said(known(slow={"z": 9.0}), router_id="b")))) <= MAX_SLOW


@pytest.mark.parametrize(
    "changes",
    [
        {"slow": {"x": 2.3}},
        {"slow": {}},
        {"slow": {"x": 2.0, "y": 1.6}},
        {"relative_residual": 0.2},
        {"frozen": "BadResiduals"},
        {"calibrate": "None"},
    ],
)
def test_it_is_written_when_it_moves_or_is_old(changes: dict[str, object]) -> None:
    old = status(said(known(slow={"x": 2.0})))
    assert old is not None
    near = known(slow={"x": 2.1}, relative_residual=0.08, observations=9_999)
    assert status(said(near, at_s=5), old=old, now_s=5) is old
    moved = status(said(known(**{"slow": {"x": 2.0}, **changes}), at_s=5), old=old, now_s=5)
    assert moved is not None
    assert moved["observedAt"] == at(5)
    late = status(said(known(slow={"x": 2.0}), at_s=WRITTEN_AFTER_S), old=old, now_s=WRITTEN_AFTER_S)
    assert late == {**old, "observedAt": at(WRITTEN_AFTER_S)}


def test_an_event_tells_of_a_slow_instance_once_and_of_its_recovery() -> None:
    spec = LLMRouterSpec.model_validate(router())
    policy = PolicyChoice(PolicyConfig(name="plain", type="RoundRobin"))
    plan = Plan(key=ObjectKey("team", "fleet"), spec=spec, choice=policy, config_digest="new")

    def built(old: Object, seconds: float, *calibration: RouterCalibration) -> Object:
        heard = Acknowledgements({"a": said(*calibration, at_s=seconds)})
        return build_status(old, Facts(1, 1, 1, rolled_out=True, said=heard, plan=plan), in_force=None, now=at(seconds))

    silent = built({}, 0.0)
    assert "calibration" not in silent
    slow = built(silent, 5.0, known(slow={"x": 2.0}))
    (note,) = transitions(silent, slow)
    assert (note.reason, note.warning) == ("SlowInstance", True)
    assert "instance x of pool main" in note.message
    again = built(slow, 10.0, known(slow={"x": 2.1}))
    assert (again, transitions(slow, again)) == (slow, [])
    (note,) = transitions(slow, built(slow, 15.0, KNOWN))
    assert (note.reason, note.warning) == ("InstanceNotSlow", False)
    assert slow_notes(slow["calibration"], None) == []
