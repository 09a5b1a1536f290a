"""Requests drawn from what ServeGen records of each client: a renewal process and two marginals."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.readers.columns import MAX_AT_S
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import MAX_TOKENS, Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

WINDOW_S = 600.0
MAX_REQUESTS = 20_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """A span of a recording, in seconds from its start."""

    start_s: float = 0.0
    duration_s: float = WINDOW_S

    def __post_init__(self) -> None:
        if not (0 <= self.start_s <= MAX_AT_S and 0 < self.duration_s <= MAX_AT_S):
            raise InvalidInputError(
                f"a window starts at 0 s or later and lasts, not {self.duration_s} s from {self.start_s} s"
            )


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps between a client's requests in one window: their rate, and a family with its shape."""

    start_s: float
    rate_rps: float
    family: str
    shape: float

    def arrivals(self, begin_s: float, end_s: float, rng: Generator) -> NDArray[np.float64]:
        """Arrivals in [begin, end) of the renewal process in its stationary state: ``rate·(end − begin)`` on average.

        The first gap is what is left, at a random moment, of a gap that is long because long ones last: a uniform
        share of a length-biased gap. Gamma(k) biased by length is Gamma(k + 1); a Weibull is the power 1/k of an
        exponential, biased of a Gamma(1 + 1/k).
        """
        span_s = end_s - begin_s
        now_s = float(self._gaps(1, rng, biased=True)[0] * rng.random())
        parts: list[NDArray[np.float64]] = []
        while now_s < span_s:
            draw = int((span_s - now_s) * self.rate_rps * 1.2) + 16
            times = now_s + np.concatenate([[0.0], np.cumsum(self._gaps(draw, rng))])
            parts.append(times[:-1])
            now_s = float(times[-1])
        made = np.concatenate(parts) if parts else np.zeros(0)
        return begin_s + made[made < span_s]

    def _gaps(self, count: int, rng: Generator, *, biased: bool = False) -> NDArray[np.float64]:
        """Gaps of mean ``1 / rate``; ``biased``: drawn in proportion to their length."""
        k = self.shape
        if self.family == "Gamma":
            return np.asarray(rng.standard_gamma(k + biased, count) / (k * self.rate_rps))
        powers = rng.standard_gamma(1 + 1 / k if biased else 1.0, count)
        return np.asarray(powers ** (1 / k) / (math.gamma(1 + 1 / k) * self.rate_rps))


@dataclass(slots=True)
class Client:
    """What is recorded of one client: gaps by window, and the quantiles of each field by the start of their window."""

    name: str
    gaps: list[Gaps]
    lengths: dict[str, list[tuple[float, NDArray[np.float64]]]]

    def quantiles(self, column: str, at_s: float) -> NDArray[np.float64]:
        """Those of the window that ``at_s`` lies in, else of the last before it, else of the first."""
        known = self.lengths[column]
        return known[max(bisect_right([start_s for start_s, _ in known], at_s) - 1, 0)][1]


def draw(clients: Sequence[Client], levels: NDArray[np.float64], window: Window, rng: Generator) -> Workload:
    """The requests of all clients in a window, moved to start at 0; application and tenant are the client.

    Args:
        clients: those with lengths, in an order that does not depend on the window.
        levels: the probabilities of their quantiles, rising from 0 to 1.
        window: see ``Window``.
        rng: chooses gaps and lengths.

    Raises:
        InvalidInputError: nobody is active in the window, or it has more than ``MAX_REQUESTS`` requests.
    """
    end_s = window.start_s + window.duration_s
    spans = [
        (index, gaps, max(gaps.start_s, window.start_s), min(gaps.start_s + WINDOW_S, end_s))
        for index, client in enumerate(clients)
        for gaps in client.gaps
        if gaps.start_s < end_s and gaps.start_s + WINDOW_S > window.start_s
    ]
    expected = sum(gaps.rate_rps * (end - begin) for _, gaps, begin, end in spans)
    if expected > MAX_REQUESTS:
        raise InvalidInputError(
            f"the {window.duration_s:g} s from {window.start_s:g} s have about {expected:,.0f} requests, "
            f"more than {MAX_REQUESTS:,}: choose a shorter window"
        )
    parts = []
    for index, gaps, begin_s, end_s in spans:
        at_s = gaps.arrivals(begin_s, end_s, rng)
        prompt, output = (
            _lengths(clients[index].quantiles(column, begin_s), levels, rng.random(len(at_s)))
            for column in ("input_tokens", "output_tokens")
        )
        parts.append((at_s, np.full(len(at_s), index), prompt, output))
    if not sum(len(part[0]) for part in parts):
        raise InvalidInputError(f"no client sends anything in the {window.duration_s:g} s from {window.start_s:g} s")
    at_s, client, prompt, output = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(at_s, kind="stable")
    names = tuple(f"client-{one.name}" for one in clients)
    return Workload.of(
        at_s[order] - window.start_s,
        prompt[order],
        output[order],
        application=client[order],
        tenant=client[order],
        applications=names,
        tenants=names,
    )


def _lengths(
    quantiles: NDArray[np.float64], levels: NDArray[np.float64], uniform: NDArray[np.float64]
) -> NDArray[np.int64]:
    return np.clip(np.rint(np.interp(uniform, levels, quantiles)), 1, MAX_TOKENS).astype(np.int64)
