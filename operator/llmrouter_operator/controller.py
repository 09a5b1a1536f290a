"""Runs reconciles: one at a time for each LLMRouter, bursts as one, failures again with growing pauses."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from llmrouter_operator.cluster import ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmrouter_operator.metrics import OperatorMetrics
    from llmrouter_operator.models import ObjectKey
    from llmrouter_operator.reconcile import Outcome

logger = logging.getLogger(__name__)
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
COALESCE_S = 0.02
RESYNC_S = 30.0


def pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return float(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))


class Controller:
    """``nudge`` may be called from any handler, at any rate; the reconcile sees the state of then, not the event."""

    def __init__(
        self,
        reconcile: Callable[[ObjectKey], Awaitable[Outcome]],
        metrics: OperatorMetrics,
        *,
        resync_s: float = RESYNC_S,
        at_once: int = 8,
    ) -> None:
        self._reconcile = reconcile
        self._metrics = metrics
        self._resync_s = resync_s
        self._slots = asyncio.Semaphore(at_once)
        self._nudges: dict[ObjectKey, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def nudge(self, key: ObjectKey) -> None:
        """Something about this LLMRouter may have changed."""
        if key in self._nudges:
            self._nudges[key].set()
            return
        self._nudges[key] = asyncio.Event()
        self._metrics.routers.set(len(self._nudges))
        task = asyncio.create_task(self._look_after(key), name=f"reconcile {key.namespace}/{key.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def nudge_namespace(self, namespace: str) -> None:
        """Something that any LLMRouter of the namespace may refer to may have changed."""
        for key, nudged in self._nudges.items():
            if key.namespace == namespace:
                nudged.set()

    async def stop(self) -> None:
        """Ends all work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _look_after(self, key: ObjectKey) -> None:
        nudged, failures = self._nudges[key], 0
        while True:
            await asyncio.sleep(COALESCE_S)
            nudged.clear()
            outcome = await self._once(key, failures)
            if outcome is not None and outcome.gone and not nudged.is_set():
                break
            failures = failures + 1 if outcome is None else 0
            wait_s = pause_s(failures) if outcome is None else outcome.again_after_s or self._resync_s
            try:
                async with asyncio.timeout(wait_s):
                    await nudged.wait()
            except TimeoutError:
                continue  # nothing happened: look again all the same
        del self._nudges[key]
        self._metrics.routers.set(len(self._nudges))

    async def _once(self, key: ObjectKey, failures: int) -> Outcome | None:
        """One reconcile; ``None`` where it failed, which is counted and logged."""
        async with self._slots:
            began_s = time.monotonic()
            try:
                outcome = await self._reconcile(key)
            except ClusterError as error:
                self._metrics.reconciles.labels(error.reason.lower()).inc()
                logger.warning("%s/%s: %s; again in %.1f s", *key, error, pause_s(failures + 1))
                return None
            except Exception:
                self._metrics.reconciles.labels("failed").inc()
                logger.exception("%s/%s: reconcile failed", *key)
                return None
            finally:
                self._metrics.reconcile_seconds.observe(time.monotonic() - began_s)
        self._metrics.reconciles.labels("gone" if outcome.gone else "done").inc()
        return outcome
