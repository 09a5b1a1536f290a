"""A held request, what decides who goes first, and the work that it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.features import profile_features
from llmrouter.routing.orders import DEFAULT_AGING_S, Order, latest_start_s, order_key
from llmrouter.routing.rules import own_latency

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmrouter.domain import EngineProfile, Request

WAITING, LATE, GONE = 0, 1, 2
"""Stages of a held request: in its line, there and late (under ModifiedDueDate), and no longer there."""


@dataclass(frozen=True, slots=True)
class QueueRules:
    """What decides who goes first: an order and its aging time, and whether tenants take turns by their weights."""

    order: Order = Order.FIRST_COME_FIRST_SERVED
    aging_s: float = DEFAULT_AGING_S
    fair: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)


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

    def key(self, rules: QueueRules, now_s: float) -> float:
        """Its key at an instant."""
        return order_key(rules.order, now_s, self.request.arrived_at_s, self.size, self.due_at_s, rules.aging_s)


def least_work_s(request: Request, profiles: Iterable[EngineProfile]) -> float:
    """Seconds that a request would take alone on the fastest of these engines; infinite without any."""
    asked = (0.0, 0.0, 0.0, 0.0, request.prompt_tokens, request.predicted_output_tokens)
    return min((own_latency((*asked, *profile_features(one))) for one in profiles), default=np.inf)
