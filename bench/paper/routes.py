"""The routes of the paper's tables, by the names they have there, and those that stand beside them for reference."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.routing.paper import Dedicated, MaxCapacity
from llmrouter.routing.rooms import kv_gate, request_bound
from llmrouter.routing.rules import Rule
from llmrouter.sim.setup import CompiledPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.routing.policies import Policy

UNBOUNDED = 1_000_000_000
"""Requests in flight on an instance: engines queue by themselves."""


class Lengths(StrEnum):
    """What a route is told of output lengths: the paper's buckets, or the truth."""

    BUCKETS = "buckets"
    TRUE = "true"


@dataclass(frozen=True, slots=True)
class Route:
    """A policy of a table. ``reference``: not of the paper; ``make`` gives a fresh policy for every run."""

    name: str
    make: Callable[[], Policy | CompiledPolicy]
    lengths: Lengths = Lengths.BUCKETS
    reference: bool = False


def _free(rule: Rule) -> Callable[[], CompiledPolicy]:
    return lambda: CompiledPolicy(rule=rule, max_requests=UNBOUNDED)


def _gated(rule: Rule) -> Callable[[], CompiledPolicy]:
    return lambda: CompiledPolicy(rule=rule, max_requests=None, kv_fraction=1.0)


_ROUTES = (
    Route("RoundRobin", _free(Rule.ROUND_ROBIN)),
    Route("JSQ", _free(Rule.PAPER_JSQ)),
    Route("MaxCapacity", lambda: MaxCapacity(request_bound(UNBOUNDED))),
    Route("MinMin", _free(Rule.MIN_MIN)),
    Route("DecodeBalancer", _free(Rule.DECODE_BALANCER), Lengths.TRUE),
    Route("Dedicated", lambda: Dedicated(request_bound(UNBOUNDED)), Lengths.TRUE),
    Route("JSQ, true lengths", _free(Rule.PAPER_JSQ), Lengths.TRUE, reference=True),
    Route("MixingPenalty", _free(Rule.MIXING_PENALTY_SCALED), reference=True),
    Route("MaxCapacity + KV gate", lambda: MaxCapacity(kv_gate(1.0)), reference=True),
    Route("KV gate + random", _gated(Rule.RANDOM), reference=True),
    Route("KV gate + marginal cost", _gated(Rule.MARGINAL_COST), reference=True),
    Route("KV gate + marginal cost, true lengths", _gated(Rule.MARGINAL_COST), Lengths.TRUE, reference=True),
)

ROUTES = {route.name: route for route in _ROUTES}
"""By name, in the order of the tables."""

CLASSICAL = ("RoundRobin", "JSQ", "MaxCapacity", "MinMin", "DecodeBalancer")
REFERENCES = tuple(route.name for route in _ROUTES if route.reference)
SHORT_REFERENCES = ("MixingPenalty", "KV gate + random", "KV gate + marginal cost")
PROBES = ("RoundRobin", "JSQ", "KV gate + random", "KV gate + marginal cost")
"""What a variation of a cell is probed with."""
