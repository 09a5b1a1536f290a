"""Replays stretches of a trace through routers and engines; prints JSON lines for a program or lines for a person.

With ``--front`` requests are those of any OpenAI client, sent to the front of the routers; the routers themselves are
only asked, now and then, how they are.

A run is a sequence of stretches without a pause between them. A stretch is a piece of the trace at the run's rate; one
marked ``policy-change`` ends as soon as every router decides by another policy than when it began.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import json
import math
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio

from llmrouter.errors import InvalidInputError
from llmrouter.testbed import trace as traces
from llmrouter.testbed.measure import Outcome, percentile, show, summarise
from llmrouter.testbed.replay_client import ReplayClient
from llmrouter.testbed.replay_front import ThroughFront
from llmrouter.testbed.replay_native import ThroughRouters
from llmrouter.testbed.replay_routers import Routers
from router_grpc.v1 import router_pb2 as messages

if TYPE_CHECKING:
    from llmrouter.testbed.trace import Trace, TraceRequest

SNAPSHOT_INTERVAL_S = 0.7
SNAPSHOT_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 120.0
EMPTY_TIMEOUT_S = 30.0
ROWS_PER_LINE = 25
POLICY_CHANGE = "policy-change"
MAX_SECONDS = 86_400.0
MAX_RATE_RPS = 100_000.0
Emit = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A piece of the trace: its name, from which request on, for how long, and whether a policy change ends it."""

    name: str
    first_request: int
    duration_s: float
    ends_with_policy_change: bool = False


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """Everything one run does."""

    model: str
    rate_rps: float
    stretches: tuple[Stretch, ...]
    front: str | None = None
    """Where requests are sent as OpenAI clients do; without, the routers are asked."""


def parse_stretch(text: str) -> Stretch:
    """Reads ``NAME:FIRST_REQUEST:SECONDS[:policy-change]``; raises InvalidInputError."""
    parts = text.split(":")
    try:
        name, first_request, duration_s = parts[0], int(parts[1]), float(parts[2])
    except (IndexError, ValueError) as error:
        raise InvalidInputError(f"stretch {text!r} is not NAME:FIRST_REQUEST:SECONDS[:{POLICY_CHANGE}]") from error
    if not name or first_request < 0 or parts[3:] not in ([], [POLICY_CHANGE]):
        raise InvalidInputError(f"stretch {text!r} is not NAME:FIRST_REQUEST:SECONDS[:{POLICY_CHANGE}]")
    if not 0 < duration_s <= MAX_SECONDS:
        raise InvalidInputError(f"stretch {text!r}: its seconds must be above 0 and at most {MAX_SECONDS:g}")
    return Stretch(name, first_request, duration_s, ends_with_policy_change=bool(parts[3:]))


def excerpt(trace: Trace, *, first_request: int, rate_rps: float, duration_s: float) -> tuple[TraceRequest, ...]:
    """Consecutive requests of the trace, their gaps stretched alike to give this rate over this duration.

    Raises:
        InvalidInputError: the trace has fewer requests from there on.
    """
    count = max(1, round(rate_rps * duration_s))
    chosen = trace.requests[first_request : first_request + count + 1]
    if len(chosen) < count + 1:
        raise InvalidInputError(
            f"{count} requests from number {first_request} on are more than the trace's {len(trace.requests)}"
        )
    from_s = chosen[0].arrived_at_s
    factor = duration_s / max(chosen[-1].arrived_at_s - from_s, 1e-9)
    return tuple(replace(request, arrived_at_s=(request.arrived_at_s - from_s) * factor) for request in chosen[:count])


@dataclass
class _Observer:
    """What the routers said last, and the outcomes not yet printed."""

    emit: Emit
    snapshots: dict[str, messages.GetSnapshotResponse] = field(default_factory=dict)
    rows: list[list[object]] = field(default_factory=list)
    stretch: str = ""

    def policies(self) -> dict[str, str]:
        return {address: snapshot.policy_digest for address, snapshot in self.snapshots.items()}

    def outcome(self, outcome: Outcome) -> None:
        self.rows.append(outcome.as_row())
        if len(self.rows) >= ROWS_PER_LINE:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.emit("rows", {"rows": self.rows})
            self.rows = []

    async def take_snapshots(self, routers: Routers) -> None:
        links = routers.links
        answers = await asyncio.gather(
            *(link.stub.GetSnapshot(messages.GetSnapshotRequest(), timeout=SNAPSHOT_TIMEOUT_S) for link in links),
            return_exceptions=True,
        )
        self.snapshots = {
            link.address: answer
            for link, answer in zip(links, answers, strict=True)
            if isinstance(answer, messages.GetSnapshotResponse)
        }
        for answer in answers:  # a router that does not answer is shown by its absence; anything else is a fault
            if isinstance(answer, BaseException) and not isinstance(answer, grpc.aio.AioRpcError):
                raise answer

    def reservations(self) -> int | None:
        """Reservations in the ledger as the routers see it now; ``None`` where none answers."""
        if not self.snapshots:
            return None
        return max(sum(i.in_flight_requests for i in snapshot.instances) for snapshot in self.snapshots.values())


async def run(plan: ReplayPlan, *, resolve: Callable[[], Awaitable[list[str]]], trace: Trace, emit: Emit) -> None:
    """Runs the plan. ``emit`` gets a kind and its values: ``stretch``, ``progress``, ``rows`` and ``end``.

    ``resolve`` finds the routers.

    Raises:
        TimeoutError: no router answered.
        InvalidInputError: the trace is too short for the plan.
    """
    parts = [
        excerpt(trace, first_request=part.first_request, rate_rps=plan.rate_rps, duration_s=part.duration_s)
        for part in plan.stretches
    ]
    routers = Routers(resolve, reports=plan.front is None)
    way = ThroughRouters(routers, plan.model) if plan.front is None else ThroughFront(plan.front, plan.model)
    client = ReplayClient(way, run_id=uuid.uuid4().hex[:8])
    observer = _Observer(emit)
    try:
        await routers.start(CONNECT_TIMEOUT_S)
        await observer.take_snapshots(routers)
        watching = asyncio.create_task(_watch(routers, client, observer))
        cpu_s = time.process_time()
        for stretch, requests in zip(plan.stretches, parts, strict=True):
            await _run_stretch(stretch, requests, client=client, observer=observer)
        observer.stretch = "drain"
        emit("stretch", {"name": "drain", "duration_s": DRAIN_TIMEOUT_S})
        await client.drain(DRAIN_TIMEOUT_S)
        cpu_s = time.process_time() - cpu_s
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        observer.flush()
        left = await _wait_empty(routers, observer)
        emit("end", _end(client, routers, reservations_left=left, cpu_s=cpu_s))
    finally:
        await routers.close()


async def _run_stretch(
    stretch: Stretch, requests: tuple[TraceRequest, ...], *, client: ReplayClient, observer: _Observer
) -> None:
    observer.stretch = stretch.name
    observer.emit("stretch", {"name": stretch.name, "duration_s": stretch.duration_s, "requests": len(requests)})
    before = set(observer.policies().values())

    def changed() -> bool:
        now = set(observer.policies().values())
        return stretch.ends_with_policy_change and bool(now) and not now & before

    await client.replay(
        stretch.name, requests, on_outcome=observer.outcome, until=changed, duration_s=stretch.duration_s
    )


async def _watch(routers: Routers, client: ReplayClient, observer: _Observer) -> None:
    while True:
        await observer.take_snapshots(routers)
        observer.emit("progress", _progress(client, observer))
        await asyncio.sleep(SNAPSHOT_INTERVAL_S)


async def _wait_empty(routers: Routers, observer: _Observer) -> int | None:
    deadline_s = asyncio.get_running_loop().time() + EMPTY_TIMEOUT_S
    while True:
        await observer.take_snapshots(routers)
        left = observer.reservations()
        if left == 0 or asyncio.get_running_loop().time() > deadline_s:
            return left
        await asyncio.sleep(0.25)


def _progress(client: ReplayClient, observer: _Observer) -> dict[str, Any]:
    counts = client.counts
    freshest = min(observer.snapshots.values(), key=lambda snapshot: snapshot.load_age_seconds, default=None)
    return {
        "stretch": observer.stretch,
        "sent": counts.sent,
        "done": counts.done,
        "failed": counts.failed,
        "retries": counts.retries,
        "in_flight": counts.in_flight,
        "routers": {
            address: {
                "router_id": snapshot.router_id,
                "policy": snapshot.policy,
                "policy_digest": snapshot.policy_digest,
                "deciding": snapshot.deciding,
                "degraded": snapshot.degraded,
                "held": snapshot.held_requests,
            }
            for address, snapshot in observer.snapshots.items()
        },
        "instances": [_instance(state) for state in freshest.instances] if freshest else [],
    }


def _instance(state: messages.InstanceState) -> dict[str, Any]:
    return {
        "instance_id": state.instance_id,
        "pool": state.pool,
        "in_flight_requests": state.in_flight_requests,
        "in_flight_context_tokens": state.in_flight_context_tokens,
        "running": state.running if state.HasField("running") else None,
        "waiting": state.waiting if state.HasField("waiting") else None,
        "kv_usage_fraction": round(state.kv_usage_fraction, 4) if state.HasField("kv_usage_fraction") else None,
    }


def _end(client: ReplayClient, routers: Routers, *, reservations_left: int | None, cpu_s: float) -> dict[str, Any]:
    reports = routers.counts
    return {
        "sent": client.counts.sent,
        "done": client.counts.done,
        "failed": client.counts.failed,
        "retries": client.counts.retries,
        "reservations_left": reservations_left,
        "reports_sent": reports.sent,
        "reports_moved": reports.moved,
        "reports_unknown": reports.unknown,
        "reports_refused": reports.refused,
        "last_refusal": reports.last_refusal,
        "chunks": client.counts.chunks,
        "cpu_s": round(cpu_s, 3),
        "cpu_ms_per_1000_chunks": round(cpu_s * 1e6 / client.counts.chunks, 1) if client.counts.chunks else None,
    }


def print_json(kind: str, values: dict[str, Any]) -> None:
    """One JSON object to the line."""
    print(json.dumps({"kind": kind, "at_s": round(time.time(), 3), **values}, separators=(",", ":")), flush=True)


class PrintText:
    """A line for each progress, and a summary of each stretch at the end."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []

    def __call__(self, kind: str, values: dict[str, Any]) -> None:
        """Shows one event."""
        if kind == "stretch":
            print(f"{values['name']}: {values['duration_s']:g} s", flush=True)
        elif kind == "progress":
            print("  {sent} sent, {done} done, {failed} failed, {in_flight} in flight".format(**values), flush=True)
        elif kind == "rows":
            self._outcomes.extend(Outcome.from_row(row) for row in values["rows"])
        elif kind == "end":
            self._summary(values)

    def _summary(self, end: dict[str, Any]) -> None:
        for name in dict.fromkeys(outcome.stretch for outcome in self._outcomes):
            s = summarise([outcome for outcome in self._outcomes if outcome.stretch == name])
            print(
                f"{name}: {s.requests} requests, {s.failed} failed; TTFT p50 {show(s.ttft_p50_s, 's')} p99 "
                f"{show(s.ttft_p99_s, 's')}; TPOT p50 {show(s.tpot_p50_s, 'ms')} p95 {show(s.tpot_p95_s, 'ms')}; "
                f"E2E mean {show(s.e2e_mean_s, 's')} p99 {show(s.e2e_p99_s, 's')}"
            )
        late_s = percentile([outcome.lateness_s for outcome in self._outcomes], 99)
        print(f"client lateness p99 {show(late_s, 's')}; reservations left {end['reservations_left']}")


def fixed(addresses: Sequence[str]) -> Callable[[], Awaitable[list[str]]]:
    """Routers at known addresses."""

    async def resolve() -> list[str]:
        return list(addresses)

    return resolve


def by_name(name_and_port: str) -> Callable[[], Awaitable[list[str]]]:
    """Routers behind one DNS name, as a headless Service has it: every address it resolves to, now and later."""
    name, _, port = name_and_port.rpartition(":")

    async def resolve() -> list[str]:
        found = await asyncio.get_running_loop().getaddrinfo(name, int(port), type=socket.SOCK_STREAM)
        return sorted(
            {f"[{host}]:{port}" if ":" in (host := str(entry[4][0])) else f"{host}:{port}" for entry in found}
        )

    return resolve


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The faster event loop where it is installed."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a replay."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--router", action="append", metavar="HOST:PORT", help="address of a router; may be repeated")
    where.add_argument("--router-name", metavar="NAME:PORT", help="DNS name whose addresses are the routers")
    parser.add_argument(
        "--front",
        metavar="HOST:PORT",
        help="send plain OpenAI requests there, before those routers, and nothing to them",
    )
    parser.add_argument("--model", required=True, help="model to ask for")
    parser.add_argument("--rate", type=float, required=True, metavar="RPS", help="mean requests per second")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the run (default: %(default)s)")
    parser.add_argument("--first-request", type=int, default=0, help="where in the trace to begin (default: 0)")
    parser.add_argument(
        "--stretch",
        action="append",
        metavar="NAME:FIRST_REQUEST:SECONDS[:policy-change]",
        help="a stretch of the run, in order; instead of --seconds and --first-request",
    )
    parser.add_argument("--trace", type=Path, help="gzipped CSV with the columns " + ", ".join(traces.COLUMNS))
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def plan_of(options: argparse.Namespace) -> ReplayPlan:
    """The plan that the options ask for; raises InvalidInputError."""
    if not (math.isfinite(options.rate) and 0 < options.rate <= MAX_RATE_RPS):
        raise InvalidInputError(f"--rate must be above 0 and at most {MAX_RATE_RPS:g}, not {options.rate}")
    texts = options.stretch or [f"replay:{options.first_request}:{options.seconds}"]
    for address in [*(options.router or []), *filter(None, (options.router_name, options.front))]:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise InvalidInputError(f"{address!r} is not HOST:PORT")
    return ReplayPlan(options.model, options.rate, tuple(parse_stretch(text) for text in texts), options.front)


def execute(options: argparse.Namespace) -> int:
    """Runs parsed options; returns the exit status."""
    try:
        plan = plan_of(options)
        trace = traces.load(options.trace) if options.trace else traces.azure_2023()
        resolve = fixed(options.router) if options.router else by_name(options.router_name)
        emit: Emit = print_json if options.json else PrintText()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run(plan, resolve=resolve, trace=trace, emit=emit))
    except (InvalidInputError, FileNotFoundError) as error:
        print(f"llmrouter traffic: {error}", file=sys.stderr)
        return 2
    except TimeoutError:
        print(f"llmrouter traffic: no router answered within {CONNECT_TIMEOUT_S:g} s", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def main(arguments: Sequence[str] | None = None, *, prog: str = "llmrouter traffic") -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add_arguments(parser)
    return execute(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
