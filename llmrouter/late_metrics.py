"""Counters and histograms that are told of events by one append, and count them when somebody looks.

``prometheus_client`` takes a lock and goes through the buckets at every event: a router has dozens of them a request.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import Counter, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.samples import Sample

MOST_KEPT = 512
"""Events that wait to be counted, at most, in each series."""


class LateCounter(Counter):
    """A ``Counter``; any thread may count, whatever another does meanwhile."""

    _late: list[float]

    def _metric_init(self) -> None:
        super()._metric_init()
        self._late, self._counting = [], Lock()

    def inc(self, amount: float = 1.0, exemplar: dict[str, str] | None = None) -> None:
        """Counts; raises ValueError where the amount is negative. Exemplars are not kept."""
        del exemplar
        if amount < 0:
            raise ValueError("a counter only goes up")
        late = self._late
        late.append(amount)
        if len(late) >= MOST_KEPT:
            self._count()

    def _count(self) -> None:
        with self._counting:
            self._value.inc(sum(_taken(self._late)))

    def _child_samples(self) -> Iterable[Sample]:
        self._count()
        return super()._child_samples()


class LateHistogram(Histogram):
    """A ``Histogram``; any thread may observe, whatever another does meanwhile."""

    _late: list[float]

    def _metric_init(self) -> None:
        super()._metric_init()
        self._late, self._counting = [], Lock()

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observes. Exemplars are not kept."""
        del exemplar
        late = self._late
        late.append(amount)
        if len(late) >= MOST_KEPT:
            self._count()

    def _count(self) -> None:
        with self._counting:
            seen = np.array(_taken(self._late), dtype=np.float64)
            if not len(seen):
                return
            self._sum.inc(float(seen.sum()))
            places = np.searchsorted(self._upper_bounds, seen)  # what is no number is in no bucket
            counts = np.bincount(places, minlength=len(self._upper_bounds)).tolist()
            for bucket, count in zip(self._buckets, counts, strict=False):
                if count:
                    bucket.inc(count)

    def _child_samples(self) -> Iterable[Sample]:
        self._count()
        return super()._child_samples()


def _taken(late: list[float]) -> list[float]:
    """What is there now, taken out; what another thread appends meanwhile stays."""
    many = len(late)
    taken = late[:many]
    del late[:many]
    return taken
