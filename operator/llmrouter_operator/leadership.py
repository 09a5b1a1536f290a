"""Which of several replicas acts: the holder of one Lease. The others stand by and take over when it falls silent.

A Lease needs no custom resource and three verbs in the operator's own namespace; kopf's peering needs a CRD, an object
of it and the right to change it in every namespace.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.models import LEASE

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter_operator.cluster import Cluster
    from llmrouter_operator.models import Object

logger = logging.getLogger(__name__)


class Holding(NamedTuple):
    """Who holds the Lease, and the mark of its last renewal."""

    holder: str
    renewed: str
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Sighting:
    """A holding as this replica saw it first, by its own clock: clocks of replicas are never compared."""

    holding: Holding
    seen_at_s: float

    def lapsed(self, now_s: float) -> bool:
        """Whether the holder has been silent for longer than it promised."""
        return not self.holding.holder or now_s - self.seen_at_s > self.holding.lasts_s


def holding_of(lease: Object) -> Holding:
    """Reads a Lease."""
    spec = lease.get("spec") or {}
    return Holding(
        holder=spec.get("holderIdentity") or "",
        renewed=spec.get("renewTime") or "",
        lasts_s=float(spec.get("leaseDurationSeconds") or 0),
    )


class Leadership:
    """Holds, awaits and gives back one Lease. ``identity`` must differ between replicas and restarts."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        name: str,
        identity: str,
        lease_s: int,
        clock_s: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._lease_s = lease_s
        self._clock_s = clock_s
        self._sighting: Sighting | None = None
        self._renewed_at_s = 0.0

    async def acquire(self) -> None:
        """Returns once this replica holds the Lease."""
        announced = False
        while not await self.attempt():
            if not announced and self._sighting is not None:
                announced = True
                logger.info("standing by: %s leads", self._sighting.holding.holder)
            await asyncio.sleep(self._lease_s / 5)
        logger.info("leading as %s", self._identity)

    async def keep(self) -> None:
        """Renews for as long as it can; returns when the Lease is lost, or before others may take it unrenewed."""
        while True:
            await asyncio.sleep(self._lease_s / 5)
            if await self.attempt():
                continue
            if self._sighting is not None and self._sighting.holding.holder not in {"", self._identity}:
                logger.error("lost the lease to %s", self._sighting.holding.holder)
                return
            if self._clock_s() - self._renewed_at_s > self._lease_s * 2 / 3:
                logger.error("could not renew the lease for %d s", self._lease_s * 2 / 3)
                return

    async def give_back(self) -> None:
        """Lets another replica lead at once."""
        try:
            lease = await self._cluster.get(LEASE, self._namespace, self._name)
            if lease is not None and holding_of(lease).holder == self._identity:
                lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._cluster.replace(LEASE, self._namespace, lease)
        except ClusterError as error:
            logger.warning("the lease lapses by itself: %s", error)

    async def attempt(self) -> bool:
        """Takes or renews the Lease where that is allowed; a conflict means that another replica was faster."""
        began_s = self._clock_s()
        try:
            async with asyncio.timeout(self._lease_s / 2):
                held = await self._take()
        except (ClusterError, TimeoutError) as error:
            if not (isinstance(error, ClusterError) and error.reason == "Conflict"):
                logger.warning("lease %s/%s: %s", self._namespace, self._name, error)
            return False
        if held:
            self._renewed_at_s = began_s
        return held

    async def _take(self) -> bool:
        lease = await self._cluster.get(LEASE, self._namespace, self._name)
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            lease = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata}
            await self._cluster.create(LEASE, self._namespace, {**lease, "spec": self._spec(0, None)})
            return True
        holding = holding_of(lease)
        if self._sighting is None or self._sighting.holding != holding:
            self._sighting = Sighting(holding, self._clock_s())
        mine = holding.holder == self._identity
        if not mine and not self._sighting.lapsed(self._clock_s()):
            return False
        spec = lease.get("spec") or {}
        changes = int(spec.get("leaseTransitions") or 0) + (0 if mine else 1)
        lease["spec"] = self._spec(changes, spec.get("acquireTime") if mine else None)
        await self._cluster.replace(LEASE, self._namespace, lease)
        return True

    def _spec(self, transitions: int, acquired: str | None) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._lease_s,
            "acquireTime": acquired or now,
            "renewTime": now,
            "leaseTransitions": transitions,
        }
