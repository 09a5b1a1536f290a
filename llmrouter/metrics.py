"""Prometheus metrics of a router: names, units and bounded labels in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry

DECISION_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MAX_INSTANCE_LABELS = 256
"""Instances beyond this many have no series of their own."""


class RouterMetrics:
    """All metrics of one router, on a registry of the caller's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"llmrouter_{name}", text, tuple(labels), registry=registry)

        def gauge(name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
            return Gauge(f"llmrouter_{name}", text, tuple(labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()) -> Histogram:
            return Histogram(f"llmrouter_{name}", text, tuple(labels), buckets=buckets, registry=registry)

        self.requests = counter("requests_total", "Route calls by outcome.", ["outcome"])
        self.route_seconds = histogram("route_seconds", "Time a Route call took, holds included.", LATENCY_BUCKETS)
        self.decision_seconds = histogram("decision_seconds", "Time one policy decision took.", DECISION_BUCKETS)
        self.held_seconds = histogram("held_seconds", "Time dispatched requests were held.", LATENCY_BUCKETS)
        self.held_requests = gauge("held_requests", "Requests held now.")
        self.fallbacks = counter("policy_fallback_total", "Decisions of the fallback policy by reason.", ["reason"])
        self.predictor_fallbacks = counter("predictor_fallback_total", "Predictions by the constant.", ["reason"])
        self.reservations = counter(
            "reservations_total",
            "Reservations by event: committed, existing, moved, full, finished, failed, cancelled, orphaned, "
            "unclaimed, withdrawn, expired.",
            ["event"],
        )
        self.reports = counter(
            "reports_total", "Report events by kind and whether their request was known.", ["kind", "known"]
        )
        self.ttft_seconds = histogram("request_ttft_seconds", "First token reported minus arrival.", LATENCY_BUCKETS)
        self.e2e_seconds = histogram("request_e2e_seconds", "Finish reported minus arrival.", LATENCY_BUCKETS)
        self.length_error_tokens = histogram(
            "length_prediction_error_tokens", "Absolute error of predicted output tokens.", TOKEN_BUCKETS
        )
        self.state_backend_up = gauge("state_backend_up", "1 while the shared ledger answers, 0 while degraded.")
        self.state_backend_seconds = histogram("state_backend_seconds", "Time of one reserve call.", DECISION_BUCKETS)
        self.load_age_seconds = gauge("load_age_seconds", "Age of this router's replica of the ledger.")
        self.instances = gauge("instances", "Instances by state.", ["state"])
        self.in_flight_requests = gauge("in_flight_requests", "Requests in flight by instance.", ["pool", "instance"])
        self.in_flight_tokens = gauge("in_flight_tokens", "Context tokens in flight by instance.", ["pool", "instance"])
        self.scrape_failures = counter("scrape_failures_total", "Scrapes of engine metrics that failed.", ["reason"])
        self.scrape_age_seconds = gauge("scrape_age_seconds", "Age of the oldest engine report in use.")
        self.config_refused = counter("config_refused_total", "Configurations refused by reason.", ["reason"])
        self.policy_info = gauge("policy_info", "The policy in force.", ["policy", "digest", "provider", "deciding"])
        self.errors = counter("errors_total", "Failures of background work by part.", ["part"])
