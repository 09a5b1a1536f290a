"""What a simulated run is made of: engines, the routers before them, and how old their views are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.domain import DECODE_RESERVE_FRACTION, BatchHold, ObjectiveWeights, Role
from llmrouter.errors import InvalidInputError
from llmrouter.routing.batch import BatchRules
from llmrouter.routing.fairness import LEAST_WEIGHT, MOST_WEIGHT
from llmrouter.routing.orders import DEFAULT_AGING_S, LONGEST_AGING_S, SHORTEST_AGING_S, Order

if TYPE_CHECKING:
    from llmrouter.routing.rules import Rule
    from llmrouter.routing.stages import StageRules
    from llmrouter.sim.model import EngineModel

MAX_ROUTERS = 1_000


class PrefixView(StrEnum):
    """What routers know of the prefix caches of engines that have one.

    ``INDEX``: what each router's own index says (``routing/prefixes.py``). ``SHARED``: one index for all routers.
    ``EXACT``: what the caches hold at the moment, as nobody can. ``UNKNOWN``: nothing.
    """

    UNKNOWN = "Unknown"
    INDEX = "Index"
    SHARED = "Shared"
    EXACT = "Exact"


SHORTEST_PERIOD_S = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSide:
    """The routers: how many, what they see and how old it is, how long a dispatch takes, how long they hold.

    Attributes:
        routers: arrivals go to them in turn.
        shared: whether the loads they see count everyone's dispatches, or each only its own.
        refresh_s: seconds between refreshes of a router's view; 0 where it always sees the loads of now.
        counts_own: whether a router adds its own dispatches to its view at once.
        reserves: whether shared views that age are compared with the loads of now, as the ledger's reserve call does:
            candidates that are full are passed over, and so are those that gained more than one request since the view
            where the policy looks at loads; where none is left the policy is asked once more. Either way the router
            knows the loads of all candidates afterwards.
        dispatch_s: seconds from the decision to the engine's front end.
        decision_every_s: above 0 a router decides only at multiples of it and places one request each time (the
            paper's 0.02 s).
        max_wait_s: longest hold; after it a request is shed.
        max_held: longest queue of one router; beyond it a request is shed.
        order: who of a line tries next for a place; see ``routing/orders.py``.
        aging_s: its τ.
        fair: whether the turn is that of the tenant who was served least, and each tenant may hold as many requests as
            there are free places; see ``routing/fairness.py``.
        prefixes: what they know of the engines' prefix caches.
        tenant_weights: names and weights of tenants; others have a weight of 1.
        batch: where and when requests of the batch class go; see ``routing/batch.py``.
        batch_max_wait_s: their longest hold.
        batch_max_held: how many of them one router holds at most.
        even: whether a router leaves a place to another one's held request that goes before its own, as the ledger's
            reserve call has it: where loads are shared, and either exact or compared by ``reserves``.
        stages: where prefill and decode are apart, the rules by which both instances of a request are picked at once,
            as routers do (``routing/stages.py``; localities are not simulated). ``None``: the policy picks who computes
            the prompt; when it is there the Decode instance with the least KV committed takes it.
    """

    routers: int = 1
    shared: bool = True
    refresh_s: float = 0.0
    counts_own: bool = True
    reserves: bool = True
    dispatch_s: float = 0.0
    decision_every_s: float = 0.0
    max_wait_s: float = math.inf
    max_held: int = 1_000_000
    order: Order = Order.FIRST_COME_FIRST_SERVED
    aging_s: float = DEFAULT_AGING_S
    fair: bool = False
    prefixes: PrefixView = PrefixView.INDEX
    tenant_weights: tuple[tuple[str, float], ...] = ()
    batch: BatchRules = field(default_factory=BatchRules)
    batch_max_wait_s: float = math.inf
    batch_max_held: int = 1_000_000
    even: bool = True
    stages: StageRules | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.routers <= MAX_ROUTERS:
            raise InvalidInputError(f"routers must be 1 to {MAX_ROUTERS}, not {self.routers}")
        for name in ("refresh_s", "dispatch_s", "decision_every_s"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise InvalidInputError(f"{name} must be finite and at least 0, not {value}")
        for name in ("refresh_s", "decision_every_s"):
            if 0 < getattr(self, name) < SHORTEST_PERIOD_S:
                raise InvalidInputError(f"{name} must be 0 or at least {SHORTEST_PERIOD_S}, not {getattr(self, name)}")
        if self.max_held < 1:
            raise InvalidInputError(f"max_held must be at least 1, not {self.max_held}")
        for name in ("max_wait_s", "batch_max_wait_s"):
            if not getattr(self, name) > 0:
                raise InvalidInputError(f"{name} must be above 0, not {getattr(self, name)}")
        self._check_order()

    def _check_order(self) -> None:
        if not SHORTEST_AGING_S <= self.aging_s <= LONGEST_AGING_S:
            raise InvalidInputError(f"aging_s must be {SHORTEST_AGING_S:g} to {LONGEST_AGING_S:g}, not {self.aging_s}")
        for name, weight in self.tenant_weights:
            if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
                raise InvalidInputError(
                    f"the weight of tenant {name!r} must be {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, not {weight}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Engines and routers of one run. Instance i is named ``f"{i:03d}"``.

    Attributes:
        engines: one per instance.
        routers: see ``RouterSide``.
        serves: for each instance the models it serves; empty: every instance serves every model of the workload.
        absent: places of instances that are not there when the run begins (``sim/replicas.py`` has them come).
    """

    engines: tuple[EngineModel, ...]
    routers: RouterSide = field(default_factory=RouterSide)
    serves: tuple[frozenset[str], ...] = ()
    absent: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not self.engines:
            raise InvalidInputError("a run needs at least one engine")
        if self.serves and len(self.serves) != len(self.engines):
            raise InvalidInputError(f"serves names {len(self.serves)} instances, not {len(self.engines)}")
        if unknown := self.absent - set(range(len(self.engines))):
            raise InvalidInputError(f"absent names instance {min(unknown)}, of {len(self.engines)}")
        roles = {engine.role for engine in self.engines}
        if self.routers.stages is not None:
            if roles == {Role.PREFILL}:
                raise InvalidInputError("a run with Prefill instances needs Decode or Mixed ones")
        elif roles == {Role.DECODE} or (Role.PREFILL in roles and Role.DECODE not in roles):
            raise InvalidInputError("a run with Prefill instances needs Decode ones, and the other way round")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPolicy:
    """A rule of ``routing/rules.py`` run by the compiled simulator: the same formula and room, far faster.

    Attributes:
        rule: the score, or one of the rules that the simulator itself follows (round-robin, random, power of two).
        weights: of the objective, in the order of ``WEIGHT_NAMES``; only the marginal cost reads them.
        max_requests: bound of the requests in flight on an instance; ``None`` takes the profile's ``max_sequences``.
        kv_fraction: share of an engine's KV that may be committed (the KV gate); ``None`` where KV is not bounded.
        decode_reserve_fraction: r of the gate.
        batch_hold: see ``routing/batching.py``; the longest hold is the router side's.
    """

    rule: Rule
    weights: tuple[float, ...] = ObjectiveWeights().in_order
    max_requests: int | None = 512
    kv_fraction: float | None = None
    decode_reserve_fraction: float = DECODE_RESERVE_FRACTION
    batch_hold: BatchHold = BatchHold()  # noqa: RUF009 - frozen
