"""A router's lines of held requests: who joins, who goes first, what tenants were served.

A line is kept in the order of arrival and searched for whoever goes first: in that order by ``routing/orders.py``, by
priority before it, and by ``routing/fairness.py`` between tenants. Lines are numbered by router, then by model.
"""

from __future__ import annotations

from llmrouter.routing.fairness import charged, lifted, may_join
from llmrouter.routing.orders import bounded_size, due_at_s, is_timeless, order_key
from llmrouter.routing.rules import own_latency
from llmrouter.sim.kernel.decisions import eligible, fill_idle_row
from llmrouter.sim.kernel.lists import append, unlink
from llmrouter.sim.kernel.records import NONE, World

_BY_RANK = 2
"""``Order.PREDICTED_RANK``."""


def line_of(world: World, s: int) -> int:
    """The line of a request that has reached its router."""
    sequence = world.pool.sequences[s]
    return int(sequence.router * world.run[0].models + sequence.model)


def may_be_held(world: World, s: int) -> bool:
    """Whether a request that arrives may join its line: by the router's bound and, where there is one, its tenant's."""
    run, sequence = world.run[0], world.pool.sequences[s]
    held = world.routers[sequence.router].held
    if held >= run.max_held:
        return False
    return not run.fair or may_join(world.held_by[_account(world, s)], held, run.max_held)


def join(world: World, s: int) -> None:
    """Files a request that arrives; whoever goes first may try where it goes before the one that had to stay."""
    run, sequence = world.run[0], world.pool.sequences[s]
    line = line_of(world, s)
    if not run.in_line_order:
        _size_up(world, s)
        if run.fair:
            _lift(world, s)
    append(world.pool, 2 * run.instances + line, s)
    world.routers[sequence.router].held += 1
    if world.pool.sizes[2 * run.instances + line] == 1:
        world.dirty[line] = 1
    elif not run.in_line_order and world.dirty[line] == 0:
        world.dirty[line] = 1 if _goes_before(world, s, world.line_tried[line]) else 0


def leave(world: World, s: int) -> None:
    """Takes a held request out of its line; the next one may try."""
    run, sequence = world.run[0], world.pool.sequences[s]
    line = line_of(world, s)
    unlink(world.pool, 2 * run.instances + line, s)
    world.routers[sequence.router].held -= 1
    world.dirty[line] = 1
    if run.fair:
        world.held_by[_account(world, s)] -= 1
        world.served_last[line] = world.served[_account(world, s)]


def note_served(world: World, s: int) -> None:
    """Charges a tenant for a request that is about to be dispatched."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.fair:
        at = _account(world, s)
        weight = world.tenant_weights[sequence.tenant]
        world.served[at] = charged(world.served[at], sequence.prompt, sequence.predicted, weight)


def best_of_line(world: World, line: int) -> int:
    """Whoever goes first, ``NONE`` in an empty line."""
    run, pool = world.run[0], world.pool
    head = pool.heads[2 * run.instances + line]
    if head < 0 or run.in_line_order:
        return int(head)
    first = _whose_turn(world, head)
    top, whose = pool.sequences[first].priority, pool.sequences[first].tenant
    best, best_key = NONE, 0.0
    s = head
    while s >= 0:
        sequence = pool.sequences[s]
        if sequence.priority == top and (not run.fair or sequence.tenant == whose):
            key = _key(world, s)
            if best < 0 or key < best_key:
                best, best_key = s, key
        s = sequence.next
    return int(best)


def _whose_turn(world: World, head: int) -> int:
    """The first request of the highest priority in a line; where fairness counts, of the tenant served least."""
    pool, fair = world.pool, world.run[0].fair
    first, s = head, pool.sequences[head].next
    while s >= 0:
        ahead = pool.sequences[s].priority - pool.sequences[first].priority
        if ahead > 0 or (
            ahead == 0 and fair and world.served[_account(world, s)] < world.served[_account(world, first)]
        ):
            first = s
        s = pool.sequences[s].next
    return int(first)


def _goes_before(world: World, s: int, other: int) -> bool:
    """Whether a request would go before another one that came earlier to the same line."""
    run, mine, theirs = world.run[0], world.pool.sequences[s], world.pool.sequences[other]
    if mine.priority != theirs.priority:
        return bool(mine.priority > theirs.priority)
    if run.fair and mine.tenant != theirs.tenant:
        return bool(world.served[_account(world, s)] < world.served[_account(world, other)])
    return _key(world, s) < _key(world, other)


def _key(world: World, s: int) -> float:
    run, sequence = world.run[0], world.pool.sequences[s]
    if is_timeless(run.line_order):
        return float(sequence.key)
    return order_key(run.line_order, run.now, sequence.arrived_at, sequence.size, sequence.due_at, run.aging_s)


def _size_up(world: World, s: int) -> None:
    """Notes what the order weighs: the size, when the answer is due, the key where it stands once made."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.line_order == _BY_RANK:
        rank = sequence.predicted
        if len(world.ranks) > 0 and world.ranks[s] > 0.0:
            rank = world.ranks[s]
        sequence.size = bounded_size(rank)
    else:
        sequence.size = bounded_size(_least_work_s(world, s))
    deadline_at = 1e308
    if len(world.deadlines) > 0:
        deadline_at = sequence.arrived_at + world.deadlines[s]
    sequence.due_at = due_at_s(deadline_at, sequence.arrived_at, sequence.size, run.aging_s)
    sequence.key = order_key(run.line_order, run.now, sequence.arrived_at, sequence.size, sequence.due_at, run.aging_s)


def _least_work_s(world: World, s: int) -> float:
    """Seconds that a request would take alone on the fastest instance that may take it."""
    least = 1e308
    for e in range(world.run[0].instances):
        if eligible(world, e, s):
            fill_idle_row(world, e, s)
            least = min(least, own_latency(world.row))
    return least


def _account(world: World, s: int) -> int:
    """Where a request's tenant stands in ``served`` and ``held_by``."""
    return int(line_of(world, s) * world.run[0].tenants + world.pool.sequences[s].tenant)


def _lift(world: World, s: int) -> None:
    """A tenant that comes back is no further behind than the least served of those that have held requests."""
    run = world.run[0]
    at = _account(world, s)
    if world.held_by[at] == 0:
        first = line_of(world, s) * run.tenants
        least, active = 0.0, 0
        for account in range(first, first + run.tenants):
            if world.held_by[account] > 0 and (active == 0 or world.served[account] < least):
                least, active = world.served[account], 1
        world.served[at] = lifted(world.served[at], least if active else world.served_last[line_of(world, s)])
    world.held_by[at] += 1


__all__ = ["best_of_line", "join", "leave", "line_of", "may_be_held", "note_served"]
