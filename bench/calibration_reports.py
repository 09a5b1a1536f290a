"""What clients report of requests on simulated engines, in time order: what a router that calibrates sees."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from llmrouter.domain import Instance, InstanceView, Load
from llmrouter.sim.engine import Engine, EngineRequest

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llmrouter.domain import EngineProfile
    from llmrouter.sim.engine import StepPlan
    from llmrouter.sim.model import EngineModel
    from llmrouter.sim.workload import Workload

PROGRESS_S = 0.5
REFRESH_S = 0.1
JITTER_S = 0.002
"""A report reaches its router within this."""


class Watcher(Protocol):
    """The part of ``Intervals`` that hears of requests and loads."""

    def dispatched(
        self, request_id: str, instance: Instance, *, prompt_tokens: int, alone: bool, now_s: float
    ) -> None: ...

    def advanced(self, request_id: str, tokens: int, *, now_s: float) -> None: ...

    def ended(self, request_id: str, tokens: int | None, *, now_s: float) -> None: ...

    def refreshed(self, view_of: Callable[[Instance], InstanceView], *, now_s: float) -> None: ...


@dataclass(slots=True)
class _Answer:
    """One request: tokens are those of its engine's decode steps since ``since``, beyond ``base``."""

    number: int
    at: int
    prompt_tokens: int
    output_tokens: int
    predicted_tokens: float = 0.0
    base: int = 0
    since: int | None = None
    reported: int = 0
    has_first_token: bool = False
    over: bool = False


@dataclass(slots=True)
class _Serving:
    engine: Engine
    instance: Instance
    ticks: int = 0
    requests: int = 0
    context: int = 0
    queued: int = 0
    answers: dict[str, _Answer] = field(default_factory=dict)


class ReportedRun:
    """Engines under a workload; router 0 of ``routers`` is the one that watches.

    Args:
        engines: what really runs.
        believed: the profile that the router has of each of them.
        workload: the requests.
        watcher: is told what router 0 sees.
        rng: of the reports' ways.
        routers: arrivals go to them in turn.
        choose: the instance of a request, given its number, or ``None`` where it is held until the next refresh or end;
            without it the least in flight.
        speed: what an instance's step times are multiplied by, given its number and the time.
        spoken: what a client says its tokens are, given the request's number and the truth.
        on_step: called with each step's instance, plan and the seconds it really takes.
        on_end: called with the requests that ended so far.
    """

    def __init__(
        self,
        engines: Sequence[EngineModel],
        believed: EngineProfile,
        workload: Workload,
        watcher: Watcher,
        *,
        rng: random.Random,
        routers: int = 1,
        choose: Callable[[int], int | None] | None = None,
        speed: Callable[[int, float], float] = lambda _at, _now_s: 1.0,
        spoken: Callable[[int, int], int] = lambda _, tokens: tokens,
        on_step: Callable[[int, StepPlan], None] | None = None,
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        self._servings = [
            _Serving(Engine(engine), Instance(f"{row:03d}", f"{row:03d}:1", "pool", believed, frozenset({""})))
            for row, engine in enumerate(engines)
        ]
        self._workload, self._watcher, self._rng, self._routers = workload, watcher, rng, routers
        self._spoken, self._on_step, self._on_end = spoken, on_step, on_end
        self._choose, self._speed = choose or self._least_in_flight, speed
        self._held: deque[int] = deque()
        self.placed_at = [-1] * len(workload)
        self.finished_at_s = [0.0] * len(workload)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._ended = 0
        self.now_s = 0.0

    def play(self) -> None:
        """Runs until every request ended."""
        for row, at_s in enumerate(self._workload.arrived_at_s):
            self._push(float(at_s), partial(self._arrive, row))
        self._push(0.0, self._refresh)
        while self._ended < len(self._workload):
            self.now_s, _, event = heapq.heappop(self._heap)
            event()

    def _push(self, at_s: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (at_s, self._order, event))

    def _refresh(self) -> None:
        self._watcher.refreshed(self._view, now_s=self.now_s)
        self._push(self.now_s + REFRESH_S, self._refresh)
        self._release()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The engines as the router has them declared."""
        return tuple(serving.instance for serving in self._servings)

    def load_of(self, at: int) -> Load:
        """What the ledger says of an instance."""
        serving = self._servings[at]
        left = sum(max(0.0, one.predicted_tokens - one.reported) for one in serving.answers.values())
        return Load(serving.requests, serving.context, serving.queued, left)

    def _view(self, instance: Instance) -> InstanceView:
        return InstanceView(instance, self.load_of(int(instance.instance_id)))

    def _least_in_flight(self, _row: int) -> int:
        least = min(serving.requests for serving in self._servings)
        return self._rng.choice([at for at, serving in enumerate(self._servings) if serving.requests == least])

    def _arrive(self, row: int) -> None:
        self._held.append(row)
        self._release()

    def _release(self) -> None:
        while self._held and (at := self._choose(self._held[0])) is not None:
            self._place(self._held.popleft(), at)

    def _place(self, row: int, at: int) -> None:
        serving, workload = self._servings[at], self._workload
        self.placed_at[row] = at
        answer = _Answer(
            number=row,
            at=at,
            prompt_tokens=int(workload.prompt_tokens[row]),
            output_tokens=int(workload.output_tokens[row]),
            predicted_tokens=float(workload.predicted_output_tokens[row]),
        )
        serving.answers[str(row)] = answer
        if row % self._routers == 0:
            self._watcher.dispatched(
                str(row),
                serving.instance,
                prompt_tokens=answer.prompt_tokens,
                alone=serving.requests == 0,
                now_s=self.now_s,
            )
        serving.requests += 1
        serving.context += answer.prompt_tokens
        serving.queued += answer.prompt_tokens
        serving.engine.add(EngineRequest(str(row), answer.prompt_tokens, answer.output_tokens))
        self._go_on(at)

    def _go_on(self, at: int) -> None:
        engine = self._servings[at].engine
        if engine.in_step or not engine.has_work:
            return
        plan = engine.begin_step()
        for request_id in plan.preempted:
            answer = self._servings[at].answers[request_id]
            answer.base, answer.since = self._tokens(answer), None
        if self._on_step is not None:
            self._on_step(at, plan)
        self._push(self.now_s + plan.duration_s * self._speed(at, self.now_s), partial(self._finish, at))

    def _tokens(self, answer: _Answer) -> int:
        return answer.base if answer.since is None else answer.base + self._servings[answer.at].ticks - answer.since

    def _finish(self, at: int) -> None:
        serving = self._servings[at]
        result = serving.engine.finish_step()
        serving.ticks += result.decoded
        for request_id in (*result.first_tokens, *result.resumed):
            answer = serving.answers[request_id]
            answer.base, answer.since = answer.base + 1, serving.ticks
        for request_id in result.first_tokens:
            self._say(serving.answers[request_id], "first")
        for request_id in result.finished:
            self._say(serving.answers[request_id], "end")
        self._go_on(at)

    def _say(self, answer: _Answer, kind: str) -> None:
        self._push(self.now_s + self._rng.uniform(0.0, JITTER_S), partial(self._report, answer, kind))

    def _report(self, answer: _Answer, kind: str) -> None:
        if answer.over:
            return
        serving, row = self._servings[answer.at], answer.number
        watches = row % self._routers == 0
        tokens = answer.output_tokens if kind == "end" else self._tokens(answer)
        serving.context += tokens - answer.reported
        answer.reported = tokens
        if not answer.has_first_token:
            answer.has_first_token = True
            serving.queued -= answer.prompt_tokens
            if watches:
                self._watcher.advanced(str(row), 1, now_s=self.now_s)
        if kind == "end":
            self._end(answer, watches=watches)
            return
        if kind == "progress" and watches:
            self._watcher.advanced(str(row), self._spoken(row, tokens), now_s=self.now_s)
        self._push(self.now_s + PROGRESS_S, partial(self._report, answer, "progress"))

    def _end(self, answer: _Answer, *, watches: bool) -> None:
        serving = self._servings[answer.at]
        answer.over = True
        self.finished_at_s[answer.number] = self.now_s
        del serving.answers[str(answer.number)]
        serving.requests -= 1
        serving.context -= answer.prompt_tokens + answer.reported
        if watches:
            told = self._spoken(answer.number, answer.output_tokens)
            self._watcher.ended(str(answer.number), told, now_s=self.now_s)
        self._ended += 1
        self._release()
        if self._on_end is not None:
            self._on_end(self._ended)
