"""A router's lines of held requests: who joins, who goes first, what tenants were served.

A line is kept in the order of arrival and searched for whoever goes first: in that order by ``routing/orders.py``, by
standing before it, by ``routing/fairness.py`` between tenants and by ``routing/batch.py`` in the batch class. Lines are
numbered by router, then by model.
"""

from __future__ import annotations

from llmrouter.routing.batch import MOST_IN_A_ROW, has_turn, kinship
from llmrouter.routing.fairness import charged, lifted, may_join, settled
from llmrouter.routing.orders import (
    bounded_size,
    due_at_s,
    is_timeless,
    order_key,
    patient_key,
    standing,
    yields_to,
)
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
    if sequence.batch and world.routers[sequence.router].batch_held >= run.batch_max_held:
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
    world.routers[sequence.router].batch_held += sequence.batch
    if world.pool.sizes[2 * run.instances + line] == 1:
        world.dirty[line] = 1
        world.head_since[line] = run.now
    elif 0 < world.line_size[line] <= world.pool.sizes[2 * run.instances + line]:
        world.dirty[line] = 1
    elif not run.in_line_order and world.dirty[line] == 0:
        world.dirty[line] = 1 if _goes_before(world, s, world.line_tried[line]) else 0


def leave(world: World, s: int) -> None:
    """Takes a held request out of its line; the next one may try."""
    run, sequence = world.run[0], world.pool.sequences[s]
    line = line_of(world, s)
    unlink(world.pool, 2 * run.instances + line, s)
    world.routers[sequence.router].held -= 1
    world.routers[sequence.router].batch_held -= sequence.batch
    if world.told[line] == s:
        _claim_no_more(world, line)
    world.dirty[line] = 1
    if world.line_tried[line] == s:
        world.head_since[line] = run.now
    if run.fair:
        world.held_by[_account(world, s)] -= 1
        world.served_last[line] = world.served[_account(world, s)]


def claims_place(world: World, line: int, s: int) -> bool:
    """Tells the other routers of whoever goes first in a line; says whether it tries now or leaves the place to one."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.even == 0:
        return True
    world.told[line] = s
    world.told_key[line] = _key(world, s)
    order = 0 if sequence.batch else run.line_order
    own = standing(sequence.priority, sequence.batch)
    key = patient_key(order, run.now, sequence.arrived_at, sequence.size, sequence.due_at, run.aging_s)
    for router in range(run.routers):
        other = router * run.models + sequence.model
        there = world.told[other]
        if other != line and there >= 0:
            theirs = standing(world.pool.sequences[there].priority, world.pool.sequences[there].batch)
            if yields_to(own, key, theirs, world.told_key[other]):
                world.yielded[line] = 1
                return False
    return True


def _claim_no_more(world: World, line: int) -> None:
    """Whoever a line told the others of has left; where views are exact those that yielded try at once."""
    run = world.run[0]
    world.told[line] = NONE
    if run.refresh_s == 0.0:
        for other in range(run.routers * run.models):
            if world.yielded[other]:
                world.yielded[other] = 0
                world.dirty[other] = 1


def note_served(world: World, s: int) -> None:
    """A request is about to be dispatched: its tenant is charged, and of a batch request it is noted how it begins."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.batches:
        _note_batch(world, s)
    if run.fair:
        at = _account(world, s)
        weight = world.tenant_weights[sequence.tenant]
        world.served[at] = charged(world.served[at], sequence.prompt, sequence.predicted, weight)


def note_ended(world: World, s: int) -> None:
    """Settles what a tenant was charged for a dispatch that is over, whatever came of it."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.fair and sequence.dispatched_at >= 0.0:
        at = _account(world, s)
        weight = world.tenant_weights[sequence.tenant]
        world.served[at] = settled(world.served[at], sequence.predicted, sequence.produced, weight)


def best_of_line(world: World, line: int) -> int:
    """Whoever goes first, ``NONE`` in an empty line; ``gap`` says whether it needs to leave head-room."""
    run, pool = world.run[0], world.pool
    run.gap = 0
    head = pool.heads[2 * run.instances + line]
    if head < 0 or run.in_line_order:
        return int(head)
    if run.batches:
        oldest = _batch_turn(world, line, head)
        if oldest >= 0:
            return oldest
    first = _whose_turn(world, head)
    run.gap = pool.sequences[first].batch
    top, whose = standing(pool.sequences[first].priority, run.gap), pool.sequences[first].tenant
    grouped = run.gap and run.batch_grouped and world.batch_row[line] < MOST_IN_A_ROW
    best, best_key, best_near = NONE, 0.0, 0
    s = head
    while s >= 0:
        sequence = pool.sequences[s]
        if standing(sequence.priority, sequence.batch) == top and (not run.fair or sequence.tenant == whose):
            key = _key(world, s)
            near = _kinship(world, line, s) if grouped else 0
            if best < 0 or near > best_near or (near == best_near and key < best_key):
                best, best_key, best_near = s, key, near
        s = sequence.next
    return int(best)


def _batch_turn(world: World, line: int, head: int) -> int:
    """The oldest batch request of a line, where it has waited for so long that it goes first; else ``NONE``."""
    run, s = world.run[0], head
    while s >= 0 and world.pool.sequences[s].batch == 0:
        s = world.pool.sequences[s].next
    if s < 0:
        return NONE
    waited_s = run.now - world.pool.sequences[s].arrived_at
    if has_turn(waited_s, run.batch_patience_s, world.since_batch[line], run.batch_least_share):
        return int(s)
    return NONE


def _kinship(world: World, line: int, s: int) -> int:
    """How near a request's prompt is to that of the batch request that was dispatched last from its line."""
    last = world.batch_last[line]
    if last < 0:
        return 0
    pool = world.pool
    mine, theirs = pool.sequences[s], pool.sequences[last]
    most, common = min(mine.prefix_count, theirs.prefix_count), 0
    while (
        common < most and pool.prefix_blocks[mine.prefix_at + common] == pool.prefix_blocks[theirs.prefix_at + common]
    ):
        common += 1
    return kinship(common)


def _note_batch(world: World, s: int) -> None:
    line = line_of(world, s)
    if world.pool.sequences[s].batch == 0:
        world.since_batch[line] += 1
        return
    is_kin = world.batch_row[line] < MOST_IN_A_ROW and _kinship(world, line, s) > 0
    world.batch_row[line] = world.batch_row[line] + 1 if is_kin else 0
    world.batch_last[line] = s
    world.since_batch[line] = 0


def _whose_turn(world: World, head: int) -> int:
    """The first request of the highest standing in a line; where fairness counts, of the tenant served least."""
    pool, fair = world.pool, world.run[0].fair
    first, s = head, pool.sequences[head].next
    while s >= 0:
        ahead = standing(pool.sequences[s].priority, pool.sequences[s].batch) - standing(
            pool.sequences[first].priority, pool.sequences[first].batch
        )
        if ahead > 0 or (
            ahead == 0 and fair and world.served[_account(world, s)] < world.served[_account(world, first)]
        ):
            first = s
        s = pool.sequences[s].next
    return int(first)


def _goes_before(world: World, s: int, other: int) -> bool:
    """Whether a request would go before another one that came earlier to the same line."""
    run, mine, theirs = world.run[0], world.pool.sequences[s], world.pool.sequences[other]
    ahead = standing(mine.priority, mine.batch) - standing(theirs.priority, theirs.batch)
    if ahead != 0:
        return bool(ahead > 0)
    if run.fair and mine.tenant != theirs.tenant:
        return bool(world.served[_account(world, s)] < world.served[_account(world, other)])
    return _key(world, s) < _key(world, other)


def _key(world: World, s: int) -> float:
    run, sequence = world.run[0], world.pool.sequences[s]
    if sequence.batch or run.in_line_order:
        return float(sequence.arrived_at)
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


__all__ = [
    "best_of_line",
    "claims_place",
    "join",
    "leave",
    "line_of",
    "may_be_held",
    "note_ended",
    "note_served",
]
