"""Where the time of a request goes within a router, without a network: CPU microseconds, whole and by part.

A request is what a gateway sends of it: headers, a chat body of about 200 tokens, the answer's headers and its JSON
body with usage. ``concurrency`` requests are under way at a time, as they would be of so many connections; each is
taken through the protocol, routed, reserved, answered, reported and learned. The policy is the marginal cost, the
predictor the shipped text model, unless the row says otherwise. ``cpu_us`` is the CPU time of the process,
``loop_us`` what its event loop has of it. Requests before the timed ones let the router learn what it learns in a burst
at its start.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import random
import shlex
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from threadpoolctl import threadpool_limits

from llmrouter.config import canonical_json, compile_policy, compile_router, digest_of
from llmrouter.resources import LLMRouterSpec, RoutingPolicySpec
from llmrouter.testbed.cluster.redis import RedisServer, provide_redis
from router_grpc.composition import Settings, compose
from router_grpc.picker.bodies import asked_of
from router_grpc.picker.exchange import Exchange, Pick, Tell
from router_grpc.runtime import ConfigBundle
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from router_grpc.composition import Router
    from router_grpc.picker.exchange import Effect

SEED = 1
PATH = "/v1/chat/completions"
APPLICATIONS = 10
SENT = 512
"""Requests that are sent in turn."""

Row = dict[str, Any]


def bodies(count: int, words: int, rng: random.Random) -> list[bytes]:
    """Chat requests of random words behind one of a few system prompts."""
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3_000)]
    systems = [" ".join(rng.choices(vocabulary, k=words // 3)) for _ in range(8)]
    made = []
    for _ in range(count):
        text = " ".join(rng.choices(vocabulary, k=words - words // 3))
        messages = [{"role": "system", "content": rng.choice(systems)}, {"role": "user", "content": text}]
        content = {"model": "m", "messages": messages, "max_tokens": 500, "temperature": 0.7}
        made.append(json.dumps(content).encode())
    return made


class Gateway:
    """The messages of requests, made beforehand: what they cost is the transport's."""

    def __init__(self, sent: list[bytes], rng: random.Random) -> None:
        self.headers, self.sent = [], sent
        for _ in sent:
            pairs = {":path": PATH, ":method": "POST", "content-type": "application/json"}
            pairs |= {"x-request-id": f"{rng.getrandbits(128):032x}"}
            pairs |= {"x-llmrouter-application": f"app-{rng.randrange(APPLICATIONS)}"}
            self.headers.append(_headers(pairs))
        self.bodies = [
            pb.ProcessingRequest(request_body=pb.HttpBody(body=one, end_of_stream=True)).SerializeToString()
            for one in sent
        ]
        self.answer = pb.ProcessingRequest(
            response_headers=_http_headers({":status": "200", "content-type": "application/json"})
        ).SerializeToString()
        self.answers = []
        for body in sent:
            tokens = len(body) // 5
            usage = {"prompt_tokens": tokens, "completion_tokens": rng.randint(1, 400)}
            content = {"choices": [{"message": {"content": "word " * 40}}], "usage": usage}
            raw = json.dumps(content).encode()
            answer = pb.ProcessingRequest(response_body=pb.HttpBody(body=raw, end_of_stream=True))
            self.answers.append(answer.SerializeToString())


def _http_headers(pairs: dict[str, str]) -> pb.HttpHeaders:
    named = [pb.HeaderValue(key=name, raw_value=value.encode()) for name, value in pairs.items()]
    return pb.HttpHeaders(headers=pb.HeaderMap(headers=named))


def _headers(pairs: dict[str, str]) -> bytes:
    config = pb.ProtocolConfiguration(
        request_body_mode=pb.FULL_DUPLEX_STREAMED, response_body_mode=pb.FULL_DUPLEX_STREAMED
    )
    return pb.ProcessingRequest(request_headers=_http_headers(pairs), protocol_config=config).SerializeToString()


class _Source:
    """A source of configurations that is never asked: the bench puts its own in force."""

    async def bundles(self, _on_refused: object) -> AsyncIterator[ConfigBundle]:
        await asyncio.Event().wait()
        yield ConfigBundle(b"")


def bundle(instances: int, *, policy: dict[str, Any], predictor: str, redis: str | None) -> tuple[ConfigBundle, Any]:
    """The configuration of a router before so many instances, and its state."""
    spec = LLMRouterSpec.model_validate(
        {
            "models": [{"name": "m"}],
            "pools": [
                {
                    "name": "main",
                    "endpoints": [f"10.0.{n // 200}.{n % 200}:8000" for n in range(instances)],
                    "profile": {"name": "llama-3-8b-h100"},
                }
            ],
            "policyRef": {"name": "policy"},
            "router": {"replicas": 1},
            "predictor": {"type": predictor, "deadlineMilliseconds": 50},
            "state": {"redis": {"address": redis}} if redis else {},
        }
    )
    section = compile_policy("policy", RoutingPolicySpec.model_validate(policy), model_sha256=None)
    config = compile_router(spec, name="bench", namespace="bench", generation=1, policy=section)
    content = canonical_json(config)
    return ConfigBundle(content, digest_of(content)), config.state


async def follow(router: Router, exchange: Exchange, effects: list[Effect], stream_id: int) -> None:
    """Does what an exchange wants done, as a listener would; messages go nowhere."""
    while effects:
        effect, *effects = effects
        if isinstance(effect, Tell):
            await router.app.reports.report(effect.report, stream_id=stream_id)
        elif isinstance(effect, Pick):
            answer = await router.app.service.route(effect.ask)
            router.app.world.open_requests.attended(answer.request_id, stream_id=stream_id)
            effects += exchange.picked(answer.endpoint, answer.request_id)


async def one(router: Router, gateway: Gateway, number: int) -> None:
    """One request from its headers to the end of its answer."""
    exchange, stream_id = Exchange(), router.app.reports.open_stream()
    place = number % len(gateway.bodies)
    await follow(router, exchange, exchange.receive(gateway.headers[place]), stream_id)
    await follow(router, exchange, exchange.receive(gateway.bodies[place]), stream_id)
    await asyncio.sleep(0)
    await follow(router, exchange, exchange.receive(gateway.answer), stream_id)
    await follow(router, exchange, exchange.receive(gateway.answers[place]), stream_id)
    await follow(router, exchange, exchange.closed(), stream_id)
    router.app.reports.close_stream(stream_id)


async def many(router: Router, gateway: Gateway, *, requests: int, concurrency: int) -> None:
    """So many requests, ``concurrency`` of them at a time."""
    numbers = iter(range(requests))

    async def connection() -> None:
        for number in numbers:
            await one(router, gateway, number)

    await asyncio.gather(*[connection() for _ in range(concurrency)])


async def beats(router: Router, healthy: asyncio.Event) -> None:
    """The heartbeat of a router: a shared ledger that was too slow once is asked again."""
    while True:
        await router.app.world.ledger.heartbeat(5.0)
        if not router.app.world.is_degraded():
            healthy.set()
        await asyncio.sleep(0.5)


async def measured(
    gateway: Gateway,
    options: argparse.Namespace,
    *,
    instances: int,
    policy: dict[str, Any],
    predictor: str = "Text",
    redis: str | None = None,
    concurrency: int = 32,
) -> Row:
    """One row: CPU microseconds of a request, and requests per second of this one process."""
    given, state = bundle(instances, policy=policy, predictor=predictor, redis=redis)
    settings = Settings(router_id="bench", ledger_namespace=f"bench/{instances}/{predictor}", seed=SEED)
    router = compose(settings, state=state, source=_Source(), core=None, acknowledge=None)
    world = router.app.world
    world.lengths.start()
    await router.app.adopt(given)
    healthy = asyncio.Event()
    beating = asyncio.create_task(beats(router, healthy))
    await many(router, gateway, requests=options.warm_up, concurrency=concurrency)
    await world.lengths.settled()
    healthy.clear()
    await healthy.wait()
    gc.collect()
    profile = cProfile.Profile() if options.profile else nullcontext()
    cpu_s, loop_s, wall_s = time.process_time(), time.thread_time(), time.perf_counter()
    with profile:
        await many(router, gateway, requests=options.requests, concurrency=concurrency)
    cpu_s, loop_s = time.process_time() - cpu_s, time.thread_time() - loop_s
    wall_s = time.perf_counter() - wall_s
    if isinstance(profile, cProfile.Profile):
        pstats.Stats(profile).sort_stats(options.sort).print_stats(110)
    left, is_degraded = len(world.open_requests), world.is_degraded()
    beating.cancel()
    late = router.registry.get_sample_value("llmrouter_length_fallbacks_total", {"reason": "Late"}) or 0.0
    await world.lengths.close()
    await world.ledger.close()
    await router.close()
    return {
        "instances": instances,
        "policy": policy["type"],
        "predictor": predictor,
        "prefixes": policy.get("prefixAffinity", {}).get("enabled", True),
        "ledger": "redis" if redis else "memory",
        "concurrency": concurrency,
        "cpu_us": round(cpu_s / options.requests * 1e6, 1),
        "loop_us": round(loop_s / options.requests * 1e6, 1),
        "rps": round(options.requests / wall_s, 1),
        "late_share": round(late / options.requests, 4),
        "left_open": left,
        "degraded": is_degraded,
    }


DEFAULT = {"type": "WorkloadImpact"}
ONNX = {"type": "Onnx", "model": {"builtin": "marginal-cost"}}
WITHOUT_PREFIXES = DEFAULT | {"prefixAffinity": {"enabled": False}}
RULE = {"type": "LeastInFlight"}


def cases(options: argparse.Namespace, redis: str | None) -> Iterator[dict[str, Any]]:
    """The default at each number of instances, then at the first of them without one part after the other."""
    first = options.instances[0]
    for instances in options.instances:
        yield {"instances": instances, "policy": DEFAULT}
    if options.whole:
        return
    yield {"instances": first, "policy": DEFAULT, "concurrency": 1}
    yield {"instances": first, "policy": DEFAULT, "concurrency": 128}
    yield {"instances": first, "policy": ONNX}
    yield {"instances": first, "policy": DEFAULT, "predictor": "Applications"}
    yield {"instances": first, "policy": DEFAULT, "predictor": "Constant"}
    yield {"instances": first, "policy": WITHOUT_PREFIXES, "predictor": "Constant"}
    yield {"instances": first, "policy": RULE | {"prefixAffinity": {"enabled": False}}, "predictor": "Constant"}
    if redis is not None:
        for instances in options.instances:
            yield {"instances": instances, "policy": DEFAULT, "redis": redis}


def protocol_alone(gateway: Gateway, requests: int) -> Row:
    """The protocol without a router behind it, and the part of it that reads the body."""
    cpu_s = time.process_time()
    for number in range(requests):
        exchange, place = Exchange(), number % len(gateway.bodies)
        exchange.receive(gateway.headers[place])
        exchange.receive(gateway.bodies[place])
        exchange.picked("10.0.0.1:8000", "r")
        exchange.receive(gateway.answer)
        exchange.receive(gateway.answers[place])
    protocol_us = (time.process_time() - cpu_s) / requests * 1e6
    cpu_s = time.process_time()
    for number in range(requests):
        asked_of(PATH, gateway.sent[number % len(gateway.sent)])
    body_us = (time.process_time() - cpu_s) / requests * 1e6
    return {"protocol_us": round(protocol_us, 1), "body_us": round(body_us, 1)}


@contextmanager
def redis_address(*, wanted: bool) -> Iterator[str | None]:
    """A Redis of the bench's own."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, RedisServer(provide_redis(), Path(folder)) as server:
        yield f"127.0.0.1:{server.port}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3_000, help="timed in each row (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=1_200, help="requests before (default: %(default)s)")
    parser.add_argument("--words", type=int, default=150, help="of each prompt (default: %(default)s)")
    parser.add_argument("--instances", type=int, nargs="+", default=[4, 8, 64, 512])
    parser.add_argument("--whole", action="store_true", help="the default alone, no parts")
    parser.add_argument("--no-redis", action="store_true", help="no rows with a ledger in Redis")
    parser.add_argument("--profile", action="store_true", help="print where Python spends the time of each row")
    parser.add_argument("--sort", default="cumtime", help="order of that print (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/hot_path.json"), help="file to write")
    options = parser.parse_args()
    if min(options.requests, options.words, *options.instances) < 1:
        parser.error("--requests, --words and --instances must be at least 1")
    threadpool_limits(1)
    rng = random.Random(SEED)
    gateway = Gateway(bodies(SENT, options.words, rng), rng)
    command = shlex.join(["python", *sys.argv])
    print(f"$ {command}")
    parts = protocol_alone(gateway, options.requests)
    print(f"protocol alone {parts['protocol_us']} µs, of which reading the body {parts['body_us']} µs", flush=True)
    rows: list[Row] = []
    with redis_address(wanted=not options.no_redis and not options.whole) as redis:
        for case in cases(options, redis):
            rows.append(uvloop.run(measured(gateway, options, **case)))
            if len(rows) == 1:
                print("".join(f"{name:>21}" for name in rows[0]))
            print("".join(f"{value!s:>21}" for value in rows[-1].values()), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {"command": command, **parts, "rows": rows}
    options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
