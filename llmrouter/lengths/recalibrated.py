"""Makes any predictor's quantiles true online: at each level, a share of answers as large as the level stays below.

Adaptive conformal inference (Gibbs and Candès, 2021) on quantiles (as in conformalised quantile regression, Romano et
al., 2019), in the logarithm of the length, with steps that shrink to a floor (Angelopoulos, Barber and Bates, 2024).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, MEDIAN, Lengths
from llmrouter.lengths.laws import moved
from llmrouter.lengths.predictor import label, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest, UsageRefusal

    Floats = NDArray[np.float64]

CAPACITY = 4_096
MIN_ANSWERS = 20
FIRST_STEP, LAST_STEP, STEP_DECAY = 0.5, 0.03, 0.6
MIN_SPREAD, MAX_SPREAD = 0.2, 2.0
SPREAD_ANSWERS = 50
MAX_OFFSET = 8.0
_MIDDLE = 0.5
_EVERYTHING = 0


class Recalibrated:
    """Adds to the logarithm of each quantile an offset, learned for all requests and for each application.

    After each answer, the offset of a level rises by step · level where the answer exceeded the quantile that was
    given, and falls by step · (1 − level) where it did not. Steps are in units of the mean ln(q75/q25) of the last laws
    that were given, the same for all requests of an application, so that each has the same say. They shrink with the
    answers of the application, from ``FIRST_STEP`` to ``LAST_STEP``, so that a change of traffic is followed. An
    application has the offset of all requests until it has ``min_answers``, and from there on one of its own. At most
    ``capacity`` applications; the one longest silent gives way.
    """

    def __init__(
        self,
        inner: LengthPredictor,
        *,
        capacity: int = CAPACITY,
        min_answers: int = MIN_ANSWERS,
        suffix: str = "+calibrated",
    ) -> None:
        self.inner = inner
        self.name = inner.name + suffix
        self.digest = inner.digest
        self._min_answers = min_answers
        self._capacity = capacity
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._offsets_SQ = np.zeros((capacity + 1, len(LEVELS)))
        self._factors_SQ = np.ones((capacity + 1, len(LEVELS)))  # exp of them
        self._answers = [0] * (capacity + 1)
        self._spreads = [0.0] * (capacity + 1)

    @property
    def applications(self) -> int:
        """How many applications have offsets of their own now."""
        return len(self._slots)

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request: the inner predictor's, its quantiles moved."""
        laws = self.inner.predict(requests)
        factors_NQ = self._factors_SQ.take(self._slots_of(requests), axis=0)
        return Lengths(
            moved(laws.latent, factors_NQ),
            laws.limit_tokens,
            self.name,
            self.digest,
            own_rank=laws.rank * factors_NQ[:, MEDIAN],
            parts=(laws,) if laws.parts else (),
        )

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        """Moves the offsets, then lets the inner predictor learn."""
        reason = refusal(request, output_tokens)
        if reason is not None:
            return reason
        if predicted is None:
            predicted = self.predict([request]).row(0, parts=True)
        given, slot = predicted.quantiles, self._touch(label(request.application))
        used_Q = self._offsets_SQ[slot if self._answers[slot] >= self._min_answers else _EVERYTHING]
        of_all = (np.exp(self._offsets_SQ[_EVERYTHING] - used_Q) * given).tolist()
        spread = min(max(math.log(given[MEDIAN + 1] / given[MEDIAN - 1]), MIN_SPREAD), MAX_SPREAD)
        self._move(_EVERYTHING, _direction(output_tokens, of_all), spread)
        if self._answers[slot] == self._min_answers - 1:
            self._offset(slot, self._offsets_SQ[_EVERYTHING])
        self._move(slot, _direction(output_tokens, given), spread)
        return self.inner.learn(request, output_tokens, next(iter(predicted.parts), None))

    def _slots_of(self, requests: Sequence[LengthRequest]) -> NDArray[np.intp]:
        return np.array([self._used(label(one.application)) for one in requests], dtype=np.intp)

    def _used(self, key: str) -> int:
        """Whose offset an application has."""
        slot = self._slots.get(key, _EVERYTHING)
        return slot if self._answers[slot] >= self._min_answers else _EVERYTHING

    def _move(self, slot: int, direction: Sequence[float], spread: float) -> None:
        answers = self._answers[slot] = self._answers[slot] + 1
        self._spreads[slot] += (spread - self._spreads[slot]) / min(answers, SPREAD_ANSWERS)
        if slot != _EVERYTHING and answers < self._min_answers:
            return
        step = self._spreads[slot] * max(LAST_STEP, FIRST_STEP / answers**STEP_DECAY)
        moved = zip(self._offsets_SQ[slot].tolist(), direction, strict=True)
        self._offset(slot, [min(max(old + step * way, -MAX_OFFSET), MAX_OFFSET) for old, way in moved])

    def _offset(self, slot: int, offsets_Q: Sequence[float] | Floats) -> None:
        self._offsets_SQ[slot] = offsets_Q
        np.exp(self._offsets_SQ[slot], out=self._factors_SQ[slot])

    def _touch(self, key: str) -> int:
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
            return slot
        if len(self._slots) < self._capacity:
            slot = 1 + len(self._slots)
        else:
            _, slot = self._slots.popitem(last=False)
            self._offsets_SQ[slot], self._factors_SQ[slot], self._answers[slot] = 0.0, 1.0, 0
        self._slots[key] = slot
        return slot


def _direction(output_tokens: float, quantiles: Sequence[float]) -> list[float]:
    """Level − [the answer did not exceed the quantile]; one that equals it lies inside an interval on either side."""
    return [
        level - (output_tokens < quantile or (output_tokens == quantile and level >= _MIDDLE))
        for level, quantile in zip(LEVELS, quantiles, strict=True)
    ]
