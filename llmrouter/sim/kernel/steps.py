"""One engine, iteration by iteration: what a step does, how long it lasts, what comes out of it.

A step costs time in proportion to what changes in it, not to the size of the batch: all decoding sequences advance by
one token, so a shared count of decode steps (the tick) stands for their progress, and sequences are filed under the
tick in which they finish.
"""

from __future__ import annotations

from llmrouter.sim.kernel.admission import admit_next, blocks_for, free_blocks, use_blocks
from llmrouter.sim.kernel.ledger import leave_stage
from llmrouter.sim.kernel.lists import append, heap_add, heap_remove, prepend, unlink
from llmrouter.sim.kernel.prefixes import register, release_shared
from llmrouter.sim.kernel.records import (
    CANCELLED,
    CHUNKED,
    DECODE,
    DETACHED,
    FINISHED,
    FIRST_TOKEN,
    LAYERED,
    NONE,
    OUTSIDE,
    PREEMPTED,
    PREFILL,
    PREFILL_FIRST,
    PREFILL_ROLE,
    RESUMED,
    TRANSFER,
    WAITING,
    Pool,
)


def add(pool: Pool, e: int, s: int) -> None:
    """Queues a sequence. One that arrives during a step is seen after it, with lag one step later still."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    sequence.phase = WAITING
    sequence.target = sequence.prompt + sequence.produced
    if sequence.transferred and sequence.produced > 0:
        sequence.target -= 1
    sequence.ready_step = engine.steps + 1
    if engine.in_step:
        sequence.ready_step += engine.lag_steps
    append(pool, 2 * e, s)


def cancel(pool: Pool, e: int, s: int) -> bool:
    """Drops a sequence; says whether at once: one that a step works on goes at the step's end."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    if engine.in_step and sequence.phase != WAITING:
        if not sequence.cancelling:
            sequence.cancelling = 1
            sequence.next_cancelled = engine.first_cancelled
            engine.first_cancelled = s
        return False
    drop(pool, e, s)
    return True


def drop(pool: Pool, e: int, s: int) -> None:
    """Takes a sequence out of the engine, wherever it is."""
    sequence = pool.sequences[s]
    if sequence.phase == WAITING:
        unlink(pool, 2 * e, s)
    else:
        leave_batch(pool, e, s)
    sequence.phase = OUTSIDE
    pool.engines[e].cancelled_total += 1


def has_work(pool: Pool, e: int) -> bool:
    """Whether anything waits or runs."""
    return bool(pool.sizes[2 * e] + pool.sizes[2 * e + 1] > 0)


def begin_step(pool: Pool, e: int) -> float:
    """Plans the next iteration, allocates its KV, and returns its seconds; -1 where nothing can run now."""
    engine = pool.engines[e]
    engine.steps += 1
    engine.step_prefill_tokens = 0
    engine.step_prefills = 0
    engine.first_chunk = NONE
    engine.last_chunk = NONE
    pool.event_count[0] = 0
    if engine.schedule == CHUNKED:
        _plan_chunked(pool, e)
    elif engine.schedule == LAYERED:
        _plan_layered(pool, e)
    else:
        _plan_separate(pool, e)
    mixes = engine.schedule in (CHUNKED, LAYERED)
    engine.step_decodes = engine.decoding if mixes or engine.step_prefills == 0 else 0
    engine.step_context = engine.context_tokens if engine.step_decodes > 0 else 0
    if engine.step_decodes + engine.step_prefills == 0:
        return -1.0
    engine.in_step = 1
    return _duration_s(pool, e)


def finish_step(pool: Pool, e: int) -> None:
    """Applies the iteration: a token to each sequence that decoded or ended its prefill; events say what came out."""
    engine = pool.engines[e]
    engine.in_step = 0
    engine.step_tokens = 0
    pool.event_count[0] = 0
    if engine.step_decodes > 0:
        engine.tick += 1
        engine.context_tokens += engine.decoding
        engine.ledger_context += engine.decoding
    _drop_cancelled(pool, e)
    if engine.step_decodes > 0:
        engine.step_tokens = engine.decoding
        while engine.heap_size > 0:
            s = pool.heap[engine.heap_start]
            if pool.sequences[s].finish_tick > engine.tick:
                break
            _finish(pool, e, s)
    _end_prefills(pool, e)
    engine.output_tokens_total += engine.step_tokens


def leave_batch(pool: Pool, e: int, s: int) -> None:
    """Takes a sequence out of the batch and frees its KV."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    if sequence.phase == DECODE:
        _stop_decode(pool, e, s)
    elif sequence.phase == PREFILL:
        engine.partial -= 1
        if engine.partial == 0:
            engine.group_steps_left = 0
    unlink(pool, 2 * e + 1, s)
    release_kv(pool, e, s)


def release_kv(pool: Pool, e: int, s: int) -> None:
    """Frees the KV of a sequence."""
    sequence = pool.sequences[s]
    pool.engines[e].blocks_used -= sequence.blocks
    sequence.blocks = 0
    release_shared(pool, e, s)


# --- planning ---


def _plan_chunked(pool: Pool, e: int) -> None:
    engine = pool.engines[e]
    _preempt_until_growth_fits(pool, e)
    budget = engine.token_budget - engine.decoding
    if engine.partial > 0:
        budget = _continue_prompts(pool, e, budget)
    while budget > 0 and pool.event_count[0] == 0:
        s = admit_next(pool, e, budget)
        if s < 0:
            break
        if _starts_transferred(pool, e, s):
            budget -= 1
        else:
            budget -= _take_chunk(pool, e, s, budget)
    _grow(pool, e)


def _continue_prompts(pool: Pool, e: int, budget: int) -> int:
    """Gives the partial prompts, oldest first, their next chunks; they are the last of the batch."""
    engine = pool.engines[e]
    s = pool.tails[2 * e + 1]
    left = engine.partial
    while True:
        if pool.sequences[s].phase == PREFILL:
            left -= 1
            if left == 0:
                break
        s = pool.sequences[s].prev
    block = engine.block_tokens
    while s >= 0 and budget > 0:
        sequence = pool.sequences[s]
        if sequence.phase != PREFILL:
            s = sequence.next
            continue
        chunk = min(sequence.target - sequence.prefilled, budget)
        more = blocks_for(sequence.prefilled + chunk, block) - blocks_for(sequence.prefilled, block)
        while more > free_blocks(pool, e) and pool.tails[2 * e + 1] != s:
            _preempt(pool, e, pool.tails[2 * e + 1])
        if more > free_blocks(pool, e):
            _preempt(pool, e, s)
            break
        use_blocks(pool, e, s, more)
        budget -= _take_chunk(pool, e, s, budget)
        s = sequence.next
    return budget


def _plan_separate(pool: Pool, e: int) -> None:
    """Prompts alone, whole, while any fits; else decodes. With an interval, prompts only every so many decode steps."""
    engine = pool.engines[e]
    due = engine.schedule == PREFILL_FIRST or engine.steps_since_prefill >= engine.steps_between_prefills
    if due or engine.decoding == 0:
        budget = engine.token_budget
        while budget > 0:
            s = admit_next(pool, e, budget if engine.step_prefills > 0 else -1)
            if s < 0:
                break
            if not _starts_transferred(pool, e, s):
                budget -= _take_chunk(pool, e, s, pool.sequences[s].target)
    if engine.step_prefills > 0:
        engine.steps_since_prefill = 0
        return
    engine.steps_since_prefill += 1
    _preempt_until_growth_fits(pool, e)
    _grow(pool, e)


def _plan_layered(pool: Pool, e: int) -> None:
    """Every decode, and one group of layers for a batch of prompts that is admitted together."""
    engine = pool.engines[e]
    _preempt_until_growth_fits(pool, e)
    if engine.partial == 0:
        total = 0
        while pool.event_count[0] == 0 and total < engine.token_budget:
            s = admit_next(pool, e, engine.token_budget - total if total > 0 else -1)
            if s < 0:
                break
            if not _starts_transferred(pool, e, s):
                total += pool.sequences[s].target - pool.sequences[s].prefilled
        engine.group_steps_left = blocks_for(total, engine.token_budget)
    if engine.partial > 0:
        s = pool.heads[2 * e + 1]
        while s >= 0:
            sequence = pool.sequences[s]
            if sequence.phase == PREFILL:
                left = sequence.target - sequence.prefilled
                _take_chunk(pool, e, s, blocks_for(left, engine.group_steps_left))
            s = sequence.next
        engine.group_steps_left -= 1
    _grow(pool, e)


def _take_chunk(pool: Pool, e: int, s: int, limit: int) -> int:
    """Has the step compute the next tokens of a prompt, at most ``limit``; returns how many."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    sequence.chunk = min(sequence.target - sequence.prefilled, limit)
    sequence.next_chunk = NONE
    if engine.last_chunk >= 0:
        pool.sequences[engine.last_chunk].next_chunk = s
    else:
        engine.first_chunk = s
    engine.last_chunk = s
    engine.step_prefill_tokens += sequence.chunk
    engine.step_prefills += 1
    register(pool, e, s, min(sequence.prompt, sequence.prefilled + sequence.chunk))
    return int(sequence.chunk)


def _preempt_until_growth_fits(pool: Pool, e: int) -> None:
    """Preempts the youngest until the sequences that start a new block in this step can have one."""
    while free_blocks(pool, e) < 0:
        _preempt(pool, e, pool.tails[2 * e + 1])


def _grow(pool: Pool, e: int) -> None:
    engine = pool.engines[e]
    growth = pool.growing[engine.growing_start + engine.tick % engine.block_tokens]
    use_blocks(pool, e, NONE, growth)


def _duration_s(pool: Pool, e: int) -> float:
    engine = pool.engines[e]
    squares = 0.0
    s = engine.first_chunk
    while s >= 0:
        sequence = pool.sequences[s]
        squares += float(sequence.chunk) * (2.0 * sequence.prefilled + sequence.chunk)
        s = sequence.next_chunk
    prefill_s = engine.base_prefill_s + engine.prefill_s_per_token * engine.step_prefill_tokens
    if engine.step_prefills == 0:
        duration_s = engine.base_decode_s
    elif engine.step_decodes == 0:
        duration_s = prefill_s
    else:
        duration_s = max(engine.base_decode_s, prefill_s)
    duration_s += engine.prefill_s_per_token_squared * squares
    if engine.step_decodes == 0:
        duration_s = max(duration_s, engine.prefill_floor_s)
    duration_s += engine.prefill_sequence_s * engine.step_prefills
    if engine.step_decodes > 0:
        duration_s += engine.context_s_per_token * engine.step_context + engine.sequence_s * engine.step_decodes
    return float(duration_s)


# --- transitions ---


def _emit(pool: Pool, kind: int, s: int) -> None:
    at = pool.event_count[0]
    pool.event_kinds[at] = kind
    pool.event_sequences[at] = s
    pool.event_count[0] = at + 1


def _drop_cancelled(pool: Pool, e: int) -> None:
    engine = pool.engines[e]
    s = engine.first_cancelled
    engine.first_cancelled = NONE
    while s >= 0:
        sequence = pool.sequences[s]
        sequence.cancelling = 0
        drop(pool, e, s)
        _emit(pool, CANCELLED, s)
        s = sequence.next_cancelled


def _end_prefills(pool: Pool, e: int) -> None:
    """Applies the step's chunks; a sequence whose prefill is complete produces a token and starts to decode."""
    engine = pool.engines[e]
    s = engine.first_chunk
    while s >= 0:
        sequence = pool.sequences[s]
        if sequence.phase == PREFILL:  # else cancelled while the step ran
            sequence.prefilled += sequence.chunk
            if sequence.prefilled >= sequence.target and engine.group_steps_left == 0:
                _end_prefill(pool, e, s)
        s = sequence.next_chunk


def _end_prefill(pool: Pool, e: int, s: int) -> None:
    engine, sequence = pool.engines[e], pool.sequences[s]
    if sequence.paired and not sequence.handed and not engine.hands_first_token:
        _detach(pool, e, s)
        return
    counts = engine
    if sequence.produced > 0:
        _emit(pool, RESUMED, s)
    else:
        _emit(pool, FIRST_TOKEN, s)
        engine.prompt_tokens_total += sequence.prompt
        if sequence.paired:
            leave_stage(pool, s)
            counts = pool.engines[sequence.decode_instance]
        else:
            engine.ledger_queued -= sequence.prompt - sequence.cached_believed
    counts.ledger_context += 1
    engine.step_tokens += 1
    sequence.produced += 1
    if engine.role == PREFILL_ROLE and sequence.produced < sequence.output:
        _detach(pool, e, s)
        return
    _start_decode(pool, e, s)
    if sequence.finish_tick == engine.tick:
        _finish(pool, e, s)


def _detach(pool: Pool, e: int, s: int) -> None:
    """A computed prompt leaves the batch; its KV stays until it has been sent."""
    pool.engines[e].partial -= 1
    unlink(pool, 2 * e + 1, s)
    pool.sequences[s].phase = TRANSFER
    _emit(pool, DETACHED, s)


def _start_decode(pool: Pool, e: int, s: int) -> None:
    engine, sequence = pool.engines[e], pool.sequences[s]
    engine.partial -= 1
    engine.decoding += 1
    sequence.phase = DECODE
    sequence.finish_tick = engine.tick + sequence.output - sequence.produced
    sequence.kv_phase = (engine.tick - sequence.target) % engine.block_tokens
    pool.growing[engine.growing_start + sequence.kv_phase] += 1
    engine.context_tokens += sequence.target
    heap_add(pool, e, s)


def _starts_transferred(pool: Pool, e: int, s: int) -> bool:
    """Whether an admitted sequence decodes at once: its KV came from another instance, and its first token too.

    Where its KV came alone, the last token of the prompt is computed once more: that makes the first token.
    """
    sequence = pool.sequences[s]
    if not sequence.transferred:
        return False
    sequence.transferred = 0
    if sequence.paired:
        register(pool, e, s, sequence.prompt)
    if sequence.produced == 0:
        sequence.prefilled = sequence.target - 1
        return False
    sequence.prefilled = sequence.target
    _start_decode(pool, e, s)
    return True


def _stop_decode(pool: Pool, e: int, s: int) -> None:
    """Takes a sequence out of the decoding ones, settling the progress that the tick stood for."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    sequence.produced = sequence.output - (sequence.finish_tick - engine.tick)
    context = sequence.prompt + sequence.produced - 1
    held = blocks_for(context, engine.block_tokens) - sequence.shared * pool.prefix_sizes[2]
    sequence.blocks = held
    engine.context_tokens -= context
    engine.decoding -= 1
    pool.growing[engine.growing_start + sequence.kv_phase] -= 1
    heap_remove(pool, e, s)


def _preempt(pool: Pool, e: int, s: int) -> None:
    engine, sequence = pool.engines[e], pool.sequences[s]
    decoding = sequence.phase == DECODE
    leave_batch(pool, e, s)
    lost = sequence.prompt + sequence.produced - 1 if decoding else sequence.prefilled
    engine.recomputed_tokens_total += lost
    engine.preemptions_total += 1
    sequence.recomputed += lost
    sequence.preemptions += 1
    sequence.prefilled = 0
    sequence.target = sequence.prompt + sequence.produced
    sequence.phase = WAITING
    sequence.ready_step = engine.steps
    prepend(pool, 2 * e, s)
    _emit(pool, PREEMPTED, s)


def _finish(pool: Pool, e: int, s: int) -> None:
    engine, sequence = pool.engines[e], pool.sequences[s]
    leave_batch(pool, e, s)
    sequence.phase = OUTSIDE
    engine.finished_total += 1
    _emit(pool, FINISHED, s)
