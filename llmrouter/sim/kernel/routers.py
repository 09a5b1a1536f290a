"""The routers of a run: arrivals and holds, decisions, dispatch, and what a finished request sets free."""

from __future__ import annotations

from llmrouter.domain import SHORTEST_HOLD_S
from llmrouter.sim.kernel.decisions import bid_has_room, eligible, name_bids, prefill_bid_has_room, takes
from llmrouter.sim.kernel.events import schedule
from llmrouter.sim.kernel.known_prefixes import cached_tokens, note_prefix, report_prefix, use_prefix
from llmrouter.sim.kernel.ledger import (
    enter_stage,
    exact_load,
    leave_stage,
    load_of,
    note_dispatch,
    note_release,
    note_stage_left,
    refresh_view,
    release,
    remaining,
    reserve,
)
from llmrouter.sim.kernel.lines import (
    best_of_line,
    claims_place,
    join,
    leave,
    line_of,
    may_be_held,
    note_ended,
    note_served,
)
from llmrouter.sim.kernel.records import (
    CANCEL,
    DECODE_ROLE,
    DELIVER,
    ENDED_CANCELLED,
    ENDED_FINISHED,
    ENDED_LOST,
    ENDED_REFUSED,
    ENDED_SHED,
    EXPIRE,
    HELD,
    LOAD_FIELDS,
    NEVER_S,
    NO_CANDIDATE,
    NONE,
    OUTSIDE,
    PREFILL_ROLE,
    REFRESH,
    TICK,
    TRAVELLING,
    TURN,
    World,
)
from llmrouter.sim.kernel.steps import add


def arrive(world: World, s: int) -> None:
    """A request reaches the next router in turn and joins its line, or is shed where the line is full."""
    run, sequence = world.run[0], world.pool.sequences[s]
    sequence.arrived_at = run.now
    sequence.router = run.arrivals % run.routers
    run.arrivals += 1
    if not _anyone_serves(world, s):
        end(world, s, ENDED_REFUSED)
        return
    if not may_be_held(world, s):
        end(world, s, ENDED_SHED)
        return
    sequence.phase = HELD
    join(world, s)
    if sequence.cancelled_after_s < NEVER_S:
        schedule(world, run.now + sequence.cancelled_after_s, CANCEL, s)
    wait_s = run.batch_max_wait_s if sequence.batch else run.max_wait_s
    if wait_s < NEVER_S:
        schedule(world, run.now + wait_s, EXPIRE, s)
    if run.decision_every_s > 0.0:
        arm_tick(world)


def _anyone_serves(world: World, s: int) -> bool:
    for e in range(world.run[0].instances):  # noqa: SIM110 - machine code has no generators
        if eligible(world, e, s):
            return True
    return False


def arm_tick(world: World) -> None:
    """Makes the next instant at which routers may decide: now, if now is one and has not been."""
    run = world.run[0]
    if run.tick_armed:
        return
    ticks = int(run.now / run.decision_every_s)
    at_s = ticks * run.decision_every_s
    while at_s < run.now or at_s <= run.ticked_at:
        ticks += 1
        at_s = ticks * run.decision_every_s
    run.tick_armed = 1
    schedule(world, at_s, TICK, 0)


def leave_line(world: World, s: int) -> None:
    """Takes a held request out of its line; the next one may try."""
    leave(world, s)
    world.pool.sequences[s].phase = OUTSIDE


def next_head(world: World) -> int:
    """Whoever goes first in a line that has reason to try, where its router may decide now; else ``NONE``.

    Lines take turns: the first to be asked is the one after that which was served last.
    """
    run = world.run[0]
    lines = run.routers * run.models
    for turn in range(lines):
        line = (run.first_line + turn) % lines
        if world.dirty[line] == 0:
            continue
        router = line // run.models
        if run.decision_every_s > 0.0 and world.routers[router].may_decide == 0:
            continue
        head = best_of_line(world, line)
        if head >= 0:
            world.line_tried[line] = head
            if claims_place(world, line, head):
                return head
        world.dirty[line] = 0
    return NONE


def decide(world: World, s: int) -> None:
    """One decision of the compiled policy for a head, and what follows from it."""
    run, router = world.run[0], world.pool.sequences[s].router
    run.load_sensitive = 1 if run.rule > 1 else 0  # Rule.ROUND_ROBIN and Rule.RANDOM look at no load
    run.bids = name_bids(world, router, s)
    chosen = reserve_bid(world, router, s, 0)
    if chosen < 0 and run.bids > 0:
        refresh_bids(world, router)
        run.bids = name_bids(world, router, s)
        chosen = reserve_bid(world, router, s, 1)
    follow(world, router, s, chosen)


def ask(world: World, s: int) -> None:
    """Lays the loads that the request's router sees before a policy outside the simulator."""
    run = world.run[0]
    run.asking = s
    run.asking_router = world.pool.sequences[s].router
    line = line_of(world, s)
    run.asking_held = world.pool.sizes[2 * run.instances + line]
    run.asking_since = world.head_since[line]
    if run.asking_since >= run.now and world.pool.sequences[s].arrived_at >= run.now:
        run.asking_since = -1.0
    for e in range(run.instances):
        load_of(world, run.asking_router, e, e)
        world.asked_cached[e] = cached_tokens(world, run.asking_router, e, s)


def take_answer(world: World) -> bool:
    """Follows the caller's bids; says whether the question is settled, or the caller is asked once more."""
    run = world.run[0]
    s, router = run.asking, run.asking_router
    run.answered = 0
    if run.bids == NO_CANDIDATE:
        leave_line(world, s)
        end(world, s, ENDED_REFUSED)
    else:
        chosen = reserve_bid(world, router, s, run.retried)
        if chosen < 0 and run.bids > 0 and run.retried == 0:
            refresh_bids(world, router)
            run.retried = 1
            ask(world, s)
            return False
        follow(world, router, s, chosen)
    run.retried = 0
    run.asking = NONE
    return True


def reserve_bid(world: World, router: int, s: int, last_time: int) -> int:
    """The bid that is committed, as the ledger's reserve call has it; ``NONE`` where none is.

    The first that has room now and gained no more than one request since the router's view of it; the last time the
    one with room that gained least. Where nothing is compared with the loads of now, the first.
    """
    run = world.run[0]
    if run.bids <= 0:
        return NONE
    if not run.checks:
        run.bid_prefill = world.bid_prefills[0]
        return int(world.bids[0])
    least, least_gain = NONE, 0.0
    for place in range(run.bids):
        e, p = world.bids[place], world.bid_prefills[place]
        exact_load(world, e, e, NONE)
        if not bid_has_room(world, e, s, place):
            continue
        gain = _gain(world, router, e)
        if p >= 0:
            exact_load(world, p, p, NONE)
            if not prefill_bid_has_room(world, p, s, place):
                continue
            gain = max(gain, _gain(world, router, p))
        if gain <= 1.0 or not run.load_sensitive:
            run.bid_prefill = p
            return int(e)
        if least < 0 or gain < least_gain:
            least, least_gain = place, gain
    if least < 0 or not last_time or not run.load_sensitive:
        return NONE
    run.bid_prefill = world.bid_prefills[least]
    return int(world.bids[least])


def _gain(world: World, router: int, e: int) -> float:
    """How many requests an instance has gained since a router's view of it; its load now is in ``asked_loads``."""
    view = (router * world.run[0].instances + e) * LOAD_FIELDS
    return float(world.asked_loads[e * LOAD_FIELDS] - world.views[view])


def refresh_bids(world: World, router: int) -> None:
    """The reserve call answers with the loads of all bids: the router sees them as they are now."""
    run = world.run[0]
    for place in range(run.bids):
        refresh_view(world, router, world.bids[place])
        if world.bid_prefills[place] >= 0:
            refresh_view(world, router, world.bid_prefills[place])


def follow(world: World, router: int, s: int, chosen: int) -> None:
    """Dispatches a head, or leaves it in its line until there is reason to try again."""
    run, line = world.run[0], line_of(world, s)
    if chosen < 0:
        world.dirty[line] = 0
        world.line_wake[line] = max(run.hold_until, run.now + SHORTEST_HOLD_S)
        run.wake_at = min(run.wake_at, world.line_wake[line])
        world.line_size[line] = run.hold_size
    else:
        world.routers[router].may_decide = 0
        run.first_line = (line + 1) % (run.routers * run.models)
        note_served(world, s)
        leave_line(world, s)
        dispatch(world, s, chosen, run.bid_prefill)
    run.hold_until = NEVER_S
    run.hold_size = 0
    if run.checks and run.bids > 0:
        refresh_bids(world, router)


def wake_lines(world: World) -> None:
    """Lets lines try whose holds end now, and finds when the next one does."""
    run = world.run[0]
    next_at = NEVER_S
    for line in range(run.routers * run.models):
        if world.line_wake[line] <= run.now:
            world.line_wake[line] = NEVER_S
            world.dirty[line] = 1
        next_at = min(next_at, world.line_wake[line])
    run.wake_at = next_at


def dispatch(world: World, s: int, e: int, prefill: int) -> None:
    """Commits a request to an instance and sends it there; first to ``prefill``, where that computes its prompt."""
    run, sequence = world.run[0], world.pool.sequences[s]
    first = prefill if prefill >= 0 else e
    engine = world.pool.engines[first]
    sequence.instance = first
    sequence.decode_instance = e
    sequence.dispatched_at = run.now
    if not holds(world, first, s) or not holds(world, e, s):
        end(world, s, ENDED_REFUSED)
        return
    use_prefix(world, s, first)
    if prefill >= 0:
        sequence.paired = 1
        note_prefix(world, s, e)
        enter_stage(world.pool, s)
    reserve(world.pool, e, s)
    note_dispatch(world, sequence.router, e, s)
    delay_s = run.dispatch_s + engine.front_s + engine.front_s_per_token * sequence.prompt
    if delay_s > 0.0:
        sequence.phase = TRAVELLING
        schedule(world, run.now + delay_s, DELIVER, s)
    else:
        deliver(world, s, first)


def holds(world: World, e: int, s: int) -> bool:
    """Whether an engine's KV can ever hold a request: all of it, or its prompt where another engine decodes it."""
    engine, sequence = world.pool.engines[e], world.pool.sequences[s]
    tokens = sequence.prompt if engine.role == PREFILL_ROLE else sequence.prompt + sequence.output
    return bool(tokens <= engine.blocks_total * engine.block_tokens)


def deliver(world: World, s: int, e: int) -> None:
    """A request reaches its engine's queue."""
    add(world.pool, e, s)
    wake(world, e)


def wake(world: World, e: int) -> None:
    """Has an engine look for work at the end of this instant."""
    run = world.run[0]
    if world.awake[run.instances + e] == 0:
        world.awake[run.instances + e] = 1
        world.awake[run.awake] = e
        run.awake += 1


def forget(world: World, s: int, e: int) -> None:
    """A request is no longer in flight on an instance: the ledger and its router's view say so, held ones may try."""
    sequence = world.pool.sequences[s]
    if sequence.paired:
        e = sequence.decode_instance
        if sequence.produced == 0:
            leave_stage(world.pool, s)
            note_stage_left(world, s)
    release(world.pool, e, s)
    note_release(world, e, s)
    let_try(world, s)


def let_try(world: World, s: int) -> None:
    """A request has set something free: the held ones of those who see it may try."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.refresh_s == 0.0:
        run.freed = 1
    else:
        for model in range(run.models):
            world.dirty[sequence.router * run.models + model] = 1


def end(world: World, s: int, status: int) -> None:
    """A request is over; whatever came of it, the next turns of its session follow after their think times."""
    run, sequence = world.run[0], world.pool.sequences[s]
    sequence.status = ENDED_LOST if sequence.lost and status == ENDED_CANCELLED else status
    sequence.phase = OUTSIDE
    note_ended(world, s)
    run.ended += 1
    turn = sequence.next_turn
    while turn >= 0:
        following = world.pool.sequences[turn]
        schedule(world, run.now + following.think_s, TURN, turn)
        turn = following.sibling
    if status == ENDED_FINISHED:
        sequence.finished_at = run.now
        if not sequence.paired:  # engines do not say whose cache it was
            report_prefix(world, s)


def refresh(world: World, router: int) -> None:
    """A router reads the ledger; its held requests may try, and it reads again a period later."""
    run = world.run[0]
    for e in range(run.instances):
        refresh_view(world, router, e)
    for model in range(run.models):
        world.dirty[router * run.models + model] = 1
    schedule(world, run.now + run.refresh_s, REFRESH, router)


def choose_decode_instance(world: World, s: int) -> int:
    """Where a prefilled request decodes: the decode instance with the least KV committed for its size."""
    run = world.run[0]
    best, best_share = NONE, 0.0
    for e in range(run.instances):
        engine = world.pool.engines[e]
        if engine.role != DECODE_ROLE or not takes(world, e, s):
            continue
        committed = engine.ledger_context + remaining(world.pool, e)
        share = committed / (engine.blocks_total * engine.block_tokens)
        if best < 0 or share < best_share:
            best, best_share = e, share
    return best
