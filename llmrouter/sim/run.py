"""A discrete-event run: arrivals are placed on engines by a callback, engines step, everything is timed.

Same-instant order: step ends come before arrivals, lower instances before higher ones, arrivals in the order given; an
idle engine begins its step only once all arrivals of that instant are placed.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.sim.engine import Engine, EngineRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.domain import EngineProfile, Request


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as a router sees it, and as the engine will."""

    request: Request
    work: EngineRequest


@dataclass(frozen=True, slots=True)
class Outcome:
    """When one request arrived, where it went, and when its tokens came."""

    request_id: str
    application: str
    instance: int
    arrived_at_s: float
    first_token_at_s: float
    finished_at_s: float
    tokens: int

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_token_at_s - self.arrived_at_s

    @property
    def e2e_s(self) -> float:
        """Arrival to last token."""
        return self.finished_at_s - self.arrived_at_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens; ``None`` where there is only one."""
        return (self.finished_at_s - self.first_token_at_s) / (self.tokens - 1) if self.tokens > 1 else None


class _Pool:
    """The engines, the ends of their steps, and what is known of each request."""

    def __init__(self, profiles: Sequence[EngineProfile]) -> None:
        self.engines = [Engine(profile) for profile in profiles]
        self.step_ends: list[tuple[float, int]] = []
        self.outcomes: list[Outcome] = []
        self._idle = dict.fromkeys(range(len(profiles)))
        self._placed: dict[str, Arrival] = {}
        self._first_token_at_s: dict[str, float] = {}

    def place(self, arrival: Arrival, instance: int) -> None:
        self.engines[instance].add(arrival.work)
        self._placed[arrival.work.request_id] = arrival

    def end_step(self, instance: int, now_s: float) -> None:
        result = self.engines[instance].finish_step()
        for request_id in result.first_tokens:
            self._first_token_at_s[request_id] = now_s
        for request_id, tokens in result.finished.items():
            arrival = self._placed.pop(request_id)
            self.outcomes.append(
                Outcome(
                    request_id=request_id,
                    application=arrival.request.application,
                    instance=instance,
                    arrived_at_s=arrival.request.arrived_at_s,
                    first_token_at_s=self._first_token_at_s.pop(request_id),
                    finished_at_s=now_s,
                    tokens=tokens,
                )
            )
        self._idle[instance] = None

    def begin_steps(self, now_s: float) -> None:
        started = [instance for instance in self._idle if self.engines[instance].has_work]
        for instance in started:
            del self._idle[instance]
            heapq.heappush(self.step_ends, (now_s + self.engines[instance].begin_step().duration_s, instance))


def simulate(
    profiles: Sequence[EngineProfile], arrivals: Sequence[Arrival], choose: Callable[[Request, float], int]
) -> tuple[Outcome, ...]:
    """Runs to the end of the last request; outcomes are in the order of finishing.

    Args:
        profiles: one engine each.
        arrivals: in order of arrival.
        choose: the request and now, in seconds, to the index of an engine.

    Raises:
        InvalidInputError: arrivals are out of order, an engine refuses one, or ``choose`` names no engine.
    """
    pool = _Pool(profiles)
    position = 0
    now_s = float("-inf")
    while pool.step_ends or position < len(arrivals):
        arrival_at_s = arrivals[position].request.arrived_at_s if position < len(arrivals) else float("inf")
        if arrival_at_s < now_s:
            raise InvalidInputError(f"request {arrivals[position].request.request_id} arrives before the one before it")
        now_s = min(arrival_at_s, pool.step_ends[0][0]) if pool.step_ends else arrival_at_s
        while pool.step_ends and pool.step_ends[0][0] == now_s:
            pool.end_step(heapq.heappop(pool.step_ends)[1], now_s)
        while position < len(arrivals) and arrivals[position].request.arrived_at_s == now_s:
            request = arrivals[position].request
            instance = choose(request, now_s)
            if not 0 <= instance < len(profiles):
                raise InvalidInputError(f"choose named engine {instance} of {len(profiles)}")
            pool.place(arrivals[position], instance)
            position += 1
        pool.begin_steps(now_s)
    return tuple(pool.outcomes)
