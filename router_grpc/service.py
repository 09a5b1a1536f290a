"""The routing service: one core behind every listener. It admits, predicts, decides, reserves, holds and counts."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.domain import Hold, NoCandidate, Placement
from llmrouter.errors import NoInstanceError, SaturatedError
from llmrouter.quick import quick
from llmrouter.routing.batching import MOST_OF_WAIT
from llmrouter.routing.guard import Guarded
from llmrouter.routing.lines import least_work_s
from llmrouter.routing.orders import ORDERS
from router_grpc.arms import Placed
from router_grpc.asks import request_of, reserve_ask
from router_grpc.bidding import bid_of
from router_grpc.calls import (
    Admitted,
    RouteAnswer,
    RouteAsk,
    UnknownModelError,
    check_bounds,
    check_model,
    check_prompt_tokens,
    excluded_of,
    length_request,
    new_ids,
)
from router_grpc.costing import note_cost
from router_grpc.holding import RETRY_AFTER_S, Holding, kept_bytes
from router_grpc.mixing import note_dispatch
from router_grpc.ports import ReserveOutcome
from router_grpc.staging import dispatched, needs_prefill
from router_grpc.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.config import PolicyConfig
    from llmrouter.domain import Candidate, Decision, PoolSnapshot, Request, Reservation
    from llmrouter.routing.batch import BatchRules
    from llmrouter.routing.claims import Claim
    from llmrouter.routing.guard import Guard
    from router_grpc.holding import HoldLine, Ticket
    from router_grpc.length_service import Foretold
    from router_grpc.open_requests import Charge
    from router_grpc.ports import Bid, ReserveAsk, ReserveResult
    from router_grpc.runtime import Runtime

__all__ = ["RouteAnswer", "RouteAsk", "RouterService", "UnknownModelError", "World"]

MOVED_TOLERANCE = 1
"""How many requests a candidate may have gained since it was scored before the next one is tried."""

MAX_FALLBACKS = 2

_EVERY = frozenset(ReserveOutcome)
_LABELS = {outcome: outcome.value.lower() for outcome in ReserveOutcome}
_STANDING = frozenset({ReserveOutcome.EXISTING})
_DONE = frozenset({ReserveOutcome.COMMITTED, ReserveOutcome.EXISTING, ReserveOutcome.YIELDED})
"""Outcomes that other candidates would not change."""

_log = logging.getLogger(__name__)


class RouterService:
    """Routes requests by the runtime in force. Safe for any number of concurrent calls on one event loop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._runtime: Runtime | None = None
        self._holding = Holding(world.clock)
        self._new_ids = new_ids()

    @property
    def runtime(self) -> Runtime | None:
        """The runtime in force, ``None`` before the first configuration."""
        return self._runtime

    @property
    def held(self) -> int:
        """Requests held now."""
        return len(self._holding)

    def swap(self, runtime: Runtime) -> None:
        """Puts a runtime in force: decisions from now on are its own, those of held requests as well."""
        self._runtime = runtime
        self._world.prefixes.enabled = runtime.config.policy.prefix_affinity.enabled
        self._world.outliers.follow(runtime.outliers)
        self._world.presuming.has_stages = runtime.config.has_stages
        self._world.slow_start.slow_start_s = runtime.config.outliers.slow_start_seconds
        self._world.lengths.use(runtime.lengths)
        self._world.trial.follow(self._world, runtime.candidate)
        self._world.decisions.follow(runtime.config)
        self.reorder()
        self.kick()

    def reorder(self) -> None:
        """Holds requests in the policy's order, or as they came while predicted lengths order badly."""
        if self._runtime is None:
            return
        queue, before = self._runtime.config.policy.queue, self._holding.order
        self._holding.follow(queue, lengths_order_well=self._world.lengths.watch.orders_well)
        is_off = self._holding.order is not ORDERS[queue.order]
        self._world.metrics.queue_order_off.set(is_off)
        if self._holding.order is not before:
            in_force = self._holding.order.name
            _log.info("order of held requests", extra={"declared": queue.order, "order": in_force, "off": is_off})

    def kick(self) -> None:
        """Lets whoever goes first in every line try again: a finish, a fresh load, a new instance or policy."""
        self._holding.kick()

    def snapshot(self) -> PoolSnapshot:
        """The instances as a policy would see them now."""
        reservations = self._world.open_requests.reservations if self._world.is_alone else None
        now_s = self._world.clock()
        return self._world.replica.snapshot(self._world.ready(), now_s=now_s, reservations=reservations)

    async def route(self, ask: RouteAsk, *, deadline_s: float | None = None) -> RouteAnswer:
        """Reserves an instance for a request, holding it for as long as the policy and ``deadline_s`` allow.

        Raises:
            InvalidRequestError: a field is out of its bound.
            NoInstanceError: nothing is ready.
            SaturatedError: no room, and no time or place to wait for it.
        """
        admitted = self.admit(ask)
        foretold = await self._world.lengths.foretell(length_request(ask), ask.prompt)
        return await self.place(admitted, foretold, deadline_s=deadline_s)

    def admit(self, ask: RouteAsk) -> Admitted:
        """The first part of ``route``: a request that is within its bounds, before its length is foretold."""
        runtime = self._runtime
        if runtime is None:
            raise NoInstanceError("the router has no configuration yet")
        check_bounds(ask, runtime.config.limits.max_prompt_tokens)
        check_model(ask.model, runtime.models)
        return Admitted(ask, runtime, self._world.clock())

    async def place(self, admitted: Admitted, foretold: Foretold, *, deadline_s: float | None = None) -> RouteAnswer:
        """Second part of ``route``: with an immediate ledger it waits for a place only (see ``unbroken.begun``)."""
        ask, runtime, arrived_at_s, world = admitted.ask, admitted.runtime, admitted.arrived_at_s, self._world
        prompt_tokens = foretold.prompt_tokens
        check_prompt_tokens(prompt_tokens, runtime.config.limits.max_prompt_tokens)
        excluded = excluded_of(ask, world.instances.current())
        request_id = ask.request_id or next(self._new_ids)
        named = world.prefixes.named(ask, prompt_tokens)
        hits = world.prefixes.hits(named, prompt_tokens)
        request = request_of(
            ask, foretold, excluded, request_id=request_id, named=named, hits=hits, arrived_at_s=arrived_at_s
        )
        try:
            answer = await self._place(request, runtime, deadline_s, ask)
        except SaturatedError as error:
            world.trial.refused(world, runtime, request_id)
            if world.decisions.is_on:
                world.decisions.refused(world, runtime, request, error)
            raise
        world.metrics.held_seconds.observe(answer.held_s)
        kept = note_dispatch(world, answer.request_id, foretold)
        answer.law, answer.prompt_tokens = kept.law, prompt_tokens if kept is foretold else kept.prompt_tokens
        return answer

    async def _place(self, request: Request, runtime: Runtime, deadline_s: float | None, ask: RouteAsk) -> RouteAnswer:
        """Places a request, asked for so, now or as soon as its turn comes."""
        line, hold = self._holding.line(request.model), _OTHERS_HELD
        events = line.events
        if not len(line):
            is_open = request.request_id in self._world.open_requests
            outcome = await self._attempt(request, runtime, line, is_open=is_open)
            if isinstance(outcome, RouteAnswer):
                if not is_open:
                    line.pass_by(request)
                    self._world.open_requests.charged(request)
                return outcome
            hold = outcome
        if ask.request_id and (standing := await self._standing(request, runtime)) is not None:
            return standing
        if not runtime.config.policy.hold.enabled:
            raise SaturatedError(f"{hold.reason}; the policy holds none", reason="NoRoom", retry_after_s=RETRY_AFTER_S)
        until_s, bound = _longest_hold(request, runtime.config.policy, deadline_s)
        kept = kept_bytes(ask.prompt, request.prefix_hashes)
        self._holding.check_bounds(request, runtime.config.policy.queue, kept)
        hold = _ending(hold, _patient_until_s(request, deadline_s))
        with line.ticket(request, work_s=self._work_s(request), kept=kept, since=events, hold=hold) as ticket:
            return await self._wait_for_place(
                request, ticket, deadline_s=deadline_s, until_s=until_s, bound=bound, reason=hold.reason
            )

    def claims(self) -> dict[str, Claim]:
        """What other routers are told of whoever goes first in each line, by model."""
        return self._holding.claims()

    @property
    def has_yielded(self) -> bool:
        """Whether a request has left a place to another router's and is to try again."""
        return self._holding.has_yielded

    def settle(self, charge: Charge, output_tokens: float) -> None:
        """A request has ended: its tenant, charged as predicted, pays for what there was."""
        line = self._holding.line(charge.model)
        line.settle(charge.tenant, charge.predicted_output_tokens, output_tokens)

    def _work_s(self, request: Request) -> float:
        """Seconds that a request would take alone on the fastest instance that serves it."""
        profiles = {
            id(one.profile): one.profile for one in self._world.instances.current() if request.model in one.models
        }
        return least_work_s(request, profiles.values())

    async def _wait_for_place(
        self,
        request: Request,
        ticket: Ticket,
        *,
        deadline_s: float | None,
        until_s: float,
        bound: str,
        reason: str,
    ) -> RouteAnswer:
        await asyncio.sleep(0)  # into a task, whose time-outs are its own
        loop = asyncio.get_running_loop()
        latest_s = loop.time() + until_s - request.arrived_at_s  # should the clock go back, this one does not
        while True:
            left_s = min(until_s - self._world.clock(), latest_s - loop.time())
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await ticket.turn.wait()
            except TimeoutError:
                raise SaturatedError(
                    f"held for {self._world.clock() - request.arrived_at_s:.3g} s, {bound}: {reason}",
                    reason="HoldTimeout",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
            runtime = self._runtime
            if runtime is None:
                raise NoInstanceError("the router has no configuration any more")
            is_open = request.request_id in self._world.open_requests
            patient_until_s = _patient_until_s(request, deadline_s)
            is_patient = self._world.clock() < patient_until_s
            outcome = await self._attempt(request, runtime, ticket.line, ticket, is_open=is_open, is_patient=is_patient)
            if isinstance(outcome, RouteAnswer):
                if not is_open:
                    ticket.served()
                    self._world.open_requests.charged(request)
                outcome.held_s = max(self._world.clock() - request.arrived_at_s, 1e-9)
                return outcome
            reason = outcome.reason
            ticket.stays(_ending(outcome, patient_until_s))

    async def _attempt(
        self,
        request: Request,
        runtime: Runtime,
        line: HoldLine,
        ticket: Ticket | None = None,
        *,
        is_open: bool,
        is_patient: bool = True,
    ) -> RouteAnswer | Hold:
        """Decides and reserves; where no candidate fits any more, once again on the fresh loads.

        ``ticket`` is the request's place in its line, where it is held already; ``is_open`` says that the book has its
        id. One that is not patient has been the first for ever: no policy holds it at will.
        """
        if is_open and (standing := await self._standing(request, runtime)) is not None:
            return standing
        terms = self._terms(request, line, ticket)
        hold = _OTHERS_HELD
        for final in (False, True):
            snapshot = self.snapshot() if ticket is None else self._seen_by(request, line, is_patient=is_patient)
            if final or is_open or ticket is not None:
                request = self._world.prefixes.with_hits(request)
            guard = self._guard_of(runtime, request, snapshot.taken_at_s)
            guarded = self._decide(guard, request, snapshot, terms.batch)
            decision = guarded.decision
            if isinstance(decision, NoCandidate):
                raise NoInstanceError(decision.reason)
            if isinstance(decision, Hold):
                return self._world.trial.held(runtime, guard, request.request_id, decision, snapshot.taken_at_s)
            result = await self._reserve(request, decision, terms, guard=guard, final=final)
            if result.outcome is ReserveOutcome.YIELDED:
                line.has_yielded = True
                return Hold("another router holds a request that goes before this one")
            if result.reservation is not None:
                answer = self._answer(request, runtime, result.reservation, guarded, snapshot)
                if answer is not None:
                    if runtime.candidate is not None or self._world.decisions.is_on:
                        self._placed(runtime, Placed(request, snapshot, guard, guarded, result.outcome, answer))
                    return answer
                await self._take_back(result.reservation)
                hold = Hold(f"instance {result.reservation.instance_id} is gone")
                continue
            hold = Hold(f"the ledger answered {result.outcome.value} for {len(decision.candidates)} candidates")
        return hold

    def _seen_by(self, request: Request, line: HoldLine, *, is_patient: bool) -> PoolSnapshot:
        """The instances as a policy sees them now for a request that is held."""
        since_s = line.head_since_s if is_patient else -math.inf
        return replace(self.snapshot(), held=line.waiting(request), head_since_s=since_s)

    def _placed(self, runtime: Runtime, placed: Placed) -> None:
        self._world.trial.dispatched(self._world, runtime, placed)
        if self._world.decisions.is_on:
            self._world.decisions.decided(self._world, runtime, placed)

    def _guard_of(self, runtime: Runtime, request: Request, now_s: float) -> Guard:
        if self._world.is_degraded():
            return runtime.degraded
        return runtime.guard if runtime.candidate is None else self._world.trial.guard_of(runtime, request, now_s)

    def _terms(self, request: Request, line: HoldLine, ticket: Ticket | None) -> _Terms:
        if ticket is not None:
            return _Terms(ticket.claim(), self._holding.batch if ticket.fills_gap() else None)
        if self._world.is_alone and not request.batch:
            return _NO_TERMS
        claim = None if self._world.is_alone else line.claim_of(request, self._work_s)
        return _Terms(claim, self._holding.batch if request.batch else None)

    def _decide(self, guard: Guard, request: Request, snapshot: PoolSnapshot, batch: BatchRules | None) -> Guarded:
        """What the policy says, of instances that do not start slowly where one of them will do."""
        warm = self._world.warmed(snapshot)
        if warm is not None:
            guarded = self._decide_of(guard, request, warm, batch)
            if not isinstance(guarded.decision, Hold | NoCandidate):
                return guarded
        return self._decide_of(guard, request, snapshot, batch)

    def _decide_of(self, guard: Guard, request: Request, snapshot: PoolSnapshot, batch: BatchRules | None) -> Guarded:
        """What the policy says; where head-room is needed, of the instances that have it."""
        seen = snapshot if batch is None else batch.gaps(request, snapshot)
        if isinstance(seen, Hold):
            return Guarded(seen, guard.primary.name)
        guarded = guard.decide(request, seen, self._world.rng)
        self._world.metrics.decision_seconds.observe(guarded.elapsed_s)
        if guarded.fallback_reason is not None:
            self._world.metrics.fallbacks.labels(guarded.fallback_reason).inc()
            _log.debug("fallback decided", extra={"reason": guarded.fallback_reason, "detail": guarded.detail})
        for action in guarded.actions:
            self._world.metrics.guard_actions.labels(action).inc()
        return guarded

    async def _reserve(
        self, request: Request, decision: Placement, terms: _Terms, *, guard: Guard, final: bool
    ) -> ReserveResult:
        """The reserve call. A ledger of this process is asked for the first candidate alone before all of them."""
        tolerance = MOVED_TOLERANCE if decision.load_sensitive else None
        final = final and decision.load_sensitive
        candidates = decision.candidates
        if self._world.ledger.is_immediate and not final and len(candidates) > 1:
            first = bid_of(self._world, request, candidates[0], guard, terms.batch)
            alone = () if first is None else (first,)
            ask = reserve_ask(request, alone, tolerance=tolerance, final=False, claim=terms.claim)
            result = await self._commit(ask, counts=_DONE)
            if result.outcome in _DONE:
                return result
        bids = self._bids(request, candidates, guard, terms.batch)
        return await self._commit(reserve_ask(request, bids, tolerance=tolerance, final=final, claim=terms.claim))

    def _bids(
        self, request: Request, candidates: Sequence[Candidate], guard: Guard, batch: BatchRules | None
    ) -> tuple[Bid, ...]:
        made = [bid_of(self._world, request, candidate, guard, batch) for candidate in candidates]
        return tuple([bid for bid in made if bid is not None])

    async def _commit(self, ask: ReserveAsk, *, counts: frozenset[ReserveOutcome] = _EVERY) -> ReserveResult:
        """One reserve call; where the client leaves meanwhile, what it reserved is given back.

        An outcome that is among ``counts`` is counted.
        """
        world = self._world
        started_s, ledger = world.clock(), world.ledger
        if ledger.is_immediate:
            result = await ledger.reserve(ask)
        else:
            result = await world.unbroken.run(ledger.reserve(ask), abandoned=self._undo)
        world.metrics.state_backend_seconds.observe(world.clock() - started_s)
        if result.outcome in counts:
            world.metrics.reservations.labels(_LABELS[result.outcome]).inc()
        world.replica.absorb(result.loads)
        return result

    async def _standing(self, request: Request, runtime: Runtime) -> RouteAnswer | None:
        """The answer that a repeated request had already, if its reservation stands and its instance will do."""
        ask = reserve_ask(request, (), tolerance=None, final=False)
        reservation = (await self._commit(ask, counts=_STANDING)).reservation
        if reservation is None:
            return None
        answer = self._answer(request, runtime, reservation)
        if answer is None:
            await self._take_back(reservation)
        return answer

    async def _undo(self, result: ReserveResult) -> None:
        """The client has left before it was told: a new reservation goes, one from before stays in the book."""
        if result.reservation is None:
            return
        if result.outcome is ReserveOutcome.COMMITTED:
            await self._take_back(result.reservation)
        else:
            self._world.open_requests.opened(result.reservation, arrived_at_s=self._world.clock())

    async def _take_back(self, reservation: Reservation) -> None:
        if await self._world.release(reservation.request_id) is not None:
            self._world.metrics.reservations.labels("withdrawn").inc()
            self.kick()

    def _answer(
        self,
        request: Request,
        runtime: Runtime,
        reservation: Reservation,
        guarded: Guarded | None = None,
        seen: PoolSnapshot | None = None,
    ) -> RouteAnswer | None:
        """The answer, entered in the book; ``None`` where the reserved instance is gone or will not do.

        ``seen`` is the snapshot that ``guarded`` was decided on; both are ``None`` where an earlier call decided.
        """
        world, excluded = self._world, request.excluded_instance_ids
        chosen, prefill = world.instances.get(reservation.instance_id), None
        if chosen is None or chosen.instance_id in excluded:
            return None
        if needs_prefill(reservation):
            prefill = world.instances.get(reservation.prefill_instance_id)
            if prefill is None or prefill.instance_id in excluded:
                return None
        entry = world.open_requests.opened(reservation, arrived_at_s=request.arrived_at_s)
        dispatched(world, request, entry, chosen, prefill)
        if seen is not None and guarded is not None:
            note_cost(world, request, entry, seen, guarded.policy)
        return RouteAnswer(
            request.request_id,
            chosen.instance_id,
            chosen.endpoint,
            () if guarded is None else self._fallbacks(guarded.decision, chosen.instance_id),
            reservation.predicted_output_tokens,
            policy=guarded.policy if guarded else runtime.deciding,
            policy_digest=runtime.policy_digest,
            reason=guarded.decision.reason if guarded else "reserved by an earlier call with this request id",
            held_s=0.0,
            degraded=world.is_degraded(),
            prefill_instance_id="" if prefill is None else prefill.instance_id,
            prefill_endpoint="" if prefill is None else prefill.endpoint,
        )

    def _fallbacks(self, decision: Decision, chosen_id: str) -> tuple[tuple[str, str], ...]:
        """The next best candidates that are still there: ids and endpoints."""
        found: list[tuple[str, str]] = []
        for candidate in decision.candidates if isinstance(decision, Placement) else ():
            if candidate.instance_id != chosen_id:
                instance = self._world.instances.get(candidate.instance_id)
                if instance is not None:
                    found.append((instance.instance_id, instance.endpoint))
                    if len(found) == MAX_FALLBACKS:
                        break
        return tuple(found)


@quick
@dataclass(frozen=True, slots=True)
class _Terms:
    """What an attempt goes by beside its request: its claim against other routers', and head-room where it needs it."""

    claim: Claim | None = None
    batch: BatchRules | None = None


_NO_TERMS = _Terms()
_OTHERS_HELD = Hold("others are held already")


def _longest_hold(request: Request, policy: PolicyConfig, deadline_s: float | None) -> tuple[float, str]:
    """Until when a request may be held (s), and by whose word."""
    hold_s, field = policy.hold.max_wait_seconds, "hold.maxWaitSeconds"
    if request.batch:
        hold_s, field = policy.queue.batch.max_wait_seconds, "queue.batch.maxWaitSeconds"
    until_s = request.arrived_at_s + hold_s
    if deadline_s is not None and deadline_s < until_s:
        return deadline_s, "as long as the call's own deadline allows"
    return until_s, f"as long as the policy's {field} allows"


def _patient_until_s(request: Request, deadline_s: float | None) -> float:
    """Until when a request may be held at a policy's will for all that its call's own deadline says."""
    if deadline_s is None:
        return math.inf
    return request.arrived_at_s + MOST_OF_WAIT * (deadline_s - request.arrived_at_s)


def _ending(hold: Hold, latest_s: float) -> Hold:
    """A hold that ends at ``latest_s`` if it ends later."""
    return hold if hold.until_s is None or hold.until_s <= latest_s else replace(hold, until_s=latest_s)
