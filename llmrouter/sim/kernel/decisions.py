"""Decisions by rule inside the simulator: the formulas of ``routing/rules.py`` over the loads a router sees."""

from __future__ import annotations

from llmrouter.routing.inflight import fits
from llmrouter.routing.rules import score
from llmrouter.sim.kernel.ledger import load_of
from llmrouter.sim.kernel.records import DECODE_ROLE, LOAD_FIELDS, NONE, PREFILL_FIRST, World

_MODULUS = 2_147_483_647
_MULTIPLIER = 48_271


def draw(world: World) -> float:
    """A number in (0, 1) of the run's own stream (Park and Miller's generator)."""
    run = world.run[0]
    run.random = run.random * _MULTIPLIER % _MODULUS
    return float(run.random / _MODULUS)


def eligible(world: World, e: int, s: int) -> bool:
    """Whether an instance serves the request's model and takes new requests."""
    run = world.run[0]
    if world.pool.engines[e].role == DECODE_ROLE:
        return False
    return bool(world.serves[e * run.models + world.pool.sequences[s].model] > 0)


def has_room(world: World, e: int, s: int, row: int) -> bool:
    """The room rule of the compiled policy, on the load in ``asked_loads`` at ``row``."""
    run, engine, sequence = world.run[0], world.pool.engines[e], world.pool.sequences[s]
    at = row * LOAD_FIELDS
    limit = -1.0
    if run.kv_fraction >= 0.0:
        limit = float(int(run.kv_fraction * engine.blocks_total * engine.block_tokens) - engine.block_tokens)
        limit = max(limit, 0.0)
    most = run.max_requests if run.max_requests >= 0 else engine.max_sequences
    return fits(
        world.asked_loads[at],
        world.asked_loads[at + 1],
        world.asked_loads[at + 3],
        float(most),
        limit,
        run.decode_reserve_fraction,
        float(sequence.prompt),
        sequence.predicted,
    )


def choose(world: World, router: int, s: int) -> int:
    """The instance for a request under the compiled policy; ``NONE`` where none has room."""
    run = world.run[0]
    rule = run.rule
    if rule == 0:  # Rule.ROUND_ROBIN
        return _choose_next(world, router, s)
    if rule == 1 or rule == 2:  # Rule.RANDOM, Rule.POWER_OF_TWO
        return _choose_drawn(world, router, s, rule)
    best, best_score, ties = NONE, 0.0, 0
    for e in range(run.instances):
        if not eligible(world, e, s):
            continue
        load_of(world, router, e, e)
        if not has_room(world, e, s, e):
            continue
        _fill_row(world, e, s)
        value = score(rule, world.row, world.weights)
        if best < 0 or value < best_score:
            best, best_score, ties = e, value, 1
        elif value == best_score:
            ties += 1
            if draw(world) * ties < 1.0:
                best = e
    return best


def _choose_next(world: World, router: int, s: int) -> int:
    run = world.run[0]
    last = world.routers[router].last_instance
    for turn in range(run.instances):
        e = (last + 1 + turn) % run.instances
        if eligible(world, e, s):
            load_of(world, router, e, e)
            if has_room(world, e, s, e):
                world.routers[router].last_instance = e
                return int(e)
    return NONE


def _choose_drawn(world: World, router: int, s: int, rule: int) -> int:
    """One at random, or the less loaded of two; the first drawn where they are equal."""
    first = _draw_instance(world, router, s, NONE)
    if rule == 1 or first < 0:
        return first
    second = _draw_instance(world, router, s, first)
    if second >= 0 and world.asked_loads[second * LOAD_FIELDS] < world.asked_loads[first * LOAD_FIELDS]:
        return second
    return first


def _draw_instance(world: World, router: int, s: int, besides: int) -> int:
    run = world.run[0]
    chosen, seen = NONE, 0
    for e in range(run.instances):
        if e == besides or not eligible(world, e, s):
            continue
        load_of(world, router, e, e)
        if has_room(world, e, s, e):
            seen += 1
            if draw(world) * seen < 1.0:
                chosen = e
    return chosen


def _fill_row(world: World, e: int, s: int) -> None:
    """The features of one instance for one request, in the order of ``FEATURE_NAMES``."""
    engine, sequence = world.pool.engines[e], world.pool.sequences[s]
    for k in range(LOAD_FIELDS):
        world.row[k] = world.asked_loads[e * LOAD_FIELDS + k]
    world.row[4] = sequence.prompt
    world.row[5] = sequence.predicted
    world.row[6] = engine.blocks_total * engine.block_tokens
    world.row[7] = engine.max_sequences
    world.row[8] = engine.base_decode_s
    world.row[9] = engine.prefill_s_per_token
    world.row[10] = engine.prefill_s_per_token_squared
    world.row[11] = engine.context_s_per_token
    world.row[12] = engine.sequence_s
    world.row[13] = 1.0 if engine.schedule == PREFILL_FIRST else 0.0
