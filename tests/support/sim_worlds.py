"""Small random worlds, and the simulator interpreted over plain objects with its books checked at every instant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from llmrouter.domain import EngineMode, EngineProfile, Role
from llmrouter.routing.batch import BatchRules
from llmrouter.routing.orders import Order
from llmrouter.routing.rules import Rule
from llmrouter.routing.stages import StageRules
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.kernel.records import ENGINE_FIELDS, ROUTER_FIELDS, RUN_FIELDS, SEQUENCE_FIELDS, Pool, World
from llmrouter.sim.kernel.world import advance
from llmrouter.sim.model import Admission, EngineModel, QueueOrder, Schedule
from llmrouter.sim.run import play, simulate
from llmrouter.sim.setup import CompiledPolicy, PrefixView, RouterSide, Setup
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.routing.policies import Policy
    from llmrouter.sim.outcomes import Outcomes

SMALL = EngineProfile(
    name="small",
    base_decode_s=0.010,
    base_prefill_s=0.008,
    prefill_s_per_token=1e-4,
    prefill_s_per_token_squared=1e-8,
    context_s_per_token=1e-6,
    sequence_s=1e-4,
    kv_tokens=40 * 16,
    max_sequences=6,
    token_budget=64,
    mode=EngineMode.CHUNKED,
)
SERVICE_S = 0.1
ONE_AT_A_TIME = EngineProfile(
    name="one at a time",
    base_decode_s=SERVICE_S,
    base_prefill_s=SERVICE_S,
    prefill_s_per_token=0.0,
    context_s_per_token=0.0,
    sequence_s=0.0,
    kv_tokens=16_000,
    max_sequences=1,
    token_budget=1_000,
    mode=EngineMode.CHUNKED,
)


class Strict(list[Any]):
    """A list that takes no index below 0, as machine code over arrays must not be given one."""

    def __getitem__(self, at: Any) -> Any:  # noqa: ANN401 - as a list
        assert isinstance(at, slice) or at >= 0
        return super().__getitem__(at)

    def __setitem__(self, at: Any, value: Any) -> None:  # noqa: ANN401 - as a list
        assert isinstance(at, slice) or at >= 0
        super().__setitem__(at, value)


def _record_class(name: str, fields: dict[str, str]) -> type:
    return type(name, (), {"__slots__": tuple(fields)})


_ENGINE = _record_class("Engine", ENGINE_FIELDS)
_SEQUENCE = _record_class("Sequence", SEQUENCE_FIELDS)
_ROUTER = _record_class("Router", ROUTER_FIELDS)


class _Run:
    """The record of a run; says when an instant is over, which is when time goes on."""

    __slots__ = ("_now", "on_instant", *(field for field in RUN_FIELDS if field != "now"))

    def __init__(self) -> None:
        self._now = -1.0
        self.on_instant: Callable[[], None] = lambda: None

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, at_s: float) -> None:
        assert at_s > self._now
        self.on_instant()
        self._now = at_s


def _objects(array: np.ndarray[Any, Any], make: Callable[[], Any]) -> Strict:
    rows = Strict()
    for values in array.tolist():
        row = make()
        for name, value in zip(array.dtype.names or (), values, strict=True):
            setattr(row, "_now" if name == "now" else name, value)
        rows.append(row)
    return rows


class Interpreted:
    """``advance`` over plain objects; the arrays of ``play`` are brought up to date whenever it returns.

    ``check`` is called with the world of objects at the end of every instant.
    """

    def __init__(self, check: Callable[[World], None] = lambda _world: None) -> None:
        self._check = check
        self.world: World | None = None

    def __call__(self, arrays: World) -> int:
        """As ``kernel.world.advance``."""
        if self.world is None:
            self.world = self._copy_of(arrays)
        _fill_objects(arrays.run, self.world.run)
        _fill_lists(arrays, self.world, ANSWERS)
        for row, accepts, lost in zip(
            self.world.pool.engines, arrays.pool.engines["accepts"], arrays.pool.engines["lost"], strict=True
        ):
            row.accepts, row.lost = int(accepts), int(lost)
        code = advance(self.world)
        _fill_arrays(self.world, arrays)
        return code

    def _copy_of(self, arrays: World) -> World:
        pool = arrays.pool
        run = _Run()
        world = World(
            **{
                name: Strict(part.tolist()) for name, part in arrays._asdict().items() if name not in (*RECORDS, "pool")
            },
            pool=Pool(
                **{name: Strict(part.tolist()) for name, part in pool._asdict().items() if name not in RECORDS},
                engines=_objects(pool.engines, _ENGINE),
                sequences=_objects(pool.sequences, _SEQUENCE),
            ),
            run=_objects(arrays.run, lambda: run),
            routers=_objects(arrays.routers, _ROUTER),
        )
        run.on_instant = lambda: self._check(world)
        return world


RECORDS = ("run", "routers", "engines", "sequences")
ANSWERS = ("bids", "bid_rooms", "bid_prefills", "bid_prefill_rooms", "dirty")
"""What a caller of ``advance`` writes besides the record of the run."""


def _fill_objects(array: np.ndarray[Any, Any], rows: Strict) -> None:
    for row, values in zip(rows, array.tolist(), strict=True):
        for name, value in zip(array.dtype.names or (), values, strict=True):
            setattr(row, "_now" if name == "now" else name, value)


def _fill_lists(arrays: World, world: World, names: tuple[str, ...]) -> None:
    for name in names:
        getattr(world, name)[:] = getattr(arrays, name).tolist()


def _fill_arrays(world: World, arrays: World) -> None:
    for objects, array in (
        (world.run, arrays.run),
        (world.routers, arrays.routers),
        (world.pool.engines, arrays.pool.engines),
        (world.pool.sequences, arrays.pool.sequences),
    ):
        names = array.dtype.names or ()
        array[:] = [tuple(getattr(row, name) for name in names) for row in objects]
    arrays.pool.sizes[:] = world.pool.sizes
    arrays.dirty[:] = world.dirty
    arrays.asked_loads[:] = world.asked_loads
    arrays.asked_cached[:] = world.asked_cached


def interpret(case: Case, check: Callable[[World], None] = lambda _world: None) -> Outcomes:
    """The outcomes of a case, interpreted over objects; ``check`` is called once more when it is over."""
    world = lay_out(case.setup, case.workload, seed=case.seed)
    interpreter = Interpreted(check)
    outcomes = play(
        world,
        case.setup,
        case.workload,
        case.make_policy(),
        advance=interpreter,
        seed=case.seed,
        sample_every_s=case.sample_every_s,
    )
    assert interpreter.world is not None
    check(interpreter.world)
    return outcomes


def compile_and_run(case: Case) -> Outcomes:
    """The outcomes of a case, compiled."""
    return simulate(case.setup, case.workload, case.make_policy(), seed=case.seed, sample_every_s=case.sample_every_s)


@dataclass(frozen=True)
class Case:
    """All that a run is made of."""

    setup: Setup
    workload: Workload
    make_policy: Callable[[], Policy | CompiledPolicy]
    seed: int = 0
    sample_every_s: float | None = None


def same(one: Outcomes, other: Outcomes) -> bool:
    """Whether two runs came to the same, byte for byte."""
    return columns(one) == columns(other)


def columns(outcomes: Outcomes) -> dict[str, bytes]:
    """Every column of a run as bytes."""
    parts = [(name, getattr(outcomes, name)) for name in outcomes.__slots__ if name not in ("workload", "timeline")]
    if outcomes.timeline is not None:
        parts += [(f"timeline.{name}", getattr(outcomes.timeline, name)) for name in outcomes.timeline.__slots__]
    return {name: column.tobytes() for name, column in parts}


# --- random cases ---

LOADS = st.sampled_from([0.0, 0.0, 0.003, 0.02, 0.1])
GIVES_UP = [*[np.inf] * 12, 0.0, 0.05, 0.4, 1.0]


@st.composite
def profiles(draw: st.DrawFn, *, block_tokens: int) -> EngineProfile:
    sequences = draw(st.integers(1, 6))
    return replace(
        SMALL,
        block_tokens=block_tokens,
        kv_tokens=draw(st.integers(64, 300)),
        max_sequences=sequences,
        token_budget=sequences + draw(st.integers(0, 60)),
        base_decode_s=draw(st.sampled_from([0.01, 0.013, 0.03])),
        base_prefill_s=draw(st.sampled_from([0.0, 0.008])),
        prefill_floor_s=draw(st.sampled_from([0.0, 0.02])),
        mode=draw(st.sampled_from(list(EngineMode))),
    )


@st.composite
def engines(draw: st.DrawFn, *, block_tokens: int, role: Role = Role.MIXED) -> EngineModel:
    return EngineModel(
        profile=draw(profiles(block_tokens=block_tokens)),
        schedule=draw(st.sampled_from([None, *Schedule])),
        front_s=draw(st.sampled_from([0.0, 0.004])),
        front_s_per_token=draw(st.sampled_from([0.0, 1e-5])),
        scheduling_lag_steps=draw(st.integers(0, 1)),
        watermark_fraction=draw(st.sampled_from([0.0, 0.01, 0.2])),
        prefix_caching=draw(st.booleans()),
        admission=draw(st.sampled_from(list(Admission))),
        queue_order=draw(st.sampled_from(list(QueueOrder))),
        role=role,
        decode_steps_between_prefills=draw(st.sampled_from([0, 3])),
        prefill_sequence_s=draw(st.sampled_from([0.0, 1e-3])),
        kv_bytes_per_token=1e6,
        transfer_bytes_per_s=draw(st.sampled_from([1e9, 1e10])),
        transfer_s=draw(st.sampled_from([0.0, 0.002])),
        hands_first_token=draw(st.booleans()),
    )


@st.composite
def router_sides(draw: st.DrawFn) -> RouterSide:
    return RouterSide(
        routers=draw(st.sampled_from([1, 1, 2, 3])),
        shared=draw(st.sampled_from([True, True, False])),
        refresh_s=draw(st.sampled_from([0.0, 0.0, 0.05, 0.5])),
        counts_own=draw(st.booleans()),
        reserves=draw(st.booleans()),
        dispatch_s=draw(st.sampled_from([0.0, 0.0, 0.005])),
        decision_every_s=draw(st.sampled_from([0.0, 0.0, 0.02])),
        max_wait_s=draw(st.sampled_from([np.inf, np.inf, 0.2])),
        max_held=draw(st.sampled_from([1_000, 3])),
        order=draw(st.sampled_from(list(Order))),
        aging_s=draw(st.sampled_from([0.1, 1.0, 10.0])),
        fair=draw(st.booleans()),
        prefixes=draw(st.sampled_from(list(PrefixView))),
        tenant_weights=draw(st.sampled_from([(), (("b", 3.0),)])),
        batch=draw(
            st.builds(
                BatchRules,
                fraction=st.sampled_from([0.1, 0.7]),
                most_queued_tokens=st.sampled_from([0, 50]),
                patience_s=st.sampled_from([0.0, 0.1, 5.0]),
                least_share=st.sampled_from([0.0, 0.3]),
                grouped=st.booleans(),
            )
        ),
        batch_max_wait_s=draw(st.sampled_from([np.inf, 0.3])),
        batch_max_held=draw(st.sampled_from([1_000, 2])),
        even=draw(st.booleans()),
    )


@st.composite
def setups(draw: st.DrawFn, models: tuple[str, ...]) -> Setup:
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    roles = [Role.MIXED] * draw(st.integers(1, 3))
    if draw(st.integers(0, 3)) == 0:
        roles = [*roles[: draw(st.integers(0, 1))], Role.PREFILL, Role.DECODE, *[Role.DECODE] * draw(st.integers(0, 1))]
        roles += [Role.PREFILL] * draw(st.integers(0, 1))
    side = draw(router_sides())
    if Role.PREFILL in roles:
        side = replace(side, stages=draw(st.sampled_from([None, StageRules(0), StageRules(40)])))
    made = tuple(draw(engines(block_tokens=block_tokens, role=role)) for role in roles)
    serves: tuple[frozenset[str], ...] = ()
    if len(models) > 1 and Role.PREFILL not in roles:
        serves = tuple(frozenset(draw(st.lists(st.sampled_from(models), min_size=1, unique=True))) for _ in made)
    return Setup(engines=made, routers=side, serves=serves)


@st.composite
def workloads(draw: st.DrawFn, *, models: tuple[str, ...], block_tokens: int, longest: int) -> Workload:
    row = st.tuples(
        *(LOADS, st.integers(1, longest), st.integers(1, 60), st.sampled_from([0.0, 5.0, 100.0])),
        *(st.sampled_from(GIVES_UP), st.integers(0, 3), st.integers(0, 5)),
    )
    size = draw(st.integers(1, 24))
    rows = draw(st.lists(row, min_size=size, max_size=size))
    gaps, prompts, outputs, predicted, cancelled, family, kind = (list(column) for column in zip(*rows, strict=True))
    count = len(rows)
    size = block_tokens * draw(st.sampled_from([1, 2]))
    blocks: list[int] = []
    start = [0]
    for prompt, group in zip(prompts, family, strict=True):
        whole = min(prompt // size, draw(st.integers(0, 12))) if group else 0
        fork = draw(st.integers(0, 12))
        blocks += [place + 16 * (group if place >= fork else 0) for place in range(whole)]
        start.append(len(blocks))
    after = [draw(st.integers(0, row - 1)) if row and kind[row] == 0 else -1 for row in range(count)]
    return Workload.of(
        np.cumsum(gaps),
        prompts,
        outputs,
        predicted_output_tokens=predicted,
        cancelled_after_s=cancelled,
        model=[row % len(models) for row in range(count)],
        models=models,
        after=after,
        think_s=[draw(st.sampled_from([0.0, 0.03])) if turn >= 0 else 0.0 for turn in after],
        prefix_start=start,
        prefix_blocks=blocks,
        prefix_block_tokens=size,
        **draw(_said(count)),
    )


@st.composite
def _said(draw: st.DrawFn, count: int) -> dict[str, Any]:
    """Columns that a queue orders by; each may be missing."""

    def of(*values: float) -> list[float] | None:
        drawn = st.lists(st.sampled_from(values), min_size=count, max_size=count)
        return draw(st.one_of(st.none(), drawn))

    return {
        "tenant": of(0, 1, 2) or [0] * count,
        "tenants": ("a", "b", "c"),
        "priority": of(0, 0, 0, 1, -100),
        "deadline_s": of(np.inf, -1.0, 0.2, 1.0),
        "predicted_rank": of(np.nan, 1.0, 50.0),
        "batch": of(0, 0, 1),
    }


@st.composite
def compiled_policies(draw: st.DrawFn) -> CompiledPolicy:
    return CompiledPolicy(
        rule=draw(st.sampled_from(list(Rule))),
        max_requests=draw(st.sampled_from([None, 1, 3, 512, 512])),
        kv_fraction=draw(st.sampled_from([None, 0.5, 1.0])),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A random run under a compiled rule."""
    models = draw(st.sampled_from([("m",), ("m",), ("a", "b")]))
    setup = draw(setups(models))
    longest = min(engine.max_request_tokens for engine in setup.engines) - draw(st.sampled_from([0, 61, 61, 61]))
    block_tokens = setup.engines[0].profile.block_tokens
    workload = draw(workloads(models=models, block_tokens=block_tokens, longest=max(1, longest)))
    policy = draw(compiled_policies())
    return Case(setup, workload, lambda: policy, draw(st.integers(0, 5)), draw(st.sampled_from([None, 0.05])))
