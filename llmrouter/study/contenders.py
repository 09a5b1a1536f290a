"""The policies that are compared: a name, what it does in a line, how to make it, and who predicts for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.objectives import BATCH_HOLDS, DEFAULT_PRESET, PRESETS
from llmrouter.routing import rooms
from llmrouter.routing.catalogue import RULES, make_policy
from llmrouter.sim.setup import CompiledPolicy
from llmrouter.study.predictors import Predictor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.routing.policies import Policy

BASE = "RoundRobin"
"""What every change in percent is against."""

DEFAULT = "WorkloadImpact"
"""The product's default: the calibrated marginal cost behind the KV gate, as type Onnx runs it too."""

MAX_REQUESTS = 512
"""Bound of the requests in flight on an instance where KV is not bounded: ``spec.limits.maxInFlightPerInstance``."""


class Kind(StrEnum):
    """``BASELINE``: known from others, claims are against the best of them. ``BOUND``: knows true lengths. ``OURS``."""

    BASELINE = "baseline"
    OURS = "ours"
    BOUND = "bound"


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy under comparison.

    Attributes:
        name: as ``--policies`` takes it.
        kind: see ``Kind``.
        description: one line.
        make: a fresh policy for a run: nothing is carried from one run to the next.
        predictor: who predicts for it; ``None`` takes the run's.
        in_all: whether ``all`` names it.
    """

    name: str
    kind: Kind
    description: str
    make: Callable[[], Policy | CompiledPolicy]
    predictor: Predictor | None = None
    in_all: bool = True


_DEFAULTS = (PRESETS[DEFAULT_PRESET], BATCH_HOLDS[DEFAULT_PRESET])


def _bounded(policy: str) -> Callable[[], CompiledPolicy]:
    return lambda: CompiledPolicy(rule=RULES[policy], max_requests=MAX_REQUESTS)


def _gated(policy: str) -> Callable[[], CompiledPolicy]:
    return lambda: CompiledPolicy(rule=RULES[policy], max_requests=None, kv_fraction=1.0)


def _preset(name: str) -> Callable[[], CompiledPolicy]:
    """The marginal cost as a RoutingPolicy with this preset and nothing else has it."""
    return lambda: CompiledPolicy(
        rule=RULES[DEFAULT],
        weights=PRESETS[name].in_order,
        max_requests=None,
        kv_fraction=1.0,
        batch_hold=BATCH_HOLDS[name],
    )


def _baseline(name: str, description: str) -> Contender:
    return Contender(name, Kind.BASELINE, description, _bounded(name))


def _bound(name: str, description: str, make: Callable[[], Policy | CompiledPolicy]) -> Contender:
    return Contender(name, Kind.BOUND, description, make, Predictor.ORACLE)


def _served(name: str, description: str, *, kind: Kind, gated: bool, in_all: bool) -> Contender:
    """A policy that no rule of the compiled simulator stands for: the code that serves is asked at every decision."""
    room = rooms.kv_gate(1.0) if gated else rooms.request_bound(MAX_REQUESTS)
    policy = name.removesuffix("-as-served")
    return Contender(name, kind, description, lambda: make_policy(policy, room, *_DEFAULTS), in_all=in_all)


_CONTENDERS = (
    _baseline(BASE, "one instance after the other"),
    _baseline("Random", "any instance"),
    _baseline("PowerOfTwo", "the emptier of two drawn at random"),
    _baseline("LeastInFlight", "fewest requests in flight: JSQ by requests"),
    _baseline("LeastKvTokens", "fewest context tokens in flight"),
    _baseline("LMetric", "prefill tokens times batch size, its own included"),
    _baseline("PrefillLoad", "fewest prompt tokens still to prefill: llm-d's token load"),
    _baseline("TokenLoad", "token load and KV usage in equal parts: llm-d's weights"),
    _baseline("LeastTokensLeft", "fewest prompt and decode tokens left: the paper's JSQ"),
    _served("MaxCapacity", "largest free KV, once a second: the paper's", kind=Kind.BASELINE, gated=False, in_all=True),
    _baseline("MinMin", "earliest completion by the bucket's upper bound: the paper's"),
    _baseline("MixingPenalty", "the paper's mixing penalty, greedily, with its V100 constants"),
    _baseline("MixingPenaltyScaled", "the same with the engine's own prefill cost"),
    _baseline("OwnLatency", "least predicted latency of the request itself"),
    Contender("KvGate", Kind.BASELINE, "LeastInFlight; waits where KV is full", _gated("LeastInFlight")),
    Contender("KvGateRandom", Kind.BASELINE, "Random; waits where KV is full", _gated("Random")),
    _served(
        "Dedicated",
        "half of the instances for long answers: the paper's",
        kind=Kind.BASELINE,
        gated=False,
        in_all=False,
    ),
    Contender(
        "DecodeBalancer",
        Kind.BASELINE,
        "fewest predicted tokens still to decode",
        _bounded("DecodeBalancer"),
        in_all=False,
    ),
    Contender(DEFAULT, Kind.OURS, "marginal cost; waits where KV is full: the default", _preset(DEFAULT_PRESET)),
    Contender(f"{DEFAULT}-SLO", Kind.OURS, "the same, preset SLO", _preset("SLO")),
    Contender(f"{DEFAULT}-E2E", Kind.OURS, "the same, preset E2E", _preset("E2E")),
    _served(f"{DEFAULT}-as-served", "the same by the serving code", kind=Kind.OURS, gated=True, in_all=False),
    _bound("DecodeBalancer-oracle", "fewest true tokens still to decode: the paper's", _bounded("DecodeBalancer")),
    _bound("LeastTokensLeft-oracle", "LeastTokensLeft with true lengths", _bounded("LeastTokensLeft")),
    _bound("OwnLatency-oracle", "OwnLatency with true lengths", _bounded("OwnLatency")),
    _bound(f"{DEFAULT}-oracle", "the default with true lengths", _preset(DEFAULT_PRESET)),
)

CONTENDERS = {contender.name: contender for contender in _CONTENDERS}
"""By name, in the order of every table; ``BASE`` comes first."""

ALIASES = {"onnx": DEFAULT.casefold(), "marginal-cost": DEFAULT.casefold(), "marginalcost": DEFAULT.casefold()}
"""Other names of contenders: the one policy model that is shipped is the default's formula."""

QUICK = (BASE, "LeastInFlight", "LMetric", "KvGate", DEFAULT)
"""What a quick comparison compares."""


def contender(name: str) -> Contender:
    """The contender of a name or of one of ``ALIASES``, in any case; raises InvalidInputError listing all names."""
    known = {one.casefold(): found for one, found in CONTENDERS.items()}
    asked = name.strip().casefold()
    found = known.get(ALIASES.get(asked, asked))
    if found is None:
        raise InvalidInputError(f"no policy {name!r}; there is: {', '.join(CONTENDERS)}")
    return found


def chosen_contenders(names: str) -> tuple[Contender, ...]:
    """Contenders of a comma-separated list, of ``quick`` or of ``all``; the base is always among them, first.

    Raises:
        InvalidInputError: a name is none, or the list is empty.
    """
    wanted: Sequence[str] = [name for name in names.split(",") if name.strip()]
    if not wanted:
        raise InvalidInputError("--policies names none")
    if names == "all":
        return tuple(one for one in CONTENDERS.values() if one.in_all)
    if names == "quick":
        wanted = QUICK
    return tuple(dict.fromkeys((CONTENDERS[BASE], *(contender(name) for name in wanted))))
