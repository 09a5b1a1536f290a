"""Learned step times in the status: of what routers say, merged by pool, and written seldom."""

from __future__ import annotations

from collections import defaultdict
from statistics import median_low
from typing import TYPE_CHECKING

from llmrouter.acknowledgement import MAX_SLOW
from llmrouter_operator.instants import seconds_of
from llmrouter_operator.lately import said_lately
from llmrouter_operator.models import Note

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmrouter.acknowledgement import RouterAcknowledgement, RouterCalibration
    from llmrouter_operator.models import Object

WRITTEN_AFTER_S = 300.0
"""After so long it is written anew though it has hardly moved."""

SLOW, NO_LONGER_SLOW = 1.5, 1.3
"""Times as slow as its pool at which an instance is told of, and below which it is not any more."""

MOVED_SLOWNESS, MOVED_RESIDUAL = 0.1, 0.05
"""Share of a slowness, and residual, by which it has to move to be written at once."""

_RESIDUALS = ("relativeResidual", "profileResidual")


def calibration_status(old: Object | None, said: Iterable[RouterAcknowledgement], now: str) -> Object | None:
    """``status.calibration``; ``None`` where routers said nothing lately, or learned nothing.

    ``old`` is what the status has, and stays as it is while nothing has moved much. ``now`` is an RFC 3339 instant.
    """
    at_s = seconds_of(now)
    by_pool: dict[str, list[RouterCalibration]] = defaultdict(list)
    for one in said_lately(said, at_s):
        for known in one.calibration:
            by_pool[known.pool].append(known)
    if not by_pool:
        return None
    was_slow = _slow(old)
    pools = [_merged(pool, known, was_slow) for pool, known in sorted(by_pool.items())]
    new: Object = {"pools": pools, "observedAt": now}
    return new if old is None or _is_due(old, new, at_s) else old


def slow_notes(old: Object | None, new: Object | None) -> list[Note]:
    """Events for instances that became slow, and for those that are so no more while their pool is still known."""
    before, after = _slow(old), _slow(new)
    known = {pool["pool"] for pool in (new or {}).get("pools", ())}
    notes = [
        Note("SlowInstance", f"instance {name} of pool {pool}: steps take {slowness:g} times as long", warning=True)
        for (pool, name), slowness in after.items()
        if (pool, name) not in before
    ]
    notes += [
        Note("InstanceNotSlow", f"instance {name} of pool {pool} is not slower than others any more")
        for pool, name in before
        if (pool, name) not in after and pool in known
    ]
    return notes


def _merged(pool: str, known: list[RouterCalibration], was_slow: dict[tuple[str, str], float]) -> Object:
    """One pool: residuals by what each router saw, slowness as the median router has it."""
    best = max(known, key=lambda one: one.observations)
    merged: Object = {
        "pool": pool,
        "calibrate": best.calibrate,
        "observations": int(float(f"{sum(one.observations for one in known):.2g}")),
    }
    for name, values in (
        (_RESIDUALS[0], [(one.relative_residual, one.observations) for one in known]),
        (_RESIDUALS[1], [(one.profile_residual, one.observations) for one in known]),
    ):
        if (mean := _mean(values)) is not None:
            merged[name] = mean
    if frozen := sorted({one.frozen for one in known if one.frozen}):
        merged["frozen"] = frozen[0]
    slowness = {
        name: median_low([one.slow.get(name, 1.0) for one in known])
        for name in {name for one in known for name in one.slow}
    }
    slow = [
        {"instance": name, "slowness": value}
        for name, value in sorted(slowness.items(), key=lambda item: (-item[1], item[0]))
        if value >= (NO_LONGER_SLOW if (pool, name) in was_slow else SLOW)
    ]
    return merged | ({"slowInstances": slow[:MAX_SLOW]} if slow else {})


def _mean(values: list[tuple[float | None, int]]) -> float | None:
    said = [(value, count) for value, count in values if value is not None and count > 0]
    return round(sum(value * count for value, count in said) / sum(count for _, count in said), 2) if said else None


def _slow(status: Object | None) -> dict[tuple[str, str], float]:
    """Slow instances that a status names, by pool and name."""
    return {
        (pool["pool"], one["instance"]): one.get("slowness", SLOW)
        for pool in (status or {}).get("pools", ())
        for one in pool.get("slowInstances", ())
    }


def _is_due(old: Object, new: Object, at_s: float) -> bool:
    """Whether anything has moved, or was written long ago, or is none."""
    if old.keys() != new.keys() or not 0.0 <= at_s - _written_at_s(old) < WRITTEN_AFTER_S:
        return True
    slow_before, slow_now = _slow(old), _slow(new)
    if slow_before.keys() != slow_now.keys():
        return True
    if any(abs(value - slow_before[key]) > MOVED_SLOWNESS * slow_before[key] for key, value in slow_now.items()):
        return True
    before = {pool["pool"]: pool for pool in old["pools"]}
    return before.keys() != {pool["pool"] for pool in new["pools"]} or any(
        _has_moved(before[pool["pool"]], pool) for pool in new["pools"]
    )


def _has_moved(before: Object, now: Object) -> bool:
    if before.keys() != now.keys() or any(before.get(name) != now.get(name) for name in ("calibrate", "frozen")):
        return True
    return any(abs(now.get(name, 0.0) - before.get(name, 0.0)) > MOVED_RESIDUAL for name in _RESIDUALS)


def _written_at_s(status: Object) -> float:
    return seconds_of(status["observedAt"])
