"""Learns the step times of every pool from what passes through this router, and keeps them for its successors.

Decisions see profiles that are corrected by what is learned, as far as each pool's ``profile.calibrate`` lets them:
``believed`` makes them, once a second, and the replica's views carry them.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from llmrouter.errors import InvalidInputError
from llmrouter.metrics import MAX_INSTANCE_LABELS
from llmrouter.routing.calibration import COEFFICIENTS, Calibration, ClassCalibration, Frozen, Refusal
from llmrouter.routing.calibration_intervals import Intervals
from llmrouter.routing.calibration_use import Calibrate, UsedProfiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmrouter.domain import Instance, Reservation
    from llmrouter.metrics import CalibrationMetrics
    from llmrouter.routing.calibration import Observation
    from router_grpc.replica import LoadReplica

SAVE_EVERY_S = 30.0
MAX_POOLS = 64

_log = logging.getLogger(__name__)


class CalibrationStore(Protocol):
    """Where what is learned outlives a router; every method raises LedgerUnavailableError."""

    async def load(self, pool: str) -> bytes | None:
        """What was saved last of a pool."""
        ...

    async def save(self, pool: str, raw: bytes) -> None:
        """Replaces it: all routers observe the same engines, and any one's knowledge will do."""
        ...


class Calibrating:
    """The calibrations of one router, by pool. Methods belong to the event loop.

    Args:
        store: where to begin from and to save; ``None`` where a router begins with the profile.
    """

    def __init__(self, store: CalibrationStore | None = None) -> None:
        self._store = store
        self._pools: dict[str, ClassCalibration] = {}
        self._refused: dict[tuple[str, Refusal], int] = {}
        self._intervals = Intervals(self._learn)
        self._loaded: dict[str, ClassCalibration] = {}
        self._saved: dict[str, int] = {}
        self._saved_at_s: float | None = None
        self._shown: set[tuple[str, str]] = set()
        self._calibrate: dict[str, Calibrate] = {}
        self._used: dict[str, UsedProfiles] = {}
        self._believed: dict[str, tuple[Instance, Instance]] = {}
        self._believed_at_s: float | None = None

    def __len__(self) -> int:
        """Requests that are watched now."""
        return len(self._intervals)

    def of(self, pool: str) -> Calibration | None:
        """What is known of a pool's engines; ``None`` before its first request."""
        known = self._pools.get(pool)
        return None if known is None else known.calibration

    def told(self, instance_ids: Iterable[str]) -> Mapping[str, tuple[Calibrate, Calibration]]:
        """By pool, what decisions use of what is known, and what is known; of instances, those of ``instance_ids``.

        Slowness is that which may be believed; pools that nothing was learned of are left out.
        """
        current = set(instance_ids)
        told = {}
        for pool, known in self._pools.items():
            if known.observations:
                slowness = {name: one for name, one in known.belief.slowness.items() if name in current}
                told[pool] = self.calibrate_of(pool), replace(known.calibration, slowness=slowness)
        return told

    def calibrate_of(self, pool: str) -> Calibrate:
        """What decisions use of what is learned of a pool."""
        return self._calibrate.get(pool, Calibrate.NONE)

    def follow(self, calibrate: Mapping[str, Calibrate]) -> None:
        """What decisions use of each pool from now on; nothing of a pool that is not named."""
        self._calibrate = dict(calibrate)

    def believed(self, instances: Iterable[Instance], *, now_s: float) -> Mapping[str, tuple[Instance, Instance]]:
        """Instances that decisions see with another profile than the declared one: by id, as declared and as seen.

        To be asked once a second. An instance stays the same object until what was learned of it moved.
        """
        for known in self._pools.values():
            known.rest(0.0 if self._believed_at_s is None else now_s - self._believed_at_s)
        self._believed_at_s = now_s
        current = tuple(instances)
        for instance in {one.pool: one for one in current}.values():
            known, used = self._pool(instance), self._used.get(instance.pool)
            if used is None or used.profile != instance.profile:
                used = self._used[instance.pool] = UsedProfiles(instance.profile)
            used.follow(known.belief, self.calibrate_of(instance.pool))
        self._believed = {one.instance_id: pair for one in current if (pair := self._pair(one)) is not None}
        return self._believed

    def _pair(self, instance: Instance) -> tuple[Instance, Instance] | None:
        used = self._used.get(instance.pool)
        if used is None or used.profile != instance.profile:
            return None
        profile = used.of(instance.instance_id)
        if profile is used.profile:
            return None
        before = self._believed.get(instance.instance_id)
        if before is not None and before[0] == instance and before[1].profile is profile:
            return before
        return instance, replace(instance, profile=profile)

    def dispatched(self, reservation: Reservation, instance: Instance, replica: LoadReplica, *, now_s: float) -> None:
        """This router answered with a reservation, which the replica counts."""
        if reservation.prefilled or reservation.generated_tokens:
            return  # taken over from another router: what was before is not known
        self._pool(instance)
        computed, is_alone = 0, replica.load_of(instance.instance_id).requests <= 1
        if not reservation.prefill_instance_id:
            computed = max(1, reservation.prompt_tokens - reservation.cached_tokens)
        if is_alone:
            is_alone = not replica.view(instance, now_s=now_s).foreign.requests
        self._intervals.dispatched(
            reservation.request_id, instance, prompt_tokens=computed, alone=is_alone, now_s=now_s
        )

    def advanced(self, request_id: str, output_tokens: int | None, *, now_s: float) -> None:
        """A first token, or progress."""
        self._intervals.advanced(request_id, output_tokens or 1, now_s=now_s)

    def ended(self, request_id: str, output_tokens: int | None, *, now_s: float) -> None:
        """A request is over; its tokens where its client said them."""
        self._intervals.ended(request_id, output_tokens, now_s=now_s)

    def refreshed(self, replica: LoadReplica, *, now_s: float) -> None:
        """The replica's loads are those of now, and those of all routers."""
        self._intervals.refreshed(lambda instance: replica.view(instance, now_s=now_s), now_s=now_s)

    def show(self, metrics: CalibrationMetrics, instance_ids: Iterable[str]) -> None:
        """Sets the gauges; of instances, those of ``instance_ids``, at most ``MAX_INSTANCE_LABELS``."""
        current = set(islice(instance_ids, MAX_INSTANCE_LABELS))
        shown = set()
        for pool, known in self._pools.items():
            calibration = known.calibration
            _show(metrics, pool, calibration)
            used = self._used.get(pool)
            metrics.in_use.labels(pool, "coefficients").set(used is not None and used.uses_coefficients)
            metrics.in_use.labels(pool, "slowness").set(used is not None and used.uses_slowness)
            for instance_id in current & calibration.slowness.keys():
                metrics.slowness.labels(pool, instance_id).set(calibration.slowness[instance_id])
                shown.add((pool, instance_id))
        for labels in self._shown - shown:
            metrics.slowness.remove(*labels)
        self._shown = shown
        for (pool, reason), count in self._refused.items():
            metrics.refused.labels(pool, reason.value).set(count)

    async def keep(self, now_s: float) -> None:
        """Takes up what was saved of pools that are new here, and saves what was learned, each 30 s.

        Raises:
            LedgerUnavailableError: the store does not answer; it is tried again.
        """
        if self._store is None:
            return
        for pool, known in list(self._pools.items()):
            if self._loaded.get(pool) is not known:
                self._take_up(pool, known, await self._store.load(pool))
                self._loaded[pool] = known
        if self._saved_at_s is not None and 0.0 <= now_s - self._saved_at_s < SAVE_EVERY_S:
            return
        self._saved_at_s = now_s
        for pool, known in list(self._pools.items()):
            observations = known.observations
            if observations > self._saved.get(pool, 0):
                await self._store.save(pool, json.dumps(known.state()).encode())
                self._saved[pool] = observations

    def _take_up(self, pool: str, known: ClassCalibration, raw: bytes | None) -> None:
        if raw is None:
            return
        try:
            if known.restore(_object(json.loads(raw))):
                self._saved[pool] = known.observations
                _log.info("calibration taken up", extra={"pool": pool})
        except (InvalidInputError, ValueError) as error:  # it begins with the profile, and is saved over
            _log.warning("saved calibration is not used", extra={"pool": pool, "error": str(error)[:500]})

    def _pool(self, instance: Instance) -> ClassCalibration:
        known, profile = self._pools.get(instance.pool), instance.profile
        if known is None or (known.profile is not profile and known.profile != profile):
            if known is None and len(self._pools) >= MAX_POOLS:
                gone = next(iter(self._pools))
                del self._pools[gone]
                self._used.pop(gone, None)
            known = self._pools[instance.pool] = ClassCalibration(profile)
            self._saved.pop(instance.pool, None)
        return known

    def _learn(self, instance: Instance, observation: Observation) -> None:
        known = self._pools.get(instance.pool)
        if known is None or known.profile != instance.profile:
            return  # measured under a profile that is not the pool's any more
        refused = known.learn(observation)
        if refused is not None:
            key = instance.pool, refused
            self._refused[key] = self._refused.get(key, 0) + 1


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidInputError("calibration state: must be an object")
    return value


def _show(metrics: CalibrationMetrics, pool: str, calibration: Calibration) -> None:
    learned, profile = calibration.relative_residual, calibration.profile_residual
    metrics.residual.labels(pool, "learned").set(math.nan if learned is None else learned)
    metrics.residual.labels(pool, "profile").set(math.nan if profile is None else profile)
    metrics.observations.labels(pool).set(calibration.observations)
    for name in COEFFICIENTS:
        metrics.ratio.labels(pool, name).set(calibration.ratios[name])
        metrics.learned.labels(pool, name).set(calibration.learned[name])
    for reason in Frozen:
        metrics.frozen.labels(pool, reason.value).set(calibration.frozen is reason)
