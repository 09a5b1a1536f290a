"""How long requests wait where several servers share one queue: formulas over plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

_EXACT_SERVERS = 128
"""Up to so many, Erlang's recursion; beyond, its limit."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits, and how long: with ``probability``, then exponentially long with the mean ``mean_s``."""

    probability: float
    mean_s: float

    def within(self, seconds: float) -> float:
        """Share of the requests that wait at most so long; 0 where there is no time at all."""
        if seconds < 0.0:
            return 0.0
        if self.mean_s <= 0.0:
            return 1.0
        return 1.0 - self.probability * math.exp(-seconds / self.mean_s)


NO_WAITING = Waiting(0.0, 0.0)


def erlang_c(servers: int, offered: float) -> float:
    """Probability that all servers of an M/M/m queue are busy; ``offered`` is rate times mean service, below m.

    Erlang's recursion for B, and C = m·B/(m − a·(1 − B)).
    """
    if offered <= 0.0:
        return 0.0
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for busy in range(1, servers + 1):
        blocked = offered * blocked / (busy + offered * blocked)
    return servers * blocked / (servers - offered * (1.0 - blocked))


def waits_many(spare: float, deviation: float) -> float:
    """The same of very many servers: ``spare`` are free on average, with ``deviation`` around it.

    Halfin and Whitt 1981: 1/(1 + β·Φ(β)/φ(β)) with β = spare/deviation.
    """
    if spare <= 0.0:
        return 1.0
    if deviation <= 0.0:
        return 0.0
    beta = spare / deviation
    density = math.exp(-0.5 * beta * beta) / math.sqrt(2.0 * math.pi)
    return density / (density + beta * normal_below(beta))


def waiting(
    servers: int, requests_per_s: float, service_s: float, *, service_scv: float, arrivals_scv: float
) -> Waiting | None:
    """Waiting in G/G/m, first come first served; ``None`` where more arrives than is served.

    Mean by Allen and Cunneen: C(m, a)/(m/S − λ)·(c_a² + c_s²)/2. The tail is taken as exponential. For ``arrivals_scv``
    the index of dispersion stands where arrivals come in bursts, which gaps alone do not show (Sriram and Whitt 1986).
    """
    offered = requests_per_s * service_s
    if offered >= servers:
        return None
    if offered <= 0.0:
        return NO_WAITING
    spare_rate = servers / service_s - requests_per_s
    busy = (
        erlang_c(servers, offered) if servers <= _EXACT_SERVERS else waits_many(servers - offered, math.sqrt(offered))
    )
    return Waiting(busy, 0.5 * (arrivals_scv + service_scv) / spare_rate)


def normal_below(value: float) -> float:
    """Φ, the share of a standard normal law below a value."""
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


def normal_within(value: float, mean: float, deviation: float) -> float:
    """Share of a normal law at most ``value``; a step where it has no width."""
    if deviation <= 0.0:
        return 1.0 if value >= mean else 0.0
    return normal_below((value - mean) / deviation)
