"""Held requests: one line per model in the order of the policy, bounded, released by events and never by polling."""

from __future__ import annotations

import asyncio
import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain import SHORTEST_HOLD_S
from llmrouter.errors import SaturatedError
from llmrouter.routing.batch import batch_rules_of
from llmrouter.routing.fairness import may_join
from llmrouter.routing.lines import HeldLine, QueueRules
from llmrouter.routing.orders import ORDERS, Order
from router_grpc.prefixing import KEPT_BYTES_PER_BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmrouter.domain import Hold, Request
    from llmrouter.resources import QueueSpec
    from llmrouter.routing.batch import BatchRules
    from llmrouter.routing.claims import Claim
    from llmrouter.routing.lines import Held

RETRY_AFTER_S = 1.0

ORDERS_BY_LENGTH = frozenset({Order.SHORTEST_PREDICTED, Order.PREDICTED_RANK, Order.HIGHEST_RESPONSE_RATIO})
"""Orders that are worth no more than the predicted lengths are."""

CALL_BYTES = 16 * 1024
"""What a held call is counted for beside its prompt: its place in the line takes 2.5 KB (``bench/hold_line.py``), the
rest is for its task and its gRPC call.
"""

PROMPT_COPIES = 2
"""How often a held call keeps its prompt: in its message, and as the value made of it."""


def kept_bytes(prompt: bytes | None, prefix_hashes: Sequence[int] = ()) -> int:
    """Memory that a held call keeps, about."""
    return CALL_BYTES + PROMPT_COPIES * len(prompt or b"") + KEPT_BYTES_PER_BLOCK * len(prefix_hashes)


def rules_of(queue: QueueSpec) -> QueueRules:
    """A policy's queue as lines take it."""
    fairness = queue.fairness
    return QueueRules(
        order=ORDERS[queue.order],
        aging_s=queue.aging_seconds,
        fair=fairness.enabled,
        weights={one.tenant: one.weight for one in fairness.weights},
        batch=batch_rules_of(queue.batch),
    )


class Ticket:
    """A held request's place in its line. ``turn`` is set when it may try; ``stays`` says that it tried in vain."""

    def __init__(self, line: HoldLine, held: Held, kept: int) -> None:
        self.line = line
        self.held = held
        self.kept_bytes = kept
        self.turn = asyncio.Event()

    def stays(self, hold: Hold | None = None) -> None:
        """There was no place: whoever goes first tries at the next event, or now if there was one meanwhile.

        It tries without one as ``hold`` says, what the policy answered.
        """
        self.turn.clear()
        self.line.tried(self, hold)

    def served(self) -> None:
        """There was one: its tenant pays."""
        self.line.charge(self.held.request)

    def fills_gap(self) -> bool:
        """Whether it may go only where it leaves head-room."""
        return self.line.fills_gap(self.held)

    def claim(self) -> Claim | None:
        """What it says against what other routers hold."""
        return self.line.claim_to(self.held)


class HoldLine:
    """One line of held requests. Who goes first may try for a place, one at a time; an event lets it try again.

    So does what the policy named when it had to stay: an instant, or a length of the line. A request that joins may try
    at once where it goes before the one that tried last.
    """

    def __init__(self, rules: QueueRules, clock: Callable[[], float]) -> None:
        self._line = HeldLine(rules)
        self._clock = clock
        self._tickets: dict[Held, Ticket] = {}
        self._trying: Ticket | None = None
        self._last: Held | None = None
        self._again = False
        self._events = 0
        self._head_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until_held: int | None = None
        self.kept_bytes = 0
        self.batch_kept_bytes = 0
        self.has_yielded = False

    def __len__(self) -> int:
        return len(self._line)

    @property
    def events(self) -> int:
        """How many events there were: compare before and after an attempt, so that none is missed."""
        return self._events

    @property
    def trying(self) -> Ticket | None:
        """Who has the turn."""
        return self._trying

    @property
    def head_since_s(self) -> float | None:
        """Since when nobody has left the line as its first; ``None`` in an empty line."""
        return self._head_since_s

    @property
    def batch_held(self) -> int:
        """How many of its requests are of the batch class."""
        return self._line.batch_held

    def waiting(self, request: Request) -> int:
        """How many requests wait as a request does, itself included where it is held: the batch class waits apart."""
        return self._line.batch_held if request.batch else len(self._line) - self._line.batch_held

    def fills_gap(self, held: Held) -> bool:
        """Whether a request may go only where it leaves head-room."""
        return self._line.fills_gap(held, self._clock())

    def claim_of(self, request: Request, work_s: Callable[[Request], float]) -> Claim | None:
        """What a request may say against those that other routers hold; ``None`` where it must not keep them waiting.

        One that leaves instances out may have to wait for others than those that have room.
        """
        if request.excluded_instance_ids:
            return None
        return self._line.claim_of(request, work_s(request) if self._line.weighs_work else 1.0, self._clock())

    def claim_to(self, held: Held) -> Claim | None:
        """The same of one that is held."""
        return None if held.request.excluded_instance_ids else self._line.claim(held, self._clock())

    def claim(self) -> Claim | None:
        """What other routers are told of whoever goes first."""
        best = self._line.best(self._clock())
        return None if best is None else self.claim_to(best)

    def settle(self, tenant: str, predicted_output_tokens: float, output_tokens: float) -> None:
        """An answer has ended: its tenant pays for what there was."""
        self._line.settle(tenant, predicted_output_tokens, output_tokens)

    def kick(self) -> None:
        """Something changed that may have made room."""
        self._events += 1
        self.has_yielded = False
        if self._tickets:
            self._next()

    def follow(self, rules: QueueRules) -> None:
        """Other rules, for who is held as well."""
        self._line.follow(rules)

    def held_by(self, tenant: str) -> int:
        """How many requests a tenant has here."""
        return self._line.held_by(tenant)

    def charge(self, request: Request) -> None:
        """Charges a request's tenant for the dispatch of a held request."""
        self._line.charge(request)

    def pass_by(self, request: Request) -> None:
        """A request was dispatched without being held."""
        self._line.pass_by(request)

    def tried(self, ticket: Ticket, hold: Hold | None) -> None:
        """A ticket that had the turn has to stay, until an event or as ``hold`` says."""
        self._trying, self._last = None, ticket.held
        if self._again:
            self._next()
        else:
            self._wait(hold)

    @contextmanager
    def ticket(
        self, request: Request, *, work_s: float, kept: int, since: int, hold: Hold | None = None
    ) -> Iterator[Ticket]:
        """Joins the line for the length of a ``with``.

        Whoever joins an empty line after events that followed ``since``, the ``events`` before its own attempt, may try
        again at once; else as ``hold`` says, which that attempt was told, if no event comes before.
        """
        held = self._line.add(request, work_s)
        ticket = self._tickets[held] = Ticket(self, held, kept)
        self.kept_bytes += kept
        self.batch_kept_bytes += kept * request.batch
        self._joined(held, missed=self._events != since, hold=hold)
        try:
            yield ticket
        finally:
            self._line.remove(held)
            del self._tickets[held]
            self.kept_bytes -= kept
            self.batch_kept_bytes -= kept * request.batch
            if self._trying is ticket or self._last is held:
                self._head_since_s = self._clock()
            if self._trying is ticket:
                self._trying = None
            self._next()

    def _joined(self, held: Held, *, missed: bool, hold: Hold | None) -> None:
        if len(self._line) == 1:
            self._last, self._head_since_s = held, self._clock()
            if missed:
                self._next()
            else:
                self._wait(hold)
            return
        if self._until_held is not None and len(self._line) >= self._until_held:
            self._next()
            return
        rival = self._trying.held if self._trying is not None else self._last
        if rival is None or self._line.goes_before(held, rival, self._clock()):
            self._next()

    def _next(self) -> None:
        """Gives the turn to whoever goes first, after the attempt that is under way if there is one."""
        self._again = self._trying is not None
        if self._again:
            return
        self._wait(None)
        best = self._line.best(self._clock())
        if best is None:
            self._head_since_s = None
        else:
            self._trying = self._tickets[best]
            self._trying.turn.set()

    def _wait(self, hold: Hold | None) -> None:
        """Lets whoever goes first then try as ``hold`` says; what was said before is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        until_s, self._until_held = (None, None) if hold is None else (hold.until_s, hold.until_held)
        if until_s is not None and math.isfinite(until_s) and (left_s := until_s - self._clock()) > 0:
            self._timer = asyncio.get_running_loop().call_later(max(left_s, SHORTEST_HOLD_S), self._next)


class Holding:
    """All lines of a router, and the bounds of what they hold together."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rules = QueueRules()
        self._lines: dict[str, HoldLine] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    @property
    def kept_bytes(self) -> int:
        """Memory that held requests keep, about."""
        return sum(line.kept_bytes for line in self._lines.values())

    @property
    def order(self) -> Order:
        """The order in force."""
        return self._rules.order

    @property
    def batch(self) -> BatchRules:
        """Where and when the batch class goes."""
        return self._rules.batch

    @property
    def has_yielded(self) -> bool:
        """Whether a line has left a place to another router since it last tried."""
        return any(line.has_yielded for line in self._lines.values())

    def claims(self) -> dict[str, Claim]:
        """What other routers are told of whoever goes first, by model."""
        claims = ((model, line.claim()) for model, line in self._lines.items())
        return {model: claim for model, claim in claims if claim is not None}

    def line(self, model: str) -> HoldLine:
        """The line of a model."""
        line = self._lines.get(model)
        if line is None:
            line = self._lines[model] = HoldLine(self._rules, self._clock)
        return line

    def kick(self) -> None:
        """Lets whoever goes first in each line try again."""
        for line in self._lines.values():
            line.kick()

    def follow(self, queue: QueueSpec, *, lengths_order_well: bool = True) -> None:
        """Another policy's queue, for who is held as well; its bounds are for those that come.

        Where predicted lengths do not order well, an order by them gives way to first come, first served.
        """
        rules = rules_of(queue)
        if rules.order in ORDERS_BY_LENGTH and not lengths_order_well:
            rules = replace(rules, order=Order.FIRST_COME_FIRST_SERVED)
        if rules != self._rules:
            self._rules = rules
            for line in self._lines.values():
                line.follow(rules)

    def check_bounds(self, request: Request, queue: QueueSpec, kept: int) -> None:
        """Raises SaturatedError naming the bound that one more held request would break."""
        held = len(self)
        if held >= queue.max_depth:
            raise SaturatedError(
                f"{held} requests are held already, the policy's queue.maxDepth is {queue.max_depth}",
                reason="QueueFull",
                retry_after_s=RETRY_AFTER_S,
            )
        if self.kept_bytes + kept > queue.max_bytes:
            raise SaturatedError(
                f"held requests keep {self.kept_bytes} bytes and this one {kept}, the policy's queue.maxBytes is "
                f"{queue.max_bytes}",
                reason="QueueBytes",
                retry_after_s=RETRY_AFTER_S,
            )
        if request.batch:
            self._check_batch(queue, kept)
        own = self.line(request.model).held_by(request.tenant)
        if queue.fairness.enabled and not may_join(own, held, queue.max_depth):
            raise SaturatedError(
                f"{own} requests of the tenant are held already and {queue.max_depth - held} places are free: a tenant "
                f"may hold as many as are free",
                reason="TenantQueueFull",
                retry_after_s=RETRY_AFTER_S,
            )

    def _check_batch(self, queue: QueueSpec, kept: int) -> None:
        """The same for the share of both bounds that the batch class may take."""
        share, lines = queue.batch.depth_fraction, self._lines.values()
        held, kept_bytes = sum(line.batch_held for line in lines), sum(line.batch_kept_bytes for line in lines)
        if held >= share * queue.max_depth or kept_bytes + kept > share * queue.max_bytes:
            raise SaturatedError(
                f"{held} batch requests of {kept_bytes} bytes are held already, the policy's queue.batch.depthFraction "
                f"leaves them {share:g} of {queue.max_depth} places and {queue.max_bytes} bytes",
                reason="BatchQueueFull",
                retry_after_s=RETRY_AFTER_S,
            )
