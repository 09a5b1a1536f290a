"""Keeps the ledger near the truth for requests of which nothing is heard: see ``routing.presumed``.

Two kinds: answers that the gateway does not show (``ends``), and those that come whole, at their end, of which a first
token is never seen.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.routing.presumed import Engine, Expectation, LifeRatio, Surplus, expectation, over
from router_grpc.staging import counted_in_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain import EngineSignal
    from router_grpc.open_requests import OpenRequest
    from router_grpc.world import World

STEP_S = 0.5
"""How often what is presumed is written to the ledger."""

UNKNOWN_LIFE_S = 30.0
"""Of a request of which nothing was foretold."""

NO_STREAM = -1
"""The stream that answers for requests that no stream answers for."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Presumed:
    instance_id: str
    expected: Expectation
    ends: bool
    has_begun: bool = False
    generated_tokens: int = 0


class Presuming:
    """Of one router; methods belong to the event loop.

    ``has_stages`` says whether some instances compute prompts for others.
    """

    def __init__(self) -> None:
        self.has_stages = False
        self._presumed: dict[str, _Presumed] = {}
        self._surplus: dict[str, Surplus] = {}
        self._life = LifeRatio()

    def __len__(self) -> int:
        return len(self._presumed)

    @property
    def life_ratio(self) -> float:
        """Seconds that observed requests take, of those foretold."""
        return self._life.value

    def learn(self, ratio: float) -> None:
        """An observed request took so many times the seconds foretold."""
        self._life.note(ratio)

    def left(self, world: World, request_id: str) -> None:
        """The gateway goes on alone: nobody will say when the request ends."""
        world.open_requests.attended(request_id, stream_id=NO_STREAM)
        self._follow(world, request_id, ends=True)

    def unheard(self, world: World, request_id: str) -> None:
        """Nothing will be heard of the request before its end."""
        self._follow(world, request_id, ends=False)

    def _follow(self, world: World, request_id: str, *, ends: bool) -> None:
        entry = world.open_requests.get(request_id)
        if entry is not None:
            self._presumed[request_id] = _Presumed(entry.reservation.instance_id, self._expected(world, entry), ends)

    def _expected(self, world: World, entry: OpenRequest) -> Expectation:
        cost, tokens = entry.cost, entry.reservation.predicted_output_tokens
        if cost is None:
            return expectation(
                dispatched_at_s=world.clock(), first_token_s=0.0, life_s=UNKNOWN_LIFE_S, expected_tokens=tokens
            )
        ratio = self._life.value
        return expectation(
            dispatched_at_s=cost.dispatched_at_s,
            first_token_s=ratio * cost.first_token_s,
            life_s=ratio * cost.seconds,
            expected_tokens=tokens,
        )

    def note_signal(self, world: World, instance_id: str, signal: EngineSignal) -> None:
        """An engine reports."""
        if signal.running is None or signal.waiting is None:
            self._surplus.pop(instance_id, None)
        elif self._presumed:
            surplus = self._surplus.setdefault(instance_id, Surplus())
            surplus.note(counted=counted_in_engine(world, instance_id), in_engine=signal.running + signal.waiting)

    async def step(self, world: World, kick: Callable[[], None]) -> None:
        """Writes what is presumed now, and takes out of the ledger what is presumed over."""
        now_s = world.clock()
        for request_id in [one for one in self._presumed if one not in world.open_requests]:
            del self._presumed[request_id]
        for request_id in self._over(world, now_s):
            await self._end(world, request_id)
            kick()
        for request_id, one in list(self._presumed.items()):
            await self._advance(world, request_id, one, now_s=now_s)

    def _over(self, world: World, now_s: float) -> list[str]:
        by_instance: dict[str, list[tuple[str, Expectation]]] = {}
        for request_id, one in self._presumed.items():
            if one.ends:
                by_instance.setdefault(one.instance_id, []).append((request_id, one.expected))
        for idle in self._surplus.keys() - by_instance.keys():
            del self._surplus[idle]
        ended: list[str] = []
        for instance_id, presumed in by_instance.items():
            gone = over(presumed, now_s=now_s, engine=self._engine(world, instance_id, now_s))
            if gone and instance_id in self._surplus:
                self._surplus[instance_id].ended(len(gone))
            ended += gone
        return ended

    def _engine(self, world: World, instance_id: str, now_s: float) -> Engine | None:
        instance, surplus = world.instances.get(instance_id), self._surplus.get(instance_id)
        signal = None if instance is None else world.replica.view(instance, now_s=now_s).signal
        if signal is None or signal.running is None or signal.waiting is None:
            return None
        return Engine(
            held=signal.running + signal.waiting,
            surplus=0 if surplus is None else surplus.requests,
            counted=counted_in_engine(world, instance_id),
        )

    async def _end(self, world: World, request_id: str) -> None:
        self._presumed.pop(request_id, None)
        if await world.release(request_id) is not None:
            world.metrics.reservations.labels("presumed").inc()
            _log.debug("reservation presumed over", extra={"request_id": request_id})

    async def _advance(self, world: World, request_id: str, one: _Presumed, *, now_s: float) -> None:
        begun, tokens = one.expected.has_begun(now_s), one.expected.generated_tokens(now_s)
        if not begun or (one.has_begun and tokens <= one.generated_tokens):
            return
        one.has_begun, one.generated_tokens = True, tokens
        reservation = await world.ledger.progress(
            request_id, prefilled=True, generated_tokens=tokens, predicted_output_tokens=None
        )
        entry = world.open_requests.get(request_id)
        if reservation is None:
            self._presumed.pop(request_id, None)
            world.open_requests.closed(request_id)
        elif entry is not None:
            entry.reservation = reservation
