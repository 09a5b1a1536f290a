"""How a picker is run: health, TLS, several of it on the same instances, and how one stops."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmrouter.testbed.epp.case import QUIET_S, SATURATED, Case, chat, check, check_picked
from llmrouter.testbed.epp.stream import (
    Stream,
    Target,
    answer_body,
    answer_headers,
    answering,
    ask,
    body_message,
    headers_message,
)
from llmrouter.testbed.epp.trust import connect

if TYPE_CHECKING:
    from llmrouter.testbed.epp.stream import Picked

HEALTH_NAMES = ("", "readiness", "liveness", "envoy.service.ext_proc.v3.ExternalProcessor", "inference-extension")
PICKER = "envoy.service.ext_proc.v3.ExternalProcessor"


async def _status(channel: grpc.aio.Channel, name: str, within_s: float) -> tuple[int | None, str]:
    """A health status by its number, or ``None`` and what went wrong."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=within_s)
    except grpc.aio.AioRpcError as error:
        return None, error.code().name
    return int(answer.status), ""


async def _health(target: Target) -> None:
    await _health_on(target, target.channel)


async def _health_apart(target: Target) -> None:
    check(target.health is not None, "--health is not given")
    if target.health is not None:
        await _health_on(target, target.health)


async def _health_on(target: Target, channel: grpc.aio.Channel) -> None:
    wrong = []
    for name in HEALTH_NAMES:
        status, detail = await _status(channel, name, target.answer_s)
        if status != health_pb2.HealthCheckResponse.SERVING:
            wrong.append(f"{name or 'the empty name'}: {detail or f'status {status}'}")
    check(not wrong, "; ".join(wrong))


async def _unknown_health(target: Target) -> None:
    status, detail = await _status(target.health or target.channel, "nobody.knows.it", target.answer_s)
    unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    check(status == unknown or detail == "NOT_FOUND", f"{detail or f'status {status}'}, not NOT_FOUND")


async def _tls(target: Target) -> None:
    body = chat(target)
    check_picked(await ask(target, chunks=[body]), body)


async def _alpn(target: Target) -> None:
    _, writer = await connect(target.address)
    chosen = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.close()
    check(chosen == "h2", f"ALPN chose {chosen}")


async def _two_race(target: Target) -> None:
    """Two pickers of the same instances, which take one request altogether, are asked at the same moment."""
    other = target.second
    check(other is not None, "--second-target is not given")
    if other is None:
        return
    total = 0
    for _ in range(ROUNDS):
        streams = [Stream(one) for one in (target, other) * 4]
        try:
            found = await asyncio.gather(*(_asked(stream, target) for stream in streams))
        finally:
            for stream in streams:
                await stream.__aexit__()
        placed = sum(1 for one in found if one.status is None)
        refused = {one.status for one in found} - {None}
        check(placed <= 1, f"{placed} requests were placed where there is room for one")
        check(refused <= {SATURATED}, f"refused with {refused}")
        total += placed
    check(total, "nothing was ever placed")


async def _asked(stream: Stream, target: Target) -> Picked:
    await stream.send(headers_message("/v1/chat/completions"))
    await stream.send(body_message(chat(target), ends=True))
    return await stream.picked()


async def _drains(target: Target) -> None:
    """Told to stop, it says so, and an answer under way comes to its end."""
    if target.drain is None:
        return
    async for stream in answering(target, chat(target, stream=True)):
        await stream.send(answer_headers(content_type="text/event-stream"))
        await stream.expect("response_headers")
        await target.drain()
        deadline_s = time.monotonic() + target.answer_s
        while (await _status(target.health or target.channel, PICKER, target.answer_s))[0] == SERVING:
            check(time.monotonic() < deadline_s, "its health is still SERVING")
            await asyncio.sleep(QUIET_S)
        for place in range(5):
            await stream.send(answer_body(b'data: {"choices": [{}]}\n\n', ends=place == LAST))
            await stream.expect("response_body")


SERVING = health_pb2.HealthCheckResponse.SERVING
ROUNDS = 20
LAST = 4

CASES = (
    Case("health under all names", _health),
    Case("health under all names on its own port", _health_apart, needs="health"),
    Case("the health of a name that nobody knows", _unknown_health),
    Case("a request over TLS", _tls, needs="tls"),
    Case("TLS chooses HTTP/2", _alpn, needs="tls"),
    Case("two pickers place one request where there is room for one", _two_race, needs="second"),
    Case("a picker that stops says so and ends what it began", _drains, needs="drain"),
)
"""Of how a picker is run; the last one stops it."""
