"""Stand-ins for the output-length predictor: what a router is told of each request of a workload, shape (N,), tokens.

Those that learn take a ``history``, another workload than the one they speak of. ``oracle``, ``noisy`` and
``paper_bucket`` read the true lengths of the very requests: no predictor can, so they are bounds and noise models, and
this module is the only one outside the engine that does so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.random import Generator
    from numpy.typing import NDArray

    from llmrouter.sim.workload import Workload

PAPER_BUCKETS = (250, 1_000)
"""Where the paper's buckets of output tokens end: 0 to 249, 250 to 999, 1,000 and more."""

_OUT_OF_TASK_ACCURACY = 0.7915
"""The paper's accuracy over all tasks, for applications whose own it does not give."""


def none(workload: Workload, history: Workload) -> NDArray[np.float64]:
    """The mean of the history for every request: no predictor at all."""
    return np.full(len(workload), float(history.output_tokens.mean()))


def task_mean(workload: Workload, history: Workload) -> NDArray[np.float64]:
    """The history's mean of the request's application; its overall mean where the application is new."""
    overall = float(history.output_tokens.mean())
    sums = np.bincount(history.application, weights=history.output_tokens, minlength=len(history.applications))
    counts = np.bincount(history.application, minlength=len(history.applications))
    known = {
        name: total / count for name, total, count in zip(history.applications, sums, counts, strict=True) if count
    }
    return np.array([known.get(name, overall) for name in workload.applications])[workload.application]


def forest(workload: Workload, predict: Callable[[Workload], NDArray[np.float64]]) -> NDArray[np.float64]:
    """What a real predictor says; ``predict`` maps prompt lengths and applications to tokens.

    The shipped random forest needs a model runtime, which the simulation has not: whoever has one brings it.

    Raises:
        InvalidInputError: the answer has another shape, or a value that is not finite and at least 0.
    """
    said = np.asarray(predict(workload), np.float64)
    if said.shape != (len(workload),):
        raise InvalidInputError(f"the predictor answered shape {said.shape}, not ({len(workload)},)")
    if not (np.isfinite(said).all() and (said >= 0).all()):
        row = int(np.argmin(np.isfinite(said) & (said >= 0)))
        raise InvalidInputError(f"the predictor said {said[row]} of row {row}: it must be finite and at least 0")
    return said


def oracle(workload: Workload) -> NDArray[np.float64]:
    """The true lengths: a bound."""
    return workload.output_tokens.astype(np.float64)


def noisy(workload: Workload, rng: Generator, *, sigma: float) -> NDArray[np.float64]:
    """The true lengths times ``exp(N(0, σ))``, at least 1 token.

    Raises:
        InvalidInputError: ``sigma`` is not in [0, 10].
    """
    if not 0 <= sigma <= 10:  # noqa: PLR2004
        raise InvalidInputError(f"sigma must be 0 to 10, not {sigma}")
    return np.maximum(workload.output_tokens * np.exp(sigma * rng.standard_normal(len(workload))), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketClassifier:
    """A classifier of output lengths that is right as often as it is said to be.

    Attributes:
        accuracy: by application, the share of requests whose bucket it names right; a wrong one is any other alike.
        default_accuracy: of applications not named.
        values: the length it stands for, one for each bucket.
    """

    accuracy: Mapping[str, float]
    values: tuple[float, float, float]
    default_accuracy: float = _OUT_OF_TASK_ACCURACY

    def __post_init__(self) -> None:
        for name, share in (*self.accuracy.items(), ("other applications", self.default_accuracy)):
            if not 0 <= share <= 1:
                raise InvalidInputError(f"accuracy of {name} must be 0 to 1, not {share}")
        if not all(math.isfinite(value) and value > 0 for value in self.values):
            raise InvalidInputError(f"bucket values must be finite and above 0, not {self.values}")


def buckets_of(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The paper's bucket of each length: 0, 1 or 2."""
    return np.digitize(tokens, PAPER_BUCKETS)


def bucket_values(history: Workload) -> tuple[float, float, float]:
    """Mean length of the history's requests in each bucket; the bucket's middle (125, 625, 2,500) where it has none."""
    buckets = buckets_of(history.output_tokens)
    found = [
        float(history.output_tokens[buckets == bucket].mean()) if (buckets == bucket).any() else middle
        for bucket, middle in enumerate((125.0, 625.0, 2_500.0))
    ]
    return found[0], found[1], found[2]


def paper_bucket(workload: Workload, rng: Generator, classifier: BucketClassifier) -> NDArray[np.float64]:
    """The paper's DistilBERT classifier as its accuracies describe it: the value of the right bucket, or of another."""
    shares = np.array([classifier.accuracy.get(name, classifier.default_accuracy) for name in workload.applications])
    right = rng.random(len(workload)) < shares[workload.application]
    wrong_by = rng.integers(1, 3, len(workload))
    said = (buckets_of(workload.output_tokens) + np.where(right, 0, wrong_by)) % 3
    return np.array(classifier.values)[said]
