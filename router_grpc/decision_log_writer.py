"""The thread that writes decisions down: bounded, patient with a sink that fails, and never in a request's way."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from llmrouter.decisions.record import MAX_LINE_BYTES, to_line
from router_grpc.decision_log_sinks import FLUSH_S, SinkError, sink_of
from router_grpc.readiness import Readiness

if TYPE_CHECKING:
    from pathlib import Path

    from llmrouter.decision_log_spec import DecisionLogSpec
    from llmrouter.metrics import RouterMetrics
    from router_grpc.decision_log import OpenRecord
    from router_grpc.decision_log_sinks import Sink

MAX_QUEUE = 20_000
"""Records that may wait to be written; the newest are dropped beyond."""

MAX_BATCH = 512
"""Records that are written at once."""

CLOSE_S = 5.0
"""How long a router that stops waits for its sink."""

_log = logging.getLogger(__name__)


class DecisionWriter:
    """Writes to the sink that is declared. The thread lives as long as there is one."""

    def __init__(self, router_id: str, *, folder: Path | None, metrics: RouterMetrics | None) -> None:
        self._router_id, self._folder, self._metrics = router_id, folder, metrics
        self._spec: DecisionLogSpec | None = None
        self._queue: deque[OpenRecord] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._problem: SinkError | None = None

    def follow(self, spec: DecisionLogSpec | None) -> None:
        """Goes by a declaration; ``None`` ends the log, when what waits is written."""
        with self._wake:
            self._spec = spec
            if spec is not None and self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
                self._thread.start()
            self._wake.notify()

    @property
    def readiness(self) -> Readiness | None:
        """Whether the sink takes records; ``None`` without one."""
        spec, problem = self._spec, self._problem
        if spec is None:
            return None
        if problem is None:
            return Readiness(ready=True, reason=spec.sink)
        return Readiness(ready=False, reason=problem.reason, message=str(problem)[:512])

    def put(self, record: OpenRecord) -> None:
        """Hands a record over; drops it, counted, where too many wait."""
        if self._spec is None:
            return
        if len(self._queue) >= MAX_QUEUE:
            self._count("DroppedQueue")
            return
        self._queue.append(record)
        if len(self._queue) >= MAX_BATCH:
            with self._wake:
                self._wake.notify()

    def close(self) -> None:
        """Writes what waits, and ends the thread; gives up after ``CLOSE_S``."""
        thread = self._thread
        if thread is None:
            return
        with self._wake:
            self._stopping = True
            self._wake.notify()
        thread.join(CLOSE_S)
        if thread.is_alive():
            _log.warning("the decision log's sink does not end", extra={"records": len(self._queue)})

    def _run(self) -> None:
        """Never ends by an error of the sink or of a record; those are counted and said."""
        sink: Sink | None = None
        made_for: DecisionLogSpec | None = None
        while True:
            with self._wake:
                if not self._stopping and len(self._queue) < MAX_BATCH:
                    self._wake.wait(FLUSH_S)
                spec, stopping = self._spec, self._stopping
            if spec is not None and (made_for is None or _place(spec) != _place(made_for)):
                self._shut(sink)
                sink, made_for = self._made(spec), spec
            elif sink is None and spec is not None:
                sink = self._made(spec)
            while self._queue:
                self._write(sink)
            self._flush(sink, final=stopping)
            if stopping:
                self._shut(sink)
                return

    def _made(self, spec: DecisionLogSpec) -> Sink | None:
        try:
            sink = sink_of(spec, self._router_id, self._folder)
        except SinkError as error:
            self._failed(error, 0)
            return None
        self._failed(None, 0)
        return sink

    def _write(self, sink: Sink | None) -> None:
        lines = []
        for _ in range(min(MAX_BATCH, len(self._queue))):
            line = self._line(self._queue.popleft())
            if line is not None:
                lines.append(line)
            time.sleep(0)  # lets the event loop go on: it waits for one record at most
        if sink is None:
            self._count("Failed", len(lines))
            return
        try:
            is_there = sink.write(lines)
        except SinkError as error:
            self._failed(error, error.lost or len(lines))
            return
        self._count("Written", len(lines))
        if is_there:
            self._failed(None, 0)

    def _line(self, record: OpenRecord) -> bytes | None:
        try:
            line = to_line(record.record())
        except Exception as error:  # noqa: BLE001 - a record that cannot be made is one record less; counted, logged
            self._count("Invalid")
            _log.warning("a decision has no record", extra={"error": f"{type(error).__name__}: {error}"[:500]})
            return None
        if len(line) > MAX_LINE_BYTES:
            self._count("TooLong")
            return None
        return line

    def _flush(self, sink: Sink | None, *, final: bool) -> None:
        if sink is None:
            return
        try:
            is_there = sink.flush(time.monotonic(), final=final)
        except SinkError as error:
            self._failed(error, error.lost)
            return
        if is_there:
            self._failed(None, 0)

    def _shut(self, sink: Sink | None) -> None:
        if sink is None:
            return
        self._flush(sink, final=True)
        sink.close()

    def _failed(self, error: SinkError | None, records: int) -> None:
        """Says that the sink fails, or no longer does; counts what is lost."""
        if records:
            self._count("Failed", records)
        before, self._problem = self._problem, error
        if self._metrics is not None:
            self._metrics.decision_log.up.set(0 if error is not None else 1)
        if error is not None and (before is None or before.reason != error.reason):
            _log.warning("the decision log cannot be written", extra={"reason": error.reason, "detail": str(error)})
        elif error is None and before is not None:
            _log.info("the decision log is written again")

    def _count(self, outcome: str, records: int = 1) -> None:
        if self._metrics is not None and records:
            self._metrics.decision_log.records.labels(outcome).inc(records)


def _place(spec: DecisionLogSpec) -> tuple[object, ...]:
    """What makes another sink necessary."""
    return (spec.sink, spec.url, spec.max_bytes)
