"""The routers of a run: lines of held requests, decisions, dispatch, and what a finished request sets free."""

from __future__ import annotations

from llmrouter.sim.kernel.decisions import choose, eligible
from llmrouter.sim.kernel.events import schedule
from llmrouter.sim.kernel.ledger import exact_load, load_of, note_dispatch, note_release, refresh_view, release, reserve
from llmrouter.sim.kernel.lists import append, unlink
from llmrouter.sim.kernel.records import (
    CANCEL,
    DECODE_ROLE,
    DELIVER,
    ENDED_FINISHED,
    ENDED_REFUSED,
    ENDED_SHED,
    EXPIRE,
    HELD,
    HOLD,
    LOAD_FIELDS,
    NO_CANDIDATE,
    NONE,
    OUTSIDE,
    PLACE,
    REFRESH,
    TICK,
    TRAVELLING,
    TURN,
    World,
)
from llmrouter.sim.kernel.steps import add


def line_of(world: World, s: int) -> int:
    """The list of a request that is held: one per router and model."""
    run, sequence = world.run[0], world.pool.sequences[s]
    return int(2 * run.instances + sequence.router * run.models + sequence.model)


def arrive(world: World, s: int) -> None:
    """A request reaches the next router in turn and joins its line, or is shed where the line is full."""
    run, sequence = world.run[0], world.pool.sequences[s]
    sequence.arrived_at = run.now
    sequence.router = run.arrivals % run.routers
    run.arrivals += 1
    router = world.routers[sequence.router]
    if not _anyone_serves(world, s):
        end(world, s, ENDED_REFUSED)
        return
    if router.held >= run.max_held:
        end(world, s, ENDED_SHED)
        return
    sequence.phase = HELD
    line = line_of(world, s)
    append(world.pool, line, s)
    router.held += 1
    if world.pool.sizes[line] == 1:
        world.dirty[line - 2 * run.instances] = 1
    if sequence.cancelled_after_s < 1e300:
        schedule(world, run.now + sequence.cancelled_after_s, CANCEL, s)
    if run.max_wait_s < 1e300:
        schedule(world, run.now + run.max_wait_s, EXPIRE, s)
    if run.decision_every_s > 0.0:
        arm_tick(world)


def _anyone_serves(world: World, s: int) -> bool:
    for e in range(world.run[0].instances):
        if eligible(world, e, s):
            return True
    return False


def arm_tick(world: World) -> None:
    """Makes the next instant at which routers may decide: now, if now is one."""
    run = world.run[0]
    if run.tick_armed:
        return
    ticks = int(run.now / run.decision_every_s + 1e-9)
    at_s = ticks * run.decision_every_s
    if at_s < run.now:
        at_s = (ticks + 1) * run.decision_every_s
    run.tick_armed = 1
    schedule(world, at_s, TICK, 0)


def leave_line(world: World, s: int) -> None:
    """Takes a held request out of its line; the next head may try."""
    line = line_of(world, s)
    unlink(world.pool, line, s)
    world.routers[world.pool.sequences[s].router].held -= 1
    world.pool.sequences[s].phase = OUTSIDE
    world.dirty[line - 2 * world.run[0].instances] = 1


def next_head(world: World) -> int:
    """The first head of a line that has reason to try, where its router may decide now; else ``NONE``."""
    run = world.run[0]
    for line in range(run.routers * run.models):
        if world.dirty[line] == 0:
            continue
        router = line // run.models
        if run.decision_every_s > 0.0 and world.routers[router].may_decide == 0:
            continue
        head = world.pool.heads[2 * run.instances + line]
        if head >= 0:
            return int(head)
        world.dirty[line] = 0
    return NONE


def decide(world: World, s: int) -> int:
    """One decision of the compiled policy for a head, and what follows from it."""
    run, sequence = world.run[0], world.pool.sequences[s]
    e = choose(world, sequence.router, s)
    if run.refresh_s > 0.0 and run.reserves and not (e >= 0 and not moved(world, sequence.router, e)):
        refresh_view(world, sequence.router)
        e = choose(world, sequence.router, s)
    if e < 0:
        settle(world, s, HOLD)
        return NONE
    settle(world, s, PLACE)
    dispatch(world, s, e)
    return e


def moved(world: World, router: int, e: int) -> bool:
    """Whether an instance gained more than one request since a router's view of it."""
    view = (router * world.run[0].instances + e) * LOAD_FIELDS
    return bool(world.pool.engines[e].ledger_requests - world.views[view] > 1)


def ask(world: World, s: int) -> None:
    """Lays the loads that the request's router sees before a policy outside the simulator."""
    run = world.run[0]
    run.asking = s
    run.asking_router = world.pool.sequences[s].router
    for e in range(run.instances):
        load_of(world, run.asking_router, e, e)


def take_answer(world: World) -> bool:
    """Follows the caller's bids, first to last; says whether the question is settled.

    With ``reserves`` and a view that ages, the first bid that has not gained more than one request is committed; where
    all have, the caller is asked once more, on the loads of now, and its first bid is committed.
    """
    run = world.run[0]
    s = run.asking
    run.answered = 0
    checks = run.refresh_s > 0.0 and run.reserves and run.retried == 0
    chosen = NONE
    for place in range(run.bids):
        e = world.bids[place]
        if not checks or not moved(world, run.asking_router, e):
            chosen = e
            break
    if chosen < 0 and checks and run.bids != NO_CANDIDATE:
        refresh_view(world, run.asking_router)
        run.retried = 1
        ask(world, s)
        return False
    run.retried = 0
    run.asking = NONE
    if run.bids == NO_CANDIDATE:
        leave_line(world, s)
        end(world, s, ENDED_REFUSED)
    elif chosen < 0:
        settle(world, s, HOLD)
    else:
        settle(world, s, PLACE)
        dispatch(world, s, chosen)
    return True


def settle(world: World, s: int, decision: int) -> None:
    """Takes a head out of its line, or leaves it there until there is reason to try again."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.decision_every_s > 0.0:
        world.routers[sequence.router].may_decide = 0
    if decision == HOLD:
        world.dirty[line_of(world, s) - 2 * run.instances] = 0
    else:
        leave_line(world, s)


def dispatch(world: World, s: int, e: int) -> None:
    """Commits a request to an instance and sends it there."""
    run, sequence = world.run[0], world.pool.sequences[s]
    engine = world.pool.engines[e]
    sequence.instance = e
    sequence.decode_instance = e
    sequence.dispatched_at = run.now
    if sequence.prompt + sequence.output > engine.blocks_total * engine.block_tokens:
        end(world, s, ENDED_REFUSED)
        return
    reserve(world.pool, e, s)
    note_dispatch(world, sequence.router, e, s)
    delay_s = run.dispatch_s + engine.front_s + engine.front_s_per_token * sequence.prompt
    if delay_s > 0.0:
        sequence.phase = TRAVELLING
        schedule(world, run.now + delay_s, DELIVER, s)
    else:
        deliver(world, s, e)


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
    run, sequence = world.run[0], world.pool.sequences[s]
    release(world.pool, e, s)
    note_release(world, e, s)
    if run.refresh_s == 0.0:
        run.freed = 1
    else:
        for model in range(run.models):
            world.dirty[sequence.router * run.models + model] = 1


def end(world: World, s: int, status: int) -> None:
    """A request is over; whatever came of it, the next turns of its session follow after their think times."""
    run, sequence = world.run[0], world.pool.sequences[s]
    sequence.status = status
    sequence.phase = OUTSIDE
    run.ended += 1
    turn = sequence.next_turn
    while turn >= 0:
        following = world.pool.sequences[turn]
        schedule(world, run.now + following.think_s, TURN, turn)
        turn = following.sibling
    if status == ENDED_FINISHED:
        sequence.finished_at = run.now


def refresh(world: World, router: int) -> None:
    """A router reads the ledger; its held requests may try, and it reads again a period later while anything is left."""
    run = world.run[0]
    refresh_view(world, router)
    for model in range(run.models):
        world.dirty[router * run.models + model] = 1
    schedule(world, run.now + run.refresh_s, REFRESH, router)


def choose_decode_instance(world: World, s: int) -> int:
    """Where a prefilled request decodes: the decode instance with the least KV committed for its size."""
    run = world.run[0]
    best, best_share = NONE, 0.0
    for e in range(run.instances):
        engine = world.pool.engines[e]
        if engine.role != DECODE_ROLE or world.serves[e * run.models + world.pool.sequences[s].model] == 0:
            continue
        exact_load(world, e, e, NONE)
        committed = world.asked_loads[e * LOAD_FIELDS + 1] + world.asked_loads[e * LOAD_FIELDS + 3]
        share = committed / (engine.blocks_total * engine.block_tokens)
        if best < 0 or share < best_share:
            best, best_share = e, share
    return best
