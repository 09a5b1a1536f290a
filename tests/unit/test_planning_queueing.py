"""Queueing formulas where their values are known."""

from __future__ import annotations

import math

import pytest

from llmrouter.planning.queueing import NO_WAITING, erlang_c, normal_below, normal_within, waiting, waits_many


@pytest.mark.parametrize(
    ("servers", "offered", "expected"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (5, 4.0, 0.5541), (10, 8.0, 0.4092), (3, 0.0, 0.0), (3, 3.0, 1.0)],
)
def test_erlangs_delay_formula(servers: int, offered: float, expected: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(expected, abs=1e-4)


def test_many_servers_are_the_limit_of_erlangs_formula() -> None:
    assert waits_many(30.0, math.sqrt(870.0)) == pytest.approx(erlang_c(900, 870.0), rel=0.03)
    assert waits_many(0.0, 1.0) == 1.0
    assert waits_many(1.0, 0.0) == 0.0


@pytest.mark.parametrize(("scv", "factor"), [(1.0, 1.0), (0.0, 0.5), (3.0, 2.0)])
def test_one_server_is_pollaczek_and_khinchine(scv: float, factor: float) -> None:
    """M/G/1: the mean wait is ρ/(1 − ρ)·S·(1 + c²)/2, and ρ of the requests wait."""
    found = waiting(1, 0.8, 1.0, service_scv=scv, arrivals_scv=1.0)
    assert found is not None
    assert found.probability == pytest.approx(0.8)
    assert found.probability * found.mean_s == pytest.approx(0.8 / 0.2 * factor)


def test_waiting_times_are_a_law() -> None:
    found = waiting(4, 3.0, 1.0, service_scv=1.0, arrivals_scv=1.0)
    assert found is not None
    shares = [found.within(seconds) for seconds in (-1.0, 0.0, 0.5, 2.0, 100.0)]
    assert shares == sorted(shares)
    assert [shares[0], shares[1], shares[-1]] == pytest.approx([0.0, 1.0 - found.probability, 1.0])
    assert NO_WAITING.within(0.0) == 1.0


def test_what_cannot_be_served_has_no_waiting_time() -> None:
    assert waiting(2, 2.0, 1.0, service_scv=1.0, arrivals_scv=1.0) is None
    assert waiting(2, 0.0, 1.0, service_scv=1.0, arrivals_scv=1.0) == NO_WAITING
    assert waiting(500, 490.0, 1.0, service_scv=1.0, arrivals_scv=1.0) is not None


def test_the_normal_law() -> None:
    assert normal_below(1.6449) == pytest.approx(0.95, abs=1e-4)
    assert (normal_within(1.0, 2.0, 0.0), normal_within(2.0, 2.0, 0.0)) == (0.0, 1.0)
