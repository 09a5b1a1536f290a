"""The burst figure: how evenly routers that act at the same instant fill idle instances, with and without reserve.

Every router decides for all its requests at once on a snapshot that shows idle instances. Three ways to go on:

  reserve      candidates go to the ledger, which commits the first that gained at most one request since the snapshot;
               where all have moved, the router decides once more on the fresh loads and the ledger commits
  own counts   the router adds its own dispatches to the snapshot and commits what it chose
  stale        the router commits what the snapshot says

Prints max/mean requests in flight per instance (1 is even) and the latency of ledger calls, from a real Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.domain import Load, Room
from llmrouter.testbed.cluster.redis import RedisServer, provide_redis
from router_grpc.adapters.redis_ledger import RedisLedger, redis_client
from router_grpc.ports import Bid, ReserveAsk, ReserveOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

ROOM = Room(max_requests=256)
TIMEOUT_S = 10.0
WAYS = ("reserve", "own counts", "stale")


@dataclass(frozen=True)
class Setting:
    routers: int
    requests: int
    instances: int
    repeats: int

    @property
    def instance_ids(self) -> list[str]:
        return [f"instance-{n:03d}" for n in range(self.instances)]


@dataclass
class Tally:
    latencies_s: list[float]
    moved: int = 0


def ranked(counts: Mapping[str, int], draw: random.Random) -> list[str]:
    """Least in flight first, ties in random order."""
    shuffled = sorted(counts)
    draw.shuffle(shuffled)
    return sorted(shuffled, key=lambda instance_id: counts[instance_id])


def wanted(request_id: str, counts: Mapping[str, int], order: Sequence[str], *, final: bool = False) -> ReserveAsk:
    bids = tuple(Bid(instance_id, counts[instance_id], ROOM) for instance_id in order)
    return ReserveAsk(request_id, 512, 200.0, bids, moved_tolerance=1, final=final)


async def timed(ledger: RedisLedger, ask: ReserveAsk, tally: Tally) -> Mapping[str, Load] | None:
    """Reserves; the fresh loads where every candidate had moved."""
    begun_s = time.perf_counter()
    result = await ledger.reserve(ask)
    tally.latencies_s.append(time.perf_counter() - begun_s)
    return result.loads if result.outcome is ReserveOutcome.MOVED else None


async def place_reserving(
    ledger: RedisLedger, request_id: str, *, counts: Mapping[str, int], draw: random.Random, tally: Tally
) -> None:
    fresh = await timed(ledger, wanted(request_id, counts, ranked(counts, draw)), tally)
    if fresh is not None:
        tally.moved += 1
        now = {instance_id: load.requests for instance_id, load in fresh.items()}
        await timed(ledger, wanted(request_id, now, ranked(now, draw), final=True), tally)


async def place_blindly(ledger: RedisLedger, request_id: str, *, instance_id: str) -> None:
    await ledger.reserve(ReserveAsk(request_id, 512, 200.0, (Bid(instance_id, 0, ROOM),), moved_tolerance=None))


def blind_choices(way: str, setting: Setting, draw: random.Random) -> list[str]:
    counts = dict.fromkeys(setting.instance_ids, 0)
    chosen = []
    for _ in range(setting.requests):
        chosen.append(ranked(counts, draw)[0])
        counts[chosen[-1]] += way == "own counts"
    return chosen


async def burst(way: str, seed: int, *, ledgers: Sequence[RedisLedger], setting: Setting, tally: Tally) -> float:
    """One burst; max/mean in flight per instance. Leaves the ledger empty."""
    placements: list[Awaitable[None]] = []
    snapshot = dict.fromkeys(setting.instance_ids, 0)
    for ledger in ledgers:
        draw = random.Random(f"{seed} {ledger.router_id}")
        names = [f"{ledger.router_id}-{n}" for n in range(setting.requests)]
        if way == "reserve":
            placements += [place_reserving(ledger, name, counts=snapshot, draw=draw, tally=tally) for name in names]
        else:
            chosen = blind_choices(way, setting, draw)
            pairs = zip(names, chosen, strict=True)
            placements += [place_blindly(ledger, name, instance_id=instance_id) for name, instance_id in pairs]
    random.Random(seed).shuffle(placements)
    await asyncio.gather(*placements)
    loads = await ledgers[0].loads()
    in_flight = [loads.get(instance_id, Load()).requests for instance_id in setting.instance_ids]
    if sum(in_flight) != setting.routers * setting.requests:
        raise RuntimeError(f"{sum(in_flight)} in flight after {setting.routers * setting.requests} requests")
    for ledger in ledgers:
        await ledger.leave()
    return max(in_flight) / statistics.mean(in_flight)


def percentiles_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(latencies_s)
    return {
        "calls": len(ordered),
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 3),
        "p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000, 3),
    }


async def one_by_one(calls: int, call: Callable[[int], Awaitable[object]]) -> dict[str, float]:
    latencies_s = []
    for n in range(calls):
        begun_s = time.perf_counter()
        await call(n)
        latencies_s.append(time.perf_counter() - begun_s)
    return percentiles_ms(latencies_s)


async def call_latencies(ledger: RedisLedger, calls: int = 1_000) -> dict[str, dict[str, float]]:
    """Calls of one router, one after the other, at 8 and at 256 candidates."""
    measured = {}
    for instances in (8, 256):
        counts = {f"instance-{n:03d}": 0 for n in range(instances)}
        order = sorted(counts)
        for n, instance_id in enumerate(order):
            await place_blindly(ledger, f"standing-{n}", instance_id=instance_id)

        async def reserve(n: int, counts: Mapping[str, int] = counts, order: Sequence[str] = order) -> None:
            turned = [*order[n % len(order) :], *order[: n % len(order)]]
            await ledger.reserve(wanted(f"r{n}", counts, turned, final=True))

        measured[f"reserve, {instances} candidates"] = await one_by_one(calls, reserve)
        measured[f"loads, {instances} instances"] = await one_by_one(calls, lambda _: ledger.loads())
        measured[f"release, {instances} instances"] = await one_by_one(calls, lambda n: ledger.release(f"r{n}"))
        await ledger.leave()
    return measured


async def measure(url: str, setting: Setting) -> dict[str, object]:
    ledgers = [
        RedisLedger(f"router-{n}", redis_client(url, timeout_s=TIMEOUT_S), "bench/burst", TIMEOUT_S)
        for n in range(setting.routers)
    ]
    tally = Tally([])
    for ledger in ledgers:
        await ledger.leave()
    await burst("reserve", -1, ledgers=ledgers, setting=setting, tally=Tally([]))  # opens the connections
    ways = {}
    for way in WAYS:
        ratios = [
            await burst(way, seed, ledgers=ledgers, setting=setting, tally=tally) for seed in range(setting.repeats)
        ]
        ways[way] = {
            "max_over_mean_mean": round(statistics.mean(ratios), 4),
            "max_over_mean_median": round(statistics.median(ratios), 4),
            "max_over_mean_worst": round(max(ratios), 4),
            "ratios": [round(ratio, 4) for ratio in ratios],
        }
    latencies = {"reserve, all at once": percentiles_ms(tally.latencies_s)} | await call_latencies(ledgers[0])
    for ledger in ledgers:
        await ledger.close()
    placed = setting.repeats * setting.routers * setting.requests
    return {"max_over_mean": ways, "decided_twice_fraction": round(tally.moved / placed, 4), "latency": latencies}


def show(report: Mapping[str, object], setting: Setting) -> None:
    print(
        f"{setting.routers} routers x {setting.requests} requests at once, {setting.instances} idle instances, "
        f"{setting.repeats} repeats: max/mean in flight per instance"
    )
    print(f"{'':14}{'mean':>8}{'median':>8}{'worst':>8}")
    for way, row in report["max_over_mean"].items():  # type: ignore[attr-defined]
        cells = (row["max_over_mean_mean"], row["max_over_mean_median"], row["max_over_mean_worst"])
        print(f"{way:14}" + "".join(f"{cell:8.3f}" for cell in cells))
    print(f"decided twice: {report['decided_twice_fraction']:.1%}\n")
    print(f"{'ledger call':28}{'calls':>8}{'p50 ms':>9}{'p99 ms':>9}")
    for name, row in report["latency"].items():  # type: ignore[attr-defined]
        print(f"{name:28}{row['calls']:8d}{row['p50_ms']:9.3f}{row['p99_ms']:9.3f}")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routers", type=int, default=8)
    parser.add_argument("--requests", type=int, default=25, help="of each router, all at once")
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--redis", metavar="URL", help="an existing Redis; else one is started for the run")
    parser.add_argument("--json", type=Path, default=Path("build/bench/burst.json"), help="where the result goes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parsed(arguments)
    setting = Setting(options.routers, options.requests, options.instances, options.repeats)
    with ExitStack() as stack:
        url = options.redis
        if url is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            url = stack.enter_context(RedisServer(provide_redis(), directory)).url
        report = asyncio.run(measure(url, setting))
    show(report, setting)
    result = {"command": shlex.join(["python", "bench/burst.py", *arguments]), "setting": vars(setting), **report}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
