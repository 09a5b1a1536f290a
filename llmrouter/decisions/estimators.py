"""What another policy's choices would have brought, estimated from the log of one that explores.

Of N decisions, the log has the cost r (seconds, say) of the choice made, the probability p with which it was made, and
the probability q with which the other policy would have made it. With w = q/p:

- self-normalised inverse propensity (SNIPS): ``Σ w·r / Σ w``; Swaminathan and Joachims, NIPS 2015;
- doubly robust: ``mean(m̄) + Σ w·(r − m) / Σ w``, where a model of costs says m of the choice made and m̄ on average
  over the other policy's choices; Dudík, Langford and Li, ICML 2011, self-normalised alike.

Both are of *single decisions*: in the states that the log's policy brought about. What the other policy would do to
those states, once it made every decision, they do not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2_000
RIDGE = 1e-2
"""Weight of the penalty, for each row, on coefficients of features scaled to a deviation of 1."""

FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """Decisions of a log in their order; every column has shape (N,).

    Attributes:
        cost: r, of the choice that was made.
        logged: p, above 0.
        target: q.
        modelled: m.
        modelled_target: m̄.
        unsupported: the other policy's probability of choices that the log's could not make.
    """

    cost: NDArray[np.float64]
    logged: NDArray[np.float64]
    target: NDArray[np.float64]
    modelled: NDArray[np.float64]
    modelled_target: NDArray[np.float64]
    unsupported: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.cost)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean cost and its 95 % interval; ``None`` where the log does not say."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What a log says of its own policy and of another one.

    Attributes:
        logged: the mean cost of what was done.
        snips, doubly_robust: the other policy's.
        snips_change, doubly_robust_change: the other policy's minus the log's own, from the same resamples.
        decisions: N.
        effective: ``(Σ w)² / Σ w²``: how many decisions of the other policy the log is worth.
        unsupported_fraction: share of its choices that the log could not show.
        largest_weight_fraction: the largest w as a share of their sum.
    """

    logged: Estimate
    snips: Estimate
    doubly_robust: Estimate
    snips_change: Estimate
    doubly_robust_change: Estimate
    decisions: int
    effective: float
    unsupported_fraction: float
    largest_weight_fraction: float


def estimates(choices: Choices, rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Estimates:
    """Estimates with intervals by a bootstrap over blocks: decisions near each other share what happened.

    Percentiles of ``resamples`` draws of ⌈N/L⌉ blocks of L = ⌈√N⌉ consecutive decisions, the end joined to the start.
    """
    weights_N = choices.target / choices.logged
    columns_CN = np.stack(
        [
            np.ones(len(choices)),
            choices.cost,
            weights_N,
            weights_N * choices.cost,
            weights_N * (choices.cost - choices.modelled),
            choices.modelled_target,
        ]
    )
    points = _of(columns_CN.sum(axis=1)[:, None])
    drawn = _of(_block_sums(columns_CN, rng, resamples))
    total, squares = float(weights_N.sum()), float((weights_N**2).sum())
    names = ("logged", "snips", "doubly_robust", "snips_change", "doubly_robust_change")
    return Estimates(
        **{name: _interval(float(point[0]), sample) for name, point, sample in zip(names, points, drawn, strict=True)},
        decisions=len(choices),
        effective=total**2 / squares if squares > 0.0 else 0.0,
        unsupported_fraction=float(choices.unsupported.mean()),
        largest_weight_fraction=float(weights_N.max()) / total if total > 0.0 else 1.0,
    )


def _of(sums_CB: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Estimates (B,) of sums (C, B) of the columns; NaN where no weight is."""
    count_B, cost_B, weight_B, weighted_B, residual_B, target_B = sums_CB
    with np.errstate(divide="ignore", invalid="ignore"):
        logged_B = cost_B / count_B
        snips_B = np.where(weight_B > 0.0, weighted_B / weight_B, np.nan)
        robust_B = target_B / count_B + np.where(weight_B > 0.0, residual_B / weight_B, np.nan)
    return logged_B, snips_B, robust_B, snips_B - logged_B, robust_B - logged_B


def _block_sums(columns_CN: NDArray[np.float64], rng: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Sums (C, B) of the columns over resamples of blocks."""
    count = columns_CN.shape[1]
    length = int(np.ceil(np.sqrt(count)))
    sums_CN = np.cumsum(np.concatenate([np.zeros((len(columns_CN), 1)), columns_CN, columns_CN[:, :length]], 1), axis=1)
    blocks_CN = sums_CN[:, length : length + count] - sums_CN[:, :count]
    starts_BK = rng.integers(0, count, size=(resamples, int(np.ceil(count / length))))
    drawn: NDArray[np.float64] = blocks_CN[:, starts_BK].sum(axis=2)
    return drawn


def _interval(value: float, drawn_B: NDArray[np.float64]) -> Estimate:
    if not np.isfinite(value):
        return Estimate(None)
    known_B = drawn_B[np.isfinite(drawn_B)]
    if len(known_B) < len(drawn_B) / 2:
        return Estimate(value)
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(known_B, [tail, 100.0 - tail])
    return Estimate(value, float(low), float(high))


def cross_fitted(
    features_NF: NDArray[np.float64], cost_N: NDArray[np.float64], asked_NKF: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Costs that a ridge regression expects of the choices made (N,) and of those that were there (N, K).

    Each of ``FOLDS`` runs of consecutive decisions is answered by a model of the others, so that no decision's own cost
    is in what is expected of it. Features that are NaN are those of no choice: so is what is expected.
    """
    made_N, there_NK = np.empty(len(cost_N)), np.empty(asked_NKF.shape[:2])
    for fold in np.array_split(np.arange(len(cost_N)), min(FOLDS, len(cost_N))):
        rest = np.ones(len(cost_N), bool)
        rest[fold] = len(cost_N) < 2 * FOLDS
        model = _Ridge(features_NF[rest], cost_N[rest])
        made_N[fold], there_NK[fold] = model.expects(features_NF[fold]), model.expects(asked_NKF[fold])
    return made_N, there_NK


class _Ridge:
    """Least squares with a penalty, on features scaled to mean 0 and deviation 1; the mean is not penalised."""

    def __init__(self, features_NF: NDArray[np.float64], cost_N: NDArray[np.float64]) -> None:
        self._centre_F, self._mean = features_NF.mean(axis=0), float(cost_N.mean())
        deviation_F = features_NF.std(axis=0)
        self._scale_F = np.where(deviation_F > 0.0, deviation_F, 1.0)
        x_NF = (features_NF - self._centre_F) / self._scale_F
        penalty_FF = RIDGE * len(x_NF) * np.eye(x_NF.shape[1])
        self._weights_F = np.linalg.solve(x_NF.T @ x_NF + penalty_FF, x_NF.T @ (cost_N - self._mean))

    def expects(self, features_F: NDArray[np.float64]) -> NDArray[np.float64]:
        """Costs (...) of features (..., F)."""
        expected: NDArray[np.float64] = self._mean + ((features_F - self._centre_F) / self._scale_F) @ self._weights_F
        return expected
