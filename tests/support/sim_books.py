"""The books of a simulated world, kept once more and compared: lists, KV, prefix cache, ledger, lines, heaps."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llmrouter.sim.kernel.decisions import eligible
from llmrouter.sim.kernel.records import (
    DECODE,
    DECODE_ROLE,
    HELD,
    NONE,
    OUTSIDE,
    PREFILL,
    PREFILL_ROLE,
    TRANSFER,
    TRAVELLING,
    WAITING,
    World,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def check_books(world: World) -> None:
    """Fails unless everything that the world counts as it goes is what a count of its sequences says."""
    for e in range(world.run[0].instances):
        _check_lists(world, e)
        _check_kv(world, e)
        _check_prefixes(world, e)
        _check_heap(world, e)
        _check_ledger(world, e)
    _check_lines(world)
    _check_events(world)
    assert world.run[0].ended == sum(sequence.status != 0 for sequence in world.pool.sequences)
    assert all(sequence.status == 0 or sequence.phase == OUTSIDE for sequence in world.pool.sequences)


def check_work(world: World) -> None:
    """Fails if an engine with work is in no step, unless its KV waits to be sent elsewhere."""
    pool = world.pool
    for e in range(world.run[0].instances):
        engine = pool.engines[e]
        sends = any(sequence.phase == TRANSFER and sequence.instance == e for sequence in pool.sequences)
        if pool.sizes[2 * e] + pool.sizes[2 * e + 1] > 0 and not (engine.role == PREFILL_ROLE and sends):
            assert engine.in_step
            assert world.step_ends[e] >= world.run[0].now


def check_nobody_waits_for_the_idle(world: World) -> None:
    """Fails if a request is held while an instance that may take it is idle."""
    run, pool = world.run[0], world.pool
    for s in held(world):
        for e in range(run.instances):
            if eligible(world, e, s) and not (run.stages and pool.engines[e].role == DECODE_ROLE):
                assert pool.engines[e].ledger_requests > 0


def held(world: World) -> list[int]:
    """The requests that are held."""
    return [s for s, sequence in enumerate(world.pool.sequences) if sequence.phase == HELD]


def members(world: World, which: int) -> Iterator[int]:
    """The sequences of a list, head first, with a check of its links."""
    pool = world.pool
    before, s = NONE, pool.heads[which]
    for _ in range(pool.sizes[which]):
        assert pool.sequences[s].prev == before
        yield s
        before, s = s, pool.sequences[s].next
    assert s == NONE
    assert pool.tails[which] == before


def place_of(world: World, s: int) -> int:
    """The instance that a sequence is on or on its way to, or none."""
    sequence = world.pool.sequences[s]
    if sequence.phase == TRANSFER or (
        sequence.paired and not sequence.handed and sequence.phase not in (OUTSIDE, HELD)
    ):
        return int(sequence.instance)
    return int(sequence.decode_instance) if sequence.phase in (TRAVELLING, WAITING, PREFILL, DECODE) else NONE


def counter_of(world: World, s: int) -> int:
    """The instance that counts a sequence whole, or none."""
    sequence, place = world.pool.sequences[s], place_of(world, s)
    return int(sequence.decode_instance) if sequence.paired and place != NONE else place


def produced_of(world: World, s: int) -> int:
    """Tokens that a sequence has got."""
    sequence = world.pool.sequences[s]
    if sequence.phase == DECODE:
        return int(sequence.output - sequence.finish_tick + world.pool.engines[sequence.decode_instance].tick)
    return int(sequence.produced)


def _batch(world: World, e: int, phase: int) -> list[int]:
    return [s for s in members(world, 2 * e + 1) if world.pool.sequences[s].phase == phase]


def _check_lists(world: World, e: int) -> None:
    pool, engine = world.pool, world.pool.engines[e]
    waiting, batch = list(members(world, 2 * e)), list(members(world, 2 * e + 1))
    assert all(pool.sequences[s].phase == WAITING for s in waiting)
    assert len(batch) <= engine.max_sequences
    assert engine.decoding == len(_batch(world, e, DECODE))
    assert engine.partial == len(_batch(world, e, PREFILL))
    assert engine.decoding + engine.partial == len(batch)
    here = Counter(place_of(world, s) for s in range(len(pool.sequences)) if pool.sequences[s].phase in (WAITING, 4, 5))
    assert here[e] == len(waiting) + len(batch)
    tickets = [pool.sequences[s].ticket for s in batch]
    assert tickets == sorted(tickets)


def _blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)


def _check_kv(world: World, e: int) -> None:
    pool, engine, per_block = world.pool, world.pool.engines[e], world.pool.prefix_sizes[2]
    pending = 1 if engine.in_step and engine.step_decodes else 0
    context, blocks, shared = 0, 0, 0
    growing: Counter[int] = Counter()
    for s in _batch(world, e, DECODE):
        sequence = pool.sequences[s]
        has = sequence.prompt + produced_of(world, s) - 1
        context += has
        blocks += _blocks(has + pending, engine.block_tokens) - sequence.shared * per_block
        growing[sequence.kv_phase] += 1
        assert (has - sequence.kv_phase - engine.tick + 2 * sequence.kv_phase) % engine.block_tokens == (
            sequence.kv_phase + has - engine.tick
        ) % engine.block_tokens
        assert (sequence.kv_phase + has - engine.tick) % engine.block_tokens == 0
    for s, sequence in enumerate(pool.sequences):
        if (sequence.phase == PREFILL and place_of(world, s) == e) or (
            sequence.phase == TRANSFER and sequence.instance == e
        ):
            whole = sequence.blocks + sequence.shared * per_block
            assert (
                _blocks(sequence.prefilled, engine.block_tokens)
                <= whole
                <= _blocks(sequence.target, engine.block_tokens)
            )
            blocks += sequence.blocks
        if place_of(world, s) != e or sequence.phase == WAITING:
            assert sequence.shared == 0 or place_of(world, s) not in (e, NONE)
    shared = sum(refs > 0 for refs in _entries(world, e)) * per_block
    assert engine.context_tokens == context
    assert engine.blocks_used == blocks + shared
    assert engine.blocks_used >= 0
    assert engine.blocks_used + engine.blocks_idle <= engine.blocks_total
    for phase in range(engine.block_tokens):
        assert pool.growing[engine.growing_start + phase] == growing[phase]


def _entries(world: World, e: int) -> list[int]:
    engine = world.pool.engines[e]
    if not engine.prefix_caching:
        return []
    return list(world.pool.prefix_refs[engine.prefix_start : engine.prefix_start + world.pool.prefix_sizes[0]])


def _check_prefixes(world: World, e: int) -> None:
    pool, engine = world.pool, world.pool.engines[e]
    if not engine.prefix_caching:
        return
    users: Counter[int] = Counter()
    for s, sequence in enumerate(pool.sequences):
        if place_of(world, s) == e:
            users.update(pool.prefix_blocks[sequence.prefix_at + place] for place in range(sequence.shared))
    idle = []
    for block, refs in enumerate(_entries(world, e)):
        assert refs in (users[block], NONE) if users[block] == 0 else refs == users[block]
        if refs == 0:
            idle.append(engine.prefix_start + block)
    chain, entry, before = [], engine.lru_head, NONE
    while entry >= 0:
        assert pool.prefix_prev[entry] == before
        chain.append(entry)
        before, entry = entry, pool.prefix_next[entry]
    assert sorted(chain) == idle
    assert engine.lru_tail == before
    assert engine.blocks_idle == len(idle) * pool.prefix_sizes[2]


def _check_heap(world: World, e: int) -> None:
    pool, engine = world.pool, world.pool.engines[e]
    filed = [pool.heap[engine.heap_start + place] for place in range(engine.heap_size)]
    assert sorted(filed) == sorted(_batch(world, e, DECODE))
    for place, s in enumerate(filed):
        assert pool.sequences[s].heap_at == place
        above = pool.sequences[filed[(place - 1) // 2]] if place else pool.sequences[s]
        assert (above.finish_tick, above.ticket) <= (pool.sequences[s].finish_tick, pool.sequences[s].ticket)


def _check_ledger(world: World, e: int) -> None:
    pool, engine = world.pool, world.pool.engines[e]
    everyone = range(len(pool.sequences))
    counted = [s for s in everyone if counter_of(world, s) == e]
    staged = [
        s
        for s in everyone
        if pool.sequences[s].paired and pool.sequences[s].instance == e and place_of(world, s) != NONE
        if produced_of(world, s) == 0
    ]
    assert sorted(_chain(world, engine.ledger_head, "ledger_next")) == counted
    assert sorted(_chain(world, engine.stage_head, "stage_next")) == staged
    assert engine.ledger_requests == len(counted) + len(staged)
    own = sum(pool.sequences[s].prompt + produced_of(world, s) for s in counted)
    assert engine.ledger_context == own + sum(pool.sequences[s].prompt for s in staged)
    waits = [s for s in counted if produced_of(world, s) == 0 and not pool.sequences[s].paired] + staged
    assert engine.ledger_queued == sum(pool.sequences[s].prompt - pool.sequences[s].cached_believed for s in waits)


def _chain(world: World, s: int, link: str) -> list[int]:
    found = []
    while s >= 0:
        found.append(s)
        s = getattr(world.pool.sequences[s], link)
    return found


def _check_lines(world: World) -> None:
    run, pool = world.run[0], world.pool
    lines = [list(members(world, 2 * run.instances + line)) for line in range(run.routers * run.models)]
    assert sorted(s for line in lines for s in line) == held(world)
    for number, line in enumerate(lines):
        arrived = [pool.sequences[s].arrived_at for s in line]
        assert arrived == sorted(arrived)
        assert all(pool.sequences[s].router * run.models + pool.sequences[s].model == number for s in line)
    for number, line in enumerate(lines):
        assert not line or world.dirty[number] or world.line_tried[number] in line
    for number, line in enumerate(lines if run.fair else ()):
        for tenant in range(run.tenants):
            assert world.held_by[number * run.tenants + tenant] == sum(pool.sequences[s].tenant == tenant for s in line)
    for router in range(run.routers):
        waiting = sum(len(line) for number, line in enumerate(lines) if number // run.models == router)
        assert world.routers[router].held == waiting <= run.max_held
        batch = sum(
            pool.sequences[s].batch for number, line in enumerate(lines) if number // run.models == router for s in line
        )
        assert world.routers[router].batch_held == batch <= run.batch_max_held
    for number, line in enumerate(lines):
        assert world.told[number] < 0 or world.told[number] in line


def _check_events(world: World) -> None:
    run = world.run[0]
    keys = [(world.event_at[place], world.event_kind[place], world.event_order[place]) for place in range(run.events)]
    assert all(keys[(place - 1) // 2] <= key for place, key in enumerate(keys) if place)
    assert all(at_s > run.now for at_s, _, _ in keys)  # what was due in this instant has happened
