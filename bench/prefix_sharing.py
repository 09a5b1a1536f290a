"""What it costs that routers tell each other what they sent where: bytes, calls, and time of router and Redis.

Routers in one process share a real Redis. Ten times in each second of traffic every router sends its requests, whose
prompts are new from the first block on, and takes a step. Times are medians of a step, or of a request.

``--part hits`` asks what is lost by hearing late: the sessions of ``bench/prefix_index.py`` go to the routers in turn,
and each to the instance where its router expects most of it. Time is virtual, nothing queues, an answer takes 2 s; a
hit is what an index that saw all at once says is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry

from bench.prefix_index import INSTANCES, LAWS, workload_of
from llmrouter.domain import Instance, Request
from llmrouter.metrics import RouterMetrics
from llmrouter.profiles import H100_MIX
from llmrouter.routing.prefixes import PrefixIndex
from llmrouter.testbed.cluster.redis import RedisServer, provide_redis
from router_grpc.adapters.prefix_exchange import RedisPrefixExchange
from router_grpc.adapters.redis_ledger import redis_client
from router_grpc.prefix_batches import Outbox, ToldUse
from router_grpc.prefix_sharing import STEP_S, HeardBatches, PrefixSharing
from router_grpc.prefixing import Prefixing

if TYPE_CHECKING:
    from llmrouter.sim.workload import Workload

BLOCK_TOKENS = 64
ANSWER_S = 2.0
TIMEOUT_S = 5.0
CASES = ((10.0, 1_024), (40.0, 4_096), (40.0, 32_768), (400.0, 4_096))
"""Requests per second at each router, and tokens of their prompts."""


class Fleet:
    """Instances that are always there."""

    def __init__(self, count: int = 16) -> None:
        self._all = {f"llm-pool-{n}": Instance(f"llm-pool-{n}", f"10.0.0.{n}:8000", "main", H100_MIX, frozenset("m"))
                     for n in range(count)}  # fmt: skip

    def current(self) -> tuple[Instance, ...]:
        return tuple(self._all.values())

    def get(self, instance_id: str) -> Instance | None:
        return self._all.get(instance_id)

    @property
    def total(self) -> int:
        return len(self._all)

    @property
    def draining(self) -> frozenset[str]:
        return frozenset()


class Weighed:
    """An exchange that adds up the bytes it publishes."""

    def __init__(self, exchange: RedisPrefixExchange) -> None:
        self._exchange = exchange
        self.published_bytes = 0
        self.took_s = 0.0

    async def swap(self, batch: bytes) -> HeardBatches:
        self.published_bytes += len(batch)
        started_s = time.perf_counter()
        heard = await self._exchange.swap(batch)
        self.took_s = time.perf_counter() - started_s
        return heard

    async def agree_on(self, key: bytes) -> bytes:
        return await self._exchange.agree_on(key)


@dataclass
class Router:
    """One router's parts."""

    exchange: Weighed
    prefixes: Prefixing
    sharing: PrefixSharing
    metrics: RouterMetrics
    registry: CollectorRegistry

    def uses(self, event: str) -> float:
        return self.registry.get_sample_value("llmrouter_prefix_exchange_uses_total", {"event": event}) or 0.0


def router_of(client: object, name: str, fleet: Fleet) -> Router:
    registry = CollectorRegistry()
    metrics, prefixes = RouterMetrics(registry), Prefixing(name.encode() * 32, is_shared=True)
    exchange = Weighed(RedisPrefixExchange(client, "bench", name, timeout_s=TIMEOUT_S))  # type: ignore[arg-type]
    sharing = PrefixSharing(exchange, prefixes, fleet, metrics=metrics.prefixes)
    return Router(exchange, prefixes, sharing, metrics, registry)


async def case(url: str, *, routers: int, rate_rps: float, tokens: int, seconds: float) -> dict[str, float]:
    client, rng, fleet = redis_client(url, timeout_s=TIMEOUT_S), random.Random(1), Fleet()
    await client.flushall()
    all_routers = [router_of(client, str(number), fleet) for number in range(routers)]
    for one in all_routers * 2:
        await one.sharing.step()
    await client.config_resetstat()
    send_us: list[float] = []
    step_us: list[float] = []
    for _ in range(round(seconds / STEP_S)):
        for one in all_routers:
            send_us.extend(send(one, fleet, rng, tokens) for _ in range(round(rate_rps * STEP_S)))
            started_s = time.perf_counter()
            await one.sharing.step()
            step_us.append((time.perf_counter() - started_s - one.exchange.took_s) * 1e6)
    calls = (await client.info("commandstats"))["cmdstat_evalsha"]
    stream_bytes = await client.memory_usage("{llmrouter:bench}:prefixes") or 0
    await client.aclose()
    published = sum(one.uses("Published") for one in all_routers)
    return {
        "routers": routers,
        "rate_rps": rate_rps,
        "prompt_tokens": tokens,
        "bytes_per_request": sum(one.exchange.published_bytes for one in all_routers) / published,
        "kB_per_router_s": sum(one.exchange.published_bytes for one in all_routers) / routers / seconds / 1e3,
        "dropped_percent": 100 * sum(one.uses("Dropped") for one in all_routers) / len(send_us),
        "send_us": float(np.median(send_us)),
        "step_us": float(np.median(step_us)),
        "step_p99_us": float(np.quantile(step_us, 0.99)),
        "redis_us_per_call": float(calls["usec_per_call"]),
        "calls_per_router_s": calls["calls"] / routers / seconds,
        "stream_MB": stream_bytes / 1e6,
    }


def send(router: Router, fleet: Fleet, rng: random.Random, tokens: int) -> float:
    """A request goes to an instance; returns what telling others of it adds to that, in microseconds."""
    hashes = tuple(rng.getrandbits(64) for _ in range(tokens // BLOCK_TOKENS))
    request = Request("r", "m", tokens + 1, 100.0, 0.0, prefix_hashes=hashes, prefix_block_tokens=float(BLOCK_TOKENS))
    instance = rng.choice(fleet.current())
    router.prefixes.sent(request, instance, router.metrics.prefixes)
    use, outbox = ToldUse(instance.instance_id, hashes, float(BLOCK_TOKENS), tokens), Outbox()
    started_s = time.perf_counter()
    outbox.add(use)
    return (time.perf_counter() - started_s) * 1e6


def sent_at_s(workload: Workload) -> list[float]:
    """When each request is sent: a later turn after the answer before it, and the time to think."""
    at_s: list[float] = workload.arrived_at_s.tolist()
    for row, before in enumerate(workload.after.tolist()):
        if before >= 0:
            at_s[row] = at_s[before] + ANSWER_S + float(workload.think_s[row])
    return at_s


async def hit_share(url: str, cell: str, *, options: argparse.Namespace, step_s: float | None) -> float:
    """Share of prompt tokens that are where they are sent; ``step_s`` of ``None`` is a step after every request."""
    client, rng, fleet = redis_client(url, timeout_s=TIMEOUT_S), random.Random(1), Fleet(INSTANCES)
    await client.flushall()
    routers = [router_of(client, str(number), fleet) for number in range(options.routers)]
    workload, whole = workload_of(cell, None, options.rate, options.seconds, 1), PrefixIndex()
    at_s, next_s, hits = sent_at_s(workload), 0.0, 0
    for turn, row in enumerate(sorted(range(len(workload)), key=at_s.__getitem__)):
        while step_s is None or next_s <= at_s[row]:
            for one in routers:
                await one.sharing.step()
            if step_s is None:
                break
            next_s += step_s
        blocks = workload.prefix_blocks[workload.prefix_start[row] : workload.prefix_start[row + 1]].tolist()
        prompt = {"prompt_tokens": int(workload.prompt_tokens[row]), "block_tokens": workload.prefix_block_tokens}
        router = routers[turn % len(routers)]
        request = Request("r", "m", prompt["prompt_tokens"], 1.0, 0.0, prefix_hashes=tuple(blocks),
                          prefix_block_tokens=float(prompt["block_tokens"]))  # fmt: skip
        expected = router.prefixes.with_hits(request).cached_tokens
        chosen = max(fleet.current(), key=lambda one: (expected.get(one.instance_id, 0), rng.random()))
        hits += whole.hits(blocks, **prompt).get(chosen.instance_id, 0)
        whole.use(chosen.instance_id, blocks, kv_tokens=H100_MIX.kv_tokens, **prompt)
        router.prefixes.sent(request, chosen, router.metrics.prefixes)
    await client.aclose()
    return hits / float(workload.prompt_tokens.sum())


async def hits(options: argparse.Namespace, url: str) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    for cell in LAWS:
        row: dict[str, float | str] = {"cell": cell}
        for name, step_s in (("own", math.inf), ("steps of 1 s", 1.0), ("steps", STEP_S), ("at once", None)):
            row[name] = 100 * await hit_share(url, cell, options=options, step_s=step_s)
        rows.append(row)
        print(
            ", ".join(f"{name} {value:.4g} %" for name, value in row.items() if name != "cell"), "of", cell, flush=True
        )
    return rows


async def measured(options: argparse.Namespace) -> list[dict[str, float]] | list[dict[str, float | str]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder, RedisServer(provide_redis(), Path(folder)) as server:
        if options.part == "hits":
            return await hits(options, server.url)
        for rate_rps, tokens in CASES:
            row = await case(
                server.url, routers=options.routers, rate_rps=rate_rps, tokens=tokens, seconds=options.seconds
            )
            rows.append(row)
            print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cost", "hits"), default="cost", help="what to measure")
    parser.add_argument("--rate", type=float, default=20.0, help="of --part hits, requests/s (default: %(default)s)")
    parser.add_argument("--routers", type=int, default=4, help="that share (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of traffic in each case (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    options = parser.parse_args()
    if options.routers < 1 or options.seconds < 1 or options.rate <= 0:
        parser.error("--routers and --seconds must be at least 1, --rate above 0")
    print(f"$ {(command := shlex.join(['python', *sys.argv]))}")
    rows = asyncio.run(measured(options))
    out = options.json or Path(f"build/bench/prefix_sharing_{options.part}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
