"""New instances get their share little by little, and never keep a request waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.router_world import Bench, config_of

from llmrouter.routing.slow_start import SlowStart
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from collections.abc import Mapping

OLD = ("a", "b", "c")
ALL = (*OLD, "new")


def started(slow_start_s: float = 10.0) -> SlowStart:
    one = SlowStart(slow_start_s)
    one.follow(OLD, now_s=0.0)
    one.follow(ALL, now_s=100.0)
    return one


def satisfied(one: SlowStart, loads: Mapping[str, int], now_s: float) -> set[str]:
    return set(one.satisfied(list(loads), lambda name: loads[name], now_s=now_s))


def test_its_share_grows_with_time() -> None:
    one, loads = started(), dict.fromkeys(OLD, 20)
    most = []
    for now_s in (100.0, 102.5, 105.0, 109.9):
        takes = next(n for n in range(50) if "new" in satisfied(one, {**loads, "new": n}, now_s))
        most.append(takes)
    assert most == [1, 5, 10, 20]
    assert satisfied(one, {**loads, "new": 99}, 110.0) == set()
    assert not one.is_ramping


def test_those_that_are_there_at_the_beginning_are_not_new() -> None:
    one = SlowStart(10.0)
    one.follow((), now_s=0.0)
    one.follow(ALL, now_s=1.0)
    assert not one.is_ramping


def test_most_of_a_pool_does_not_ramp() -> None:
    one = SlowStart(10.0)
    one.follow("a", now_s=0.0)
    one.follow(ALL, now_s=1.0)
    assert satisfied(one, {"a": 50, "b": 5, "c": 5, "new": 5}, 1.0) == set()


def test_one_that_is_back_begins_anew_and_one_that_is_gone_is_forgotten() -> None:
    one = SlowStart(10.0)
    one.follow(OLD, now_s=0.0)
    one.began("a", now_s=50.0)
    assert satisfied(one, dict.fromkeys(OLD, 9), 51.0) == {"a"}
    one.follow(("b", "c"), now_s=52.0)
    assert not one.is_ramping


@pytest.mark.parametrize(("slow_start_s", "now_s"), [(0.0, 100.0), (10.0, 50.0), (10.0, 1e9)])
def test_it_is_off_or_over(slow_start_s: float, now_s: float) -> None:
    assert satisfied(started(slow_start_s), dict.fromkeys(ALL, 9), now_s) == set()


@given(st.dictionaries(st.sampled_from([*ALL, "x", "y"]), st.integers(0, 100)), st.floats(90.0, 120.0))
def test_at_least_half_are_left(loads: dict[str, int], now_s: float) -> None:
    one = started()
    one.follow([*ALL, "x", "y"], now_s=100.0)
    assert len(satisfied(one, loads, now_s)) <= len(loads) / 2


def four() -> Bench:
    bench = Bench(config_of("a:1", "b:1", "c:1", "new:1", limits={"maxInFlightPerInstance": 8}))
    everybody = bench.instances.instances
    bench.world.slow_start.follow([one.instance_id for one in everybody[:3]], now_s=bench.clock.now_s)
    bench.world.slow_start.follow([one.instance_id for one in everybody], now_s=bench.clock.now_s)
    return bench


async def test_a_new_instance_gets_no_burst_though_it_is_idle() -> None:
    bench = four()
    picked = [(await bench.route()).endpoint for _ in range(16)]
    assert picked.count("new:1") == 1
    bench.clock.now_s += 5.0
    picked += [(await bench.route()).endpoint for _ in range(4)]
    assert 2 <= picked.count("new:1") <= 4
    bench.clock.now_s += 5.0
    later = [(await bench.route()).endpoint for _ in range(3)]
    assert later.count("new:1") == 3, "from now on it is one of them"


async def test_it_gets_what_the_others_have_no_room_for() -> None:
    bench = four()
    picked = [(await bench.route()).endpoint for _ in range(32)]
    assert {name: picked.count(name) for name in set(picked)} == {"a:1": 8, "b:1": 8, "c:1": 8, "new:1": 8}


async def test_it_gets_what_may_go_nowhere_else() -> None:
    bench = four()
    for _ in range(4):
        assert (await bench.route(subset=frozenset({"new:1"}))).endpoint == "new:1"


async def test_what_was_left_out_begins_slowly_when_it_is_back() -> None:
    config = config_of("a:1", "b:1", "c:1", outliers={"consecutiveFailures": 1, "maxEjectedFraction": 0.4})
    bench = Bench(config)
    first = await bench.route("x")
    await bench.report("x", ReportKind.FAILED, reason="status 500")
    bench.clock.now_s += 10.0
    while (await bench.route("trial")).endpoint != first.endpoint:
        await bench.report("trial")
    assert not bench.world.slow_start.is_ramping
    await bench.report("trial", ReportKind.FIRST_TOKEN)
    assert bench.world.slow_start.is_ramping
