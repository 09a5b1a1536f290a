"""The state of a run as plain records, so that the same code runs interpreted over objects and compiled over arrays.

A *record* is anything with these fields: a slotted object here, a row of a structured array in the compiled simulator.
Fields that end in ``_s`` are seconds, in ``_at`` instants in seconds, unless said otherwise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

NONE = -1
"""No index: the end of a list, an instance that was not chosen."""

# Phases of a sequence.
OUTSIDE, HELD, TRAVELLING, WAITING, PREFILL, DECODE, TRANSFER = 0, 1, 2, 3, 4, 5, 6

# Schedules, admissions, queue orders and roles by number.
CHUNKED, PREFILL_FIRST, LAYERED, INTERVAL = 0, 1, 2, 3
WATERMARK, WORST_CASE, FIRST_CHUNK = 0, 1, 2
FIRST_COME, LEAST_WORK_LEFT, BIN_PACKING = 0, 1, 2
MIXED_ROLE, PREFILL_ROLE, DECODE_ROLE = 0, 1, 2

# What a step says of a sequence.
FIRST_TOKEN, RESUMED, FINISHED, CANCELLED, PREEMPTED, DETACHED = 1, 2, 3, 4, 5, 6

SEQUENCE_FIELDS: dict[str, str] = {
    # the request
    "prompt": "i4",
    "output": "i4",
    "predicted": "f8",
    "arrived_at": "f8",
    "cancelled_after_s": "f8",
    "think_s": "f8",
    "model": "i4",
    "tenant": "i4",
    "priority": "i4",
    "batch": "i4",
    "prefix_at": "i8",
    "prefix_count": "i4",
    "next_turn": "i4",
    "sibling": "i4",
    # what came of it
    "status": "i4",
    "instance": "i4",
    "decode_instance": "i4",
    "dispatched_at": "f8",
    "first_token_at": "f8",
    "finished_at": "f8",
    "preemptions": "i4",
    "recomputed": "i4",
    "cached": "i4",
    # what its router took to be cached: by its index, and after the share of that which came true
    "cached_expected": "i4",
    "cached_believed": "i4",
    "prefix_seen": "i8",
    # inside the engine; while a sequence decodes, its progress follows from finish_tick
    "phase": "i4",
    "produced": "i4",
    "prefilled": "i4",
    "target": "i4",
    "blocks": "i4",
    "shared": "i4",
    "kv_phase": "i4",
    "finish_tick": "i8",
    "ticket": "i8",
    "ready_step": "i8",
    "heap_at": "i4",
    "chunk": "i4",
    "next_chunk": "i4",
    "next_cancelled": "i4",
    "cancelling": "i4",
    "transferred": "i4",
    # of a request in two stages: whether it is one, whether its KV has been handed over, whether its instance is gone
    "paired": "i4",
    "handed": "i4",
    "lost": "i4",
    # lists: one of waiting, running and held; and the ledger's
    "prev": "i4",
    "next": "i4",
    "ledger_prev": "i4",
    "ledger_next": "i4",
    "stage_prev": "i4",
    "stage_next": "i4",
    "router": "i4",
    # while it is held: what ``routing/orders.py`` orders by
    "size": "f8",
    "due_at": "f8",
    "key": "f8",
}
"""One request. ``shared`` counts its leading prefix blocks that lie in the cache, ``blocks`` the KV blocks besides.

A request in two stages is ``paired``: ``instance`` computes its prompt, ``decode_instance`` makes the answer and counts
it from the dispatch on; until its first token ``instance`` counts it too, in the list of its stage.
"""

ENGINE_FIELDS: dict[str, str] = {
    # the model
    "base_decode_s": "f8",
    "base_prefill_s": "f8",
    "prefill_s_per_token": "f8",
    "prefill_s_per_token_squared": "f8",
    "prefill_floor_s": "f8",
    "context_s_per_token": "f8",
    "sequence_s": "f8",
    "prefill_sequence_s": "f8",
    "front_s": "f8",
    "front_s_per_token": "f8",
    "kv_bytes_per_token": "f8",
    "transfer_bytes_per_s": "f8",
    "transfer_s": "f8",
    "max_sequences": "i8",
    "token_budget": "i8",
    "block_tokens": "i8",
    "kv_tokens": "i8",
    "blocks_total": "i8",
    "watermark_blocks": "i8",
    "schedule": "i8",
    "admission": "i8",
    "queue_order": "i8",
    "role": "i8",
    "accepts": "i8",
    "lost": "i8",
    "hands_first_token": "i8",
    "lag_steps": "i8",
    "prefix_caching": "i8",
    "prefill_first": "i8",
    "steps_between_prefills": "i8",
    # where its parts of the shared arrays begin
    "heap_start": "i8",
    "growing_start": "i8",
    "prefix_start": "i8",
    # load
    "tick": "i8",
    "steps": "i8",
    "tickets": "i8",
    "blocks_used": "i8",
    "blocks_idle": "i8",
    "context_tokens": "i8",
    "decoding": "i8",
    "partial": "i8",
    "heap_size": "i8",
    "steps_since_prefill": "i8",
    "group_steps_left": "i8",
    "link_free_at": "f8",
    "lru_head": "i8",
    "lru_tail": "i8",
    # the step under way
    "in_step": "i8",
    "step_began_at": "f8",
    "step_decodes": "i8",
    "step_context": "i8",
    "step_prefill_tokens": "i8",
    "step_prefills": "i8",
    "step_tokens": "i8",
    "first_chunk": "i8",
    "last_chunk": "i8",
    "first_cancelled": "i8",
    # the ledger's load
    "ledger_requests": "i8",
    "ledger_context": "i8",
    "ledger_queued": "i8",
    "ledger_head": "i8",
    "stage_head": "i8",
    # totals
    "busy_s": "f8",
    "prompt_tokens_total": "i8",
    "output_tokens_total": "i8",
    "recomputed_tokens_total": "i8",
    "preemptions_total": "i8",
    "finished_total": "i8",
    "cancelled_total": "i8",
}
"""One engine, and the ledger's load of its instance. ``kv_tokens`` and ``prefill_first`` are what routers know.

``accepts`` says whether the instance takes new requests: one that is not there yet, drains or is gone does not.
``hands_first_token`` says whether one of role Prefill makes the first token, or leaves it to the one that decodes.
"""


class Pool(NamedTuple):
    """Engines, sequences and the arrays they share; I engines, N sequences, B prefix blocks.

    Lists are doubly linked through the sequences: list ``2·e`` is the waiting of engine e, ``2·e + 1`` its batch in the
    order of admission; routers' lines follow. ``heap`` files each engine's decoding sequences by the tick in which they
    finish. ``growing`` counts, by tick modulo block size, the sequences that start a new block in such a tick.
    ``prefix_refs`` (I·B) is -1 where a block is not cached, else the number of sequences that use it.
    """

    engines: Any
    sequences: Any
    heads: Any
    tails: Any
    sizes: Any
    heap: Any
    growing: Any
    prefix_blocks: Any
    prefix_refs: Any
    prefix_prev: Any
    prefix_next: Any
    prefix_sizes: Any
    event_kinds: Any
    event_sequences: Any
    event_count: Any


class Sequence:
    """A sequence for the interpreter."""

    __slots__ = tuple(SEQUENCE_FIELDS)

    def __init__(self) -> None:
        clear(self, SEQUENCE_FIELDS)


class EngineRecord:
    """An engine for the interpreter."""

    __slots__ = tuple(ENGINE_FIELDS)

    def __init__(self) -> None:
        clear(self, ENGINE_FIELDS)


def clear(record: object, fields: dict[str, str]) -> None:
    """Sets every field to nothing; links to ``NONE``."""
    for name, kind in fields.items():
        setattr(record, name, 0.0 if kind == "f8" else NONE if name in LINKS else 0)


LINKS = frozenset(
    {
        *("prev", "next", "ledger_prev", "ledger_next", "ledger_head", "next_chunk", "first_chunk", "last_chunk"),
        *("next_cancelled", "first_cancelled", "lru_head", "lru_tail", "next_turn", "sibling", "instance"),
        *("decode_instance", "heap_at", "stage_prev", "stage_next", "stage_head"),
    }
)
"""Fields that name another record, or none."""

RUN_FIELDS: dict[str, str] = {
    "now": "f8",
    "position": "i8",
    "arrivals": "i8",
    "ended": "i8",
    "events": "i8",
    "event_order": "i8",
    "random": "i8",
    "tick_armed": "i8",
    "ticked_at": "f8",
    "idle_turns": "i8",
    "freed": "i8",
    "awake": "i8",
    "next_sample_at": "f8",
    "next_report": "i8",
    # the question to the caller, and its answer
    "asking": "i8",
    "asking_router": "i8",
    "asking_held": "i8",
    "asking_since": "f8",
    "answered": "i8",
    "bids": "i8",
    "load_sensitive": "i8",
    "hold_until": "f8",
    "hold_size": "i8",
    "retried": "i8",
    # the setup
    "instances": "i8",
    "routers": "i8",
    "models": "i8",
    "shared": "i8",
    "refresh_s": "f8",
    "counts_own": "i8",
    "checks": "i8",
    "dispatch_s": "f8",
    "prefixes": "i8",
    "decision_every_s": "f8",
    "max_wait_s": "f8",
    "max_held": "i8",
    "batches": "i8",
    "batch_fraction": "f8",
    "batch_queued": "f8",
    "batch_patience_s": "f8",
    "batch_least_share": "f8",
    "batch_max_wait_s": "f8",
    "batch_max_held": "i8",
    "batch_grouped": "i8",
    "gap": "i8",
    "even": "i8",
    "line_order": "i8",
    "aging_s": "f8",
    "fair": "i8",
    "tenants": "i8",
    "in_line_order": "i8",
    "first_line": "i8",
    "wake_at": "f8",
    "sample_every_s": "f8",
    "report_every": "i8",
    # the compiled policy; rule is NONE where the caller decides
    "rule": "i8",
    "needs_remaining": "i8",
    "max_requests": "i8",
    "kv_fraction": "f8",
    "decode_reserve_fraction": "f8",
    "batch_hold_size": "i8",
    "batch_hold_wait_s": "f8",
    # both stages in one decision; of the question at hand who would compute the prompt, how soon, at what cost
    "stages": "i8",
    "min_prefill_tokens": "i8",
    "stage_costs": "i8",
    "stage_prefill": "i8",
    "stage_ready_s": "f8",
    "stage_cost": "f8",
    "stage_backlog_s": "f8",
    "bid_prefill": "i8",
    # when the caller is asked what comes and goes, and whether an instance loses its requests
    "control_at": "f8",
    "losing": "i8",
}
"""The one record of a run. ``checks`` says whether dispatches are compared with the loads of now; ``kv_fraction`` is
below 0 where KV is not bounded, ``max_requests`` where the profile says. ``in_line_order`` says that whoever came first
goes first: no other order, no priorities, no fairness, no batch class. ``batches`` says whether there is one, ``gap``
whether whoever tries now may go only where it leaves head-room, ``even`` whether lines yield. ``first_line`` is the one
after that which was served last.

``asking_held`` counts those in the line of the request in question, ``asking_since`` is since when it or one that it
overtook has been the first there, below 0 where it has just come. ``hold_until`` is when a head that has to stay tries
again without an event, ``wake_at`` the next such instant of any line, at least ``NEVER_S`` where there is none;
``hold_size`` is how long the line is to be for that, 0 where it does not matter.

``stage_prefill`` is ``NONE`` where nobody has room for the prompt. ``control_at`` is at least ``NEVER_S`` where nobody
wants to be asked, ``losing`` is not 0 where an instance goes with what is on it: its ``lost`` says which.
"""

ROUTER_FIELDS: dict[str, str] = {
    "last_instance": "i8",
    "may_decide": "i8",
    "held": "i8",
    "batch_held": "i8",
    "prefix_uses": "i8",
}

# Answers of ``advance``: what the caller must do before it calls again.
DONE, DECIDE, SAMPLE, REPORT, CONTROL = 0, 1, 2, 3, 4

NEVER_S = 1e300
"""A time span that does not end, an instant that does not come."""

NO_CANDIDATE = -1
"""The number of bids that says that there is nothing to choose from; 0 says hold."""

# What routers know of prefix caches: nothing, what each index says, what one index of them all says, all.
PREFIXES_UNKNOWN, PREFIXES_INDEX, PREFIXES_SHARED, PREFIXES_EXACT = 0, 1, 2, 3

MAX_BIDS = 8
"""How many candidates a decision names at most, best first."""

# How a request ended; the numbers of ``outcomes.Status``.
ENDED_FINISHED, ENDED_SHED, ENDED_REFUSED, ENDED_CANCELLED, ENDED_LOST = 1, 2, 3, 4, 5

# What an instance has to do with a request in two stages: all of it, its answer alone, nothing.
WHOLE, STAGED, LEFT_OUT = 0, 1, 2

# Events of one instant come in this order, after the ends of steps and before the trace's arrivals and the ticks.
DELIVER, TRANSFERRED, REFRESH, TURN, EXPIRE, CANCEL, TICK = 0, 1, 2, 3, 4, 5, 6

LOAD_FIELDS = 4
"""Requests, context tokens, queued prefill tokens, remaining decode tokens: a load in the arrays."""


class World(NamedTuple):
    """A pool, its routers and the events to come; R routers, I instances, M models, N requests, T tenants.

    ``views`` is (R·I·4) loads as routers last saw them, ``row`` the scratch of a feature row, ``passed`` (I) of the
    instances that a decision has named, ``serves`` (I·M) whether an instance serves a model. ``asked_loads`` (I·4),
    ``bids`` (8) and their ``bid_rooms`` (8·3: most requests, KV limit, reserve fraction) pass between the simulator and
    a policy outside it; ``bid_prefills`` (8) and ``bid_prefill_rooms`` (8·3) are the same of who computes the prompt
    for a bid, ``NONE`` where that is the bid itself. ``stage_of`` (I) is what each instance has to do with the request
    in question, ``stage_weights`` (9) are those of an answer whose prompt comes computed, ``prompt_weights`` of that
    prompt.

    ``asked_cached`` (I) is what the router takes to be cached of the prompt. ``known_uses``, ``known_prev`` and
    ``known_next`` are the entries of the routers' prefix indexes (when used last, and a list by that), ``known_lists``
    (R·I·3) head, tail and size of each list, ``known_sums`` (R·I·2) expected and reported tokens.

    ``deadlines`` and ``ranks`` are (N), or empty where no request has one. ``line_tried`` (R·M) is who tried last in a
    line and had to stay, ``head_since`` (R·M) since when nobody has left a line as its first, ``line_wake`` (R·M) when
    whoever is the first tries again without an event, ``line_size`` (R·M) how long the line is to be for that.

    Where tenants are treated fairly, ``served`` and ``held_by`` (R·M·T) are their counters and held requests in each
    line, ``served_last`` (R·M) the counter of the one whose request left last, ``tenant_weights`` (T) their weights;
    else they are empty.

    ``told`` (R·M) is the held request that a line claims a place for, ``told_key`` (R·M) its key then, ``yielded``
    (R·M) whether a line has left a place to another. Of the batch class of each line: ``batch_last`` (R·M) is who was
    dispatched last, ``batch_row`` how many went for their kinship in a row, ``since_batch`` how many others since.
    """

    pool: Pool
    run: Any
    routers: Any
    order: Any
    step_ends: Any
    serves: Any
    dirty: Any
    line_tried: Any
    head_since: Any
    line_wake: Any
    line_size: Any
    told: Any
    told_key: Any
    yielded: Any
    batch_last: Any
    batch_row: Any
    since_batch: Any
    deadlines: Any
    ranks: Any
    served: Any
    served_last: Any
    held_by: Any
    tenant_weights: Any
    awake: Any
    event_at: Any
    event_kind: Any
    event_order: Any
    event_subject: Any
    views: Any
    row: Any
    weights: Any
    passed: Any
    asked_loads: Any
    asked_cached: Any
    bids: Any
    bid_rooms: Any
    bid_prefills: Any
    bid_prefill_rooms: Any
    stage_of: Any
    stage_weights: Any
    prompt_weights: Any
    known_uses: Any
    known_prev: Any
    known_next: Any
    known_lists: Any
    known_sums: Any
