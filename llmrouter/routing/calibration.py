"""The coefficients of an engine class as its own traffic shows them: recursive least squares, guarded.

An observation says how long an instance took for something that the profile foretells as a sum of four terms::

    seconds = b·steps + g1·prefill tokens + g2·context tokens + g3·sequences

What is learned are four factors of the profile's coefficients, from rows divided by the seconds foretold now, so that
all errors are relative. Old observations fade; the prior does not. It pulls each factor to the one that all would
share: a coefficient that the traffic does not excite keeps the profile's proportion to the others, as on the same
engine on slower hardware. An error counts in full up to twice the median error, no further beyond it (Huber), and not
at all beyond four times: what most observations agree on stands against the others. One instance that is slower than
the others of its class has a slowness of its own, so that it does not spoil their coefficients.

The sums that fade are kept in information form, which is what recursive least squares computes, without its wind-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.routing.calibration_slowness import Slowness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from llmrouter.domain import EngineProfile

    Floats = NDArray[np.float64]

COEFFICIENTS = ("base_decode_s", "prefill_s_per_token", "context_s_per_token", "sequence_s")
"""What is learned, in the order of every array here; the profile's other step times go with them in proportion."""

LARGEST_FACTOR = 10.0
"""A coefficient stays within this factor of the profile's."""

LARGEST_RATIO = 30.0
"""An observation further than this from the profile is refused: no coefficient within bounds explains it."""

HALF_LIFE, LEAST_HALF_LIFE, EARLY_SHARE = 2_000, 64, 0.5
"""Observations after which one weighs half: those of the beginning, weighed while little was known, fade sooner."""

PRIOR_WEIGHT = 0.01
"""What the profile weighs, in observations that one coefficient alone explains …"""

MODEL_ERROR = 3e-5
"""… and, besides, as a share of all that was observed: the equation is not exact, however much is observed."""

WARM_UP = 32
"""Observations before anything but the profile is believed …"""

JUDGED = 128
"""… and before residuals freeze anything; until then, what has bad residuals is not believed."""

FROZEN_ABOVE, THAWED_BELOW = 0.35, 0.25
"""Median relative residuals at which coefficients freeze, and may thaw."""

THAW_AFTER = 256
"""Observations in a row with good residuals that end a freeze."""

WORSE_THAN_PROFILE = 1.25
"""A residual this many times the profile's own freezes."""

TRUSTED, REJECTED = 2.0, 4.0
"""Median errors up to which an error counts in full, and beyond which it does not count …"""

LEAST_MEDIAN = 0.02
"""… where the median is taken for this at least."""

_KEPT_AT_FREEZE = 0.05
_EAGER, _SPELL = 64, 8
_MEDIAN_STEP = 0.05
_TOLERANCE = 0.02
_SIZE = len(COEFFICIENTS)


class Refusal(StrEnum):
    """Why an observation teaches nothing."""

    NOT_A_NUMBER = "NotANumber"
    IMPLAUSIBLE = "Implausible"


class Frozen(StrEnum):
    """Why coefficients do not follow the traffic.

    With bad residuals the last good ones stay; where they were worse than the profile's, these hold.
    """

    BAD_RESIDUALS = "BadResiduals"
    WORSE_THAN_PROFILE = "WorseThanProfile"


@dataclass(frozen=True, slots=True)
class Observation:
    """What an instance did in ``seconds``: the sums over the steps of the four terms.

    ``context_tokens`` and ``sequences`` are summed over steps: k steps of a batch of n are k·n sequences.
    """

    instance_id: str
    seconds: float
    steps: float
    prefill_tokens: float
    context_tokens: float
    sequences: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of one engine class.

    Attributes:
        coefficients: seconds, by the names of ``COEFFICIENTS``.
        ratios: each divided by the profile's, 1 where that is 0.
        learned: for each, the share that the traffic decides and not the profile, 0 to 1.
        relative_residual: median of |ln(observed ÷ foretold)| with the learned coefficients; ``None`` before any.
        profile_residual: the same with the profile's.
        observations: how many were learned from.
        frozen: why ``coefficients`` do not follow what is observed, or ``None``.
        slowness: of each instance, against the median one.
    """

    coefficients: Mapping[str, float]
    ratios: Mapping[str, float]
    learned: Mapping[str, float]
    relative_residual: float | None
    profile_residual: float | None
    observations: int
    frozen: Frozen | None
    slowness: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Belief:
    """What decisions may use: coefficients divided by the profile's, and slowness of instances that have one."""

    ratios: Mapping[str, float]
    slowness: Mapping[str, float]


class ClassCalibration:
    """Learns the coefficients of one engine class; bounded memory, no clock.

    Args:
        profile: the prior. A coefficient of 0 stays 0.
    """

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self._prior_C = prior_of(profile)
        self._squares_CC = np.zeros((_SIZE, _SIZE))
        self._products_C = np.zeros(_SIZE)
        self._weight = 0.0
        self._factors_C = np.ones(_SIZE)
        self._good_C = np.ones(_SIZE)
        self._observations = 0
        self._residual = Median()
        self._profile_residual = Median()
        self._instances = Slowness()
        self._good_instances = Slowness()
        self._frozen: Frozen | None = None
        self._good_in_a_row = 0

    def learn(self, observation: Observation) -> Refusal | None:
        """Takes note of an observation, or says why not."""
        amounts_C = _amounts(observation)
        if not (np.isfinite(amounts_C).all() and math.isfinite(observation.seconds)) or amounts_C.min() < 0.0:
            return Refusal.NOT_A_NUMBER
        if amounts_C.max() > _MOST:
            return Refusal.IMPLAUSIBLE
        terms_C = self._prior_C * amounts_C
        profile_s = float(terms_C.sum())
        if not profile_s / LARGEST_RATIO <= observation.seconds <= profile_s * LARGEST_RATIO or profile_s <= 0.0:
            return Refusal.IMPLAUSIBLE
        row_C = terms_C * self._instances.of(observation.instance_id)
        foretold_s = float(row_C @ self._factors_C)
        ratio = observation.seconds / foretold_s
        self._observations += 1
        self._residual.note(abs(math.log(ratio)))
        self._profile_residual.note(abs(math.log(observation.seconds / profile_s)))
        self._add(row_C / foretold_s, ratio)
        self._instances.note(observation.instance_id, math.log(ratio))
        if self._observations <= _EAGER or self._observations % _SPELL == 0:
            self._factors_C = solved(self._squares_CC, self._products_C, self._prior_weight)
        self._judge()
        return None

    @property
    def calibration(self) -> Calibration:
        """What is believed now."""
        factors_C = self._believed()
        known = self._observations > 0
        return Calibration(
            coefficients=dict(zip(COEFFICIENTS, (self._prior_C * factors_C).tolist(), strict=True)),
            ratios=dict(zip(COEFFICIENTS, factors_C.tolist(), strict=True)),
            learned=dict(zip(COEFFICIENTS, self._learned().tolist(), strict=True)),
            relative_residual=self._residual.value if known else None,
            profile_residual=self._profile_residual.value if known else None,
            observations=self._observations,
            frozen=self._frozen,
            slowness=self._instances.all(),
        )

    def seconds(self, observation: Observation) -> float:
        """What is foretold for an observation with what is believed now."""
        slowness = self._believed_instances.of(observation.instance_id)
        return float(self._prior_C * _amounts(observation) @ self._believed()) * slowness

    @property
    def belief(self) -> Belief:
        """What decisions may use now. Slowness is relative: it holds whichever coefficients do."""
        ratios = dict(zip(COEFFICIENTS, self._believed().tolist(), strict=True))
        return Belief(ratios, {} if self._is_new else self._believed_instances.all())

    @property
    def observations(self) -> int:
        """How many were learned from."""
        return self._observations

    def rest(self, seconds: float) -> None:
        """So many seconds passed since the last call: see ``Slowness.rest``.

        What was slow when bad residuals froze everything comes nearer to the others too: nobody measures it.
        """
        self._instances.rest(seconds)
        if self._frozen is Frozen.BAD_RESIDUALS:
            self._good_instances.rest(seconds)

    @property
    def _believed_instances(self) -> Slowness:
        """Those of the last good residuals while bad ones freeze."""
        return self._good_instances if self._frozen is Frozen.BAD_RESIDUALS else self._instances

    def _believed(self) -> Floats:
        if self._frozen is Frozen.BAD_RESIDUALS:
            return self._good_C
        if self._frozen is Frozen.WORSE_THAN_PROFILE or self._is_new:
            return np.ones(_SIZE)
        return self._factors_C

    @property
    def _is_new(self) -> bool:
        """Too few observations, or too few for residuals as bad as these."""
        seen = self._observations
        return seen < WARM_UP or (seen < JUDGED and self._residual.value > THAWED_BELOW)

    @property
    def _prior_weight(self) -> float:
        return PRIOR_WEIGHT + MODEL_ERROR * self._weight

    def _learned(self) -> Floats:
        prior = self._prior_weight
        spread_C: Floats = np.diag(np.linalg.inv(self._squares_CC + prior * np.eye(_SIZE)))
        return np.clip(1.0 - prior * spread_C, 0.0, 1.0)

    def _add(self, row_C: Floats, target: float) -> None:
        """Weighs a row; errors are logarithms, so that half and twice as long are as far off."""
        error, median = abs(math.log(target)), max(self._residual.value, LEAST_MEDIAN)
        if error > REJECTED * median:
            return
        weight = min(1.0, TRUSTED * median / error) if error > 0.0 else 1.0
        keep = 0.5 ** (1.0 / min(HALF_LIFE, max(LEAST_HALF_LIFE, self._observations * EARLY_SHARE)))
        self._squares_CC = keep * self._squares_CC + weight * row_C[:, None] * row_C
        self._products_C = keep * self._products_C + weight * target * row_C
        self._weight = keep * self._weight + weight

    def _judge(self) -> None:
        """Freezes and thaws. What is learned while frozen is not believed before it has proved itself."""
        if self._observations < JUDGED:
            return
        residual, profile = self._residual.value, self._profile_residual.value
        worse = residual > WORSE_THAN_PROFILE * profile + _TOLERANCE
        good = residual < THAWED_BELOW and not worse
        self._good_in_a_row = self._good_in_a_row + 1 if good else 0
        if self._frozen is not None:
            if self._good_in_a_row >= THAW_AFTER:
                self._frozen = None
        elif residual > FROZEN_ABOVE or worse:
            self._frozen = Frozen.BAD_RESIDUALS if residual > FROZEN_ABOVE else Frozen.WORSE_THAN_PROFILE
            self._squares_CC *= _KEPT_AT_FREEZE
            self._products_C *= _KEPT_AT_FREEZE
            self._weight *= _KEPT_AT_FREEZE
        if self._frozen is None and good:
            self._good_C = self._factors_C
            if self._observations % _SPELL == 0:
                self._good_instances = self._instances.copy()

    def state(self) -> dict[str, object]:
        """What a restart must not lose, as JSON takes it."""
        return {
            "prior": self._prior_C.tolist(),
            "squares": self._squares_CC.ravel().tolist(),
            "products": self._products_C.tolist(),
            "weight": self._weight,
            "good": self._good_C.tolist(),
            "observations": self._observations,
            "residuals": [self._residual.value, self._profile_residual.value],
            "frozen": self._frozen,
            "slowness": self._believed_instances.state(),
        }

    def restore(self, state: Mapping[str, object]) -> bool:
        """Takes up what ``state`` gave; returns whether it is of this profile.

        Raises:
            InvalidInputError: it is no such state.
        """
        prior_C = _numbers(state, "prior", _SIZE)
        if not np.allclose(prior_C, self._prior_C, rtol=1e-9, atol=0.0):
            return False
        squares_CC = _numbers(state, "squares", _SIZE * _SIZE).reshape(_SIZE, _SIZE)
        products_C, good_C = _numbers(state, "products", _SIZE), _numbers(state, "good", _SIZE)
        weight, observations = _numbers(state, "weight", 1)[0], _numbers(state, "observations", 1)[0]
        residuals_2 = _numbers(state, "residuals", 2)
        if np.linalg.eigvalsh(squares_CC)[0] < -_TOLERANCE or weight < 0 or not 0 <= observations <= _MOST:
            raise InvalidInputError("calibration state: squares, weight and observations must not be below 0")
        if good_C.min() < 1.0 / LARGEST_FACTOR - _TOLERANCE or good_C.max() > LARGEST_FACTOR + _TOLERANCE:
            raise InvalidInputError(f"calibration state: good must be within a factor {LARGEST_FACTOR:g} of 1")
        instances = Slowness()
        instances.restore(state.get("slowness"))
        self._instances, self._good_instances = instances, instances.copy()
        self._frozen = next((reason for reason in Frozen if reason == state.get("frozen")), None)
        self._squares_CC, self._products_C, self._good_C = squares_CC, products_C, good_C
        self._weight, self._observations = float(weight), int(observations)
        self._residual, self._profile_residual = Median(residuals_2[0]), Median(residuals_2[1])
        self._factors_C = solved(squares_CC, products_C, self._prior_weight)
        return True


class Median:
    """The median of numbers above 0, followed by steps of 5 % up or down; what is far off counts as one step."""

    LEAST, MOST = 0.005, 1.0

    def __init__(self, value: float = 0.5) -> None:
        self.value = min(max(value, self.LEAST), self.MOST)

    def note(self, number: float) -> None:
        """Takes note of one."""
        step = 1.0 + _MEDIAN_STEP if number > self.value else 1.0 / (1.0 + _MEDIAN_STEP)
        self.value = min(max(self.value * step, self.LEAST), self.MOST)


def prior_of(profile: EngineProfile) -> Floats:
    """The profile's coefficients: shape (C,), seconds."""
    return np.array([getattr(profile, name) for name in COEFFICIENTS], dtype=np.float64)


def solved(squares_CC: Floats, products_C: Floats, prior_weight: float) -> Floats:
    """Factors within their bounds that explain the sums best; the prior pulls each to the one that all would share.

    Factors that would leave the bounds are put there, and the others solved again.
    """
    shared = (products_C.sum() + prior_weight) / (squares_CC.sum() + prior_weight)
    factors_C = np.ones(_SIZE)
    matrix_CC = squares_CC + prior_weight * np.eye(_SIZE)
    right_C = products_C + prior_weight * min(max(shared, 1.0 / LARGEST_FACTOR), LARGEST_FACTOR)
    free_C = np.ones(_SIZE, dtype=bool)
    for _ in range(_SIZE):
        moved_C = right_C - matrix_CC[:, ~free_C] @ factors_C[~free_C]
        factors_C[free_C] = np.linalg.solve(matrix_CC[np.ix_(free_C, free_C)], moved_C[free_C])
        out_C = free_C & ((factors_C < 1.0 / LARGEST_FACTOR) | (factors_C > LARGEST_FACTOR))
        factors_C = np.clip(factors_C, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
        free_C &= ~out_C
        if not out_C.any() or not free_C.any():
            break
    return factors_C


def _amounts(observation: Observation) -> Floats:
    return np.array(
        (observation.steps, observation.prefill_tokens, observation.context_tokens, observation.sequences),
        dtype=np.float64,
    )


_MOST = 1e15


def _numbers(state: Mapping[str, object], name: str, size: int) -> Floats:
    try:
        numbers = np.atleast_1d(np.array(state.get(name), dtype=np.float64))
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (size,) or not np.isfinite(numbers).all():
        raise InvalidInputError(f"calibration state: {name} must be {size} finite numbers")
    return numbers
