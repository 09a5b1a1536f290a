"""Sees how true predictions of output lengths were: as metrics, and by a watch for drift."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmrouter.lengths.distribution import LEVELS, MEDIAN, PAPER_EDGES_TOKENS
from llmrouter.lengths.drift import MIN_RANK_CORRELATION, WARM_UP_ANSWERS
from llmrouter.lengths.predictor import label
from llmrouter.metrics import MAX_APPLICATION_LABELS, OTHER_APPLICATIONS

if TYPE_CHECKING:
    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.drift import Drift, DriftWatch
    from llmrouter.lengths.predictor import LengthRequest, UsageRefusal
    from llmrouter.metrics import RouterMetrics

BUCKETS = ("0-250", "250-1000", "1000-")
"""The paper's, as labels; an answer of 250 tokens is in the second."""

_LOW, _HIGH = LEVELS.index(0.1), LEVELS.index(0.9)
_ROUNDING = 1e-9

ENOUGH_RANK_CORRELATION = MIN_RANK_CORRELATION + 0.05


class LengthWatch:
    """Holds finished requests against the laws that were served for them; bounded memory, whatever labels clients send.

    The first ``MAX_APPLICATION_LABELS`` applications have series of their own, all others share one, named ``other``;
    requests without a label are an application named "".

    Attributes:
        drift: how lengths differ now from what is said of them.
        orders_well: whether predicted lengths are good enough to order by: rank correlation not below 0.2, or not known
            yet. Once it was below, it has to reach 0.25.
    """

    def __init__(self, metrics: RouterMetrics, drift: DriftWatch) -> None:
        self._metrics = metrics.lengths
        self._watch = drift
        self._applications: set[str] = set()
        # What other threads read: values that are replaced as a whole.
        self.answers = 0
        self.drift: Drift | None = None
        self.orders_well = True

    @property
    def drift_known(self) -> bool:
        """Whether enough answers came for ``drift`` to be noticed."""
        return self.answers > WARM_UP_ANSWERS

    def finished(
        self, request: LengthRequest, law: LengthDistribution, output_tokens: float, refused: UsageRefusal | None
    ) -> None:
        """Takes note of one answer; where its usage was ``refused``, of the reason alone."""
        if refused is not None:
            self._metrics.usage_refused.labels(refused.value).inc()
            return
        self._observe(law, output_tokens, self._label(request.application))
        self._watch.note(request, law, output_tokens)
        self.answers += 1
        self.drift = self._watch.drift
        self._metrics.drift.set(self.drift is not None)
        correlation = self._watch.rank_correlation
        self._metrics.rank_correlation.set(math.nan if correlation is None else correlation)
        if correlation is not None:
            self.orders_well = correlation >= (MIN_RANK_CORRELATION if self.orders_well else ENOUGH_RANK_CORRELATION)

    def _observe(self, law: LengthDistribution, output_tokens: float, application: str) -> None:
        error_tokens = abs(law.expected_tokens - output_tokens)
        bucket, predicted = _bucket(output_tokens), _bucket(law.quantiles[MEDIAN])
        self._metrics.error_tokens.labels(bucket).observe(error_tokens)
        self._metrics.bucket_answers.labels(bucket, predicted).inc()
        self._metrics.application_error_tokens.labels(application).observe(error_tokens)
        self._metrics.interval_answers.labels(application, _position(law, output_tokens)).inc()

    def _label(self, application: str) -> str:
        name = label(application)
        if name in self._applications:
            return name
        if name == OTHER_APPLICATIONS or len(self._applications) >= MAX_APPLICATION_LABELS:
            return OTHER_APPLICATIONS
        self._applications.add(name)
        return name


def _bucket(tokens: float) -> str:
    return BUCKETS[sum(tokens >= edge for edge in PAPER_EDGES_TOKENS)]


def _position(law: LengthDistribution, tokens: float) -> str:
    """Whole tokens and quantiles that are equal but for rounding are within."""
    if tokens < law.quantiles[_LOW] * (1.0 - _ROUNDING):
        return "below"
    return "above" if tokens > law.quantiles[_HIGH] * (1.0 + _ROUNDING) else "within"
