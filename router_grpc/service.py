"""The routing service: one core behind every listener. It admits, predicts, decides, reserves, holds and counts."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.domain import Hold, NoCandidate, Request, Room
from llmrouter.errors import InvalidRequestError, NoInstanceError, SaturatedError
from router_grpc.holding import HoldLine
from router_grpc.ports import Bid, ReserveAsk, ReserveOutcome
from router_grpc.runtime import digest_of_policy

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llmrouter.domain import Candidate, InstanceView, Placement, PoolSnapshot, Reservation
    from llmrouter.metrics import RouterMetrics
    from llmrouter.routing.guard import Guard, Guarded
    from router_grpc.open_requests import OpenRequests
    from router_grpc.ports import InstanceSource, Ledger, ReserveResult
    from router_grpc.replica import LoadReplica
    from router_grpc.runtime import Runtime

MAX_REQUEST_ID_LENGTH = 128
MAX_APPLICATION_LENGTH = 64
MAX_EXCLUDED = 64
RETRY_AFTER_S = 1.0
MOVED_TOLERANCE = 1
"""How many requests a candidate may have gained since it was scored before the next one is tried."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouteAsk:
    """A Route call as it came in; bounds are not yet checked."""

    model: str
    prompt_tokens: int
    request_id: str = ""
    application: str = ""
    max_output_tokens: int = 0
    excluded_instance_ids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """Where a request goes, and why."""

    request_id: str
    instance_id: str
    endpoint: str
    fallbacks: tuple[tuple[str, str], ...]
    predicted_output_tokens: float
    policy: str
    policy_digest: str
    reason: str
    held_s: float
    degraded: bool


class UnknownModelError(InvalidRequestError):
    """No pool serves the model."""

    reason = "UnknownModel"


@dataclass(frozen=True, slots=True)
class World:
    """What the service stands on."""

    ledger: Ledger
    is_degraded: Callable[[], bool]
    replica: LoadReplica
    instances: InstanceSource
    open_requests: OpenRequests
    metrics: RouterMetrics
    clock: Callable[[], float]
    rng: random.Random


class RouterService:
    """Routes requests by the runtime in force. Safe for any number of concurrent calls on one event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._runtime: Runtime | None = None
        self._lines: dict[str, HoldLine] = defaultdict(HoldLine)

    @property
    def runtime(self) -> Runtime | None:
        """The runtime in force, ``None`` before the first configuration."""
        return self._runtime

    @property
    def held(self) -> int:
        """Requests held now."""
        return sum(len(line) for line in self._lines.values())

    def swap(self, runtime: Runtime) -> None:
        """Puts a runtime in force: requests that are being decided end with the one they began with."""
        self._runtime = runtime
        self.kick()

    def kick(self) -> None:
        """Lets the head of every line try again: a finish, a fresh load, a new instance or policy."""
        for line in self._lines.values():
            line.kick()

    def snapshot(self) -> PoolSnapshot:
        """The instances as a policy would see them now."""
        return self._world.replica.snapshot(self._world.instances.current(), now_s=self._world.clock())

    async def route(self, ask: RouteAsk, *, deadline_s: float | None = None) -> RouteAnswer:
        """Reserves an instance for a request, holding it for as long as the policy and ``deadline_s`` allow.

        Raises:
            InvalidRequestError: a field is out of its bound.
            NoInstanceError: nothing is ready.
            SaturatedError: no room, and no time or place to wait for it.
        """
        runtime = self._runtime
        if runtime is None:
            raise NoInstanceError("the router has no configuration yet")
        request = self._admit(ask, runtime)
        started_s = self._world.clock()
        answer = await self._place(request, runtime, deadline_s)
        held_s = self._world.clock() - started_s
        self._world.metrics.held_seconds.observe(held_s)
        return replace(answer, held_s=held_s) if answer.held_s else answer

    def _admit(self, ask: RouteAsk, runtime: Runtime) -> Request:
        check_bounds(ask, runtime.config.limits.max_prompt_tokens)
        if ask.model not in runtime.config.models:
            raise UnknownModelError(f"model: no pool serves {ask.model!r}")
        predicted = runtime.predictor.predict([ask.prompt_tokens], [ask.application])[0].expected_tokens
        if ask.max_output_tokens:
            predicted = min(predicted, float(ask.max_output_tokens))
        return Request(
            request_id=ask.request_id or uuid.uuid4().hex,
            model=ask.model,
            prompt_tokens=ask.prompt_tokens,
            predicted_output_tokens=predicted,
            arrived_at_s=self._world.clock(),
            application=ask.application,
            max_output_tokens=ask.max_output_tokens or None,
            excluded_instance_ids=ask.excluded_instance_ids,
        )

    async def _place(self, request: Request, runtime: Runtime, deadline_s: float | None) -> RouteAnswer:
        line = self._lines[request.model]
        reason = "others are held already"
        events = line.events
        if not len(line):
            outcome = await self._attempt(request, runtime)
            if isinstance(outcome, RouteAnswer):
                return outcome
            reason = outcome.reason
        hold, queue = runtime.config.policy.hold, runtime.config.policy.queue
        until_s = request.arrived_at_s + hold.max_wait_seconds
        if deadline_s is not None:
            until_s = min(until_s, deadline_s)
        with line.ticket(max_depth=queue.max_depth, retry_after_s=RETRY_AFTER_S) as turn:
            if line.events != events:
                turn.set()
            return await self._wait_for_place(request, turn, until_s=until_s, reason=reason)

    async def _wait_for_place(
        self, request: Request, turn: asyncio.Event, *, until_s: float, reason: str
    ) -> RouteAnswer:
        while True:
            left_s = until_s - self._world.clock()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await turn.wait()
            except TimeoutError:
                raise SaturatedError(
                    f"held for {self._world.clock() - request.arrived_at_s:.3g} s: {reason}",
                    reason="HoldTimeout",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
            turn.clear()
            runtime = self._runtime
            if runtime is None:
                raise NoInstanceError("the router has no configuration any more")
            outcome = await self._attempt(request, runtime)
            if isinstance(outcome, RouteAnswer):
                return replace(outcome, held_s=max(self._world.clock() - request.arrived_at_s, 1e-9))
            reason = outcome.reason

    async def _attempt(self, request: Request, runtime: Runtime) -> RouteAnswer | Hold:
        """Decides and reserves; where the candidates have moved meanwhile, once more on the fresh loads."""
        hold = Hold("no attempt was made")
        for final in (False, True):
            degraded = self._world.is_degraded()
            guard = runtime.degraded if degraded else runtime.guard
            snapshot = self.snapshot()
            guarded = self._decide(guard, request, snapshot)
            decision = guarded.decision
            if isinstance(decision, NoCandidate):
                raise NoInstanceError(decision.reason)
            if isinstance(decision, Hold):
                return decision
            result = await self._reserve(request, decision, snapshot, guard=guard, final=final)
            if result.reservation is not None:
                return self._answer(request, runtime, guarded, result.reservation, degraded=degraded)
            hold = Hold(f"the ledger answered {result.outcome.value} for {len(decision.candidates)} candidates")
            if final or result.outcome is ReserveOutcome.FULL:
                return hold
        return hold

    def _decide(self, guard: Guard, request: Request, snapshot: PoolSnapshot) -> Guarded:
        guarded = guard.decide(request, snapshot, self._world.rng)
        self._world.metrics.decision_seconds.observe(guarded.elapsed_s)
        if guarded.fallback_reason is not None:
            self._world.metrics.fallbacks.labels(guarded.fallback_reason).inc()
            _log.debug("fallback decided", extra={"reason": guarded.fallback_reason, "detail": guarded.detail})
        return guarded

    async def _reserve(
        self, request: Request, decision: Placement, snapshot: PoolSnapshot, *, guard: Guard, final: bool
    ) -> ReserveResult:
        views = {view.instance.instance_id: view for view in snapshot.views}
        ask = ReserveAsk(
            request_id=request.request_id,
            prompt_tokens=request.prompt_tokens,
            predicted_output_tokens=request.predicted_output_tokens,
            bids=tuple(_bid(candidate, views[candidate.instance_id], guard) for candidate in decision.candidates),
            moved_tolerance=MOVED_TOLERANCE if decision.load_sensitive else None,
            final=final and decision.load_sensitive,
        )
        started_s = self._world.clock()
        result = await self._world.ledger.reserve(ask)
        self._world.metrics.state_backend_seconds.observe(self._world.clock() - started_s)
        self._world.metrics.reservations.labels(result.outcome.value.lower()).inc()
        self._world.replica.absorb(result.loads)
        return result

    def _answer(
        self, request: Request, runtime: Runtime, guarded: Guarded, reservation: Reservation, *, degraded: bool
    ) -> RouteAnswer:
        self._world.open_requests.opened(reservation, arrived_at_s=request.arrived_at_s)
        endpoints = {instance.instance_id: instance.endpoint for instance in self._world.instances.current()}
        decision = guarded.decision
        candidates = () if isinstance(decision, (Hold, NoCandidate)) else decision.candidates
        chosen = reservation.instance_id
        if chosen not in endpoints:
            raise NoInstanceError(f"instance {chosen!r} of request {request.request_id!r} is gone")
        others = tuple(
            (candidate.instance_id, endpoints[candidate.instance_id])
            for candidate in candidates
            if candidate.instance_id != chosen and candidate.instance_id in endpoints
        )
        return RouteAnswer(
            request_id=request.request_id,
            instance_id=chosen,
            endpoint=endpoints[chosen],
            fallbacks=others[:2],
            predicted_output_tokens=request.predicted_output_tokens,
            policy=guarded.policy,
            policy_digest=digest_of_policy(runtime.config),
            reason=decision.reason,
            held_s=0.0,
            degraded=degraded,
        )


def check_bounds(ask: RouteAsk, max_prompt_tokens: int) -> None:
    """Raises InvalidRequestError naming the first field out of its bound."""
    if not 1 <= ask.prompt_tokens <= max_prompt_tokens:
        raise InvalidRequestError(f"prompt_tokens: {ask.prompt_tokens} is not within 1 and {max_prompt_tokens}")
    if ask.max_output_tokens < 0:
        raise InvalidRequestError(f"max_output_tokens: {ask.max_output_tokens} is below 0")
    if len(ask.request_id) > MAX_REQUEST_ID_LENGTH:
        raise InvalidRequestError(f"request_id: longer than {MAX_REQUEST_ID_LENGTH} characters")
    if len(ask.application) > MAX_APPLICATION_LENGTH:
        raise InvalidRequestError(f"application: longer than {MAX_APPLICATION_LENGTH} characters")
    if len(ask.excluded_instance_ids) > MAX_EXCLUDED:
        raise InvalidRequestError(f"excluded_instance_ids: more than {MAX_EXCLUDED}")


def _bid(candidate: Candidate, view: InstanceView, guard: Guard) -> Bid:
    room = guard.room_of(view)
    limit = room.kv_limit_tokens
    return Bid(
        instance_id=candidate.instance_id,
        seen_requests=candidate.seen.requests,
        room=Room(
            max_requests=max(1, room.max_requests - view.foreign.requests),
            kv_limit_tokens=None if limit is None else max(0, limit - view.foreign.context_tokens),
            decode_reserve_fraction=room.decode_reserve_fraction,
        ),
    )
