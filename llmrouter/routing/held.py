"""A held request, what decides who goes first, and the work that it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.batch import BatchRules
from llmrouter.routing.claims import Claim
from llmrouter.routing.features import profile_features
from llmrouter.routing.orders import DEFAULT_AGING_S, Order, latest_start_s, order_key, patient_key, standing
from llmrouter.routing.rules import own_latency

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmrouter.domain import EngineProfile, Request

WAITING, LATE, GONE = 0, 1, 2
"""Stages of a held request: in its line, there and late (under ModifiedDueDate), and no longer there."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """What decides who goes first: an order and its aging time, whether tenants take turns by their weights, batch."""

    order: Order = Order.FIRST_COME_FIRST_SERVED
    aging_s: float = DEFAULT_AGING_S
    fair: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    batch: BatchRules = field(default_factory=BatchRules)


@dataclass(slots=True, eq=False)
class Held:
    """A held request in its line. ``number`` counts up; ``work_s`` is the time it would take alone."""

    number: int
    request: Request
    work_s: float
    size: float = 0.0
    due_at_s: float = 0.0
    stage: int = WAITING

    @property
    def latest_start_s(self) -> float:
        """When it is late from."""
        return latest_start_s(self.request.arrived_at_s, self.size, self.due_at_s)

    @property
    def standing(self) -> int:
        """What goes before every order."""
        return standing(self.request.priority, self.request.batch)

    def order_in(self, rules: QueueRules) -> Order:
        """The order it is held in: the batch class goes first come, first served."""
        return Order.FIRST_COME_FIRST_SERVED if self.request.batch else rules.order

    def key(self, rules: QueueRules, now_s: float) -> float:
        """Its key at an instant."""
        return order_key(
            self.order_in(rules), now_s, self.request.arrived_at_s, self.size, self.due_at_s, rules.aging_s
        )

    def claim(self, rules: QueueRules, now_s: float) -> Claim:
        """What routers tell each other of whoever goes first in their lines."""
        times = (0.0, self.request.arrived_at_s - now_s, self.size, self.due_at_s - now_s, rules.aging_s)
        order = self.order_in(rules)
        return Claim(self.standing, order_key(order, *times), patient_key(order, *times))


def least_work_s(request: Request, profiles: Iterable[EngineProfile]) -> float:
    """Seconds that a request would take alone on the fastest of these engines; infinite without any."""
    asked = (0.0, 0.0, 0.0, 0.0, request.prompt_tokens, request.predicted_output_tokens)
    return min((own_latency((*asked, *profile_features(one), 0.0)) for one in profiles), default=np.inf)
