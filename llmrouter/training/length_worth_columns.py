"""What each predictor says of every request of a run, learned from the answers that are there when it arrives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.arrivals import predictions
from llmrouter.lengths.artefact import with_features
from llmrouter.lengths.distribution import LEVELS, PAPER_EDGES_TOKENS, lengths_of
from llmrouter.lengths.online import By, OnlineQuantiles
from llmrouter.lengths.served import ServedLengths
from llmrouter.training.length_evaluation_scores import concordance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest
    from llmrouter.sim.workload import Workload
    from llmrouter.training.length_worth_traffic import Drawn

    Floats = NDArray[np.float64]

_NOISE = 0x6E6F
"""The random stream of the noise on true lengths."""

FEW = 2.0
"""Weight of the mean of all in that of a task: enough for a first answer, gone after ten."""

BATCH = 256


class Column(StrEnum):
    """Who says how long an answer will be, from nothing to the truth."""

    NONE = "none"
    TASK_MEAN = "task mean"
    APPLICATION = "application quantiles"
    OURS = "ours"
    OURS_BUCKET = "ours, 3 buckets"
    ORACLE = "oracle"
    NOISE_05 = "oracle × noise σ 0.5"
    NOISE_1 = "oracle × noise σ 1"
    NOISE_2 = "oracle × noise σ 2"
    OURS_MEDIAN = "ours, q50"
    OURS_Q75 = "ours, q75"
    OURS_Q90 = "ours, q90"


NOISES = {Column.NOISE_05: 0.5, Column.NOISE_1: 1.0, Column.NOISE_2: 2.0}
QUANTILES = {Column.OURS_MEDIAN: 0.5, Column.OURS_Q75: 0.75, Column.OURS_Q90: 0.9}


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """Predicted tokens (N,), and ranks (N,): a lower one is expected to be done sooner."""

    tokens: Floats
    rank: Floats


class _Learner(Protocol):
    def says(self, request: LengthRequest) -> LengthDistribution: ...

    def learns(self, request: LengthRequest, tokens: float) -> None: ...


class _Served:
    """The composition that a router serves; requests that were given a model's law are answered by the blend."""

    def __init__(self, model: LengthPredictor | None) -> None:
        self._lengths = ServedLengths()
        if model is not None:
            self._lengths.use(model.name, model.digest)

    def says(self, request: LengthRequest) -> LengthDistribution:
        return self._lengths.predict([request])[0]

    def learns(self, request: LengthRequest, tokens: float) -> None:
        self._lengths.learn(request, tokens)


class _TaskMean:
    def __init__(self) -> None:
        self._counts = OnlineQuantiles(chain=(By.APPLICATION,), half_life=None, shrinkage=FEW)

    def says(self, request: LengthRequest) -> LengthDistribution:
        return self._counts.predict([request]).row(0)

    def learns(self, request: LengthRequest, tokens: float) -> None:
        self._counts.learn(request, tokens)


def read_by(model: LengthPredictor, requests: Sequence[LengthRequest]) -> tuple[LengthRequest, ...]:
    """The requests, each with the features of its text and the law that the model gives it, as routers keep them."""
    read: list[LengthRequest] = []
    for start in range(0, len(requests), BATCH):
        part = with_features(requests[start : start + BATCH])
        laws = model.predict(part)
        read += [replace(request, given=laws.row(place)) for place, request in enumerate(part)]
    return tuple(read)


def columns_of(
    drawn: Drawn,
    workload: Workload,
    *,
    model: LengthPredictor,
    read: Sequence[LengthRequest],
    finished_at_s: Floats,
) -> dict[Column, Said]:
    """Every column for the traffic of a run, shape (N,) each.

    Args:
        drawn: history and traffic. All learn the history before the run, one answer after the other.
        workload: the traffic with its times.
        model: the text model.
        read: the requests of the population, each with the model's law.
        finished_at_s: when each answer is there to be learned (N,); NaN where it never is.
    """
    of, past = drawn.population, drawn.past()
    laws = {
        Column.TASK_MEAN: _online(_TaskMean(), drawn, of.requests, workload.arrived_at_s, finished_at_s),
        Column.APPLICATION: _online(_Served(None), drawn, of.requests, workload.arrived_at_s, finished_at_s),
        Column.OURS: _online(_Served(model), drawn, read, workload.arrived_at_s, finished_at_s),
    }
    found = {
        column: Said(np.array([law.expected_tokens for law in said]), np.array([law.rank for law in said]))
        for column, said in laws.items()
    }
    points = {Column.NONE: predictions.none(workload, past), Column.ORACLE: predictions.oracle(workload)}
    for column, sigma in NOISES.items():
        points[column] = predictions.noisy(workload, np.random.default_rng((drawn.seed, _NOISE)), sigma=sigma)
    quantiles_NQ = np.array([law.quantiles for law in laws[Column.OURS]])
    points |= {column: quantiles_NQ[:, LEVELS.index(level)] for column, level in QUANTILES.items()}
    bucket_N = lengths_of(quantiles_NQ, source="").bucket_probabilities(PAPER_EDGES_TOKENS).argmax(axis=1)
    points[Column.OURS_BUCKET] = np.array(predictions.bucket_values(past))[bucket_N]
    found |= {column: Said(tokens_N, tokens_N) for column, tokens_N in points.items()}
    return {column: found[column] for column in Column}


def quality(columns: Mapping[Column, Said], actual_N: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """How good each column is: buckets (0-250-1000-) named right, order of ranks, mean absolute error and mean, tokens.

    ``somers_d``: of pairs of answers of unequal length, the share in the right order minus that in the wrong one.
    """
    truth_N = actual_N.astype(np.float64)
    bucket_N = np.digitize(truth_N, PAPER_EDGES_TOKENS)
    found = {}
    for column, said in columns.items():
        agree_N, _, unequal_N = concordance(said.rank, truth_N)
        found[column.value] = {
            "bucket_accuracy": float((np.digitize(said.tokens, PAPER_EDGES_TOKENS) == bucket_N).mean()),
            "somers_d": float(agree_N.sum() / max(unequal_N.sum(), 1e-9)),
            "mae_tokens": float(np.abs(said.tokens - truth_N).mean()),
            "mean_tokens": float(said.tokens.mean()),
            "true_mean_tokens": float(truth_N.mean()),
        }
    return found


def _online(
    learner: _Learner,
    drawn: Drawn,
    requests: Sequence[LengthRequest],
    arrived_at_s: Floats,
    finished_at_s: Floats,
) -> list[LengthDistribution]:
    """What is said of each request of the traffic as it arrives, from the answers that are finished by then."""
    tokens = drawn.population.output_tokens
    for row in drawn.history.tolist():
        learner.learns(requests[row], float(tokens[row]))
    said: list[LengthDistribution] = []
    ends = np.argsort(finished_at_s, kind="stable")  # NaN last
    learned = 0
    for place, row in enumerate(drawn.traffic.tolist()):
        while learned < len(ends) and finished_at_s[ends[learned]] <= arrived_at_s[place]:
            done = int(ends[learned])
            answered = int(drawn.traffic[done])
            learner.learns(requests[answered], float(tokens[answered]))
            learned += 1
        said.append(learner.says(requests[row]))
    return said
