"""A pool as a queue: the simulator against queueing formulas, and what more load can never improve."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from support.sim_worlds import ONE_AT_A_TIME, SERVICE_S

from llmrouter.domain import EngineMode
from llmrouter.errors import InvalidInputError
from llmrouter.profiles import H100_MIX
from llmrouter.routing.rules import Rule
from llmrouter.sim.capacity import ROUND_ROBIN, capacity_rps, late_ttft_s
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, Setup
from llmrouter.sim.workload import Workload

pytestmark = pytest.mark.timeout(600)  # the first simulation of a changed kernel compiles it

STEP_S = 1e-3
STEPWISE = replace(ONE_AT_A_TIME, name="a step a token", base_decode_s=STEP_S, base_prefill_s=STEP_S)
CENTRAL = CompiledPolicy(rule=Rule.LEAST_IN_FLIGHT, max_requests=1)
"""One request at an instance; the others wait at the router, first come, first served."""


def single(*, instances: int = 1) -> Setup:
    return Setup(engines=(EngineModel(ONE_AT_A_TIME),) * instances)


def poisson(count: int, rate_rps: float, *, seed: int, output: int = 1) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload.of(np.cumsum(rng.exponential(1 / rate_rps, count)), np.full(count, 10), np.full(count, output))


def even(rate_rps: float, count: int = 2_000) -> Workload:
    return Workload.of(np.arange(count) / rate_rps, np.full(count, 10), np.ones(count, np.int64))


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_of_fixed_service_waits_as_m_d_1_says(load: float) -> None:
    """Poisson arrivals at a server of fixed service: mean wait = load · service / (2 · (1 − load))."""
    outcomes = simulate(single(), poisson(100_000, load / SERVICE_S, seed=7), ROUND_ROBIN)
    expected_s = load * SERVICE_S / (2 * (1 - load))
    assert outcomes.ttft_s.mean() - SERVICE_S == pytest.approx(expected_s, rel=0.05)


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c at a load of ``load`` Erlangs."""
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.6), (2, 0.7), (4, 0.8), (8, 0.8)])
def test_one_line_before_many_servers_waits_as_erlang_says(servers: int, utilisation: float) -> None:
    """Geometric outputs of one step a token are exponential services: waits are those of M/M/c, within 7 %."""
    mean_tokens = 50
    service_s = mean_tokens * STEP_S
    rate_rps = servers * utilisation / service_s
    rng = np.random.default_rng(13)
    count = 120_000
    at_s = np.cumsum(rng.exponential(1 / rate_rps, count))
    workload = Workload.of(at_s, np.full(count, 10), rng.geometric(1 / mean_tokens, count))
    outcomes = simulate(Setup(engines=(EngineModel(STEPWISE),) * servers), workload, CENTRAL)
    waits = erlang_c(servers, servers * utilisation)
    expected_s = waits * service_s / (servers * (1 - utilisation))
    assert outcomes.wait_s.mean() == pytest.approx(expected_s, rel=0.07)
    assert (outcomes.wait_s > 0).mean() == pytest.approx(waits, rel=0.05)


@pytest.mark.parametrize("instances", [1, 3])
def test_requests_in_the_system_are_rate_times_time_in_it(instances: int) -> None:
    """Little's law: the mean number held, waiting and running is arrivals per second times mean E2E."""
    setup = Setup(engines=(EngineModel(H100_MIX),) * instances)
    workload = poisson(4_000, 9.0 * instances, seed=2, output=150)
    policy = CompiledPolicy(rule=Rule.LEAST_IN_FLIGHT, max_requests=12)
    outcomes = simulate(setup, workload, policy, sample_every_s=0.01)
    timeline = outcomes.timeline
    assert timeline is not None
    assert timeline.held.max() > 0
    inside = timeline.held + (timeline.running + timeline.waiting).sum(axis=1)
    assert inside.sum() * 0.01 == pytest.approx(outcomes.e2e_s.sum(), rel=0.01)


def test_a_server_of_fixed_service_delays_nobody_less_when_arrivals_are_closer() -> None:
    """More load, first come first served, fixed service: every single wait is as long or longer (Lindley)."""
    workload = poisson(3_000, 8.0, seed=4)
    waits = [simulate(single(), workload.scaled_by(factor), ROUND_ROBIN).ttft_s for factor in (1.0, 0.9, 0.7)]
    assert (waits[1] >= waits[0] - 1e-9).all()
    assert (waits[2] >= waits[1] - 1e-9).all()


@pytest.mark.parametrize("mode", list(EngineMode))
@pytest.mark.parametrize("rule", [Rule.ROUND_ROBIN, Rule.LEAST_IN_FLIGHT, Rule.MARGINAL_COST])
def test_more_load_makes_the_mean_no_better(mode: EngineMode, rule: Rule) -> None:
    """The same arrivals compressed by a fifth: mean E2E, TTFT and wait at the router do not fall, over five seeds."""
    setup = Setup(engines=(EngineModel(replace(H100_MIX, mode=mode)),) * 2)
    policy = CompiledPolicy(rule=rule, max_requests=64)
    means = np.zeros((2, 3))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        count = 3_000
        output = rng.lognormal(5, 0.8, count).astype(int).clip(1, 2_000)
        workload = Workload.of(
            np.cumsum(rng.exponential(1 / 16, count)),
            rng.lognormal(6.5, 1, count).astype(int).clip(8, 16_000),
            output,
            predicted_output_tokens=output.astype(float),
        )
        for row, factor in enumerate((1.0, 0.8)):
            outcomes = simulate(setup, workload.scaled_by(factor), policy)
            means[row] += [outcomes.e2e_s.mean(), outcomes.ttft_s.mean(), outcomes.wait_s.mean()]
    assert (means[1] >= means[0]).all()
    assert means[1, 0] > means[0, 0]


@pytest.mark.parametrize("instances", [1, 2, 5])
def test_capacity_is_proportional_to_engines_and_inverse_to_service(instances: int) -> None:
    """Even arrivals at m servers of fixed service: the highest sustained rate is m / service."""
    found = capacity_rps(single(instances=instances), even, tolerance=0.002)
    assert found == pytest.approx(instances / SERVICE_S, rel=0.03)
    faster = EngineModel(replace(ONE_AT_A_TIME, base_prefill_s=SERVICE_S / 2))
    quick = capacity_rps(Setup(engines=(faster,) * instances), even, tolerance=0.002)
    assert quick == pytest.approx(2 * found, rel=0.03)


def test_capacity_refuses_what_it_cannot_find() -> None:
    """Bad input: a start that is none, a pool that sustains nothing near it."""
    with pytest.raises(InvalidInputError, match="start_rps"):
        capacity_rps(single(), even, start_rps=0)
    slow = Setup(engines=(EngineModel(replace(ONE_AT_A_TIME, base_prefill_s=1.5)),))
    with pytest.raises(InvalidInputError, match="sustains no rate"):
        capacity_rps(slow, even)


def test_round_robin_takes_turns() -> None:
    """Round-robin gives each of m engines every m-th request."""
    outcomes = simulate(single(instances=3), even(1.0, 9), ROUND_ROBIN)
    assert outcomes.instance.tolist() == [0, 1, 2] * 3
    assert late_ttft_s(outcomes) == pytest.approx(SERVICE_S)
