"""Which waiting sequence joins the batch next, and whether its KV fits."""

from __future__ import annotations

from llmrouter.sim.kernel.lists import append, unlink
from llmrouter.sim.kernel.prefixes import cached_count, idle_among, make_room, take_cached
from llmrouter.sim.kernel.records import (
    CHUNKED,
    DECODE,
    FIRST_CHUNK,
    FIRST_COME,
    LAYERED,
    LEAST_WORK_LEFT,
    NONE,
    PREFILL,
    WORST_CASE,
    Pool,
)


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // block_tokens)


def free_blocks(pool: Pool, e: int) -> int:
    """KV blocks that are neither used nor needed by the decodes of this step; idle prefix blocks count as free."""
    engine = pool.engines[e]
    growth = pool.growing[engine.growing_start + engine.tick % engine.block_tokens]
    return int(engine.blocks_total - engine.blocks_used - growth)


def use_blocks(pool: Pool, e: int, s: int, blocks: int) -> None:
    """Allocates blocks, to a sequence or (``NONE``) to the decoding ones."""
    pool.engines[e].blocks_used += blocks
    if s >= 0:
        pool.sequences[s].blocks += blocks
    make_room(pool, e)


def admit_next(pool: Pool, e: int, budget: int) -> int:
    """Moves the next sequence of the queue into the batch if it fits; returns it, or ``NONE``.

    ``budget`` bounds the tokens of a prompt that is not chunked; below 0 nothing does.
    """
    engine = pool.engines[e]
    if pool.sizes[2 * e] == 0 or pool.sizes[2 * e + 1] >= engine.max_sequences:
        return NONE
    s = _next_waiting(pool, e)
    sequence = pool.sequences[s]
    alone = pool.sizes[2 * e + 1] == 0
    if sequence.ready_step > engine.steps and not alone:
        return NONE
    cached = 0
    if not sequence.transferred:
        cached = cached_count(pool, e, s)
    computed = cached * pool.prefix_sizes[1]
    whole = engine.schedule != CHUNKED or sequence.transferred
    if whole and not sequence.transferred and 0 <= budget < sequence.target - computed:
        return NONE
    tokens = sequence.target if whole else min(sequence.target, computed + budget)
    blocks = blocks_for(tokens, engine.block_tokens) - cached * pool.prefix_sizes[2]
    idle = idle_among(pool, e, s, cached)
    needed = blocks
    if engine.admission != FIRST_CHUNK:
        needed = blocks_for(sequence.target, engine.block_tokens) - cached * pool.prefix_sizes[2]
    needed += idle * pool.prefix_sizes[2]
    if sequence.transferred and sequence.target % engine.block_tokens == 0:
        needed += 1  # it decodes in this very step
    reserve = 0 if alone else engine.watermark_blocks
    if needed + reserve > free_blocks(pool, e):
        return NONE
    if engine.admission == WORST_CASE and not alone and not _worst_case_fits(pool, e, s):
        return NONE
    _take_in(pool, e, s, cached)
    use_blocks(pool, e, s, blocks)
    return int(s)


def _take_in(pool: Pool, e: int, s: int, cached: int) -> None:
    """Moves a waiting sequence into the batch, a user of its cached blocks."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    unlink(pool, 2 * e, s)
    append(pool, 2 * e + 1, s)
    if cached > 0:
        take_cached(pool, e, s, cached)
    sequence.prefilled = cached * pool.prefix_sizes[1]
    if sequence.preemptions == 0 and not sequence.transferred:
        sequence.cached = sequence.prefilled
    sequence.blocks = 0
    engine.tickets += 1
    sequence.ticket = engine.tickets
    sequence.phase = PREFILL
    engine.partial += 1


def _next_waiting(pool: Pool, e: int) -> int:
    engine = pool.engines[e]
    head = pool.heads[2 * e]
    if engine.queue_order == FIRST_COME:
        return int(head)
    best = head
    best_key = 0.0
    found = 0
    s = head
    while s >= 0:
        sequence = pool.sequences[s]
        if engine.queue_order == LEAST_WORK_LEFT:
            key = float(sequence.target + sequence.output - sequence.produced)
            fits = True
        else:
            key = -float(sequence.target)
            fits = blocks_for(sequence.target, engine.block_tokens) <= free_blocks(pool, e)
        if fits and sequence.ready_step <= engine.steps and (found == 0 or key < best_key):
            best, best_key, found = s, key, 1
        s = sequence.next
    return int(best)


def _worst_case_fits(pool: Pool, e: int, candidate: int) -> bool:
    """Whether all running and the candidate could grow to their ends: the peak over the end of each (LightLLM).

    Where prompts run beside decodes a candidate starts to grow later than that counts on: there full lengths must fit.
    """
    engine = pool.engines[e]
    capacity = engine.blocks_total * engine.block_tokens
    mixes = engine.schedule in (CHUNKED, LAYERED)
    at = candidate
    while at >= 0:
        left = _left(pool, e, at)
        together, peak = 0, 0
        other = candidate
        while other >= 0:
            other_left = _left(pool, e, other)
            if mixes:
                peak += pool.sequences[other].prompt + pool.sequences[other].output
            elif other_left >= left:
                together += 1
                peak += pool.sequences[other].prompt + pool.sequences[other].output - other_left
            other = pool.heads[2 * e + 1] if other == candidate else pool.sequences[other].next
        if mixes or peak + left * together > capacity:
            return bool(peak + left * together <= capacity)
        at = pool.heads[2 * e + 1] if at == candidate else pool.sequences[at].next
    return True


def _left(pool: Pool, e: int, s: int) -> int:
    """Output tokens that a sequence has still to produce."""
    sequence = pool.sequences[s]
    if sequence.phase == DECODE:
        return int(sequence.finish_tick - pool.engines[e].tick)
    return int(sequence.output - sequence.produced)
