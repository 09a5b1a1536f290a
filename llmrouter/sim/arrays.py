"""The arrays of a run, laid out from a setup and a workload for the compiled kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.domain import STEP_TIME_FIELDS, EngineMode, Role
from llmrouter.errors import InvalidInputError
from llmrouter.feature_set import FEATURE_NAMES, WEIGHT_NAMES
from llmrouter.routing.fairness import DEFAULT_WEIGHT
from llmrouter.routing.orders import Order
from llmrouter.sim.kernel import records
from llmrouter.sim.kernel.records import (
    ENGINE_FIELDS,
    LINKS,
    LOAD_FIELDS,
    MAX_BIDS,
    NONE,
    ROUTER_FIELDS,
    RUN_FIELDS,
    SEQUENCE_FIELDS,
    Pool,
    World,
)
from llmrouter.sim.kernel.world import INFINITY
from llmrouter.sim.model import Admission, QueueOrder, Schedule
from llmrouter.sim.setup import PrefixView

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.sim.model import EngineModel
    from llmrouter.sim.setup import RouterSide, Setup
    from llmrouter.sim.workload import Workload

MAX_REQUESTS = 20_000_000
SCHEDULES = {
    Schedule.CHUNKED: records.CHUNKED,
    Schedule.PREFILL_FIRST: records.PREFILL_FIRST,
    Schedule.LAYERED: records.LAYERED,
    Schedule.INTERVAL: records.INTERVAL,
}
ADMISSIONS = {
    Admission.WATERMARK: records.WATERMARK,
    Admission.WORST_CASE: records.WORST_CASE,
    Admission.FIRST_CHUNK: records.FIRST_CHUNK,
}
ORDERS = {
    QueueOrder.FIRST_COME: records.FIRST_COME,
    QueueOrder.LEAST_WORK_LEFT: records.LEAST_WORK_LEFT,
    QueueOrder.BIN_PACKING: records.BIN_PACKING,
}
ROLES = {Role.MIXED: records.MIXED_ROLE, Role.PREFILL: records.PREFILL_ROLE, Role.DECODE: records.DECODE_ROLE}
PREFIXES = {
    PrefixView.UNKNOWN: records.PREFIXES_UNKNOWN,
    PrefixView.INDEX: records.PREFIXES_INDEX,
    PrefixView.SHARED: records.PREFIXES_SHARED,
    PrefixView.EXACT: records.PREFIXES_EXACT,
}

EVENTS_PER_SEQUENCE = 4
"""A sequence can be preempted, complete its prefill, finish and be cancelled within one step, each once."""


def describe_engine(record: Any, engine: EngineModel) -> None:  # noqa: ANN401 - an object or a row of an array
    """Writes the parameters of an engine into its record."""
    profile = engine.profile
    for name in (*STEP_TIME_FIELDS, "max_sequences", "token_budget", "block_tokens"):
        setattr(record, name, getattr(profile, name))
    for name in (
        *("front_s", "front_s_per_token", "prefill_sequence_s", "kv_bytes_per_token", "transfer_bytes_per_s"),
        "transfer_s",
    ):
        setattr(record, name, getattr(engine, name))
    record.blocks_total = profile.kv_tokens // profile.block_tokens
    record.watermark_blocks = int(record.blocks_total * engine.watermark_fraction)
    record.schedule = SCHEDULES[engine.steps_as]
    record.admission = ADMISSIONS[engine.admission]
    record.queue_order = ORDERS[engine.queue_order]
    record.role = ROLES[engine.role]
    record.accepts = 1
    record.hands_first_token = int(engine.hands_first_token)
    record.lag_steps = engine.scheduling_lag_steps
    record.kv_tokens = profile.kv_tokens
    record.prefill_first = int(profile.mode is EngineMode.PREFILL_FIRST)
    record.prefix_caching = int(engine.prefix_caching)
    record.steps_between_prefills = engine.decode_steps_between_prefills


def structured(fields: dict[str, str], rows: int) -> NDArray[np.void]:
    """A structured array with every field at nothing, links at ``NONE``."""
    array = np.zeros(rows, np.dtype(list(fields.items()), align=True))
    for name in fields:
        if name in LINKS:
            array[name] = NONE
    return array


def lay_out(setup: Setup, workload: Workload, *, seed: int) -> World:
    """The world of a run before its first event.

    Raises:
        InvalidInputError: too many requests, prefix blocks that are no whole number of KV blocks, or a model that
            is prefilled and decoded nowhere.
    """
    if len(workload) > MAX_REQUESTS:
        raise InvalidInputError(f"a run takes at most {MAX_REQUESTS} requests, not {len(workload)}")
    instances, routers, models = len(setup.engines), setup.routers.routers, len(workload.models)
    serves = _serves(setup, workload)
    if setup.routers.stages is None:
        _check_roles(setup, workload, serves.reshape(instances, models))
    pool = _pool(setup, workload)
    run = structured(RUN_FIELDS, 1)
    side = setup.routers
    for name in ("refresh_s", "dispatch_s", "decision_every_s", "max_wait_s", "max_held", "routers", "aging_s"):
        run[name] = getattr(side, name)
    _describe_batch(run, side)
    run["shared"], run["counts_own"] = int(side.shared), int(side.counts_own)
    run["checks"] = int(side.reserves and side.shared and side.refresh_s > 0)
    run["now"], run["ticked_at"], run["instances"], run["models"], run["asking"] = -1.0, -1.0, instances, models, NONE
    run["line_order"], run["fair"], run["tenants"] = int(side.order), int(side.fair), len(workload.tenants)
    run["batches"] = int(workload.batch is not None and workload.batch.any())
    run["even"] = int(side.even and side.routers > 1 and side.shared and (side.reserves or side.refresh_s == 0))
    plain = side.order is Order.FIRST_COME_FIRST_SERVED and not side.fair and not run["batches"]
    run["in_line_order"] = int(plain and (workload.priority is None or len(np.unique(workload.priority)) == 1))
    run["prefixes"] = PREFIXES[side.prefixes]
    run["hold_until"] = run["wake_at"] = run["control_at"] = INFINITY
    run["stages"] = int(side.stages is not None)
    run["min_prefill_tokens"] = 0 if side.stages is None else side.stages.min_prefill_tokens
    run["random"] = (seed * 0x9E37_79B9_7F4A_7C15 >> 20) % 2_147_483_646 + 1
    waits_s = (side.max_wait_s, side.batch_max_wait_s)
    per_request = 1 + int(np.isfinite(waits_s).any()) + int(np.isfinite(workload.cancelled_after_s).any())
    events = per_request * len(workload) + routers + 8
    table = structured(ROUTER_FIELDS, routers)
    table["last_instance"] = NONE
    return World(
        pool=pool,
        run=run,
        routers=table,
        order=np.flatnonzero(workload.after < 0),
        step_ends=np.full(instances, INFINITY),
        serves=serves,
        dirty=np.zeros(routers * models, np.int64),
        line_tried=np.full(routers * models, NONE, np.int64),
        head_since=np.zeros(routers * models),
        line_wake=np.full(routers * models, INFINITY),
        line_size=np.zeros(routers * models, np.int64),
        told=np.full(routers * models, NONE, np.int64),
        told_key=np.zeros(routers * models),
        yielded=np.zeros(routers * models, np.int64),
        batch_last=np.full(routers * models, NONE, np.int64),
        batch_row=np.zeros(routers * models, np.int64),
        since_batch=np.zeros(routers * models, np.int64),
        deadlines=_column(workload.deadline_s),
        ranks=_column(workload.predicted_rank),
        **_tenants(setup, workload),
        awake=np.zeros(2 * instances, np.int64),
        event_at=np.zeros(events),
        event_kind=np.zeros(events, np.int64),
        event_order=np.zeros(events, np.int64),
        event_subject=np.zeros(events, np.int64),
        views=np.zeros(routers * instances * LOAD_FIELDS),
        row=np.zeros(len(FEATURE_NAMES)),
        weights=np.zeros(len(WEIGHT_NAMES)),
        passed=np.zeros(instances, np.int64),
        asked_loads=np.zeros(instances * LOAD_FIELDS),
        bids=np.zeros(MAX_BIDS, np.int64),
        asked_cached=np.zeros(instances, np.int64),
        bid_rooms=np.zeros(3 * MAX_BIDS),
        bid_prefills=np.full(MAX_BIDS, NONE, np.int64),
        bid_prefill_rooms=np.zeros(3 * MAX_BIDS),
        stage_of=np.zeros(instances, np.int64),
        stage_weights=np.zeros(len(WEIGHT_NAMES)),
        prompt_weights=np.zeros(len(WEIGHT_NAMES)),
        **_known(setup, pool),
    )


def _known(setup: Setup, pool: Pool) -> dict[str, NDArray[Any]]:
    """The routers' prefix indexes, empty."""
    indexes = {PrefixView.INDEX: setup.routers.routers, PrefixView.SHARED: 1}.get(setup.routers.prefixes, 0)
    entries = indexes * len(pool.prefix_refs)
    lists = np.full((indexes * len(setup.engines), 3), NONE, np.int64)
    lists[:, 2] = 0
    return {
        "known_uses": np.zeros(entries, np.int64),
        "known_prev": np.full(entries, NONE, np.int64),
        "known_next": np.full(entries, NONE, np.int64),
        "known_lists": lists.reshape(-1),
        "known_sums": np.zeros(2 * indexes * len(setup.engines)),
    }


def _describe_batch(run: NDArray[np.void], side: RouterSide) -> None:
    """Writes what a router side says of the batch class."""
    run["batch_fraction"], run["batch_queued"] = side.batch.fraction, side.batch.most_queued_tokens
    run["batch_patience_s"], run["batch_least_share"] = side.batch.patience_s, side.batch.least_share
    run["batch_grouped"] = int(side.batch.grouped)
    run["batch_max_wait_s"], run["batch_max_held"] = side.batch_max_wait_s, side.batch_max_held


def _column(values: NDArray[np.float64] | None) -> NDArray[np.float64]:
    return np.zeros(0) if values is None else values.copy()


def _tenants(setup: Setup, workload: Workload) -> dict[str, NDArray[Any]]:
    """What fairness counts in each line."""
    side, tenants = setup.routers, len(workload.tenants)
    lines = side.routers * len(workload.models) if side.fair else 0
    weights = dict(side.tenant_weights)
    return {
        "served": np.zeros(lines * tenants),
        "served_last": np.zeros(lines),
        "held_by": np.zeros(lines * tenants, np.int64),
        "tenant_weights": np.array([weights.get(name, DEFAULT_WEIGHT) for name in workload.tenants if side.fair]),
    }


def _check_roles(setup: Setup, workload: Workload, serves_IM: NDArray[np.int64]) -> None:
    roles = np.array([ROLES[engine.role] for engine in setup.engines])
    prefilled, decoded = (serves_IM[roles == role].any(axis=0) for role in (records.PREFILL_ROLE, records.DECODE_ROLE))
    if (prefilled & ~decoded).any():
        model = workload.models[int(np.argmax(prefilled & ~decoded))]
        raise InvalidInputError(f"model {model!r} is served by a Prefill instance and by no Decode instance")


def _pool(setup: Setup, workload: Workload) -> Pool:
    engines = structured(ENGINE_FIELDS, len(setup.engines))
    heap, growing = 0, 0
    used, numbered = np.unique(workload.prefix_blocks, return_inverse=True)
    blocks = len(used)
    for row, engine in zip(engines.view(np.recarray), setup.engines, strict=True):
        describe_engine(row, engine)
        row.heap_start, row.growing_start = heap, growing
        heap += engine.profile.max_sequences
        growing += engine.profile.block_tokens
    engines["accepts"][list(setup.absent)] = 0
    caching = [index for index, engine in enumerate(setup.engines) if engine.prefix_caching and blocks]
    engines["prefix_caching"] = 0
    for place, index in enumerate(caching):
        engines["prefix_caching"][index] = 1
        engines["prefix_start"][index] = place * blocks
    lists = 2 * len(setup.engines) + setup.routers.routers * len(workload.models)
    events = EVENTS_PER_SEQUENCE * max(engine.profile.max_sequences for engine in setup.engines) + 8
    entries = max(1, blocks * len(caching))
    return Pool(
        engines=engines,
        sequences=_sequences(workload),
        heads=np.full(lists, NONE, np.int64),
        tails=np.full(lists, NONE, np.int64),
        sizes=np.zeros(lists, np.int64),
        heap=np.zeros(heap, np.int64),
        growing=np.zeros(growing, np.int64),
        prefix_blocks=numbered.astype(np.int64),
        prefix_refs=np.full(entries, NONE, np.int64),
        prefix_prev=np.full(entries, NONE, np.int64),
        prefix_next=np.full(entries, NONE, np.int64),
        prefix_sizes=np.array(_prefix_sizes(setup, workload, blocks, caching), np.int64),
        event_kinds=np.zeros(events, np.int64),
        event_sequences=np.zeros(events, np.int64),
        event_count=np.zeros(1, np.int64),
    )


def _prefix_sizes(setup: Setup, workload: Workload, blocks: int, caching: list[int]) -> tuple[int, int, int]:
    if not caching:
        return 0, 1, 0
    sizes = {setup.engines[index].profile.block_tokens for index in caching}
    if len(sizes) > 1:
        raise InvalidInputError(f"engines that cache prefixes must have one block size, not {sorted(sizes)}")
    size = sizes.pop()
    if workload.prefix_block_tokens < size or workload.prefix_block_tokens % size:
        raise InvalidInputError(
            f"prefix_block_tokens must be a multiple of the engines' {size}, not {workload.prefix_block_tokens}"
        )
    return blocks, workload.prefix_block_tokens, workload.prefix_block_tokens // size


def _sequences(workload: Workload) -> NDArray[np.void]:
    rows = structured(SEQUENCE_FIELDS, len(workload))
    columns: dict[str, NDArray[Any] | int] = {
        "prompt": workload.prompt_tokens,
        "output": workload.output_tokens,
        "predicted": workload.predicted_output_tokens,
        "arrived_at": workload.arrived_at_s,
        "cancelled_after_s": workload.cancelled_after_s,
        "think_s": workload.think_s,
        "model": workload.model,
        "tenant": workload.tenant,
        "priority": 0 if workload.priority is None else workload.priority,
        "batch": 0 if workload.batch is None else workload.batch,
        "prefix_at": workload.prefix_start[:-1],
        "prefix_count": np.diff(workload.prefix_start),
    }
    for name, column in columns.items():
        rows[name] = column
    for name in ("dispatched_at", "first_token_at", "finished_at"):
        rows[name] = np.nan
    _link_turns(rows, workload.after)
    return rows


def _link_turns(rows: NDArray[np.void], after: NDArray[np.int64]) -> None:
    """Links every turn to the first of those that follow it, and that to the next of them."""
    turns = np.flatnonzero(after >= 0)
    turns = turns[np.argsort(after[turns], kind="stable")]
    before = after[turns]
    first = np.ones(len(turns), bool)
    first[1:] = before[1:] != before[:-1]
    rows["next_turn"][before[first]] = turns[first]
    again = np.flatnonzero(~first)
    rows["sibling"][turns[again - 1]] = turns[again]


def _serves(setup: Setup, workload: Workload) -> NDArray[np.int64]:
    if not setup.serves:
        return np.ones(len(setup.engines) * len(workload.models), np.int64)
    return np.array([int(model in served) for served in setup.serves for model in workload.models], np.int64)
