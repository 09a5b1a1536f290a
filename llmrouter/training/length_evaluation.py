"""Runs length predictors over answered requests: online, as production would, or fitted on a split by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.artefact import with_features
from llmrouter.lengths.distribution import Lengths
from llmrouter.lengths.recalibrated import Recalibrated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest, UsageRefusal
    from llmrouter.training.length_evaluation_contenders import Contender
    from llmrouter.training.length_evaluation_rows import LengthRow

    Advance = Callable[[int], None]

CHUNK = 256
CALIBRATED = "+calibrated"


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """Requests as predictors see them, in the order they come, and the lengths of their answers (N,)."""

    requests: Sequence[LengthRequest]
    output_tokens: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.requests)


def answered(rows: Sequence[LengthRow], *, hint: bool) -> Answered:
    """Rows as requests, with or without their application label; their text is read once, for whoever wants it."""
    tokens = np.array([row.output_tokens for row in rows], dtype=np.float64)
    requests: list[LengthRequest] = []
    for start in range(0, len(rows), CHUNK):
        requests += with_features([row.seen(hint=hint) for row in rows[start : start + CHUNK]])
    return Answered(requests, tokens)


def random_order(rows: Sequence[LengthRow], rng: np.random.Generator) -> list[LengthRow]:
    """All rows, mixed."""
    return [rows[place] for place in rng.permutation(len(rows))]


def grouped_order(rows: Sequence[LengthRow], rng: np.random.Generator) -> list[LengthRow]:
    """All rows of one source and task, mixed, then those of the next: as many drifts as there are groups."""
    groups: dict[tuple[str, str], list[LengthRow]] = {}
    for row in rows:
        groups.setdefault((row.source, row.task), []).append(row)
    names = sorted(groups)
    return [row for place in rng.permutation(len(names)) for row in random_order(groups[names[place]], rng)]


def run_online(contender: Contender, traffic: Answered, advance: Advance) -> dict[str, Lengths]:
    """Predicts each request, then learns its answer, in order; the contender alone, and recalibrated."""
    run = _one_by_one if contender.learns else _batches
    plain = run(contender.make(), traffic, advance)
    recalibrated = _one_by_one(Recalibrated(_Recorded(plain)), traffic, advance)
    return {contender.name: plain, contender.name + CALIBRATED: recalibrated}


def run_offline(contender: Contender, learned: Answered, traffic: Answered, advance: Advance) -> dict[str, Lengths]:
    """Learns all of ``learned``, then predicts all of ``traffic`` and learns nothing more; alone, and recalibrated."""
    recalibrated = Recalibrated(contender.make())
    for request, tokens in zip(learned.requests, learned.output_tokens.tolist(), strict=True):
        recalibrated.learn(request, tokens)
        advance(1)
    return {
        contender.name: _batches(recalibrated.inner, traffic, advance),
        contender.name + CALIBRATED: _batches(recalibrated, traffic, advance),
    }


def _batches(predictor: LengthPredictor, traffic: Answered, advance: Advance) -> Lengths:
    parts = []
    for start in range(0, len(traffic), CHUNK):
        chunk = traffic.requests[start : start + CHUNK]
        parts.append(predictor.predict(chunk))
        advance(len(chunk))
    return _joined(parts)


def _one_by_one(predictor: LengthPredictor, traffic: Answered, advance: Advance) -> Lengths:
    parts = []
    for request, tokens in zip(traffic.requests, traffic.output_tokens.tolist(), strict=True):
        law = predictor.predict([request])
        parts.append(law)
        predictor.learn(request, tokens, law.row(0, parts=True))
        advance(1)
    return _joined(parts)


def _joined(parts: Sequence[Lengths]) -> Lengths:
    means = [one.own_mean for one in parts if one.own_mean is not None]
    ranks = [one.own_rank for one in parts if one.own_rank is not None]
    return Lengths(
        np.concatenate([one.latent for one in parts]),
        np.concatenate([one.limit_tokens for one in parts]),
        parts[0].source,
        parts[0].digest,
        own_mean=np.concatenate(means) if means else None,
        own_rank=np.concatenate(ranks) if ranks else None,
    )


class _Recorded:
    """Gives laws that were made before, with their ranks, in their order."""

    def __init__(self, laws: Lengths) -> None:
        self.name = laws.source
        self.digest = laws.digest
        self._laws = laws
        self._rank_N = laws.rank
        self._next = 0

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        place = slice(self._next, self._next + len(requests))
        self._next += len(requests)
        laws = self._laws
        own_rank_N = self._rank_N[place]
        return Lengths(laws.latent[place], laws.limit_tokens[place], self.name, self.digest, own_rank=own_rank_N)

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        del request, output_tokens, predicted
        return None
