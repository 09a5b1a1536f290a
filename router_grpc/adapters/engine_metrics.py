"""Scrapes engines' own metrics, politely: one request at a time per engine, jittered, bounded, never in a hurry."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from llmrouter.domain import EngineSignal
from router_grpc.unbroken import end_tasks

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from llmrouter.domain import Instance

MAX_SCRAPE_BYTES = 2 * 1024 * 1024
SCRAPE_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 1.0
MAX_AT_ONCE = 64
UNREACHABLE_AFTER = 3
"""Scrapes in a row that could not connect before an endpoint counts as unreachable."""

SILENT_AFTER = 10
"""Scrapes in a row that connected but were not answered in time before it does: a loaded engine answers late."""

RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "sglang_num_running_reqs",
    "trtllm_num_requests_running",
    "nv_trt_llm_request_metrics{request_type=scheduled}",
)
WAITING = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "sglang_num_queue_reqs",
    "trtllm_num_requests_waiting",
    "nv_trt_llm_request_metrics{request_type=waiting}",
)
KV_USAGE = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "sglang_token_usage",
    "trtllm_kv_cache_utilization",
    "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}",
)
PREEMPTIONS = ("vllm:num_preemptions_total", "vllm:num_preemptions")
"""What an engine calls each signal: vLLM, SGLang (before and since 0.5.4), trtllm-serve, Triton with TensorRT-LLM.

Of an engine's own names the first that is there counts. Triton tells signals apart by a label.
"""

_SIGNALS = (RUNNING, WAITING, KV_USAGE, PREEMPTIONS)
_TOLD_APART_BY = {
    "nv_trt_llm_request_metrics": "request_type",
    "nv_trt_llm_kv_cache_block_metrics": "kv_cache_block_type",
}
_WANTED = frozenset(name.partition("{")[0] for names in _SIGNALS for name in names)

_log = logging.getLogger(__name__)


def parse_signal(text: str, *, scraped_at_s: float) -> EngineSignal:
    """An engine's report from Prometheus text, whichever engine it is; what is missing is ``None``, never 0.

    Counts are summed over label sets (models, data-parallel ranks), the KV usage is their mean.

    Raises:
        ValueError: the text is no Prometheus text, or a value is no number of at least 0.
    """
    found: dict[str, list[float]] = {}
    lines = [line for line in text.splitlines() if line.split("{", 1)[0].split(" ", 1)[0] in _WANTED]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if not math.isfinite(sample.value) or sample.value < 0.0:
                raise ValueError(f"{sample.name} is {sample.value}")
            found.setdefault(_name_of(sample.name, sample.labels), []).append(sample.value)
    running, waiting, kv_usage, preemptions = (
        next((found[name] for name in names if name in found), None) for names in _SIGNALS
    )
    return EngineSignal(
        scraped_at_s=scraped_at_s,
        running=None if running is None else int(sum(running)),
        waiting=None if waiting is None else int(sum(waiting)),
        kv_usage_fraction=None if kv_usage is None else min(1.0, fmean(kv_usage)),
        preemptions_total=None if preemptions is None else int(sum(preemptions)),
    )


def _name_of(name: str, labels: Mapping[str, str]) -> str:
    label = _TOLD_APART_BY.get(name)
    return name if label is None else f"{name}{{{label}={labels.get(label, '')}}}"


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
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._unreached: Counter[str] = Counter()
        self._silent: Counter[str] = Counter()

    @property
    def unreachable(self) -> frozenset[str]:
        """Instances that could not be connected to, or did not answer, too many times in a row."""
        unreached = {name for name, count in self._unreached.items() if count >= UNREACHABLE_AFTER}
        return frozenset(unreached | {name for name, count in self._silent.items() if count >= SILENT_AFTER})

    def begin_round(self, instances: tuple[Instance, ...], *, interval_s: float) -> None:
        """Begins to scrape each instance, spread over ``interval_s``, one scrape of each at a time."""
        known = {instance.instance_id for instance in instances}
        for counter in (self._unreached, self._silent):
            for gone in set(counter) - known:
                del counter[gone]
        for instance in instances:
            if instance.instance_id not in self._under_way:
                task = asyncio.create_task(self._scrape(instance, self._rng.uniform(0, interval_s)))
                self._under_way[instance.instance_id] = task
                task.add_done_callback(partial(self._ended, instance.instance_id))

    def _ended(self, name: str, _task: asyncio.Task[None]) -> None:
        del self._under_way[name]

    async def settled(self) -> None:
        """Returns when no scrape is under way."""
        while self._under_way:
            await asyncio.gather(*self._under_way.values())

    async def close(self) -> None:
        """Ends the scrapes under way."""
        await end_tasks(list(self._under_way.values()))

    async def _scrape(self, instance: Instance, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        name = instance.instance_id
        try:
            async with self._places:
                text = await self._fetch(instance)
            signal = parse_signal(text, scraped_at_s=self._clock())
        except (aiohttp.ClientConnectionError, TimeoutError, OSError) as error:
            self._note_silence(name, error)
        except (aiohttp.ClientError, ValueError) as error:
            self._note_answer(name)
            self._on_failure("BadAnswer")
            _log.debug("scrape failed", extra={"instance": name, "error": str(error)})
        else:
            self._note_answer(name)
            self._on_signal(instance, signal)

    def _note_answer(self, name: str) -> None:
        self._unreached.pop(name, None)
        self._silent.pop(name, None)

    def _note_silence(self, name: str, error: Exception) -> None:
        """Not connecting at all says more than answering late."""
        is_late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
        counter, reason = (self._silent, "Late") if is_late else (self._unreached, "Unreachable")
        counter[name] += 1
        self._on_failure(reason)

    async def _fetch(self, instance: Instance) -> str:
        timeout = aiohttp.ClientTimeout(total=SCRAPE_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        url = f"http://{instance.endpoint}/metrics"
        async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
            response.raise_for_status()
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > MAX_SCRAPE_BYTES:
                    raise ValueError(f"metrics of more than {MAX_SCRAPE_BYTES} bytes")
        return body.decode(errors="replace")
