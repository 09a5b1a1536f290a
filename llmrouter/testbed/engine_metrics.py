"""A simulated engine's ``/metrics`` in vLLM's names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.testbed.engine_loop import EngineLoop

TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
    *(160.0, 640.0, 2560.0),
)


class EngineMetrics:
    """The registry of one simulated engine; gauges and counters are read from the engine when scraped."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model
        histogram = Histogram(
            "vllm:time_to_first_token_seconds",
            "Time to first token in seconds.",
            labelnames=("model_name", "engine"),
            buckets=TTFT_BUCKETS_S,
            registry=self._registry,
        )
        self._ttft = histogram.labels(model_name=model, engine="0")

    def watch(self, loop: EngineLoop) -> None:
        """Adds the counters of ``loop`` to what a scrape returns."""
        self._registry.register(_EngineCollector(loop, self._model))

    def observe_first_token(self, ttft_s: float) -> None:
        """Files one time to first token."""
        self._ttft.observe(ttft_s)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, loop: EngineLoop, model: str) -> None:
        self._loop = loop
        self._labels = {"model_name": model, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        counters = self._loop.counters
        profile = self._loop.profile
        yield self._gauge("num_requests_running", "Requests in the batch.", counters.running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", counters.waiting)
        yield self._gauge("kv_cache_usage_perc", "KV usage; 1 means all blocks.", counters.kv_usage_fraction)
        yield self._counter("num_preemptions", "Preemptions.", counters.preemptions_total)
        yield self._counter("prompt_tokens", "Prompt tokens prefilled.", counters.prompt_tokens_total)
        yield self._counter("generation_tokens", "Tokens produced.", counters.output_tokens_total)
        yield self._counter("request_success", "Requests finished.", counters.finished_total)
        late = CounterMetricFamily(
            "llmrouter_engine_late_steps", "Steps that the host was too slow for.", labels=tuple(self._labels)
        )
        late.add_metric(tuple(self._labels.values()), self._loop.late_steps_total)
        yield late
        info = {"block_size": str(profile.block_tokens), "num_gpu_blocks": str(counters.kv_blocks_total)}
        yield self._gauge("cache_config_info", "Configuration of the KV cache.", 1.0, info)

    def _gauge(self, name: str, text: str, value: float, more: dict[str, str] | None = None) -> Metric:
        labels = {**self._labels, **(more or {})}
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=tuple(labels))
        family.add_metric(tuple(labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family
