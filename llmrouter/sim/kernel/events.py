"""The events to come: a heap by time, then kind, then the order in which they were made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.sim.kernel.records import World


def _before(world: World, a: int, b: int) -> bool:
    if world.event_at[a] != world.event_at[b]:
        return bool(world.event_at[a] < world.event_at[b])
    if world.event_kind[a] != world.event_kind[b]:
        return bool(world.event_kind[a] < world.event_kind[b])
    return bool(world.event_order[a] < world.event_order[b])


def _swap(world: World, a: int, b: int) -> None:
    at, kind, order = world.event_at[a], world.event_kind[a], world.event_order[a]
    subject = world.event_subject[a]
    world.event_at[a], world.event_kind[a], world.event_order[a] = (
        world.event_at[b],
        world.event_kind[b],
        world.event_order[b],
    )
    world.event_subject[a] = world.event_subject[b]
    world.event_at[b], world.event_kind[b], world.event_order[b] = at, kind, order
    world.event_subject[b] = subject


def schedule(world: World, at_s: float, kind: int, subject: int) -> None:
    """Adds an event: a sequence's, or a router's (``REFRESH``)."""
    run = world.run[0]
    place = run.events
    run.events += 1
    run.event_order += 1
    world.event_at[place] = at_s
    world.event_kind[place] = kind
    world.event_order[place] = run.event_order
    world.event_subject[place] = subject
    while place > 0:
        parent = (place - 1) // 2
        if not _before(world, place, parent):
            break
        _swap(world, place, parent)
        place = parent


def take_first(world: World) -> None:
    """Removes the first event, which stands at 0."""
    run = world.run[0]
    run.events -= 1
    size = run.events
    if size == 0:
        return
    _swap(world, 0, size)
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            return
        if child + 1 < size and _before(world, child + 1, child):
            child += 1
        if not _before(world, child, place):
            return
        _swap(world, place, child)
        place = child
