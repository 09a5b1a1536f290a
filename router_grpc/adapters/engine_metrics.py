"""Scrapes engines' own metrics, politely: one request at a time per engine, jittered, bounded, never in a hurry."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from llmrouter.domain import EngineSignal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llmrouter.domain import Instance

MAX_SCRAPE_BYTES = 2 * 1024 * 1024
SCRAPE_TIMEOUT_S = 2.0
MAX_AT_ONCE = 16
UNREACHABLE_AFTER = 3
"""Scrapes in a row that could not connect before a declared endpoint counts as not ready."""

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
PREEMPTIONS = ("vllm:num_preemptions_total", "vllm:num_preemptions")

_log = logging.getLogger(__name__)


def parse_signal(text: str, *, scraped_at_s: float) -> EngineSignal:
    """An engine's report from Prometheus text in vLLM's names, summed over models; what is missing is ``None``."""
    values: dict[str, float] = {}
    wanted = {RUNNING, WAITING, *KV_USAGE, *PREEMPTIONS}
    lines = [line for line in text.splitlines() if line.split("{", 1)[0].split(" ", 1)[0] in wanted]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    kv_usage = next((values[name] for name in KV_USAGE if name in values), None)
    preemptions = next((values[name] for name in PREEMPTIONS if name in values), None)
    return EngineSignal(
        scraped_at_s=scraped_at_s,
        running=int(values[RUNNING]) if RUNNING in values else None,
        waiting=int(values[WAITING]) if WAITING in values else None,
        kv_usage_fraction=None if kv_usage is None else min(1.0, max(0.0, kv_usage)),
        preemptions_total=None if preemptions is None else int(preemptions),
    )


class EngineScraper:
    """Scrapes instances and tells ``on_signal``; ``on_failure`` is told a bounded reason."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        on_signal: Callable[[Instance, EngineSignal], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._session = session
        self._clock = clock
        self._rng = rng
        self._on_signal = on_signal
        self._on_failure = on_failure
        self._places = asyncio.Semaphore(MAX_AT_ONCE)
        self._unanswered: Counter[str] = Counter()

    @property
    def unreachable(self) -> frozenset[str]:
        """Instances that did not answer ``UNREACHABLE_AFTER`` times in a row."""
        return frozenset(name for name, count in self._unanswered.items() if count >= UNREACHABLE_AFTER)

    async def round(self, instances: tuple[Instance, ...], *, interval_s: float) -> None:
        """Scrapes each instance once, spread over half of ``interval_s``."""
        known = {instance.instance_id for instance in instances}
        for gone in set(self._unanswered) - known:
            del self._unanswered[gone]
        await asyncio.gather(*(self._scrape(i, self._rng.uniform(0, interval_s / 2)) for i in instances))

    async def _scrape(self, instance: Instance, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            async with self._places:
                text = await self._fetch(instance)
            signal = parse_signal(text, scraped_at_s=self._clock())
        except (aiohttp.ClientConnectionError, TimeoutError, OSError):
            self._unanswered[instance.instance_id] += 1
            self._on_failure("Unreachable")
        except (aiohttp.ClientError, ValueError) as error:
            self._unanswered[instance.instance_id] = 0
            self._on_failure("BadAnswer")
            _log.debug("scrape failed", extra={"instance": instance.instance_id, "error": str(error)})
        else:
            self._unanswered[instance.instance_id] = 0
            self._on_signal(instance, signal)

    async def _fetch(self, instance: Instance) -> str:
        timeout = aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_S)
        url = f"http://{instance.endpoint}/metrics"
        async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
            response.raise_for_status()
            body = await response.content.read(MAX_SCRAPE_BYTES + 1)
        if len(body) > MAX_SCRAPE_BYTES:
            raise ValueError(f"metrics of more than {MAX_SCRAPE_BYTES} bytes")
        return body.decode(errors="replace")
