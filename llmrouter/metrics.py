"""Prometheus metrics of a router: names, units and bounded labels in one place."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import Gauge, Summary

from llmrouter.late_metrics import LateCounter, LateHistogram

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry, Counter, Histogram

DECISION_BUCKETS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
RATIO_BUCKETS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
TPOT_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0)
COST_DIFFERENCE_BUCKETS = (-10.0, -3.0, -1.0, -0.3, -0.1, -0.03, -0.001, 0.001, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
ERROR_FRACTION_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
MAX_INSTANCE_LABELS = 256
"""Instances beyond this many have no series of their own."""

MAX_APPLICATION_LABELS = 32
"""Applications beyond this many share the label ``OTHER_APPLICATIONS``."""

OTHER_APPLICATIONS = "other"


class _Maker:
    """Makes metrics of one registry, their names beginning with ``llmrouter_``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        made = LateCounter(f"llmrouter_{name}", text, tuple(labels), registry=self._registry)
        made.labels = cache(made.labels)  # type: ignore[method-assign]  # a tenth of the time; labels are bounded
        return made

    def gauge(self, name: str, text: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"llmrouter_{name}", text, tuple(labels), registry=self._registry)

    def summary(self, name: str, text: str, labels: Iterable[str] = ()) -> Summary:
        return Summary(f"llmrouter_{name}", text, tuple(labels), registry=self._registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: Iterable[str] = ()) -> Histogram:
        made = LateHistogram(f"llmrouter_{name}", text, tuple(labels), buckets=buckets, registry=self._registry)
        made.labels = cache(made.labels)  # type: ignore[method-assign]  # as above
        return made


class RouterMetrics:
    """All metrics of one router, on a registry of the caller's; lengths and step times have parts of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Maker(registry)
        counter, gauge, histogram = make.counter, make.gauge, make.histogram
        self.lengths = LengthMetrics(make)
        self.calibration = CalibrationMetrics(make)
        self.prefixes = PrefixMetrics(make)
        self.front = FrontMetrics(make)
        self.decision_log = DecisionLogMetrics(make)
        self.arms = ArmMetrics(make)
        self.requests = counter("requests_total", "Route calls by outcome.", ["outcome"])
        self.ejections = counter(
            "ejections_total", "Times that an instance was left out: its requests failed, or came late.", ["reason"]
        )
        self.ejected = gauge("ejected_instances", "Instances that failed and get no request, or one as a trial.")
        self.prompts = counter(
            "prompts_total",
            "Dispatches of models with instances for one stage by the role of the instance that computes the prompt.",
            ["role"],
        )
        self.served_elsewhere = counter(
            "served_elsewhere_total", "Answers of which the gateway said that another endpoint gave them."
        )
        self.gateway_connections = gauge("gateway_connections", "Open connections of the endpoint picker's port.")
        self.gateway_connections_ended = counter(
            "gateway_connections_ended_total", "Connections of the endpoint picker's port that ended.", ["reason"]
        )
        self.route_seconds = histogram("route_seconds", "Time a Route call took, holds included.", LATENCY_BUCKETS)
        self.decision_seconds = histogram("decision_seconds", "Time one policy decision took.", DECISION_BUCKETS)
        self.held_seconds = histogram("held_seconds", "Time dispatched requests were held.", LATENCY_BUCKETS)
        self.held_requests = gauge("held_requests", "Requests held now.")
        self.queue_order_off = gauge(
            "queue_order_off", "1 while held requests go as they came, since predicted lengths order badly."
        )
        self.fallbacks = counter("policy_fallback_total", "Decisions of the fallback policy by reason.", ["reason"])
        self.guard_actions = counter(
            "guard_actions_total", "Answers of the policy that the guard changed, by reason.", ["reason"]
        )
        self.cost_ratio = histogram(
            "cost_ratio",
            "Seconds from dispatch to finish, of those foretold for the chosen instance at the decision.",
            RATIO_BUCKETS,
            ["policy"],
        )
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
        self.state_backend_up = gauge("state_backend_up", "1 while the shared ledger answers, 0 while degraded.")
        self.state_backend_seconds = histogram("state_backend_seconds", "Time of one reserve call.", DECISION_BUCKETS)
        self.load_age_seconds = gauge("load_age_seconds", "Age of this router's replica of the ledger.")
        self.instances = gauge("instances", "Instances by state.", ["state"])
        self.in_flight_requests = gauge("in_flight_requests", "Requests in flight by instance.", ["pool", "instance"])
        self.in_flight_tokens = gauge("in_flight_tokens", "Context tokens in flight by instance.", ["pool", "instance"])
        self.scrape_failures = counter("scrape_failures_total", "Scrapes of engine metrics that failed.", ["reason"])
        self.scrape_age_seconds = gauge("scrape_age_seconds", "Age of the oldest engine report in use.")
        self.mix_prefill_tokens_per_second = gauge(
            "mix_prefill_tokens_per_second", "Prompt tokens dispatched in a second, over the last minute."
        )
        self.mix_decode_tokens_per_second = gauge(
            "mix_decode_tokens_per_second", "Output tokens asked for in a second: foretold, corrected by answers."
        )
        self.mix_prefill_time_fraction = gauge(
            "mix_prefill_time_fraction", "Share of prefill in the engine time that is asked for; NaN where unknown."
        )
        self.config_refused = counter("config_refused_total", "Configurations refused by reason.", ["reason"])
        self.policy_info = gauge(
            "policy_info",
            "The policy in force, and the candidate beside it.",
            ["policy", "digest", "provider", "deciding", "arm"],
        )
        self.presumed_requests = gauge("presumed_requests", "Requests in flight whose answers are not seen.")
        self.life_ratio = gauge(
            "life_ratio", "Seconds that observed requests took, of those foretold: corrects what is presumed."
        )
        self.errors = counter("errors_total", "Failures of background work by part.", ["part"])
        self.certificate_expiry_seconds = gauge(
            "certificate_expiry_seconds", "When the certificate of the TLS ports expires, seconds since the epoch."
        )


class FrontMetrics:
    """What came through the OpenAI front, and what it did that a gateway cannot."""

    def __init__(self, make: _Maker) -> None:
        counter, gauge = make.counter, make.gauge
        self.requests = counter("openai_requests_total", "Requests to the OpenAI front by how they ended.", ["outcome"])
        self.open_requests = gauge("openai_open_requests", "Requests that the OpenAI front has open.")
        self.resumes = counter("resumes_total", "Requests sent on to another instance, by why.", ["reason"])
        self.not_resumed = counter(
            "not_resumed_total", "Requests that failed at an instance for good, by why.", ["reason"]
        )
        self.slices = counter("slices_total", "Slices after which an answer went on.", ["moved"])


class ArmMetrics:
    """The current policy and a candidate beside it, compared."""

    def __init__(self, make: _Maker) -> None:
        counter, histogram = make.counter, make.histogram
        self.requests = counter(
            "arm_requests_total",
            "Requests of an arm by event: dispatched, overruled (the current policy placed it for the candidate, which "
            "kept the line waiting), refused, finished, failed, cancelled.",
            ["arm", "event"],
        )
        self.ttft_seconds = histogram("arm_ttft_seconds", "First token minus arrival.", LATENCY_BUCKETS, ["arm"])
        self.tpot_seconds = histogram(
            "arm_tpot_seconds", "Time per output token after the first.", TPOT_BUCKETS, ["arm"]
        )
        self.e2e_seconds = histogram("arm_e2e_seconds", "Finish minus arrival.", LATENCY_BUCKETS, ["arm"])
        self.paused = make.gauge("candidate_paused", "1 while this router gives the candidate no request: it is worse.")
        self.shadow_decisions = counter(
            "shadow_decisions_total",
            "Decisions of a candidate in shadow: Agreed, Disagreed, Held, Fallback (it could not decide).",
            ["outcome"],
        )
        self.shadow_skipped = counter(
            "shadow_skipped_total", "Requests that the candidate in shadow was not asked about.", ["reason"]
        )
        self.shadow_disagreement_ratio = make.gauge(
            "shadow_disagreement_ratio",
            "Share of placements in shadow that differ from those made; NaN for none.",
        )
        self.shadow_disagreement_ratio.set(float("nan"))
        self.shadow_cost_difference_seconds = histogram(
            "shadow_cost_difference_seconds",
            "Marginal cost of the shadow's choice minus that of the one taken, by the current policy's weights.",
            COST_DIFFERENCE_BUCKETS,
        )
        self.shadow_decision_seconds = histogram(
            "shadow_decision_seconds", "Time one decision in shadow took.", DECISION_BUCKETS
        )


class DecisionLogMetrics:
    """Of the decision log: what became of sampled records, and whether its sink takes them."""

    def __init__(self, make: _Maker) -> None:
        self.records = make.counter(
            "decision_records_total", "Records of decisions by what became of them: Written, or why not.", ["outcome"]
        )
        self.up = make.gauge("decision_log_up", "1 while the decision log can be written, 0 while it cannot.")
        self.up.set(1)


class LengthMetrics:
    """What is said of output lengths, how true it was, and what routers tell each other of it."""

    def __init__(self, make: _Maker) -> None:
        counter, gauge, histogram = make.counter, make.gauge, make.histogram
        self.prediction_seconds = histogram(
            "length_prediction_seconds", "From asking for a prediction to its answer.", DECISION_BUCKETS
        )
        self.batch_requests = histogram(
            "length_prediction_batch_requests", "Requests predicted in one batch.", BATCH_BUCKETS
        )
        self.predictions = counter("length_predictions_total", "Predictions by who made them.", ["source"])
        self.fallbacks = counter(
            "length_fallbacks_total", "Predictions of the fallback, in place of the model's, by reason.", ["reason"]
        )
        self.prompt_tokens_error_fraction = histogram(
            "prompt_tokens_error_fraction",
            "Relative error of estimated prompt tokens, of those reported.",
            ERROR_FRACTION_BUCKETS,
        )
        self.error_tokens = histogram(
            "length_error_tokens",
            "Absolute error of expected tokens, by the bucket of the answer.",
            TOKEN_BUCKETS,
            ["bucket"],
        )
        self.bucket_answers = counter(
            "length_bucket_answers_total",
            "Answers by their bucket and that of the predicted median.",
            ["bucket", "predicted"],
        )
        self.application_error_tokens = make.summary(
            "length_application_error_tokens", "Absolute error of expected tokens, by application.", ["application"]
        )
        self.interval_answers = counter(
            "length_interval_answers_total",
            "Answers within, below and above their 80 % interval.",
            ["application", "position"],
        )
        self.usage_refused = counter(
            "length_usage_refused_total", "Reports of output tokens that were not believed, by reason.", ["reason"]
        )
        self.groups = gauge("length_groups", "Groups of requests whose lengths are told apart.")
        self.clipped = counter(
            "length_clipped_total", "Predictions of a model beyond what answers of the application have."
        )
        self.learning_dropped = counter(
            "length_learning_dropped_total", "Finished requests that nothing was learned from, for want of time."
        )
        self.drift = gauge("length_drift", "1 while answers differ from what was said of them.")
        self.rank_correlation = gauge(
            "length_rank_correlation", "Somers' D of rank and length over the last answers; NaN where not known."
        )
        self.rank_correlation.set(float("nan"))
        self.exchange = counter(
            "length_exchange_total",
            "Exchange of learned lengths with other routers: Published, Merged, SnapshotSaved, SnapshotMerged, Missed, "
            "Refused, Unavailable.",
            ["event"],
        )
        self.exchange_dropped_counts = counter(
            "length_exchange_dropped_counts_total",
            "Counts that other routers are not told of; an answer has one in each of its groups.",
        )


class PrefixMetrics:
    """What is taken to be in the engines' prefix caches, and what they say was."""

    def __init__(self, make: _Maker) -> None:
        self.hit_tokens = make.counter(
            "prefix_hit_tokens_total",
            "Prompt tokens in prefix caches: expected where a request is sent, checked (expected of those whose usage "
            "came), reported in that usage.",
            ["kind"],
        )
        self.entries = make.gauge("prefix_index_entries", "Pairs of a prompt block and an instance in the index.")
        self.hit_share = make.gauge(
            "prefix_hit_share",
            "Share of the expected hits that came true; 0 where an instance's hits count as none.",
            ["pool", "instance"],
        )
        self.exchange_uses = make.counter(
            "prefix_exchange_uses_total",
            "Prompts of which routers tell each other where they were sent: Published, Received, Dropped (not told), "
            "Unknown (heard, of an instance that is not ready here).",
            ["event"],
        )
        self.exchange_batches = make.counter(
            "prefix_exchange_batches_total",
            "Batches of them: Published, Received, Refused (undecodable), OtherKey, Missed; Unavailable counts steps.",
            ["event"],
        )


class CalibrationMetrics:
    """Step times as the traffic shows them, against those of the pools' profiles."""

    def __init__(self, make: _Maker) -> None:
        gauge = make.gauge
        self.residual = gauge(
            "calibration_relative_residual",
            "Median of |ln(observed / foretold)| of step times, foretold by what is learned or by the profile.",
            ["pool", "with"],
        )
        self.observations = gauge("calibration_observations", "Observations learned from.", ["pool"])
        self.refused = gauge(
            "calibration_refused_observations", "Observations that were not believed, by reason.", ["pool", "reason"]
        )
        self.ratio = gauge(
            "calibration_coefficient_ratio", "Coefficient divided by the profile's.", ["pool", "coefficient"]
        )
        self.learned = gauge(
            "calibration_learned_share",
            "Share of a coefficient that the traffic decides and not the profile.",
            ["pool", "coefficient"],
        )
        self.frozen = gauge(
            "calibration_frozen", "1 while coefficients do not follow what is observed.", ["pool", "reason"]
        )
        self.in_use = gauge(
            "calibration_in_use",
            "1 while decisions use learned coefficients, or instances' slowness, in place of the profile.",
            ["pool", "part"],
        )
        self.slowness = gauge(
            "calibration_instance_slowness", "Step time against the pool's median instance.", ["pool", "instance"]
        )
