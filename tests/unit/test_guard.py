from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from support.pools import request, snapshot, view

from llmrouter.domain import Candidate, Hold, Placement, Room
from llmrouter.routing.guard import Guard, Why
from llmrouter.routing.lateness import LATE_IN_A_ROW, REST_S
from llmrouter.routing.policies import NonFiniteScoreError, RoundRobin, request_bound

if TYPE_CHECKING:
    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request
    from llmrouter.routing.guard import Guarded

BUDGET_S = 0.005
POOL = snapshot([view("a"), view("b")])


class Scripted:
    """A policy that takes the time, or raises the error, it is told to; its own clock tells the time."""

    name = "Onnx"

    def __init__(self) -> None:
        self.now_s = 100.0
        self.takes_s = 0.0
        self.error: Exception | None = None
        self.answer: Decision | None = None
        self.calls = 0

    def clock(self) -> float:
        return self.now_s

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        del request, rng
        self.calls += 1
        self.now_s += self.takes_s
        if self.error is not None:
            raise self.error
        first = snapshot.views[0]
        return self.answer or Placement((Candidate(first.instance.instance_id, 0.0, first.load),), "scripted")

    def room_of(self, view: InstanceView) -> Room:
        del view
        return Room(max_requests=77)


@pytest.fixture
def primary() -> Scripted:
    return Scripted()


@pytest.fixture
def guard(primary: Scripted) -> Guard:
    return Guard(primary, RoundRobin(request_bound(8)), budget_s=BUDGET_S, clock=primary.clock)


def decide(guard: Guard) -> Guarded:
    return guard.decide(request(), POOL, random.Random(1))


def test_the_primary_decides(guard: Guard, primary: Scripted) -> None:
    primary.takes_s = BUDGET_S / 2
    guarded = decide(guard)
    assert (guarded.policy, guarded.fallback_reason) == ("Onnx", None)
    assert guarded.elapsed_s == pytest.approx(BUDGET_S / 2)


def test_a_hold_for_want_of_room_is_an_answer(guard: Guard, primary: Scripted) -> None:
    primary.answer = Hold("later")
    full = snapshot([view("a", 77), view("b", 77)])
    guarded = guard.decide(request(), full, random.Random(1))
    assert (guarded.decision, guarded.policy, guarded.actions) == (Hold("later"), "Onnx", ())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NonFiniteScoreError("1 of 2 scores are not finite"), "NotFinite"),
        (RuntimeError("boom"), "Error"),
        (MemoryError(), "Error"),
    ],
)
def test_the_fallback_decides_where_the_primary_fails(
    guard: Guard, primary: Scripted, error: Exception, reason: str
) -> None:
    primary.error = error
    guarded = decide(guard)
    assert isinstance(guarded.decision, Placement)
    assert (guarded.policy, guarded.fallback_reason) == ("RoundRobin", reason)
    assert type(error).__name__ in guarded.detail or str(error) in guarded.detail


def test_a_failure_does_not_rest_the_primary(guard: Guard, primary: Scripted) -> None:
    primary.error = RuntimeError("boom")
    for _ in range(3 * LATE_IN_A_ROW):
        decide(guard)
    primary.error = None
    assert decide(guard).policy == "Onnx"


def test_a_late_decision_is_used(guard: Guard, primary: Scripted) -> None:
    primary.takes_s = 2 * BUDGET_S
    assert decide(guard).policy == "Onnx"
    assert guard.standing_in is None


def test_late_ones_in_a_row_rest_it_and_it_resumes(guard: Guard, primary: Scripted) -> None:
    primary.takes_s = 2 * BUDGET_S
    assert [decide(guard).policy for _ in range(LATE_IN_A_ROW)] == ["Onnx"] * LATE_IN_A_ROW
    assert guard.standing_in is Why.LATE

    resting = decide(guard)
    assert (resting.policy, resting.fallback_reason) == ("RoundRobin", "Late")
    assert primary.calls == LATE_IN_A_ROW

    primary.now_s += REST_S - 0.001
    assert decide(guard).policy == "RoundRobin"
    primary.now_s += 0.001
    primary.takes_s = 0.0
    assert decide(guard).policy == "Onnx"
    assert guard.standing_in is None


def test_it_rests_again_only_after_as_many_late_ones(guard: Guard, primary: Scripted) -> None:
    primary.takes_s = 2 * BUDGET_S
    for _ in range(LATE_IN_A_ROW):
        decide(guard)
    primary.now_s += REST_S
    for _ in range(LATE_IN_A_ROW - 1):
        decide(guard)
    assert guard.standing_in is None
    decide(guard)
    assert guard.standing_in is Why.LATE


def test_one_in_time_starts_the_count_anew(guard: Guard, primary: Scripted) -> None:
    for number in range(4 * LATE_IN_A_ROW):
        primary.takes_s = 0.0 if number % LATE_IN_A_ROW == 0 else 2 * BUDGET_S
        decide(guard)
    assert guard.standing_in is None


def test_room_is_the_primary_s(guard: Guard) -> None:
    assert guard.room_of(view("a")) == Room(max_requests=77)
