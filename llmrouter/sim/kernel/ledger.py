"""The ledger of a run: loads as routers count them, exactly, as last refreshed, or each its own alone."""

from __future__ import annotations

from llmrouter.sim.kernel.records import DECODE, LOAD_FIELDS, NONE, Pool, World


def reserve(pool: Pool, e: int, s: int) -> None:
    """Counts a request for an instance."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    engine.ledger_requests += 1
    engine.ledger_context += sequence.prompt + sequence.produced
    if sequence.produced == 0 and not sequence.paired:
        engine.ledger_queued += sequence.prompt - sequence.cached_believed
    sequence.ledger_prev = NONE
    sequence.ledger_next = engine.ledger_head
    if engine.ledger_head >= 0:
        pool.sequences[engine.ledger_head].ledger_prev = s
    engine.ledger_head = s


def release(pool: Pool, e: int, s: int) -> None:
    """Takes a request out of an instance's count."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    engine.ledger_requests -= 1
    engine.ledger_context -= sequence.prompt + sequence.produced
    if sequence.produced == 0 and not sequence.paired:
        engine.ledger_queued -= sequence.prompt - sequence.cached_believed
    before, after = sequence.ledger_prev, sequence.ledger_next
    if before >= 0:
        pool.sequences[before].ledger_next = after
    else:
        engine.ledger_head = after
    if after >= 0:
        pool.sequences[after].ledger_prev = before


def enter_stage(pool: Pool, s: int) -> None:
    """Counts a request in two stages for the instance that computes its prompt: ``inflight.prefill_contribution``."""
    sequence = pool.sequences[s]
    engine = pool.engines[sequence.instance]
    engine.ledger_requests += 1
    engine.ledger_context += sequence.prompt
    engine.ledger_queued += sequence.prompt - sequence.cached_believed
    sequence.stage_prev = NONE
    sequence.stage_next = engine.stage_head
    if engine.stage_head >= 0:
        pool.sequences[engine.stage_head].stage_prev = s
    engine.stage_head = s


def leave_stage(pool: Pool, s: int) -> None:
    """Takes it out of that count: its first token is there, or never will be."""
    sequence = pool.sequences[s]
    engine = pool.engines[sequence.instance]
    engine.ledger_requests -= 1
    engine.ledger_context -= sequence.prompt
    engine.ledger_queued -= sequence.prompt - sequence.cached_believed
    before, after = sequence.stage_prev, sequence.stage_next
    if before >= 0:
        pool.sequences[before].stage_next = after
    else:
        engine.stage_head = after
    if after >= 0:
        pool.sequences[after].stage_prev = before


def generated(pool: Pool, e: int, s: int) -> int:
    """Tokens that a sequence has produced by now."""
    sequence = pool.sequences[s]
    if sequence.phase == DECODE:
        return int(sequence.output - (sequence.finish_tick - pool.engines[e].tick))
    return int(sequence.produced)


def remaining(pool: Pool, e: int) -> float:
    """Predicted tokens still to come on an instance: the sum of ``max(0, predicted − generated)``."""
    total = 0.0
    s = pool.engines[e].ledger_head
    while s >= 0:
        sequence = pool.sequences[s]
        total += max(0.0, sequence.predicted - generated(pool, e, s))
        s = sequence.ledger_next
    return total


def load_of(world: World, router: int, e: int, row: int) -> None:
    """Writes the load of an instance, as a router sees it, to ``asked_loads`` at ``row``."""
    run = world.run[0]
    at = row * LOAD_FIELDS
    if run.refresh_s > 0.0:
        view = (router * run.instances + e) * LOAD_FIELDS
        for k in range(LOAD_FIELDS):
            world.asked_loads[at + k] = world.views[view + k]
        return
    exact_load(world, e, row, NONE if run.shared else router)


def exact_load(world: World, e: int, row: int, owner: int) -> None:
    """Writes the load of an instance now to ``asked_loads`` at ``row``: everyone's, or of one router's requests."""
    pool = world.pool
    engine = pool.engines[e]
    at = row * LOAD_FIELDS
    if owner < 0:
        world.asked_loads[at] = engine.ledger_requests
        world.asked_loads[at + 1] = engine.ledger_context
        world.asked_loads[at + 2] = engine.ledger_queued
        world.asked_loads[at + 3] = remaining(pool, e) if world.run[0].needs_remaining else 0.0
        return
    for k in range(LOAD_FIELDS):
        world.asked_loads[at + k] = 0.0
    s = engine.ledger_head
    while s >= 0:
        sequence = pool.sequences[s]
        if sequence.router == owner:
            tokens = generated(pool, e, s)
            world.asked_loads[at] += 1
            world.asked_loads[at + 1] += sequence.prompt + tokens
            if tokens == 0 and not sequence.paired:
                world.asked_loads[at + 2] += sequence.prompt - sequence.cached_believed
            world.asked_loads[at + 3] += max(0.0, sequence.predicted - tokens)
        s = sequence.ledger_next
    s = engine.stage_head
    while s >= 0:
        sequence = pool.sequences[s]
        if sequence.router == owner:
            world.asked_loads[at] += 1
            world.asked_loads[at + 1] += sequence.prompt
            world.asked_loads[at + 2] += sequence.prompt - sequence.cached_believed
        s = sequence.stage_next


def refresh_view(world: World, router: int, e: int) -> None:
    """Brings a router's view of an instance up to now."""
    run = world.run[0]
    exact_load(world, e, e, NONE if run.shared else router)
    view = (router * run.instances + e) * LOAD_FIELDS
    for k in range(LOAD_FIELDS):
        world.views[view + k] = world.asked_loads[e * LOAD_FIELDS + k]


def note_dispatch(world: World, router: int, e: int, s: int) -> None:
    """A router adds its own dispatch to its view at once."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.refresh_s > 0.0 and run.counts_own:
        view = (router * run.instances + e) * LOAD_FIELDS
        world.views[view] += 1
        world.views[view + 1] += sequence.prompt
        if not sequence.paired:
            world.views[view + 2] += sequence.prompt - sequence.cached_believed
        world.views[view + 3] += sequence.predicted
        if sequence.paired:
            view = (router * run.instances + sequence.instance) * LOAD_FIELDS
            world.views[view] += 1
            world.views[view + 1] += sequence.prompt
            world.views[view + 2] += sequence.prompt - sequence.cached_believed


def note_release(world: World, e: int, s: int) -> None:
    """A router takes its own finished request out of its view at once, ahead of the next refresh."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.refresh_s > 0.0 and run.counts_own:
        view = (sequence.router * run.instances + e) * LOAD_FIELDS
        world.views[view] = max(0.0, world.views[view] - 1)
        world.views[view + 1] = max(0.0, world.views[view + 1] - sequence.prompt - sequence.produced)
        if sequence.produced == 0 and not sequence.paired:
            queued = world.views[view + 2] - sequence.prompt + sequence.cached_believed
            world.views[view + 2] = max(0.0, queued)
        left = max(0.0, sequence.predicted - sequence.produced)
        world.views[view + 3] = max(0.0, world.views[view + 3] - left)


def note_stage_left(world: World, s: int) -> None:
    """A router takes a prompt of its own out of its view at once, when another instance has computed it or need not."""
    run, sequence = world.run[0], world.pool.sequences[s]
    if run.refresh_s > 0.0 and run.counts_own:
        view = (sequence.router * run.instances + sequence.instance) * LOAD_FIELDS
        world.views[view] = max(0.0, world.views[view] - 1)
        world.views[view + 1] = max(0.0, world.views[view + 1] - sequence.prompt)
        queued = world.views[view + 2] - sequence.prompt + sequence.cached_believed
        world.views[view + 2] = max(0.0, queued)
