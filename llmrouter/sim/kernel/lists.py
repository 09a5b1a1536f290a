"""Linked lists and the heap of finishing sequences, over a ``Pool``."""

from __future__ import annotations

from llmrouter.sim.kernel.records import NONE, Pool


def append(pool: Pool, which: int, s: int) -> None:
    """Puts a sequence at the end of a list."""
    sequence = pool.sequences[s]
    tail = pool.tails[which]
    sequence.prev = tail
    sequence.next = NONE
    if tail >= 0:
        pool.sequences[tail].next = s
    else:
        pool.heads[which] = s
    pool.tails[which] = s
    pool.sizes[which] += 1


def prepend(pool: Pool, which: int, s: int) -> None:
    """Puts a sequence at the head of a list."""
    sequence = pool.sequences[s]
    head = pool.heads[which]
    sequence.prev = NONE
    sequence.next = head
    if head >= 0:
        pool.sequences[head].prev = s
    else:
        pool.tails[which] = s
    pool.heads[which] = s
    pool.sizes[which] += 1


def unlink(pool: Pool, which: int, s: int) -> None:
    """Takes a sequence out of the list it is in."""
    sequence = pool.sequences[s]
    before, after = sequence.prev, sequence.next
    if before >= 0:
        pool.sequences[before].next = after
    else:
        pool.heads[which] = after
    if after >= 0:
        pool.sequences[after].prev = before
    else:
        pool.tails[which] = before
    pool.sizes[which] -= 1


def _finishes_before(pool: Pool, a: int, b: int) -> bool:
    first, second = pool.sequences[a], pool.sequences[b]
    if first.finish_tick != second.finish_tick:
        return bool(first.finish_tick < second.finish_tick)
    return bool(first.ticket < second.ticket)


def _put(pool: Pool, start: int, place: int, s: int) -> None:
    pool.heap[start + place] = s
    pool.sequences[s].heap_at = place


def _rise(pool: Pool, start: int, place: int, s: int) -> None:
    while place > 0:
        parent = (place - 1) // 2
        above = pool.heap[start + parent]
        if not _finishes_before(pool, s, above):
            break
        _put(pool, start, place, above)
        place = parent
    _put(pool, start, place, s)


def _sink(pool: Pool, start: int, size: int, s: int, place: int) -> None:
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        below = pool.heap[start + child]
        if child + 1 < size and _finishes_before(pool, pool.heap[start + child + 1], below):
            child += 1
            below = pool.heap[start + child]
        if not _finishes_before(pool, below, s):
            break
        _put(pool, start, place, below)
        place = child
    _put(pool, start, place, s)


def heap_add(pool: Pool, e: int, s: int) -> None:
    """Files a sequence under the tick in which it finishes."""
    engine = pool.engines[e]
    engine.heap_size += 1
    _rise(pool, engine.heap_start, engine.heap_size - 1, s)


def heap_remove(pool: Pool, e: int, s: int) -> None:
    """Takes a filed sequence out."""
    engine = pool.engines[e]
    start = engine.heap_start
    place = pool.sequences[s].heap_at
    pool.sequences[s].heap_at = NONE
    engine.heap_size -= 1
    size = engine.heap_size
    if place == size:
        return
    last = pool.heap[start + size]
    if place > 0 and _finishes_before(pool, last, pool.heap[start + (place - 1) // 2]):
        _rise(pool, start, place, last)
    else:
        _sink(pool, start, size, last, place)
