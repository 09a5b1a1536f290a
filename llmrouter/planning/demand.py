"""What the requests of a model ask of engines: the rate, the lengths, and the moments that queueing formulas take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.distribution import LEVELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.planning.mix import TrafficMix

    Floats = NDArray[np.float64]

POINTS = 32
"""A law of lengths is so many points of equal mass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDemand:
    """Requests of one model, each of p prompt tokens, c of them cached, u = p − c to compute, and d output tokens.

    Attributes:
        model: its name.
        requests_per_s: rate of arrivals.
        prefill_tokens: law of u, points of equal mass; their mean is the mean of u.
        output_tokens: law of d, likewise, at least 1.
        prefill_tokens_squared: mean of p² − c², what attention to the prompt costs.
        context_tokens: mean of d·(p + d/2): the context that its decode steps read together.
        dispersion: variance of the arrivals in a second over their mean; 1 for Poisson.
    """

    model: str
    requests_per_s: float
    prefill_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    prefill_tokens_squared: float
    context_tokens: float
    dispersion: float = 1.0

    def __post_init__(self) -> None:
        for name in ("requests_per_s", "prefill_tokens_squared", "context_tokens", "dispersion"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InvalidInputError(f"demand of {self.model}: {name} must be finite and at least 0")
        if not self.prefill_tokens or not self.output_tokens:
            raise InvalidInputError(f"demand of {self.model}: lengths must not be empty")

    @property
    def mean_prefill_tokens(self) -> float:
        """Mean of u."""
        return sum(self.prefill_tokens) / len(self.prefill_tokens)

    @property
    def mean_output_tokens(self) -> float:
        """Mean of d."""
        return sum(self.output_tokens) / len(self.output_tokens)

    def times(self, factor: float) -> ModelDemand:
        """The same requests, ``factor`` times as many. A part of them, taken at random, comes less in bursts."""
        kept = 1.0 + min(factor, 1.0) * (self.dispersion - 1.0)
        return replace(self, requests_per_s=self.requests_per_s * factor, dispersion=kept)


def demand_of(
    model: str,
    prompt_tokens: Sequence[float] | Floats,
    output_tokens: Sequence[float] | Floats,
    *,
    requests_per_s: float,
    cached_tokens: Sequence[float] | Floats | None = None,
    dispersion: float = 1.0,
) -> ModelDemand:
    """The demand of recorded requests, one entry of each column (N) a request; nothing cached where not given.

    Raises:
        InvalidInputError: no requests, or columns of different lengths.
    """
    prompt_N, output_N = np.asarray(prompt_tokens, float), np.asarray(output_tokens, float)
    cached_N = np.zeros_like(prompt_N) if cached_tokens is None else np.asarray(cached_tokens, float)
    if not prompt_N.size or not prompt_N.shape == output_N.shape == cached_N.shape:
        raise InvalidInputError(f"demand of {model}: prompts and outputs must be as many, and at least one")
    return ModelDemand(
        model=model,
        requests_per_s=requests_per_s,
        prefill_tokens=equal_masses(prompt_N - cached_N),
        output_tokens=equal_masses(output_N),
        prefill_tokens_squared=float(np.mean(prompt_N**2 - cached_N**2)),
        context_tokens=float(np.mean(output_N * (prompt_N + 0.5 * output_N))),
        dispersion=dispersion,
    )


def demand_of_mix(model: str, mix: TrafficMix, *, times: float = 1.0) -> ModelDemand | None:
    """The demand that a measured mix shows, ``times`` as much of it; ``None`` where its lengths are not known."""
    if mix.requests_per_s <= 0.0 or mix.prompt_tokens is None or mix.output_tokens is None:
        return None
    return ModelDemand(
        model=model,
        requests_per_s=mix.requests_per_s * times,
        prefill_tokens=_points(mix.prompt_tokens, mix.prefill_tokens_per_s / mix.requests_per_s),
        output_tokens=_points(mix.output_tokens, mix.decode_tokens_per_s / mix.requests_per_s),
        prefill_tokens_squared=mix.prefill_squared_per_s / mix.requests_per_s,
        context_tokens=mix.context_tokens_per_s / mix.requests_per_s,
        dispersion=1.0 if mix.dispersion is None else mix.dispersion,
    )


def _points(quantiles: Sequence[float], mean: float) -> tuple[float, ...]:
    """The points of a law given by its quantiles at ``LEVELS``, brought to its mean.

    Between quantiles, and beyond them, logarithms are linear in the level: see ``lengths/distribution.py``.
    """
    logs_Q = np.log(np.maximum(np.asarray(quantiles, float), 1.0))
    first, last = logs_Q[0] - 2.0 * (logs_Q[1] - logs_Q[0]), logs_Q[-1] + 2.0 * (logs_Q[-1] - logs_Q[-2])
    places = (np.arange(POINTS) + 0.5) / POINTS
    points = np.exp(np.interp(places, (0.0, *LEVELS, 1.0), (max(first, 0.0), *logs_Q, last)))
    return tuple((points * (mean / points.mean())).tolist())


def equal_masses(values_N: Floats) -> tuple[float, ...]:
    """At most ``POINTS`` means of equal shares of the values, ascending: the mean is kept."""
    ordered_N = np.sort(values_N)
    if len(ordered_N) <= POINTS:
        return tuple(ordered_N.tolist())
    fine_N = np.interp(
        np.linspace(0.0, len(ordered_N), POINTS + 1),
        np.arange(len(ordered_N) + 1),
        np.concatenate(([0.0], np.cumsum(ordered_N))),
    )
    return tuple((np.diff(fine_N) * POINTS / len(ordered_N)).tolist())
