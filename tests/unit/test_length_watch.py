from __future__ import annotations

import math
import tracemalloc

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llmrouter.lengths.distribution import LengthDistribution
from llmrouter.lengths.drift import DriftWatch
from llmrouter.lengths.predictor import LengthRequest, UsageRefusal
from llmrouter.metrics import MAX_APPLICATION_LABELS, RouterMetrics
from router_grpc.length_watch import LengthWatch

LAW = LengthDistribution((50.0, 60.0, 80.0, 100.0, 140.0, 200.0, 260.0), own_mean=120.0, own_rank=1.0, source="t")


class Watched:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.watch = LengthWatch(RouterMetrics(self.registry), DriftWatch())

    def finished(
        self, tokens: float, *, application: str = "chat", refused: UsageRefusal | None = None, times: int = 1
    ) -> None:
        for _ in range(times):
            self.watch.finished(LengthRequest(application=application), LAW, tokens, refused)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"llmrouter_length_{name}", labels)

    def series(self) -> int:
        return sum(not line.startswith(b"#") for line in generate_latest(self.registry).splitlines())


@pytest.mark.parametrize(
    ("tokens", "bucket", "error"),
    [(20.0, "0-250", 100.0), (249.0, "0-250", 129.0), (250.0, "250-1000", 130.0), (5_000.0, "1000-", 4_880.0)],
)
def test_errors_are_told_apart_by_the_papers_bucket(tokens: float, bucket: str, error: float) -> None:
    watched = Watched()
    watched.finished(tokens)
    assert watched.value("error_tokens_sum", bucket=bucket) == error
    assert watched.value("bucket_answers_total", bucket=bucket, predicted="0-250") == 1.0


def test_errors_are_told_apart_by_application() -> None:
    watched = Watched()
    watched.finished(130.0, application="chat", times=3)
    watched.finished(20.0, application="")
    assert watched.value("application_error_tokens_sum", application="chat") == 30.0
    assert watched.value("application_error_tokens_count", application="chat") == 3.0
    assert watched.value("application_error_tokens_sum", application="") == 100.0


@pytest.mark.parametrize(
    ("tokens", "position"),
    [(59.0, "below"), (60.0, "within"), (60.0 - 1e-12, "within"), (200.0, "within"), (201.0, "above")],
)
def test_answers_are_counted_by_where_the_interval_has_them(tokens: float, position: str) -> None:
    watched = Watched()
    watched.finished(tokens)
    assert watched.value("interval_answers_total", application="chat", position=position) == 1.0


@pytest.mark.parametrize("reason", list(UsageRefusal))
def test_refused_usage_is_counted_by_reason_and_nothing_else(reason: UsageRefusal) -> None:
    watched = Watched()
    watched.finished(math.nan, refused=reason)
    assert watched.value("usage_refused_total", reason=reason.value) == 1.0
    assert watched.value("application_error_tokens_count", application="chat") is None


def test_drift_and_order_are_shown() -> None:
    watched = Watched()
    rank_correlation = watched.value("rank_correlation")
    assert rank_correlation is not None
    assert math.isnan(rank_correlation)
    for tokens in [40.0, *[70.0, 150.0] * 4, 300.0] * 20:
        watched.finished(tokens)
    assert (watched.value("drift"), watched.value("rank_correlation")) == (0.0, 0.0)
    watched.finished(900.0, times=10)
    assert watched.value("drift") == 1.0


@pytest.mark.timeout(300)
def test_a_million_applications_are_a_bounded_number_of_series() -> None:
    watched = Watched()
    for place in range(MAX_APPLICATION_LABELS):
        watched.finished(70.0 + place, application=f"first {place}")
    for tokens in (20.0, 100.0, 400.0):
        watched.finished(tokens, application="one more")
    before = watched.series()
    label = watched.watch._label
    names = {label(f"application {place}") for place in range(10**6)}
    assert names == {"other"}
    for place in range(5_000):
        watched.finished(100.0, application=f"application {place}")
    assert watched.series() == before
    assert watched.value("application_error_tokens_count", application="other") == 5_003.0
    assert watched.value("application_error_tokens_count", application="first 31") == 1.0


def test_a_million_applications_take_bounded_memory() -> None:
    watched = Watched()
    tracemalloc.start()
    try:
        for place in range(3_000):
            watched.finished(100.0, application=f"{place}" * 50)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2**20


def test_a_label_is_bounded() -> None:
    watched = Watched()
    watched.finished(100.0, application="x" * 10**6)
    lines = [line for line in generate_latest(watched.registry).splitlines() if not line.startswith(b"#")]
    assert max(map(len, lines)) < 200


def test_an_application_named_other_is_one_of_the_others() -> None:
    watched = Watched()
    watched.finished(130.0, application="other")
    assert watched.value("application_error_tokens_count", application="other") == 1.0
    assert watched.watch._applications == set()
