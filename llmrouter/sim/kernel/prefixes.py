"""The prefix cache of an engine: prompt blocks that stay in KV after their last user, least recently used out first.

A prefix block is ``prefix_sizes[1]`` tokens, ``prefix_sizes[2]`` KV blocks; ``prefix_sizes[0]`` is their number B. A
block without user is *idle*: it counts as free, and is evicted when its room is needed.
"""

from __future__ import annotations

from llmrouter.sim.kernel.records import NONE, Pool


def _entry(pool: Pool, e: int, s: int, place: int) -> int:
    block = pool.prefix_blocks[pool.sequences[s].prefix_at + place]
    return int(pool.engines[e].prefix_start + block)


def cached_count(pool: Pool, e: int, s: int) -> int:
    """How many leading prefix blocks of a prompt are cached; at least one token is left to compute."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    if engine.prefix_caching == 0 or sequence.prefix_count == 0:
        return 0
    limit = min(sequence.prefix_count, (sequence.target - 1) // pool.prefix_sizes[1])
    count = 0
    while count < limit and pool.prefix_refs[_entry(pool, e, s, count)] >= 0:
        count += 1
    return count


def idle_among(pool: Pool, e: int, s: int, count: int) -> int:
    """How many of the first ``count`` cached blocks have no user now: taking them needs room."""
    idle = 0
    for place in range(count):
        if pool.prefix_refs[_entry(pool, e, s, place)] == 0:
            idle += 1
    return idle


def take_cached(pool: Pool, e: int, s: int, count: int) -> None:
    """Makes a sequence a user of its first ``count`` cached blocks."""
    engine = pool.engines[e]
    for place in range(count):
        entry = _entry(pool, e, s, place)
        if pool.prefix_refs[entry] == 0:
            _lru_unlink(pool, e, entry)
            engine.blocks_idle -= pool.prefix_sizes[2]
            engine.blocks_used += pool.prefix_sizes[2]
        pool.prefix_refs[entry] += 1
    pool.sequences[s].shared = count


def register(pool: Pool, e: int, s: int, computed_tokens: int) -> None:
    """Shares the prefix blocks that a sequence has computed, up to the first that another has cached meanwhile."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    if engine.prefix_caching == 0:
        return
    while sequence.shared < sequence.prefix_count and (sequence.shared + 1) * pool.prefix_sizes[1] <= computed_tokens:
        entry = _entry(pool, e, s, sequence.shared)
        if pool.prefix_refs[entry] >= 0:
            return
        pool.prefix_refs[entry] = 1
        sequence.shared += 1
        sequence.blocks -= pool.prefix_sizes[2]


def release_shared(pool: Pool, e: int, s: int) -> None:
    """Ends a sequence's use of its cached blocks; the last ones go first when room is needed."""
    engine, sequence = pool.engines[e], pool.sequences[s]
    for place in range(sequence.shared - 1, -1, -1):
        entry = _entry(pool, e, s, place)
        pool.prefix_refs[entry] -= 1
        if pool.prefix_refs[entry] == 0:
            _lru_append(pool, e, entry)
            engine.blocks_idle += pool.prefix_sizes[2]
            engine.blocks_used -= pool.prefix_sizes[2]
    sequence.shared = 0


def make_room(pool: Pool, e: int) -> None:
    """Evicts idle blocks until used and idle together fit the engine."""
    engine = pool.engines[e]
    while engine.blocks_used + engine.blocks_idle > engine.blocks_total and engine.lru_head >= 0:
        entry = engine.lru_head
        _lru_unlink(pool, e, entry)
        pool.prefix_refs[entry] = NONE
        engine.blocks_idle -= pool.prefix_sizes[2]


def _lru_append(pool: Pool, e: int, entry: int) -> None:
    engine = pool.engines[e]
    pool.prefix_prev[entry] = engine.lru_tail
    pool.prefix_next[entry] = NONE
    if engine.lru_tail >= 0:
        pool.prefix_next[engine.lru_tail] = entry
    else:
        engine.lru_head = entry
    engine.lru_tail = entry


def _lru_unlink(pool: Pool, e: int, entry: int) -> None:
    engine = pool.engines[e]
    before, after = pool.prefix_prev[entry], pool.prefix_next[entry]
    if before >= 0:
        pool.prefix_next[before] = after
    else:
        engine.lru_head = after
    if after >= 0:
        pool.prefix_prev[after] = before
    else:
        engine.lru_tail = before
