"""What a replay measured: one record per request, summaries of many, and two summaries side by side. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROW_FIELDS = (
    "stretch",
    "request_id",
    "arrived_at_s",
    "sent_at_s",
    "first_token_at_s",
    "finished_at_s",
    "prompt_tokens",
    "output_tokens",
    "retries",
    "policy",
    "instance_id",
    "error",
    "predictor",
    "predicted_tokens",
)
"""Order of the values in a printed row."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request went. Instants share one clock; ``arrived_at_s`` is when the trace says, not when it was sent.

    ``predictor`` is who foretold the answer's length, ``predicted_tokens`` what: quantiles, ascending, the median in
    their middle, the 80 % interval between the second and the last but one; empty where nobody did.
    """

    stretch: str
    request_id: str
    arrived_at_s: float
    sent_at_s: float
    first_token_at_s: float | None
    finished_at_s: float | None
    prompt_tokens: int
    output_tokens: int
    retries: int
    policy: str
    instance_id: str
    error: str
    predictor: str = ""
    predicted_tokens: Sequence[float] = ()

    @property
    def failed(self) -> bool:
        """Whether the request did not end with all its tokens, retry included."""
        return bool(self.error)

    @property
    def lateness_s(self) -> float:
        """How far the client itself was behind the trace."""
        return self.sent_at_s - self.arrived_at_s

    @property
    def ttft_s(self) -> float | None:
        """First token − arrival."""
        return None if self.first_token_at_s is None else self.first_token_at_s - self.arrived_at_s

    @property
    def tpot_s(self) -> float | None:
        """(finish − first) / (n − 1); ``None`` for fewer than two tokens."""
        if self.first_token_at_s is None or self.finished_at_s is None or self.output_tokens < 2:  # noqa: PLR2004
            return None
        return (self.finished_at_s - self.first_token_at_s) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """Finish − arrival."""
        return None if self.finished_at_s is None else self.finished_at_s - self.arrived_at_s

    def as_row(self) -> list[object]:
        """The values in the order of ``ROW_FIELDS``."""
        return [getattr(self, name) for name in ROW_FIELDS]

    @classmethod
    def from_row(cls, row: Sequence[object]) -> Outcome:
        """The inverse of ``as_row``."""
        return cls(**dict(zip(ROW_FIELDS, row, strict=True)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Summary:
    """Many outcomes in a few numbers; figures are over requests that did not fail, ``None`` where there are none."""

    requests: int
    failed: int
    retries: int
    output_tokens: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_s: float | None
    tpot_p95_s: float | None
    e2e_mean_s: float | None
    e2e_p99_s: float | None
    lateness_p99_s: float | None

    def as_mapping(self) -> dict[str, float | int | None]:
        """Names to values, seconds rounded to the microsecond."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in values.items()}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value at ``percent`` (0 to 100), interpolated between neighbours; ``None`` of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; ``None`` of nothing."""
    return math.fsum(values) / len(values) if values else None


def summarise(outcomes: Sequence[Outcome]) -> Summary:
    """The numbers of the demo's table."""
    good = [outcome for outcome in outcomes if not outcome.failed]
    ttft_s = [value for outcome in good if (value := outcome.ttft_s) is not None]
    tpot_s = [value for outcome in good if (value := outcome.tpot_s) is not None]
    e2e_s = [value for outcome in good if (value := outcome.e2e_s) is not None]
    return Summary(
        requests=len(outcomes),
        failed=len(outcomes) - len(good),
        retries=sum(outcome.retries for outcome in outcomes),
        output_tokens=sum(outcome.output_tokens for outcome in good),
        ttft_p50_s=percentile(ttft_s, 50),
        ttft_p99_s=percentile(ttft_s, 99),
        tpot_p50_s=percentile(tpot_s, 50),
        tpot_p95_s=percentile(tpot_s, 95),
        e2e_mean_s=mean(e2e_s),
        e2e_p99_s=percentile(e2e_s, 99),
        lateness_p99_s=percentile([outcome.lateness_s for outcome in outcomes], 99),
    )


@dataclass(frozen=True, slots=True)
class LengthsForetold:
    """How true the predicted lengths of answers were: ``None`` where there was none.

    ``within_80_fraction`` is the share of answers inside their 80 % interval; ``error_p50_tokens`` the median distance
    from the predicted median; ``predictors`` the share of predictions by who made them.
    """

    answers: int
    within_80_fraction: float | None
    error_p50_tokens: float | None
    predictors: Mapping[str, float]


def lengths_foretold(outcomes: Sequence[Outcome]) -> LengthsForetold:
    """Of the requests that did not fail and whose length was foretold."""
    known = [one for one in outcomes if not one.failed and one.predicted_tokens]
    within = [float(one.predicted_tokens[1] <= one.output_tokens <= one.predicted_tokens[-2]) for one in known]
    errors = [abs(one.predicted_tokens[len(one.predicted_tokens) // 2] - one.output_tokens) for one in known]
    names = sorted({one.predictor for one in known})
    return LengthsForetold(
        answers=len(known),
        within_80_fraction=mean(within),
        error_p50_tokens=percentile(errors, 50),
        predictors={name: sum(one.predictor == name for one in known) / len(known) for name in names},
    )


def change_percent(before: float | None, after: float | None) -> float | None:
    """How much ``after`` differs from ``before``, in percent of it; ``None`` where that has no meaning."""
    if before is None or after is None or before == 0:
        return None
    return (after - before) / before * 100


TABLE = (
    ("TTFT p50", "ttft_p50_s", "s"),
    ("TTFT p99", "ttft_p99_s", "s"),
    ("TPOT p50", "tpot_p50_s", "ms"),
    ("TPOT p95", "tpot_p95_s", "ms"),
    ("E2E mean", "e2e_mean_s", "s"),
    ("E2E p99", "e2e_p99_s", "s"),
    ("requests", "requests", ""),
    ("failed", "failed", ""),
)


def side_by_side(before: Mapping[str, object], after: Mapping[str, object]) -> list[tuple[str, str, str, str]]:
    """Rows of the table: what, before, after, change; both mappings name the keys of ``Summary``."""
    rows = []
    for label, key, unit in TABLE:
        first, second = _number(before.get(key)), _number(after.get(key))
        change = change_percent(first, second) if unit else None
        rows.append((label, show(first, unit), show(second, unit), "" if change is None else f"{change:+.1f} %"))
    return rows


def show(value: float | None, unit: str) -> str:
    """A number as people read it; a dash for what is not known."""
    if value is None:
        return "–"
    if unit == "ms":
        return f"{value * 1e3:.1f} ms"
    if unit == "s":
        return f"{value:.3f} s"
    return f"{value:,.0f}"


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
