"""Decisions by rule inside the simulator: the formulas of ``routing/rules.py`` over the loads a router sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.routing.batch import leaves_headroom
from llmrouter.routing.batching import at_the_latest_s, waits_for_batch
from llmrouter.routing.inflight import fits, gate_requests, has_free_kv
from llmrouter.routing.rules import marginal_cost_row, own_latency, queued_prefill_s, score
from llmrouter.routing.stages import EVERYBODYS, LEAST_GAIN_S
from llmrouter.sim.kernel.known_prefixes import cached_tokens
from llmrouter.sim.kernel.ledger import load_of
from llmrouter.sim.kernel.records import (
    DECODE_ROLE,
    LEFT_OUT,
    LOAD_FIELDS,
    MAX_BIDS,
    NONE,
    PREFILL_ROLE,
    STAGED,
    WHOLE,
    World,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODULUS = 2_147_483_647
_MULTIPLIER = 48_271


def draw(world: World) -> float:
    """A number in (0, 1) of the run's own stream (Park and Miller's generator)."""
    run = world.run[0]
    run.random = run.random * _MULTIPLIER % _MODULUS
    return float(run.random / _MODULUS)


def eligible(world: World, e: int, s: int) -> bool:
    """Whether a policy may name an instance: for the answer where it names both stages, else for the prompt."""
    role = world.pool.engines[e].role
    return role != (PREFILL_ROLE if world.run[0].stages else DECODE_ROLE) and takes(world, e, s)


def takes(world: World, e: int, s: int) -> bool:
    """Whether an instance is there, does not drain, and serves the request's model."""
    if world.pool.engines[e].accepts == 0:
        return False
    return bool(world.serves[e * world.run[0].models + world.pool.sequences[s].model] > 0)


def bid_has_room(world: World, e: int, s: int, place: int) -> bool:
    """The room rule that came with a bid, on the load in ``asked_loads`` at the instance's row."""
    return _fits_bid(world, world.bid_rooms, 3 * place, e, s, world.pool.sequences[s].predicted)


def prefill_bid_has_room(world: World, e: int, s: int, place: int) -> bool:
    """The room rule that came with whoever computes the prompt for a bid, on the load in ``asked_loads`` at its row."""
    return _fits_bid(world, world.bid_prefill_rooms, 3 * place, e, s, 0.0)


def _fits_bid(  # noqa: PLR0917 - compiled, which passes by position
    world: World, rooms: Sequence[float], at: int, e: int, s: int, predicted: float
) -> bool:
    return _fits_loads(world, e, s, rooms[at], rooms[at + 1], rooms[at + 2], predicted)


def has_room(world: World, e: int, s: int) -> bool:
    """The room rule of the compiled policy for a whole request, on the load of e in ``asked_loads``."""
    if world.run[0].gap and not _leaves_headroom(world, e, s):
        return False
    return _within_bounds(world, e, s, world.pool.sequences[s].predicted)


def _within_bounds(world: World, e: int, s: int, predicted: float) -> bool:
    """The same for so many tokens to come, and for traffic that need not leave headroom."""
    most, limit = _bounds(world, e)
    return _fits_loads(world, e, s, most, limit, world.run[0].decode_reserve_fraction, predicted)


def _fits_loads(  # noqa: PLR0917 - compiled, which passes by position
    world: World, e: int, s: int, most: float, limit: float, reserve: float, predicted: float
) -> bool:
    at, prompt = e * LOAD_FIELDS, float(world.pool.sequences[s].prompt)
    loads = world.asked_loads
    return fits(loads[at], loads[at + 1], loads[at + 3], most, limit, reserve, prompt, predicted)


def _bounds(world: World, e: int) -> tuple[float, float]:
    """Requests and KV tokens that bound an instance under the compiled policy, for its load in ``asked_loads``."""
    run, engine = world.run[0], world.pool.engines[e]
    most = float(run.max_requests if run.max_requests >= 0 else engine.max_sequences)
    if run.kv_fraction < 0.0:
        return most, -1.0
    limit = max(0.0, float(int(run.kv_fraction * engine.kv_tokens) - engine.block_tokens))
    context, queued = world.asked_loads[e * LOAD_FIELDS + 1], world.asked_loads[e * LOAD_FIELDS + 2]
    if queued > 0.0 and has_free_kv(engine.kv_tokens, context, queued):
        return gate_requests(most, queued * engine.prefill_s_per_token), limit + queued
    return most, limit


def _leaves_headroom(world: World, e: int, s: int) -> bool:
    """Whether a batch request fills a gap, on the load of e in ``asked_loads``."""
    run, engine, sequence = world.run[0], world.pool.engines[e], world.pool.sequences[s]
    at = e * LOAD_FIELDS
    return leaves_headroom(
        world.asked_loads[at],
        world.asked_loads[at + 1],
        world.asked_loads[at + 2],
        world.asked_loads[at + 3],
        float(engine.kv_tokens),
        float(engine.max_sequences),
        float(sequence.prompt),
        sequence.predicted,
        run.batch_fraction,
        run.batch_queued,
    )


def name_bids(world: World, router: int, s: int) -> int:
    """Writes the candidates of the compiled policy, best first, to ``bids``; returns how many, 0 where none has room.

    There is one where nothing checks it again, else as many as a policy outside the simulator names.
    """
    run = world.run[0]
    most = MAX_BIDS if run.checks else 2 if run.rule == 2 else 1  # noqa: PLR2004 - Rule.POWER_OF_TWO
    if run.stages:
        _plan_stages(world, router, s)
    backlog_s = _look(world, router, s) if run.rule > 2 else 0.0  # noqa: PLR2004 - the rules that have a score
    count = 0
    while count < most:
        e = _choose(world, router, s, backlog_s)
        if e < 0 or (count == 0 and run.batch_hold_size > 1 and _waits(world, e, s)):
            break
        world.passed[e] = 1
        world.bids[count] = e
        requests, tokens = _bounds(world, e)
        world.bid_rooms[3 * count] = requests
        world.bid_rooms[3 * count + 1] = tokens
        world.bid_rooms[3 * count + 2] = run.decode_reserve_fraction
        if run.stages:
            _name_prefill(world, e, count)
        count += 1
    for e in range(run.instances):
        world.passed[e] = 0
    if run.rule == 0 and count > 0:  # Rule.ROUND_ROBIN
        world.routers[router].last_instance = world.bids[0]
    elif run.rule == 2 and count > 1:  # noqa: PLR2004 - Rule.POWER_OF_TWO
        first, second = world.bids[0], world.bids[1]
        if world.asked_loads[second * LOAD_FIELDS] < world.asked_loads[first * LOAD_FIELDS]:
            world.bids[0], world.bids[1] = second, first
            world.bid_prefills[0], world.bid_prefills[1] = world.bid_prefills[1], world.bid_prefills[0]
    return count


def _name_prefill(world: World, e: int, place: int) -> None:
    """Writes who computes the prompt for a bid."""
    run, p = world.run[0], NONE
    if world.stage_of[e] == STAGED:
        p = run.stage_prefill
        requests, tokens = _bounds(world, p)
        world.bid_prefill_rooms[3 * place] = requests
        world.bid_prefill_rooms[3 * place + 1] = tokens
        world.bid_prefill_rooms[3 * place + 2] = run.decode_reserve_fraction
    world.bid_prefills[place] = p


def _plan_stages(world: World, router: int, s: int) -> None:
    """Who would compute the prompt, and what each instance has to do with the request: ``routing/stages.py``."""
    run = world.run[0]
    ready, shown = _choose_prefill(world, router, s)
    run.stage_cost = 0.0
    if run.stage_prefill >= 0 and run.stage_costs:
        _fill_prompt_row(world, run.stage_prefill, s)
        run.stage_cost = marginal_cost_row(world.row, world.prompt_weights)
    for e in range(run.instances):
        if not eligible(world, e, s) or (run.gap and ready > 0 and shown == 0):
            world.stage_of[e] = LEFT_OUT
        else:
            world.stage_of[e] = WHOLE if ready == 0 else _stage_of(world, router, e, s)


def _choose_prefill(world: World, router: int, s: int) -> tuple[int, int]:
    """Finds who has the prompt ready first; says how many compute prompts, and how many of them may be asked to."""
    run = world.run[0]
    ready, shown, ties = 0, 0, 0
    run.stage_prefill = NONE
    for e in range(run.instances):
        if world.pool.engines[e].role != PREFILL_ROLE or not takes(world, e, s):
            continue
        ready += 1
        load_of(world, router, e, e)
        if run.gap and not _leaves_headroom(world, e, s):
            continue
        shown += 1
        if not _within_bounds(world, e, s, 0.0):
            continue
        _fill_prompt_row(world, e, s)
        ready_s = own_latency(world.row)
        if run.stage_prefill < 0 or ready_s < run.stage_ready_s:
            run.stage_prefill, run.stage_ready_s, ties = e, ready_s, 1
        elif ready_s == run.stage_ready_s:
            ties += 1
            if draw(world) * ties < 1.0:
                run.stage_prefill = e
    return ready, shown


def _stage_of(world: World, router: int, e: int, s: int) -> int:
    """Whether an instance that may answer computes the prompt too, leaves it to another, or cannot take the request."""
    run, sequence, role = world.run[0], world.pool.sequences[s], world.pool.engines[e].role
    if sequence.prompt - cached_tokens(world, router, e, s) < run.min_prefill_tokens:
        return WHOLE
    if run.stage_prefill < 0:
        return LEFT_OUT if role == DECODE_ROLE else WHOLE
    if role == DECODE_ROLE:
        return STAGED
    load_of(world, router, e, e)
    _fill_prompt_row(world, e, s)
    world.row[2] = 0.0
    world.row[3] = 0.0
    spared_s = marginal_cost_row(world.row, EVERYBODYS)
    return WHOLE if spared_s <= run.stage_ready_s + LEAST_GAIN_S else STAGED


def _fill_prompt_row(world: World, e: int, s: int) -> None:
    """The features of one instance for the prompt of a request alone."""
    fill_idle_row(world, e, s)
    for k in range(LOAD_FIELDS):
        world.row[k] = world.asked_loads[e * LOAD_FIELDS + k]
    world.row[5] = 0.0
    world.row[14] = cached_tokens(world, world.pool.sequences[s].router, e, s)


def _waits(world: World, e: int, s: int) -> bool:
    """Whether a request waits for a batch, because e is the best instance for it; notes until when."""
    run, sequence = world.run[0], world.pool.sequences[s]
    line = int(sequence.router * run.models + sequence.model)
    until_s = at_the_latest_s(world.head_since[line], sequence.arrived_at, run.batch_hold_wait_s, run.max_wait_s)
    if run.now >= until_s:
        return False
    fill_row(world, e, s)
    held, size = world.pool.sizes[2 * run.instances + line], run.batch_hold_size
    _, limit = _bounds(world, e)
    if not waits_for_batch(world.row, held, size, run.batch_hold_wait_s, limit, run.decode_reserve_fraction):
        return False
    for k in range(run.instances):
        left_out = run.stages and world.stage_of[k] == LEFT_OUT
        if eligible(world, k, s) and not left_out and world.asked_loads[k * LOAD_FIELDS] <= 0.0:
            return False
    run.hold_until = until_s
    run.hold_size = size if held < size else 0
    return True


def _look(world: World, router: int, s: int) -> float:
    """Passes over the instances that may not take the request; says how many seconds of prefill wait on the others.

    On those that would have the prompt computed elsewhere so many wait as ``stage_backlog_s`` says.
    """
    run = world.run[0]
    total_s, roomy, staged_s, staged = 0.0, 0, 0.0, 0
    for e in range(run.instances):
        if _may_take(world, router, e, s):
            fill_row(world, e, s)
            if run.stages and world.stage_of[e] == STAGED:
                staged_s += queued_prefill_s(world.row)
                staged += 1
            else:
                total_s += queued_prefill_s(world.row)
                roomy += 1
        else:
            world.passed[e] = 1
    run.stage_backlog_s = staged_s / max(1, staged)
    return total_s / max(1, roomy)


def _choose(world: World, router: int, s: int, backlog_s: float) -> int:
    """The best instance that has room and was not named yet; ``NONE`` where there is none."""
    run = world.run[0]
    rule = run.rule
    if rule == 0:  # Rule.ROUND_ROBIN
        return _choose_next(world, router, s)
    if rule == 1 or rule == 2:  # noqa: PLR1714, PLR2004 - Rule.RANDOM, Rule.POWER_OF_TWO
        return _draw_instance(world, router, s)
    best, best_score, ties = NONE, 0.0, 0
    for e in range(run.instances):
        if world.passed[e]:
            continue
        fill_row(world, e, s)
        if run.stages and world.stage_of[e] == STAGED:
            value = score(rule, world.row, world.stage_weights, run.stage_backlog_s) + run.stage_cost
        else:
            value = score(rule, world.row, world.weights, backlog_s)
        if best < 0 or value < best_score:
            best, best_score, ties = e, value, 1
        elif value == best_score:
            ties += 1
            if draw(world) * ties < 1.0:
                best = e
    return best


def _may_take(world: World, router: int, e: int, s: int) -> bool:
    """Whether an instance is eligible, not named yet, and has room; its load is in ``asked_loads`` then."""
    if world.passed[e] or not eligible(world, e, s) or (world.run[0].stages and world.stage_of[e] == LEFT_OUT):
        return False
    load_of(world, router, e, e)
    return has_room(world, e, s)


def _choose_next(world: World, router: int, s: int) -> int:
    run = world.run[0]
    last = world.routers[router].last_instance
    for turn in range(run.instances):
        e = (last + 1 + turn) % run.instances
        if _may_take(world, router, e, s):
            return int(e)
    return NONE


def _draw_instance(world: World, router: int, s: int) -> int:
    chosen, seen = NONE, 0
    for e in range(world.run[0].instances):
        if _may_take(world, router, e, s):
            seen += 1
            if draw(world) * seen < 1.0:
                chosen = e
    return chosen


def fill_row(world: World, e: int, s: int) -> None:
    """The features of one instance for one request, in the order of ``FEATURE_NAMES``."""
    fill_idle_row(world, e, s)
    for k in range(LOAD_FIELDS):
        world.row[k] = world.asked_loads[e * LOAD_FIELDS + k]
    if world.run[0].stages and world.stage_of[e] == STAGED:
        world.row[14] = world.pool.sequences[s].prompt
    else:
        world.row[14] = cached_tokens(world, world.pool.sequences[s].router, e, s)


def fill_idle_row(world: World, e: int, s: int) -> None:
    """The features of one instance for one request, as if nothing else were there."""
    engine, sequence = world.pool.engines[e], world.pool.sequences[s]
    for k in range(LOAD_FIELDS):
        world.row[k] = 0.0
    world.row[4] = sequence.prompt
    world.row[5] = sequence.predicted
    world.row[6] = engine.kv_tokens
    world.row[7] = engine.max_sequences
    world.row[8] = engine.base_decode_s
    world.row[9] = engine.prefill_s_per_token
    world.row[10] = engine.prefill_s_per_token_squared
    world.row[11] = engine.context_s_per_token
    world.row[12] = engine.sequence_s
    world.row[13] = engine.prefill_first
    world.row[14] = 0.0
