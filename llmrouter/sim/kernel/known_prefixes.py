"""What routers take to be in the prefix caches of engines: ``routing/prefixes.py``, over arrays.

Entries are numbered by router, caching engine and prefix block; an entry of use 0 is not held. Where routers share one
index it is that of the first, and where they know the truth they look into the engines.
"""

from __future__ import annotations

from llmrouter.routing.prefix_hits import believed_share, faded, hit_tokens, is_stale
from llmrouter.sim.kernel.records import (
    NONE,
    PREFIXES_EXACT,
    PREFIXES_INDEX,
    PREFIXES_SHARED,
    PREFIXES_UNKNOWN,
    Pool,
    World,
)


def cached_tokens(world: World, router: int, e: int, s: int) -> int:
    """Prompt tokens of a request that a router takes to be in an engine's prefix cache."""
    run, pool = world.run[0], world.pool
    if run.prefixes == PREFIXES_UNKNOWN or pool.engines[e].prefix_caching == 0 or pool.sequences[s].prefix_count == 0:
        return 0
    if run.prefixes == PREFIXES_EXACT:
        return hit_tokens(_cached_blocks(pool, e, s), pool.prefix_sizes[1], pool.sequences[s].prompt)
    owner = _owner(world, router)
    place = 2 * (owner * run.instances + e)
    share = believed_share(world.known_sums[place], world.known_sums[place + 1])
    held, _ = _held(world, owner, e, s)
    return int(share * hit_tokens(held, pool.prefix_sizes[1], pool.sequences[s].prompt))


def use_prefix(world: World, s: int, e: int) -> None:
    """A request goes to an engine: what is expected of its cache, and what it will hold then."""
    run, pool, sequence = world.run[0], world.pool, world.pool.sequences[s]
    sequence.cached_believed = cached_tokens(world, sequence.router, e, s)
    if run.prefixes not in (PREFIXES_INDEX, PREFIXES_SHARED):
        return
    if pool.engines[e].prefix_caching == 0 or sequence.prefix_count == 0:
        return
    held, seen = _held(world, _owner(world, sequence.router), e, s)
    sequence.cached_expected = hit_tokens(held, pool.prefix_sizes[1], sequence.prompt)
    sequence.prefix_seen = seen
    note_prefix(world, s, e)


def note_prefix(world: World, s: int, e: int) -> None:
    """A prompt is or will be in the cache of an engine: the index of the request's router holds it."""
    run, pool, sequence = world.run[0], world.pool, world.pool.sequences[s]
    if run.prefixes not in (PREFIXES_INDEX, PREFIXES_SHARED):
        return
    if pool.engines[e].prefix_caching == 0 or sequence.prefix_count == 0:
        return
    owner = _owner(world, sequence.router)
    world.routers[owner].prefix_uses += 1
    for place in range(sequence.prefix_count - 1, -1, -1):
        entry = _entry(world, owner, e, s, place)
        if world.known_uses[entry] > 0:
            _unlink(world, owner, e, entry)
        world.known_uses[entry] = world.routers[owner].prefix_uses
        _append(world, owner, e, entry)
    most = max(1, pool.engines[e].kv_tokens // pool.prefix_sizes[1])
    at = 3 * (owner * run.instances + e)
    while world.known_lists[at + 2] > most:
        _evict(world, owner, e)


def report_prefix(world: World, s: int) -> None:
    """A finished request's usage says how many of its prompt tokens were cached."""
    run, sequence = world.run[0], world.pool.sequences[s]
    expected = sequence.cached_expected
    if expected <= 0:
        return
    owner, e = _owner(world, sequence.router), sequence.instance
    place = 2 * (owner * run.instances + e)
    reported = min(sequence.cached, expected)
    world.known_sums[place] = faded(world.known_sums[place], expected)
    world.known_sums[place + 1] = faded(world.known_sums[place + 1], reported)
    if is_stale(expected, reported):
        at = 3 * (owner * run.instances + e)
        while world.known_lists[at] >= 0 and world.known_uses[world.known_lists[at]] <= sequence.prefix_seen:
            _evict(world, owner, e)


def _owner(world: World, router: int) -> int:
    return 0 if world.run[0].prefixes == PREFIXES_SHARED else router


def _entry(world: World, owner: int, e: int, s: int, place: int) -> int:
    block = world.pool.prefix_blocks[world.pool.sequences[s].prefix_at + place]
    return int(owner * len(world.pool.prefix_refs) + world.pool.engines[e].prefix_start + block)


def _held(world: World, owner: int, e: int, s: int) -> tuple[int, int]:
    """Leading blocks that an index holds, and when the last of them was used; 0 where there is none."""
    held, seen = 0, 0
    while held < world.pool.sequences[s].prefix_count:
        used = world.known_uses[_entry(world, owner, e, s, held)]
        if used == 0:
            break
        held, seen = held + 1, used
    return held, seen


def _cached_blocks(pool: Pool, e: int, s: int) -> int:
    """Leading blocks that an engine's cache holds now."""
    sequence, held = pool.sequences[s], 0
    while held < sequence.prefix_count:
        block = pool.prefix_blocks[sequence.prefix_at + held]
        if pool.prefix_refs[pool.engines[e].prefix_start + block] < 0:
            break
        held += 1
    return held


def _evict(world: World, owner: int, e: int) -> None:
    """Takes out the least recently used entry of an engine."""
    entry = world.known_lists[3 * (owner * world.run[0].instances + e)]
    _unlink(world, owner, e, entry)
    world.known_uses[entry] = 0


def _append(world: World, owner: int, e: int, entry: int) -> None:
    at = 3 * (owner * world.run[0].instances + e)
    tail = world.known_lists[at + 1]
    world.known_prev[entry] = tail
    world.known_next[entry] = NONE
    if tail >= 0:
        world.known_next[tail] = entry
    else:
        world.known_lists[at] = entry
    world.known_lists[at + 1] = entry
    world.known_lists[at + 2] += 1


def _unlink(world: World, owner: int, e: int, entry: int) -> None:
    at = 3 * (owner * world.run[0].instances + e)
    before, after = world.known_prev[entry], world.known_next[entry]
    if before >= 0:
        world.known_next[before] = after
    else:
        world.known_lists[at] = after
    if after >= 0:
        world.known_prev[after] = before
    else:
        world.known_lists[at + 1] = before
    world.known_lists[at + 2] -= 1
