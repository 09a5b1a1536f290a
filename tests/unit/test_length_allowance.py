"""How much of the loop's time foretelling may take."""

from __future__ import annotations

from support.router_world import FakeClock

from router_grpc.length_allowance import BURST_S, LEAST_SHARE, MOST_SHARE, WINDOW_S, Allowance


def after(clock: FakeClock, allowance: Allowance, batches: int, *, late: bool) -> float:
    """The share after so many batches, one a window."""
    for _ in range(batches):
        clock.now_s += 1.01 * WINDOW_S
        allowance.took(0.0, late=late)
    return allowance.share


def test_it_is_cut_while_the_loop_is_late_and_grows_again_while_it_is_not() -> None:
    clock = FakeClock()
    allowance = Allowance(clock)
    assert allowance.share == MOST_SHARE
    assert after(clock, allowance, 1, late=True) < MOST_SHARE
    assert after(clock, allowance, 50, late=True) == LEAST_SHARE
    assert after(clock, allowance, 1, late=False) > LEAST_SHARE
    assert after(clock, allowance, 50, late=False) == MOST_SHARE


def test_what_was_taken_has_to_be_earned_again_at_its_share() -> None:
    clock = FakeClock()
    allowance = Allowance(clock)
    after(clock, allowance, 50, late=True)
    assert allowance.is_left()
    allowance.took(2 * BURST_S, late=True)
    assert not allowance.is_left()
    clock.now_s += 0.9 * BURST_S / LEAST_SHARE
    assert not allowance.is_left()
    clock.now_s += 0.2 * BURST_S / LEAST_SHARE
    assert allowance.is_left()


def test_a_pause_earns_no_more_than_a_burst() -> None:
    clock = FakeClock()
    allowance = Allowance(clock)
    clock.now_s += 1e6
    assert allowance.is_left()
    allowance.took(BURST_S, late=False)
    assert not allowance.is_left()


def test_a_clock_that_goes_back_earns_nothing_and_stops_nothing() -> None:
    clock = FakeClock()
    allowance = Allowance(clock)
    allowance.took(2 * BURST_S, late=False)
    clock.now_s -= 1e6
    assert not allowance.is_left()
    clock.now_s += 1.0
    assert allowance.is_left()
