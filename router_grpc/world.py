"""What the services of one router stand on, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmrouter.planning.mix import Mixes
from llmrouter.routing.inflight import contribution, prefill_contribution
from llmrouter.routing.outliers import Outliers
from llmrouter.routing.slow_start import SlowStart
from router_grpc.arms import Trial
from router_grpc.calibrating import Calibrating
from router_grpc.decision_log import DecisionLog
from router_grpc.prefixing import Prefixing
from router_grpc.presuming import Presuming
from router_grpc.unbroken import Unbroken

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from llmrouter.domain import EngineSignal, Instance, PoolSnapshot, Reservation
    from llmrouter.metrics import RouterMetrics
    from router_grpc.length_service import LengthService
    from router_grpc.open_requests import OpenRequests
    from router_grpc.ports import InstanceSource, Ledger
    from router_grpc.replica import LoadReplica


class Without:
    """Instances without some of them: one tuple for as long as both stand, so that what others keep of it stands."""

    def __init__(self) -> None:
        self._every: Sequence[Instance] = ()
        self._out: frozenset[str] = frozenset()
        self._left: tuple[Instance, ...] = ()

    def of(self, instances: Sequence[Instance], out: frozenset[str]) -> Sequence[Instance]:
        """The instances but for those whose ids are ``out``."""
        if not out:
            return instances
        if instances is not self._every or out != self._out:
            self._every, self._out = instances, out
            self._left = tuple([one for one in instances if one.instance_id not in out])
        return self._left


@dataclass(frozen=True, slots=True)
class World:
    """The shared parts of a router; one event loop's.

    ``is_alone`` says that no other router dispatches to its instances, so that its book has all requests in flight.
    """

    ledger: Ledger
    is_degraded: Callable[[], bool]
    replica: LoadReplica
    instances: InstanceSource
    open_requests: OpenRequests
    lengths: LengthService
    metrics: RouterMetrics
    clock: Callable[[], float]
    rng: random.Random
    unbroken: Unbroken = field(default_factory=Unbroken)
    mix: Mixes = field(default_factory=Mixes)
    calibrating: Calibrating = field(default_factory=Calibrating)
    prefixes: Prefixing = field(default_factory=Prefixing)
    is_alone: bool = False
    outliers: Outliers = field(default_factory=Outliers)
    presuming: Presuming = field(default_factory=Presuming)
    slow_start: SlowStart = field(default_factory=SlowStart)
    decisions: DecisionLog = field(default_factory=DecisionLog)
    trial: Trial = field(default_factory=Trial)
    without: Without = field(default_factory=Without)

    def ready(self) -> Sequence[Instance]:
        """Instances that may get a request now: those that are ready, without outliers and those that are to go."""
        out = self.outliers.left_out(now_s=self.clock()) | self.instances.draining
        return self.without.of(self.instances.current(), out)

    def warmed(self, snapshot: PoolSnapshot) -> PoolSnapshot | None:
        """The snapshot without instances that have their share while they start slowly; ``None`` where that is all."""
        if not self.slow_start.is_ramping:
            return None
        pools: dict[str, list[str]] = {}
        for view in snapshot.views:
            pools.setdefault(view.instance.pool, []).append(view.instance.instance_id)
        full = frozenset[str]().union(
            *(
                self.slow_start.satisfied(
                    ids, lambda one: self.replica.load_of(one).requests, now_s=snapshot.taken_at_s
                )
                for ids in pools.values()
            )
        )
        if not full:
            return None
        return replace(snapshot, views=tuple(one for one in snapshot.views if one.instance.instance_id not in full))

    def answered(self, instance_id: str, request_id: str) -> None:
        """Something of a request came back: one that was left out for its failures begins anew, slowly."""
        if self.outliers.answered(instance_id, request_id):
            self.slow_start.began(instance_id, now_s=self.clock())

    def heard(self, instance: Instance, signal: EngineSignal) -> None:
        """An engine reports."""
        self.presuming.note_signal(self, instance.instance_id, signal)
        self.replica.note_signal(instance, signal)

    async def release(self, request_id: str) -> Reservation | None:
        """Takes a reservation out of the ledger, the replica and the book; ``None`` where the ledger knows none."""
        released = await self.ledger.release(request_id)
        self.open_requests.closed(request_id)
        self.calibrating.ended(request_id, None, now_s=self.clock())
        if released is not None:
            self.replica.subtract(released.instance_id, contribution(released))
            if (part := prefill_contribution(released)) is not None:
                self.replica.subtract(released.prefill_instance_id, part)
        return released
