"""The run: time goes from event to event, and returns to the caller for what only the caller can do.

Order within one instant: ends of steps, lower instances first; then deliveries, transfers, refreshes, later turns,
expiries and cancellations, each kind in the order made; then arrivals in the workload's order; then ticks; then
instances that the caller has come and go; then decisions, lines of routers and models in turn; and last the engines
that have work begin their steps.
"""

from __future__ import annotations

from llmrouter.sim.kernel.events import schedule, take_first
from llmrouter.sim.kernel.ledger import note_stage_left, reserve
from llmrouter.sim.kernel.records import (
    CANCEL,
    CANCELLED,
    CONTROL,
    DECIDE,
    DELIVER,
    DETACHED,
    DONE,
    ENDED_CANCELLED,
    ENDED_FINISHED,
    ENDED_REFUSED,
    ENDED_SHED,
    EXPIRE,
    FINISHED,
    FIRST_TOKEN,
    HELD,
    NEVER_S,
    NONE,
    OUTSIDE,
    REFRESH,
    REPORT,
    SAMPLE,
    TICK,
    TRANSFER,
    TRANSFERRED,
    TRAVELLING,
    TURN,
    World,
)
from llmrouter.sim.kernel.routers import (
    arm_tick,
    arrive,
    ask,
    choose_decode_instance,
    decide,
    deliver,
    end,
    forget,
    holds,
    leave_line,
    let_try,
    next_head,
    refresh,
    take_answer,
    wake,
    wake_lines,
)
from llmrouter.sim.kernel.steps import begin_step, cancel, finish_step, has_work, release_kv

INFINITY = 1e308
"""An instant that never comes."""

_IDLE_TURNS = 20_000
"""After so many refreshes, ticks or ends of holds with nothing else to come, held requests are never to be placed."""

_OVER, _AGAIN, _ASK = 0, 1, 2


def advance(world: World) -> int:  # noqa: C901, PLR0912 - calls cost compile time
    """Runs until the caller is needed; returns ``DONE``, ``DECIDE``, ``SAMPLE``, ``REPORT`` or ``CONTROL``."""
    run, pool = world.run[0], world.pool
    if run.losing:
        run.losing = 0
        for e in range(run.instances):
            if pool.engines[e].lost:
                pool.engines[e].lost = 0
                _lose(world, e)
    if run.answered and not take_answer(world):
        return DECIDE
    while True:
        step_at, step_engine = _next_step(world)
        event_at = world.event_at[0] if run.events > 0 else INFINITY
        arrival_at = INFINITY
        if run.position < len(world.order):
            arrival_at = pool.sequences[world.order[run.position]].arrived_at
        at_s = min(step_at, event_at, arrival_at, run.wake_at, run.control_at)
        if at_s > run.now:
            code = _end_instant(world)
            if code == _ASK:
                return DECIDE
            if code == _AGAIN:
                continue
            if run.ended >= len(pool.sequences) or at_s >= NEVER_S or run.idle_turns > _IDLE_TURNS:
                return DONE
            if run.sample_every_s > 0.0 and at_s > run.next_sample_at:
                return SAMPLE
            run.now = at_s
        if run.wake_at <= run.now:
            _count_idle(world)
            wake_lines(world)
        elif step_at <= run.now:
            _end_step(world, step_engine)
        elif event_at <= run.now and (world.event_kind[0] != TICK or arrival_at > run.now):
            _happen(world)
        elif arrival_at <= run.now:
            s = world.order[run.position]
            run.position += 1
            arrive(world, s)
        else:
            _count_idle(world)
            run.control_at = INFINITY
            return CONTROL
        if run.report_every > 0 and run.ended >= run.next_report:
            run.next_report += run.report_every
            return REPORT


def _next_step(world: World) -> tuple[float, int]:
    best_at, best = INFINITY, NONE
    for e in range(world.run[0].instances):
        if world.step_ends[e] < best_at:
            best_at, best = world.step_ends[e], e
    return best_at, best


def _end_instant(world: World) -> int:
    """Decisions and step beginnings of the instant that is over; ``_AGAIN`` where something came of them."""
    run = world.run[0]
    if run.freed:
        run.freed = 0
        for line in range(run.routers * run.models):
            world.dirty[line] = 1
    s = next_head(world)
    if s >= 0:
        if run.rule < 0:
            ask(world, s)
            return _ASK
        while s >= 0:
            decide(world, s)
            s = next_head(world)
        return _AGAIN
    began = 0
    if run.decision_every_s > 0.0:
        began = _end_tick(world)
    for place in range(run.awake):
        e = world.awake[place]
        world.awake[run.instances + e] = 0
        if world.step_ends[e] >= INFINITY and has_work(world.pool, e):
            _begin_step(world, e)
            began = 1
    run.awake = 0
    return _AGAIN if began else _OVER


def _end_tick(world: World) -> int:
    """Between ticks no router decides; while requests are held there is a next one. Says whether it was made now."""
    run = world.run[0]
    held = 0
    for router in range(run.routers):
        world.routers[router].may_decide = 0
        held += world.routers[router].held
    if held == 0 or run.tick_armed:
        return 0
    arm_tick(world)
    return 1


def _begin_step(world: World, e: int) -> None:
    engine = world.pool.engines[e]
    duration_s = begin_step(world.pool, e)
    if duration_s >= 0.0:
        engine.step_began_at = world.run[0].now
        engine.busy_s += duration_s
        world.step_ends[e] = world.run[0].now + duration_s


def _end_step(world: World, e: int) -> None:
    run, pool = world.run[0], world.pool
    world.step_ends[e] = INFINITY
    finish_step(pool, e)
    for place in range(pool.event_count[0]):
        kind, s = pool.event_kinds[place], pool.event_sequences[place]
        sequence = pool.sequences[s]
        if kind == FIRST_TOKEN:
            sequence.first_token_at = run.now
            if sequence.paired:
                note_stage_left(world, s)
                let_try(world, s)
        elif kind == FINISHED:
            forget(world, s, e)
            end(world, s, ENDED_FINISHED)
        elif kind == CANCELLED:
            forget(world, s, e)
            end(world, s, ENDED_CANCELLED)
        elif kind == DETACHED:
            _send_kv(world, s, e)
    wake(world, e)


def _send_kv(world: World, s: int, e: int) -> None:
    """The KV of a prefilled request goes to a decode instance; transfers from one instance follow one another."""
    run, engine, sequence = world.run[0], world.pool.engines[e], world.pool.sequences[s]
    begin_at = max(run.now + engine.transfer_s, engine.link_free_at)
    seconds = sequence.prompt * engine.kv_bytes_per_token / engine.transfer_bytes_per_s
    engine.link_free_at = begin_at + seconds
    schedule(world, begin_at + seconds, TRANSFERRED, s)


def _happen(world: World) -> None:  # noqa: C901, PLR0912 - a branch per kind of event
    """The first event of the heap."""
    run = world.run[0]
    kind, subject = world.event_kind[0], world.event_subject[0]
    if kind in (REFRESH, TICK):
        _count_idle(world)
    take_first(world)
    if kind == DELIVER:
        if world.pool.sequences[subject].phase == TRAVELLING:
            deliver(world, subject, world.pool.sequences[subject].instance)
    elif kind == TRANSFERRED:
        _hand_over(world, subject)
    elif kind == REFRESH:
        if run.ended < len(world.pool.sequences):
            refresh(world, subject)
    elif kind == TURN:
        arrive(world, subject)
    elif kind == EXPIRE:
        if world.pool.sequences[subject].phase == HELD:
            leave_line(world, subject)
            end(world, subject, ENDED_SHED)
    elif kind == CANCEL:
        _cancel(world, subject)
    else:
        run.tick_armed = 0
        run.ticked_at = run.now
        for router in range(run.routers):
            world.routers[router].may_decide = 1
        for line in range(run.routers * run.models):
            world.dirty[line] = 1


def _count_idle(world: World) -> None:
    """Counts the turns of the clock while nothing else is to come: no arrival, no step, no other event."""
    run = world.run[0]
    recurring = run.tick_armed
    if run.refresh_s > 0.0:
        recurring += run.routers
    idle = run.position >= len(world.order) and run.events <= recurring and _next_step(world)[1] < 0
    run.idle_turns = run.idle_turns + 1 if idle else 0


def _hand_over(world: World, s: int) -> None:
    """A request whose KV has arrived joins the queue of its decode instance."""
    sequence = world.pool.sequences[s]
    source = sequence.instance
    release_kv(world.pool, source, s)
    if not sequence.paired or sequence.cancelling:
        forget(world, s, source)
    wake(world, source)
    if sequence.cancelling:
        sequence.cancelling = 0
        end(world, s, ENDED_CANCELLED)
        return
    if sequence.paired:
        sequence.handed = 1
        sequence.transferred = 1
        deliver(world, s, sequence.decode_instance)
        return
    e = choose_decode_instance(world, s)
    if e < 0:
        end(world, s, ENDED_REFUSED)
        return
    sequence.decode_instance = e
    if not holds(world, e, s):
        end(world, s, ENDED_REFUSED)
        return
    reserve(world.pool, e, s)
    sequence.transferred = 1
    deliver(world, s, e)


def _cancel(world: World, s: int) -> None:
    """The client gives up, wherever the request is; one that is over stays as it is."""
    sequence = world.pool.sequences[s]
    if sequence.phase == HELD:
        leave_line(world, s)
        end(world, s, ENDED_CANCELLED)
    elif sequence.phase == TRAVELLING:
        forget(world, s, sequence.instance)
        end(world, s, ENDED_CANCELLED)
    elif sequence.phase == TRANSFER:
        sequence.cancelling = 1
    elif sequence.phase != OUTSIDE and sequence.status == 0:
        e = _whereabouts(world, s)
        if cancel(world.pool, e, s):
            forget(world, s, e)
            end(world, s, ENDED_CANCELLED)
            wake(world, e)


def _whereabouts(world: World, s: int) -> int:
    """The instance that a dispatched request is on, or on its way to."""
    sequence = world.pool.sequences[s]
    return int(sequence.instance if sequence.paired and not sequence.handed else sequence.decode_instance)


def _lose(world: World, e: int) -> None:
    """An instance goes: what is on it, or counts on it, is lost, and what a step works on at the step's end."""
    for s in range(len(world.pool.sequences)):
        sequence = world.pool.sequences[s]
        if sequence.phase not in (OUTSIDE, HELD) and (sequence.decode_instance == e or _whereabouts(world, s) == e):
            sequence.lost = 1
            _cancel(world, s)
