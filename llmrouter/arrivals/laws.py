"""Laws that a cell draws its requests from: classes of log-normal lengths, or windows of a recorded trace."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.arrivals import generators, transform
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GAPS, _CLASSES, _PROMPTS, _OUTPUTS, _WINDOW = range(5)
"""One random stream per purpose: each is seeded with the run's seed and one of these."""


class Law(Protocol):
    """Where the requests of a cell come from."""

    @property
    def applications(self) -> tuple[str, ...]:
        """Names of the classes of requests."""

    def workload(self, rate_rps: float, count: int, seed: int, *, cv: float = 1.0) -> Workload:
        """``count`` requests at a rate; the same seed gives the same lengths at every rate, and only other gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthClass:
    """A class of requests: log-normal lengths ``exp(N(μ, σ))`` in tokens.

    Attributes:
        name: becomes the application.
        weight: its share, relative to the other classes'.
        prompt_mu, prompt_sigma, output_mu, output_sigma: of ln tokens.
        bucket_accuracy: how often the paper's classifier names the right bucket of this class; ``None`` if unknown.
    """

    name: str
    weight: float
    prompt_mu: float
    prompt_sigma: float
    output_mu: float
    output_sigma: float
    bucket_accuracy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticLaw:
    """Poisson (or gamma) arrivals; a class drawn for each request by weight; lengths rounded, then clipped.

    Attributes:
        classes: see ``LengthClass``.
        prompt_clip, output_clip: least and most tokens.
        output_mean_tokens: if given, the outputs of the whole sample are scaled to this mean before the rounding.
    """

    classes: tuple[LengthClass, ...]
    prompt_clip: tuple[int, int]
    output_clip: tuple[int, int]
    output_mean_tokens: float | None = None

    @property
    def applications(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(one.name for one in self.classes)

    def workload(self, rate_rps: float, count: int, seed: int, *, cv: float = 1.0) -> Workload:
        """``count`` requests; ``cv`` other than 1 draws gamma gaps of that coefficient of variation."""
        gaps = stream(seed, _GAPS)
        arrived = (
            generators.poisson(rate_rps, count, gaps) if cv == 1 else generators.gamma(rate_rps, count, gaps, cv=cv)
        )
        weights = np.array([one.weight for one in self.classes])
        drawn = stream(seed, _CLASSES).choice(len(weights), count, p=weights / weights.sum())
        prompts = self._tokens(drawn, "prompt", stream(seed, _PROMPTS))
        outputs = self._tokens(drawn, "output", stream(seed, _OUTPUTS))
        if self.output_mean_tokens is not None:
            outputs *= self.output_mean_tokens / outputs.mean()
        return Workload.of(
            arrived,
            np.clip(np.rint(prompts), *self.prompt_clip).astype(np.int64),
            np.clip(np.rint(outputs), *self.output_clip).astype(np.int64),
            application=drawn,
            applications=self.applications,
        )

    def _tokens(self, drawn: NDArray[np.int64], what: str, rng: np.random.Generator) -> NDArray[np.float64]:
        mu = np.array([getattr(one, f"{what}_mu") for one in self.classes])
        sigma = np.array([getattr(one, f"{what}_sigma") for one in self.classes])
        return np.asarray(np.exp(mu[drawn] + sigma[drawn] * rng.standard_normal(len(drawn))))


@dataclass(frozen=True, slots=True)
class TraceLaw:
    """Windows of a recorded trace, its gaps, lengths, names and prefix blocks kept together.

    The trace is taken as a ring: after its last request comes its first, one mean gap later. A seed chooses the request
    that a window begins with; the window's gaps are stretched or shrunk alike to reach the rate.

    Raises:
        InvalidInputError: the trace has sessions, which no window can cut, or fewer than two requests.
    """

    trace: Workload
    applications: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if (self.trace.after >= 0).any():
            raise InvalidInputError("a trace of sessions has no windows: replay it whole")
        if len(self.trace) < 2:  # noqa: PLR2004
            raise InvalidInputError("a trace to take windows of needs at least two requests")
        object.__setattr__(self, "applications", self.trace.applications)

    def workload(self, rate_rps: float, count: int, seed: int, *, cv: float = 1.0) -> Workload:
        """``count`` requests from a random place of the ring; the recorded gaps have a CV of their own.

        Raises:
            InvalidInputError: another ``cv`` is asked for, or the rate or the count is out of its bounds.
        """
        if cv != 1:
            raise InvalidInputError("a recorded trace keeps its own gaps: cv cannot be chosen")
        if not (math.isfinite(rate_rps) and rate_rps > 0 and count >= 1):
            raise InvalidInputError(f"rate_rps must be positive and count at least 1, not {rate_rps} and {count}")
        total = len(self.trace)
        start = int(stream(seed, _WINDOW).integers(total))
        rows = (start + np.arange(count)) % total
        at_s = self.trace.arrived_at_s
        gaps = np.diff(at_s, prepend=at_s[0] - (at_s[-1] - at_s[0]) / (total - 1))
        arrived = np.cumsum(gaps[rows])
        if not arrived[-1] > 0:
            raise InvalidInputError(f"the {count} requests from row {start} all arrive at one instant")
        part = _ring(self.trace, rows)
        return replace(part, arrived_at_s=arrived * (count / rate_rps / arrived[-1]))


def _ring(trace: Workload, rows: NDArray[np.int64]) -> Workload:
    """Rows of a trace, each as often as it is named; times are 0."""
    return transform.take(replace(trace, arrived_at_s=np.zeros(len(trace))), rows)


def stream(seed: int, purpose: int) -> np.random.Generator:
    """The random stream of one purpose of one run.

    Raises:
        InvalidInputError: the seed is negative.
    """
    if seed < 0:
        raise InvalidInputError(f"seed must be at least 0, not {seed}")
    return np.random.default_rng((seed, purpose))
