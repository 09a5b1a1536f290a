"""How late first tokens come on an instance, beside the others: the statistic that TTFT outliers are found by.

Of every first token the natural logarithm of ``(took + FLOOR_S) / (foretold + FLOOR_S)`` is kept, the last ``WINDOW``
of each instance and none older than ``LASTS_S``. An instance with ``LEAST_SAMPLES`` is as late as the median of its
own. It is an outlier where that is beyond the median of all such instances by ln(factor) and by ``SPREADS`` of their
spread (1.4826 times the median absolute deviation): where all are late, none is. Fewer than ``LEAST_INSTANCES`` are
not judged.

First tokens that have not come count too, where they are later than twice what makes an outlier: an instance that
answers nothing is not to be waited for.

Medians, because a few long waits are ordinary; logarithms, because what is foretold is wrong by factors.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

FLOOR_S = 0.05
"""What is shorter is late for nobody."""

WINDOW = 16
LEAST_SAMPLES = 8
LASTS_S = 120.0
LEAST_INSTANCES = 3
SPREADS = 4.0
MAD_TO_SIGMA = 1.4826
"""Of a normal distribution the standard deviation is so many median absolute deviations."""

LARGEST = 10.0
"""A logarithm beyond this counts as this."""


def lateness(*, took_s: float, foretold_s: float) -> float:
    """How many times later than foretold a first token came, as its natural logarithm."""
    ratio = (max(took_s, 0.0) + FLOOR_S) / (max(foretold_s, 0.0) + FLOOR_S)
    return min(max(math.log(ratio), -LARGEST), LARGEST)


class LateStarts:
    """The last first tokens of every instance."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, float]]] = {}

    def note(self, instance_id: str, late: float, *, now_s: float) -> None:
        """A first token came so late there."""
        self._samples.setdefault(instance_id, deque(maxlen=WINDOW)).append((now_s, late))

    def forget(self, instance_id: str) -> None:
        """What was is no guide any more."""
        self._samples.pop(instance_id, None)

    def keep_only(self, instance_ids: Collection[str]) -> None:
        """Forgets instances that are gone."""
        for gone in self._samples.keys() - set(instance_ids):
            del self._samples[gone]

    def medians(self, waiting: Mapping[str, Sequence[float]], *, now_s: float) -> dict[str, float]:
        """How late each instance is; those without enough samples are left out.

        ``waiting`` are first tokens that have not come and are as late as this already, by instance id.
        """
        found = {}
        for name in self._samples.keys() | waiting.keys():
            recent = [late for at_s, late in self._samples.get(name, ()) if 0.0 <= now_s - at_s <= LASTS_S]
            recent = [*recent, *waiting.get(name, ())][-WINDOW:]
            if len(recent) >= LEAST_SAMPLES:
                found[name] = median(recent)
        return found


def bound(medians: Collection[float], factor: float) -> float | None:
    """An instance that is later than this is an outlier; ``None`` where too few can be compared."""
    if len(medians) < LEAST_INSTANCES:
        return None
    middle = median(medians)
    spread = MAD_TO_SIGMA * median(abs(one - middle) for one in medians)
    return middle + max(math.log(factor), SPREADS * spread)
