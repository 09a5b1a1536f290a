"""A choice among the first few of the line, as plain functions that ``rollout`` calls: which request, and where.

What it is for is a bound: how much a router that looks past the head of its line could win in a cell where there is
always a line. ``Decider.window`` requests from the head on are tried on every instance whose KV gate lets them in, and
the pair with the least value goes::

    value = w0·cost + w1·(cost − least cost of the request anywhere) + w2·predicted/100 − w3·waited + w4·free

``cost`` is own + 1.0·imposed + 2·coalesce in seconds, ``waited`` since arrival in seconds, ``free`` the tenths of the
instance's KV that the gate would still leave. w2 above 0 takes short answers first, below 0 long ones; above 0, w4
packs.
Instances open to a batch alone, as ``rollout.batch_hold`` has it. A head that has been the head for ``longest_hold_s``
goes before everybody else.
"""

from __future__ import annotations

from typing import Any

from llmrouter.routing.rules import COALESCE_ALONE, IMPOSED_ALONE, marginal_cost_row, own_latency
from llmrouter.sim.kernel.decisions import eligible, fill_row, has_room

LOADS = 4
"""``records.LOAD_FIELDS``."""


def best_pair(world: Any, agent: Any, s: int) -> tuple[int, int]:  # noqa: ANN401 - records
    """The request and the instance of the least value; (head, -1) where none may go."""
    run, it = world.run[0], agent.it[0]
    patient = run.now - it.head_since < it.longest_hold_s
    hurried = not patient or run.now - it.head_since >= it.batch_wait_s
    best, where, least = s, -1, 1e300
    j, tried = s, 0
    while j >= 0 and tried < (it.window if patient else 1):
        cheapest = price_pairs(world, agent, j)
        sequence = world.pool.sequences[j]
        for e in range(run.instances):
            if not eligible(world, e, j) or not has_room(world, e, j):
                continue
            idle = world.asked_loads[e * LOADS] == 0.0
            opened = idle or hurried or world.asked_loads[e * LOADS + 2] > 0.0
            if not opened and waiting_fit(world, agent, e, s) < it.batch:
                continue
            cost = agent.costs[e]
            taken = world.asked_loads[e * LOADS + 1] + run.decode_reserve_fraction * world.asked_loads[e * LOADS + 3]
            asked = sequence.prompt + run.decode_reserve_fraction * sequence.predicted
            value = agent.weights[0] * cost + agent.weights[1] * (cost - cheapest)
            value += agent.weights[2] * sequence.predicted / 100.0
            value -= agent.weights[3] * (run.now - sequence.arrived_at)
            value += agent.weights[4] * 10.0 * (1.0 - (taken + asked) / world.pool.engines[e].kv_tokens)
            if value < least:
                best, where, least = j, e, value
        tried += 1
        j = sequence.next
    return best, where


def price_pairs(world: Any, agent: Any, j: int) -> float:  # noqa: ANN401
    """Writes what a request costs on each instance; returns the least."""
    least = 1e300
    for e in range(world.run[0].instances):
        fill_row(world, e, j)
        cost = own_latency(world.row) + marginal_cost_row(world.row, IMPOSED_ALONE)
        cost += 2.0 * marginal_cost_row(world.row, COALESCE_ALONE)
        agent.costs[e] = cost
        least = min(least, cost)
    return least


def waiting_fit(world: Any, agent: Any, e: int, s: int) -> int:  # noqa: ANN401
    """How many of those that wait, from the head on, the gate of an instance would let in; at most ``batch``."""
    run, it, pool = world.run[0], agent.it[0], world.pool
    at, engine = e * LOADS, world.pool.engines[e]
    limit = float(int(run.kv_fraction * engine.kv_tokens) - engine.block_tokens)
    tokens = world.asked_loads[at + 1] + run.decode_reserve_fraction * world.asked_loads[at + 3]
    count, j = 0, s
    while j >= 0 and count < it.batch:
        sequence = pool.sequences[j]
        tokens += sequence.prompt + run.decode_reserve_fraction * sequence.predicted
        if tokens > limit:
            break
        count += 1
        j = sequence.next
    return count
