"""One continuous-batching engine, iteration by iteration, without clock or I/O.

Whoever drives it owns time: ``begin_step`` plans an iteration and says how long it lasts, ``finish_step`` applies it
and says what came out. Between the two, arrivals and cancellations may be handed in; they take effect at the end of the
step. Requests are served first come, first served; KV is paged; when it runs out the youngest sequence is preempted and
later recomputed.

A step costs time in proportion to what changes in it (admissions, first tokens, finishes, preemptions), not to the size
of the batch: all decoding sequences advance by one token in a decode step, so a shared count of decode steps stands for
their progress, and sequences are filed under the decode step in which they finish.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from llmrouter.domain import EngineMode, EngineProfile
from llmrouter.errors import InvalidInputError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ADMISSION_WATERMARK_FRACTION = 0.01
"""Share of the KV blocks that an admission leaves free for the sequences already running."""


_COEFFICIENTS = (
    *("base_decode_s", "base_prefill_s", "prefill_s_per_token", "prefill_s_per_token_squared"),
    *("context_s_per_token", "sequence_s"),
)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request as the engine knows it. Nothing outside this module reads ``output_tokens``, the true length."""

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


def _check_profile(profile: EngineProfile) -> None:
    for name in ("block_tokens", "max_sequences", "token_budget"):
        if (limit := getattr(profile, name)) < 1:
            raise InvalidInputError(f"profile {profile.name}: {name} must be at least 1, not {limit}")
    if profile.kv_tokens < profile.block_tokens:
        raise InvalidInputError(
            f"profile {profile.name}: kv_tokens must be at least one block, not {profile.kv_tokens}"
        )
    if profile.mode is EngineMode.CHUNKED and profile.token_budget < profile.max_sequences:
        raise InvalidInputError(
            f"profile {profile.name}: token_budget must be at least max_sequences, {profile.max_sequences}, "
            f"not {profile.token_budget}"
        )
    for name in _COEFFICIENTS:
        seconds = getattr(profile, name)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidInputError(f"profile {profile.name}: {name} must be finite and at least 0, not {seconds}")
    if profile.base_decode_s == 0:
        raise InvalidInputError(f"profile {profile.name}: base_decode_s must be above 0: a step takes time")


class _Phase(Enum):
    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()


class _Sequence:
    """A request inside the engine. While it decodes, its progress follows from ``finish_tick``."""

    __slots__ = ("blocks", "finish_tick", "kv_phase", "phase", "prefilled", "produced", "request", "target")

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.phase = _Phase.WAITING
        self.produced = 0
        self.prefilled = 0
        self.target = request.prompt_tokens
        self.blocks = 0
        self.finish_tick = 0
        self.kv_phase = 0


class Engine:
    """A continuous-batching engine of one profile. Deterministic: equal calls give equal answers.

    Raises:
        InvalidInputError: the profile's limits or coefficients make no engine.
    """

    def __init__(self, profile: EngineProfile) -> None:
        _check_profile(profile)
        self.profile = profile
        self._blocks_total = profile.kv_tokens // profile.block_tokens
        self._watermark_blocks = int(self._blocks_total * ADMISSION_WATERMARK_FRACTION)
        self._sequences: dict[str, _Sequence] = {}
        self._waiting: OrderedDict[str, _Sequence] = OrderedDict()
        self._running: dict[str, _Sequence] = {}
        self._decoding: dict[str, _Sequence] = {}
        self._partial: dict[str, _Sequence] = {}
        self._finishing: dict[int, dict[str, _Sequence]] = {}
        self._growing = [0] * profile.block_tokens
        self._tick = 0
        self._blocks_used = 0
        self._context_tokens = 0
        self._plan: StepPlan | None = None
        self._chunks: list[tuple[_Sequence, int]] = []
        self._cancel_at_end: dict[str, None] = {}
        self._prompt_tokens_total = 0
        self._output_tokens_total = 0
        self._recomputed_tokens_total = 0
        self._preemptions_total = 0
        self._finished_total = 0
        self._cancelled_total = 0

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output that this engine can ever hold."""
        return self._blocks_total * self.profile.block_tokens

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._sequences)

    @property
    def in_step(self) -> bool:
        """Whether a step has begun and not finished."""
        return self._plan is not None

    @property
    def counters(self) -> EngineCounters:
        """Load and totals now."""
        return EngineCounters(
            waiting=len(self._waiting),
            running=len(self._running),
            context_tokens=self._context_tokens,
            kv_blocks_used=self._blocks_used,
            kv_blocks_total=self._blocks_total,
            prompt_tokens_total=self._prompt_tokens_total,
            output_tokens_total=self._output_tokens_total,
            recomputed_tokens_total=self._recomputed_tokens_total,
            preemptions_total=self._preemptions_total,
            finished_total=self._finished_total,
            cancelled_total=self._cancelled_total,
        )

    def add(self, request: EngineRequest) -> None:
        """Queues a request.

        Raises:
            InvalidRequestError: it can never fit, has no prompt or no output, or its id is in use.
        """
        if request.request_id in self._sequences:
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
        sequence = _Sequence(request)
        self._sequences[request.request_id] = sequence
        self._waiting[request.request_id] = sequence

    def cancel(self, request_id: str) -> bool:
        """Drops a request, at once or at the end of the step under way; says whether it was known."""
        sequence = self._sequences.get(request_id)
        if sequence is None or request_id in self._cancel_at_end:
            return False
        if self._plan is not None and sequence.phase is not _Phase.WAITING:
            self._cancel_at_end[request_id] = None
        else:
            self._drop(sequence)
        return True

    def begin_step(self) -> StepPlan:
        """Plans the next iteration and allocates its KV.

        Raises:
            RuntimeError: a step is under way, or there is no work.
        """
        if self._plan is not None:
            raise RuntimeError("a step is already under way")
        if not self._sequences:
            raise RuntimeError("an engine without work has no step")
        if self.profile.mode is EngineMode.PREFILL_FIRST:
            preempted = self._plan_prefill_first()
        else:
            preempted = self._plan_chunked()
        self._plan = self._measure(preempted)
        return self._plan

    def finish_step(self) -> StepResult:
        """Applies the iteration under way: one token to each request that decoded or ended its prefill.

        Raises:
            RuntimeError: no step is under way.
        """
        plan = self._plan
        if plan is None:
            raise RuntimeError("no step is under way")
        self._plan = None
        decoded = plan.decode_sequences > 0
        if decoded:
            self._tick += 1
            self._context_tokens += len(self._decoding)
        cancelled = tuple(self._cancel_at_end)
        for request_id in cancelled:
            self._drop(self._sequences[request_id])
        self._cancel_at_end.clear()
        tokens = len(self._decoding) if decoded else 0
        finished: dict[str, int] = {}
        if decoded:
            for sequence in tuple(self._finishing.get(self._tick, {}).values()):
                self._finish(sequence, finished)
        first_tokens, resumed = self._end_prefills(finished)
        tokens += len(first_tokens) + len(resumed)
        self._output_tokens_total += tokens
        return StepResult(
            first_tokens=tuple(first_tokens),
            resumed=tuple(resumed),
            finished=finished,
            cancelled=cancelled,
            decoded=decoded,
            tokens=tokens,
        )

    def continuing(self, result: StepResult) -> Collection[str]:
        """Requests that got a token in the step that ``finish_step`` just described, and are not finished."""
        if result.decoded:
            return self._decoding.keys()
        return [request_id for request_id in (*result.first_tokens, *result.resumed) if request_id in self._decoding]

    # --- planning ---

    def _plan_chunked(self) -> tuple[str, ...]:
        preempted = self._make_room()
        self._grow()
        budget = self.profile.token_budget - len(self._decoding)
        for sequence in self._partial.values():
            budget -= self._take_chunk(sequence, budget)
        if not preempted:
            while budget > 0 and (admitted := self._admit_next()) is not None:
                budget -= self._take_chunk(admitted, budget)
        return preempted

    def _plan_prefill_first(self) -> tuple[str, ...]:
        budget = self.profile.token_budget
        while self._waiting and (not self._chunks or next(iter(self._waiting.values())).target <= budget):
            admitted = self._admit_next()
            if admitted is None:
                break
            budget -= self._take_chunk(admitted, admitted.target)
        if self._chunks:
            return ()
        preempted = self._make_room()
        self._grow()
        return preempted

    def _take_chunk(self, sequence: _Sequence, budget: int) -> int:
        chunk = min(sequence.target - sequence.prefilled, budget)
        if chunk > 0:
            self._chunks.append((sequence, chunk))
        return max(chunk, 0)

    def _admit_next(self) -> _Sequence | None:
        """Moves the head of the queue into the batch with KV for all it must prefill, if there is room."""
        if not self._waiting or len(self._running) >= self.profile.max_sequences:
            return None
        request_id, sequence = next(iter(self._waiting.items()))
        blocks = -(-sequence.target // self.profile.block_tokens)
        reserve = self._watermark_blocks if self._running else 0
        if self._blocks_used + blocks + reserve > self._blocks_total:
            return None
        del self._waiting[request_id]
        sequence.phase = _Phase.PREFILL
        sequence.blocks = blocks
        self._blocks_used += blocks
        self._running[request_id] = sequence
        self._partial[request_id] = sequence
        return sequence

    def _make_room(self) -> tuple[str, ...]:
        """Preempts the youngest until the sequences that start a new block in this step can have one."""
        preempted: list[str] = []
        while self._growing[self._tick % self.profile.block_tokens] > self._blocks_total - self._blocks_used:
            request_id, sequence = next(reversed(self._running.items()))
            self._preempt(sequence)
            preempted.append(request_id)
        return tuple(preempted)

    def _grow(self) -> None:
        self._blocks_used += self._growing[self._tick % self.profile.block_tokens]

    def _measure(self, preempted: tuple[str, ...]) -> StepPlan:
        profile = self.profile
        prefill_tokens = sum(chunk for _, chunk in self._chunks)
        prefill_only = bool(self._chunks) and (profile.mode is EngineMode.PREFILL_FIRST or not self._decoding)
        decode_sequences = 0 if prefill_only else len(self._decoding)
        squares = sum(chunk * (2 * sequence.prefilled + chunk) for sequence, chunk in self._chunks)
        prefill_s = profile.base_prefill_s + profile.prefill_s_per_token * prefill_tokens
        if prefill_only:
            base_s = prefill_s
        else:
            base_s = max(profile.base_decode_s, prefill_s) if self._chunks else profile.base_decode_s
        duration_s = base_s + profile.prefill_s_per_token_squared * squares
        if decode_sequences:
            duration_s += profile.context_s_per_token * self._context_tokens + profile.sequence_s * decode_sequences
        return StepPlan(
            duration_s=duration_s,
            prefill_tokens=prefill_tokens,
            prefill_sequences=len(self._chunks),
            decode_sequences=decode_sequences,
            context_tokens=self._context_tokens if decode_sequences else 0,
            preempted=preempted,
        )

    # --- transitions ---

    def _end_prefills(self, finished: dict[str, int]) -> tuple[list[str], list[str]]:
        """Applies the step's chunks; sequences whose prefill is complete produce a token and start to decode."""
        first_tokens: list[str] = []
        resumed: list[str] = []
        for sequence, chunk in self._chunks:
            if sequence.phase is not _Phase.PREFILL:
                continue  # cancelled while the step ran
            sequence.prefilled += chunk
            if sequence.prefilled < sequence.target:
                continue
            if sequence.produced:
                resumed.append(sequence.request.request_id)
            else:
                first_tokens.append(sequence.request.request_id)
                self._prompt_tokens_total += sequence.request.prompt_tokens
            self._start_decode(sequence)
            if sequence.finish_tick == self._tick:
                self._finish(sequence, finished)
        self._chunks.clear()
        return first_tokens, resumed

    def _start_decode(self, sequence: _Sequence) -> None:
        request_id = sequence.request.request_id
        del self._partial[request_id]
        sequence.phase = _Phase.DECODE
        sequence.produced += 1
        sequence.finish_tick = self._tick + sequence.request.output_tokens - sequence.produced
        sequence.kv_phase = (self._tick - sequence.target) % self.profile.block_tokens
        self._growing[sequence.kv_phase] += 1
        self._context_tokens += sequence.target
        self._decoding[request_id] = sequence
        self._finishing.setdefault(sequence.finish_tick, {})[request_id] = sequence

    def _stop_decode(self, sequence: _Sequence) -> None:
        """Takes a sequence out of the decoding set, settling the progress that the tick stood for."""
        request_id = sequence.request.request_id
        sequence.produced = sequence.request.output_tokens - (sequence.finish_tick - self._tick)
        context_tokens = sequence.request.prompt_tokens + sequence.produced - 1
        sequence.blocks = -(-context_tokens // self.profile.block_tokens)
        self._context_tokens -= context_tokens
        self._growing[sequence.kv_phase] -= 1
        del self._decoding[request_id]
        finishing = self._finishing[sequence.finish_tick]
        del finishing[request_id]
        if not finishing:
            del self._finishing[sequence.finish_tick]

    def _leave_batch(self, sequence: _Sequence) -> None:
        request_id = sequence.request.request_id
        if sequence.phase is _Phase.DECODE:
            self._stop_decode(sequence)
        else:
            del self._partial[request_id]
        del self._running[request_id]
        self._blocks_used -= sequence.blocks
        sequence.blocks = 0
        sequence.phase = _Phase.WAITING

    def _preempt(self, sequence: _Sequence) -> None:
        decoding = sequence.phase is _Phase.DECODE
        self._leave_batch(sequence)
        held_tokens = sequence.request.prompt_tokens + sequence.produced - 1 if decoding else sequence.prefilled
        self._recomputed_tokens_total += held_tokens
        sequence.prefilled = 0
        sequence.target = sequence.request.prompt_tokens + sequence.produced
        request_id = sequence.request.request_id
        self._waiting[request_id] = sequence
        self._waiting.move_to_end(request_id, last=False)
        self._preemptions_total += 1

    def _finish(self, sequence: _Sequence, finished: dict[str, int]) -> None:
        self._leave_batch(sequence)
        finished[sequence.request.request_id] = sequence.produced
        del self._sequences[sequence.request.request_id]
        self._finished_total += 1

    def _drop(self, sequence: _Sequence) -> None:
        request_id = sequence.request.request_id
        if sequence.phase is _Phase.WAITING:
            del self._waiting[request_id]
        else:
            self._leave_batch(sequence)
        del self._sequences[request_id]
        self._cancelled_total += 1
