"""Fitting an engine's coefficients to measured runs by simulation."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize

from llmrouter.domain import STEP_TIME_FIELDS
from llmrouter.errors import InvalidInputError
from llmrouter.validation.engines import Coefficients, Reuse
from llmrouter.validation.judge import compare
from llmrouter.validation.replay import replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.validation.engines import MeasuredEngine
    from llmrouter.validation.measured import MeasuredRun

PROFILE_COEFFICIENTS = tuple(name for name in STEP_TIME_FIELDS if name != "prefill_floor_s")
"""What is fitted of a profile: all but the floor of a prefill step."""

STEP_COEFFICIENTS = (*PROFILE_COEFFICIENTS, "front_s", "front_s_per_token", "prefill_sequence_s")
TRANSFER_PARAMETERS = ("transfer_s", "transfer_bytes_per_s")
SHARE_PARAMETERS = ("uncached_fraction", "uncached_concentration")

_QUANTILES = np.linspace(0.05, 0.95, 19)
_BOUND = 3.0
"""A coefficient stays within e^±3 of its start."""

_ROBUST = 1.0
"""Largest |ln ratio| that one request adds."""

_IMPOSSIBLE = 1e3
_SPREAD = 0.25
"""Standard deviation of the starts after the first, in ln."""

_DRAWS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """How long to search: ``evaluations`` bounds one start; ``ttft_weight`` counts TTFT against TPOT and E2E."""

    starts: int = 3
    evaluations: int = 500
    ttft_weight: float = 0.5
    seed: int = 0


def free_parameters(engine: MeasuredEngine, *, kv: bool) -> tuple[str, ...]:
    """What a fit of this engine moves: the step coefficients, the cached share where there is one, the KV if asked."""
    return (
        *STEP_COEFFICIENTS,
        *(TRANSFER_PARAMETERS if engine.decode_instances else ()),
        *(SHARE_PARAMETERS if engine.reuse is Reuse.SHARE else ()),
        *(("kv_tokens",) if kv else ()),
    )


def fit(
    engine: MeasuredEngine,
    runs: Sequence[MeasuredRun],
    free: Sequence[str],
    *,
    options: FitOptions,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> MeasuredEngine:
    """The engine with the coefficients of the lowest loss over several starts (Nelder-Mead over logarithms).

    Args:
        engine: where the first start begins.
        runs: judged together.
        free: names of ``Coefficients`` to move; the others stay.
        options: the length of the search.
        on_evaluation: called with the evaluations so far and the lowest loss.

    Raises:
        InvalidInputError: no run, or no start gives an engine that finishes the runs.
    """
    if not runs:
        raise InvalidInputError(f"engine {engine.name}: a fit needs at least one run")
    search = _Search(engine, runs, free, options, on_evaluation)
    rng = np.random.default_rng(options.seed)
    for start in range(options.starts):
        search.descend(search.origin + (rng.normal(0.0, _SPREAD, len(free)) if start else 0.0))
    if search.lowest >= _IMPOSSIBLE:
        raise InvalidInputError(f"engine {engine.name}: no coefficients near the start finish {runs[0].name}")
    names = list(dict.fromkeys((*engine.fitted, *free)))
    return engine.with_coefficients(search.coefficients(search.best), names, [run.name for run in runs])


def loss(engine: MeasuredEngine, runs: Sequence[MeasuredRun], *, ttft_weight: float) -> float:
    """Mean over runs of robust relative differences.

    Each run adds the mean |ln(simulated/measured)| of E2E and TPOT request by request, that of TTFT between quantiles
    (what of a prompt is cached is known in distribution only), and the errors of mean E2E, mean TPOT and median TTFT.
    """
    return sum(_run_loss(engine, run, ttft_weight) for run in runs) / len(runs)


def _run_loss(engine: MeasuredEngine, run: MeasuredRun, ttft_weight: float) -> float:
    replayed = replay(engine, run, draws=_DRAWS)
    keep = run.judged
    errors = compare(run, replayed)
    many = keep & (run.output_tokens > 1)
    simulated_s = np.quantile(replayed.ttft_s[:, keep], _QUANTILES)
    total = _log_distance(replayed.e2e_s.mean(axis=0)[keep], run.e2e_s[keep])
    total += ttft_weight * _log_distance(simulated_s, np.quantile(run.ttft_s[keep], _QUANTILES))
    if many.any():
        decode_s = (replayed.e2e_s - replayed.ttft_s).mean(axis=0)
        total += _log_distance(decode_s[many], (run.e2e_s - run.ttft_s)[many])
    weights = {"e2e_mean": 1.0, "tpot_mean": 1.0, "ttft_p50": ttft_weight}
    return total + sum(weight * abs(errors[name] or 0.0) for name, weight in weights.items())


def _log_distance(simulated: NDArray[np.float64], measured: NDArray[np.float64]) -> float:
    ratio = np.log(np.maximum(simulated, 1e-9) / np.maximum(measured, 1e-9))
    return float(np.minimum(np.abs(ratio), _ROBUST).mean())


class _Search:
    """The best point so far, and the way between points and coefficients."""

    def __init__(
        self,
        engine: MeasuredEngine,
        runs: Sequence[MeasuredRun],
        free: Sequence[str],
        options: FitOptions,
        on_evaluation: Callable[[int, float], None] | None,
    ) -> None:
        self._engine = engine
        self._runs = runs
        self._free = tuple(free)
        self._options = options
        self._tell = on_evaluation
        self._evaluations = 0
        self.origin = np.array([_to_line(name, asdict(engine.coefficients)[name]) for name in self._free])
        self.best = self.origin
        self.lowest = _IMPOSSIBLE

    def descend(self, start: NDArray[np.float64]) -> None:
        """One start: a search, and a second one from its end, which the bumps of the loss reward."""
        point = start
        for evaluations in (self._options.evaluations * 2 // 3, self._options.evaluations // 3):
            point = minimize(
                self._loss_at,
                point,
                method="Nelder-Mead",
                options={"maxfev": max(evaluations, 1), "xatol": 1e-3, "fatol": 1e-5, "adaptive": True},
            ).x

    def coefficients(self, point: NDArray[np.float64]) -> Coefficients:
        values = {name: _from_line(name, float(at)) for name, at in zip(self._free, point, strict=True)}
        return replace(self._engine.coefficients, **values)

    def _loss_at(self, point: NDArray[np.float64]) -> float:
        self._evaluations += 1
        value = _IMPOSSIBLE
        if (np.abs(point - self.origin) <= _BOUND).all():
            try:
                value = loss(
                    replace(self._engine, coefficients=self.coefficients(point)),
                    self._runs,
                    ttft_weight=self._options.ttft_weight,
                )
            except InvalidInputError:
                value = _IMPOSSIBLE  # this point is no engine, or never finishes a run: the search goes elsewhere
        if value < self.lowest:
            self.lowest, self.best = value, point.copy()
        if self._tell is not None:
            self._tell(self._evaluations, self.lowest)
        return value


def _to_line(name: str, value: float) -> float:
    return float(np.log(value / (1 - value)) if name == "uncached_fraction" else np.log(value))


def _from_line(name: str, at: float) -> float:
    return float(1 / (1 + np.exp(-at)) if name == "uncached_fraction" else np.exp(at))
