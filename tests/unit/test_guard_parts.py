"""The parts of the guard by themselves: shares of tokens, ranges of a model, holds at will."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from support.pools import MODEL, request, snapshot, view

from llmrouter.domain import SHORTEST_HOLD_S, Hold, Load
from llmrouter.profiles import H100_MIX
from llmrouter.routing.envelope import WINDOW_DECISIONS, Envelope, EnvelopedNetwork, EnvelopedState
from llmrouter.routing.guard_holds import OVERRULED_IN_A_ROW, VoluntaryHolds
from llmrouter.routing.guard_shares import ENOUGH_PLACEMENTS, WINDOW_S, Shares
from llmrouter.routing.inflight import fullness
from llmrouter.routing.lateness import REST_S

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.domain import InstanceView, PoolSnapshot

NOW_S = 1_000.0


def at(*views: InstanceView, now_s: float = NOW_S, **others: float) -> PoolSnapshot:
    return replace(snapshot(views), taken_at_s=now_s, **others)  # type: ignore[arg-type]


def shares_of(counts: dict[str, int], factor: float, *, tokens: int = 100) -> Shares:
    shares = Shares(factor)
    asked = request(prompt_tokens=tokens, predicted_output_tokens=0.0)
    for name, count in counts.items():
        for _ in range(count):
            shares.placed(name, asked, at())
    return shares


class TestShares:
    def test_an_instance_may_take_what_it_could_if_it_were_so_many_times_as_large(self) -> None:
        """Four equal ones, factor 2: 2/5 of the tokens, and no more."""
        pool = at(*(view(name, 1) for name in "abcd"))
        assert not shares_of({"a": 40, "b": 20, "c": 20, "d": 20}, 2.0).over("a", request(), pool)
        assert "took 41% of the tokens" in shares_of({"a": 41, "b": 20, "c": 20, "d": 19}, 2.0).over(
            "a", request(), pool
        )

    def test_a_larger_engine_may_take_more(self) -> None:
        """Three quarters of the KV and factor 2: 6/7 of the tokens; its small neighbour 2/5."""
        large = replace(H100_MIX, kv_tokens=3 * H100_MIX.kv_tokens)
        pool = at(view("large", 1, profile=large), view("small", 1))
        shares = shares_of({"large": 84, "small": 16}, 2.0)
        assert not shares.over("large", request(), pool)
        assert not shares.over("small", request(), pool)
        turned = shares_of({"large": 50, "small": 50}, 2.0)
        assert turned.over("small", request(), pool)
        assert not turned.over("large", request(), pool)

    def test_tokens_count_and_not_requests(self) -> None:
        shares = shares_of({"a": 30}, 2.0, tokens=10)
        for _ in range(10):
            shares.placed("b", request(prompt_tokens=1_000, predicted_output_tokens=0.0), at())
        pool = at(view("a", 1), view("b", 1), view("c"))
        assert not shares.over("a", request(), pool)
        assert shares.over("b", request(), pool)

    def test_cached_tokens_are_no_work(self) -> None:
        shares = Shares(2.0)
        for n in range(60):
            here = "abc"[n % 3]
            cached = {"a": 9_900} if here == "a" else {}
            tokens = 10_000 if here == "a" else 100
            asked = request(prompt_tokens=tokens, predicted_output_tokens=0.0, cached_tokens=cached)
            shares.placed(here, asked, at())
        assert not shares.over("a", request(), at(view("a", 1), view("b", 1), view("c", 1)))

    def test_few_placements_say_nothing(self) -> None:
        pool = at(view("a", 1), view("b", 1))
        assert not shares_of({"a": ENOUGH_PLACEMENTS - 1}, 1.0).over("a", request(), pool)
        assert shares_of({"a": ENOUGH_PLACEMENTS}, 1.0).over("a", request(), pool)

    def test_the_only_instance_may_take_all(self) -> None:
        assert not shares_of({"a": 100}, 1.0).over("a", request(), at(view("a", 1)))

    def test_what_is_long_ago_is_forgotten(self) -> None:
        shares, asked = shares_of({"a": 100}, 1.5), request()
        views = view("a", 1), view("b", 1)
        assert shares.over("a", asked, at(*views))
        for n in range(60):
            shares.placed("b" if n % 2 else "a", asked, at(*views, now_s=NOW_S + 4 * WINDOW_S + 0.1 * n))
        assert not shares.over("a", asked, at(*views, now_s=NOW_S + 4 * WINDOW_S + 6.0))

    def test_models_do_not_count_for_each_other(self) -> None:
        shares = shares_of({"a": 100}, 1.5)
        other = replace(request(), model="other")
        assert not shares.over("a", other, at(view("a", 1, model="other"), view("b", 1, model="other")))

    def test_only_less_full_ones_are_spared(self) -> None:
        """The slots of one and the KV of another are as full as the first: neither takes its requests."""
        first = view("first", 128)
        kv = replace(view("kv"), load=Load(requests=1, context_tokens=H100_MIX.kv_tokens // 2))
        pool = at(first, kv, view("busy", 200), view("free", 100), view("stranger", model="other"))
        shares = shares_of({"first": 100}, 2.0)
        for one in (first, kv):
            load, profile = one.total, one.instance.profile
            full = fullness(load.requests, load.context_tokens, profile.max_sequences, profile.kv_tokens)
            assert full == 0.5
        assert [one.instance.instance_id for one in shares.spared("first", request(), pool)] == ["free"]

    def test_a_year_of_placements_stays_finite(self) -> None:
        shares, rng = Shares(2.0), random.Random(1)
        views = view("a", 1), view("b", 1), view("c", 1)
        for n in range(3_000):
            shares.placed(rng.choice("abc"), request(), at(*views, now_s=NOW_S + n * 10_000.0))
        for n in range(100):
            shares.placed("a", request(), at(*views, now_s=NOW_S + 3e7 + 0.01 * n))
        assert "took 100%" in shares.over("a", request(), at(*views, now_s=NOW_S + 3e7 + 1.0))
        assert not shares.over("b", request(), at(*views, now_s=NOW_S + 3e7 + 1.0))


def envelope(most: float = 0.5) -> Envelope:
    return Envelope(
        np.array([0.0, -1.0], np.float32), np.array([10.0, 1.0], np.float32), ("n", "x"), max_clamped_fraction=most
    )


class TestEnvelope:
    def test_what_is_within_stays_and_what_is_beyond_is_clamped(self) -> None:
        ranges = envelope()
        rows = np.array([[0.0, 1.0], [10.0, -1.0]], np.float32)
        assert ranges.clamp(rows) is rows
        assert ranges.settle(0.0) is None
        clamped = ranges.clamp(np.array([[5.0, -3.0], [11.0, 0.0]], np.float32))
        assert clamped.tolist() == [[5.0, -1.0], [10.0, 0.0]]
        assert ranges.settle(0.0) == "n"
        assert ranges.settle(0.0) is None

    def test_nan_stays_nan_for_the_score_to_say_so(self) -> None:
        assert math.isnan(envelope().clamp(np.array([[np.nan, 0.0]], np.float32))[0, 0])

    def test_infinity_is_clamped(self) -> None:
        assert envelope().clamp(np.array([np.inf, -np.inf], np.float32)).tolist() == [10.0, -1.0]

    @pytest.mark.parametrize(("most", "rests"), [(0.0, True), (0.49, True), (0.5, False), (1.0, False)])
    def test_half_of_the_decisions(self, most: float, rests: bool) -> None:  # noqa: FBT001 - a column of the table
        ranges = envelope(most)
        for n in range(WINDOW_DECISIONS):
            ranges.clamp(np.array([20.0 if n % 2 else 1.0, 0.0], np.float32))
            ranges.settle(n * 0.01)
        assert ranges.resting(1.0) is rests
        assert not ranges.resting(1.0 + REST_S)
        if rests:
            assert "last in n" in ranges.why_resting

    def test_networks_see_clamped_features(self) -> None:
        seen: list[Any] = []

        class Network:
            instances = 1

            def scores(self, instances_IF: NDArray[np.float32], line_H: NDArray[np.float32]) -> NDArray[np.float32]:
                seen.extend([instances_IF, line_H])
                return instances_IF

            def values(self, state_S: NDArray[np.float32]) -> NDArray[np.float32]:
                seen.append(state_S)
                return state_S

        names = ("n", "line/x")
        ranges = Envelope(np.zeros(2, np.float32), np.ones(2, np.float32), names, max_clamped_fraction=1.0)
        EnvelopedNetwork(Network(), ranges).scores(np.array([[3.0]], np.float32), np.array([-4.0], np.float32))
        assert [one.tolist() for one in seen] == [[[1.0]], [0.0]]
        EnvelopedState(Network(), ranges).values(np.array([0.5, 7.0], np.float32))
        assert seen[-1].tolist() == [0.5, 1.0]
        assert ranges.settle(0.0) == "line/x"


def holds(**changes: float) -> VoluntaryHolds:
    return VoluntaryHolds(**{"stale_after_s": 1.0, "longest_s": 5.0, "longest_wait_s": math.inf} | changes)


class TestHoldsAtWill:
    busy = (view("a", 1), view("b", 2))

    def judged(self, until_s: float | None, **seen: float) -> Hold | None:
        return holds().judge(Hold("wish", until_s), request(), at(*self.busy, **seen)).hold

    def test_a_short_one_stands_as_it_is(self) -> None:
        assert self.judged(NOW_S + 0.1) == Hold("wish", NOW_S + 0.1)

    @pytest.mark.parametrize("until_s", [None, math.inf, math.nan, NOW_S + 60.0])
    def test_one_without_a_sensible_end_gets_one(self, until_s: float | None) -> None:
        assert self.judged(until_s, head_since_s=NOW_S - 2.0) == Hold("wish", NOW_S + 3.0)

    @pytest.mark.parametrize("until_s", [-math.inf, 0.0, NOW_S])
    def test_one_that_is_over_lasts_a_little(self, until_s: float) -> None:
        assert self.judged(until_s) == Hold("wish", NOW_S + SHORTEST_HOLD_S)

    @pytest.mark.parametrize("since_s", [NOW_S - 5.0, NOW_S - 1e9, NOW_S + 1.0, math.nan])
    def test_none_for_a_head_that_is_old_or_of_no_known_age(self, since_s: float) -> None:
        assert self.judged(NOW_S + 0.1, head_since_s=since_s) is None

    @pytest.mark.parametrize("age_s", [1.5, math.inf, math.nan])
    def test_none_on_loads_of_yesterday(self, age_s: float) -> None:
        verdict = holds().judge(Hold("wish", NOW_S + 0.1), request(), at(*self.busy, load_age_s=age_s))
        assert (verdict.hold, verdict.stale) == (None, True)

    def test_an_idle_instance_ends_it_only_for_who_may_go_there(self) -> None:
        pool = at(*self.busy, view("idle"), view("other", model="other"))
        assert holds().judge(Hold("wish", NOW_S + 0.1), request(), pool).hold is None
        kept_out = request(excluded_instance_ids=frozenset({"idle"}))
        assert holds().judge(Hold("wish", NOW_S + 0.1), kept_out, pool).hold is not None
        assert MODEL != "other"

    def test_half_of_the_longest_wait_is_for_want_of_room(self) -> None:
        judge = holds(longest_wait_s=4.0).judge
        fresh, old = (request(arrived_at_s=NOW_S - age_s) for age_s in (1.0, 2.0))
        assert judge(Hold("wish", NOW_S + 9.0), fresh, at(*self.busy)).hold == Hold("wish", NOW_S + 1.0)
        assert judge(Hold("wish", NOW_S + 9.0), old, at(*self.busy)).hold is None

    def test_again_and_again_rests_the_policy(self) -> None:
        judging, pool = holds(), at(view("idle"))
        for n in range(OVERRULED_IN_A_ROW):
            assert not judging.resting(NOW_S), n
            judging.judge(Hold("wish"), request(), pool)
        assert judging.resting(NOW_S)
        assert not judging.resting(NOW_S + REST_S)

    def test_what_a_policy_cannot_see_does_not_rest_it(self) -> None:
        """That the request has waited in the line before, and how old the loads are."""
        judging, old = holds(longest_wait_s=4.0), request(arrived_at_s=NOW_S - 3.0)
        for _ in range(4 * OVERRULED_IN_A_ROW):
            assert judging.judge(Hold("wish"), old, at(*self.busy)).hold is None
            assert judging.judge(Hold("wish"), request(), at(*self.busy, load_age_s=9.0)).hold is None
        assert not judging.resting(NOW_S)

    def test_a_placement_in_between_starts_the_count_anew(self) -> None:
        judging, pool = holds(), at(view("idle"))
        for _ in range(4 * OVERRULED_IN_A_ROW):
            judging.judge(Hold("wish"), request(), pool)
            judging.kept()
        assert not judging.resting(NOW_S)
