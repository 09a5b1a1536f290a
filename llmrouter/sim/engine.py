"""One continuous-batching engine, iteration by iteration, without clock or I/O.

Whoever drives it owns time: ``begin_step`` plans an iteration and says how long it lasts, ``finish_step`` applies it
and says what came out. Between the two, arrivals and cancellations may be handed in; they take effect at the end of the
step. KV is paged; when it runs out the youngest sequence is preempted and later recomputed.

This is ``kernel/steps.py``, interpreted over objects: the engine that the simulator runs compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from llmrouter.domain import EngineProfile, Role
from llmrouter.errors import InvalidInputError, InvalidRequestError
from llmrouter.sim.arrays import EVENTS_PER_SEQUENCE, describe_engine
from llmrouter.sim.kernel import records, steps
from llmrouter.sim.kernel.records import NONE, SEQUENCE_FIELDS, EngineRecord, Pool, Sequence, clear
from llmrouter.sim.model import EngineModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as the engine knows it. Nothing outside this room reads ``output_tokens``, the true length."""

    request_id: str
    prompt_tokens: int
    output_tokens: int


class StepPlan(NamedTuple):
    """What the iteration under way does, and how long it lasts."""

    duration_s: float
    prefill_tokens: int
    prefill_sequences: int
    decode_sequences: int
    context_tokens: int
    preempted: tuple[str, ...]


class StepResult(NamedTuple):
    """What came out of an iteration.

    ``tokens`` requests got exactly one token each: the ``finished`` ones and those ``Engine.continuing`` names.
    ``first_tokens`` ended their prefill, ``resumed`` ended a recomputation; both may be among the finished, which are
    given with the number of tokens they got in all.
    """

    first_tokens: tuple[str, ...]
    resumed: tuple[str, ...]
    finished: Mapping[str, int]
    cancelled: tuple[str, ...]
    decoded: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """An engine's load now and its totals since it was made.

    KV usage counts allocated blocks; ``prompt_tokens_total`` counts a prompt once, with its first token;
    ``recomputed_tokens_total`` counts KV tokens given up by preemption.
    """

    waiting: int
    running: int
    context_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int
    prompt_tokens_total: int
    output_tokens_total: int
    recomputed_tokens_total: int
    preemptions_total: int
    finished_total: int
    cancelled_total: int

    @property
    def kv_usage_fraction(self) -> float:
        """Allocated share of the KV blocks."""
        return self.kv_blocks_used / self.kv_blocks_total


class Engine:
    """A continuous-batching engine of one model. Deterministic: equal calls give equal answers.

    Raises:
        InvalidInputError: the profile's limits or coefficients make no engine.
    """

    def __init__(self, engine: EngineModel | EngineProfile) -> None:
        self.model = EngineModel(engine) if isinstance(engine, EngineProfile) else engine
        self.profile = self.model.profile
        if self.model.role is not Role.MIXED:
            raise InvalidInputError(f"engine {self.profile.name}: an engine by itself prefills and decodes")
        record: Any = EngineRecord()
        describe_engine(record, self.model)
        record.prefix_caching = 0
        self._record = record
        self._slots: dict[str, int] = {}
        self._ids: list[str] = []
        self._free: list[int] = []
        events = EVENTS_PER_SEQUENCE * self.profile.max_sequences + 8
        self._pool = Pool(
            engines=[record],
            sequences=[],
            heads=[NONE, NONE],
            tails=[NONE, NONE],
            sizes=[0, 0],
            heap=[0] * self.profile.max_sequences,
            growing=[0] * self.profile.block_tokens,
            prefix_blocks=[],
            prefix_refs=[],
            prefix_prev=[],
            prefix_next=[],
            prefix_sizes=(0, 1, 0),
            event_kinds=[0] * events,
            event_sequences=[0] * events,
            event_count=[0],
        )

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output that this engine can ever hold."""
        return self.model.max_request_tokens

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._slots)

    @property
    def in_step(self) -> bool:
        """Whether a step has begun and not finished."""
        return bool(self._record.in_step)

    @property
    def counters(self) -> EngineCounters:
        """Load and totals now."""
        record = self._record
        return EngineCounters(
            waiting=self._pool.sizes[0],
            running=self._pool.sizes[1],
            context_tokens=record.context_tokens,
            kv_blocks_used=record.blocks_used,
            kv_blocks_total=record.blocks_total,
            prompt_tokens_total=record.prompt_tokens_total,
            output_tokens_total=record.output_tokens_total,
            recomputed_tokens_total=record.recomputed_tokens_total,
            preemptions_total=record.preemptions_total,
            finished_total=record.finished_total,
            cancelled_total=record.cancelled_total,
        )

    def add(self, request: EngineRequest) -> None:
        """Queues a request.

        Raises:
            InvalidRequestError: it can never fit, has no prompt or no output, or its id is in use.
        """
        if request.request_id in self._slots:
            raise InvalidRequestError(f"request_id {request.request_id!r} is already in the engine")
        if request.prompt_tokens < 1:
            raise InvalidRequestError(f"prompt_tokens must be at least 1, not {request.prompt_tokens}")
        if request.output_tokens < 1:
            raise InvalidRequestError(f"output_tokens must be at least 1, not {request.output_tokens}")
        if request.prompt_tokens + request.output_tokens > self.max_request_tokens:
            raise InvalidRequestError(
                f"prompt_tokens {request.prompt_tokens} + output_tokens {request.output_tokens} exceed the engine's "
                f"{self.max_request_tokens} tokens of KV"
            )
        slot = self._slot_for(request.request_id)
        sequence = self._pool.sequences[slot]
        sequence.prompt = request.prompt_tokens
        sequence.output = request.output_tokens
        steps.add(self._pool, 0, slot)

    def cancel(self, request_id: str) -> bool:
        """Drops a request, at once or at the end of the step under way; says whether it was known."""
        slot = self._slots.get(request_id)
        if slot is None or self._pool.sequences[slot].cancelling:
            return False
        if steps.cancel(self._pool, 0, slot):
            self._forget(slot)
        return True

    def begin_step(self) -> StepPlan:
        """Plans the next iteration and allocates its KV.

        Raises:
            RuntimeError: a step is under way, or there is no work.
        """
        if self.in_step:
            raise RuntimeError("a step is already under way")
        if not self._slots:
            raise RuntimeError("an engine without work has no step")
        duration_s = steps.begin_step(self._pool, 0)
        record = self._record
        return StepPlan(
            duration_s=duration_s,
            prefill_tokens=record.step_prefill_tokens,
            prefill_sequences=record.step_prefills,
            decode_sequences=record.step_decodes,
            context_tokens=record.step_context,
            preempted=tuple(self._ids[slot] for kind, slot in self._events() if kind == records.PREEMPTED),
        )

    def finish_step(self) -> StepResult:
        """Applies the iteration under way: one token to each request that decoded or ended its prefill.

        Raises:
            RuntimeError: no step is under way.
        """
        if not self.in_step:
            raise RuntimeError("no step is under way")
        steps.finish_step(self._pool, 0)
        named: dict[int, list[str]] = {
            records.FIRST_TOKEN: [],
            records.RESUMED: [],
            records.FINISHED: [],
            records.CANCELLED: [],
        }
        finished: dict[str, int] = {}
        for kind, slot in tuple(self._events()):
            named[kind].append(self._ids[slot])
            if kind == records.FINISHED:
                finished[self._ids[slot]] = self._pool.sequences[slot].produced
            if kind in (records.FINISHED, records.CANCELLED):
                self._forget(slot)
        return StepResult(
            first_tokens=tuple(named[records.FIRST_TOKEN]),
            resumed=tuple(named[records.RESUMED]),
            finished=finished,
            cancelled=tuple(named[records.CANCELLED]),
            decoded=self._record.step_decodes > 0,
            tokens=self._record.step_tokens,
        )

    def continuing(self, result: StepResult) -> Collection[str]:
        """Requests that got a token in the step that ``finish_step`` just described, and are not finished."""
        if result.decoded:
            return [self._ids[slot] for slot in self._batch() if self._pool.sequences[slot].phase == records.DECODE]
        return [request_id for request_id in (*result.first_tokens, *result.resumed) if request_id in self._slots]

    def _events(self) -> Iterator[tuple[int, int]]:
        pool = self._pool
        return zip(pool.event_kinds[: pool.event_count[0]], pool.event_sequences, strict=False)

    def _batch(self) -> Iterator[int]:
        """The slots of the batch in the order of admission."""
        slot = self._pool.heads[1]
        while slot != NONE:
            yield slot
            slot = self._pool.sequences[slot].next

    def _slot_for(self, request_id: str) -> int:
        if self._free:
            slot = self._free.pop()
            clear(self._pool.sequences[slot], SEQUENCE_FIELDS)
            self._ids[slot] = request_id
        else:
            slot = len(self._ids)
            self._pool.sequences.append(Sequence())
            self._ids.append(request_id)
        self._slots[request_id] = slot
        return slot

    def _forget(self, slot: int) -> None:
        del self._slots[self._ids[slot]]
        self._free.append(slot)
