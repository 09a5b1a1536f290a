"""CPU that a gateway's streams cost, by the transport that carries them: the same sessions over both, a trivial pick.

    python bench/transports.py [--repeats 3] [--requests 6000] [--chunks 40000] [--tls] [--json FILE]

The server is a process of its own on uvloop; its CPU time is read from ``/proc``. The gateway is this process: raw
HTTP/2 on ``--connections`` connections, ``--streams`` streams at a time. A request is headers, a chat body of
``--body`` bytes, the answer's headers and a JSON body with usage. A chunk is one SSE event that is sent when the one
before it has come back, so that the transport has nothing to batch but the other streams'; ``at once`` chunks are
sent together. Transports take turns; the figures are medians, and their least and greatest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc.aio
import uvloop
from hpack import Encoder
from prometheus_client import CollectorRegistry

from llmrouter.metrics import RouterMetrics
from router_grpc.calls import RouteAnswer
from router_grpc.http2 import frames as wire
from router_grpc.http2.calls import PREFIX
from router_grpc.listeners.ext_proc import METHOD, PICKER_NAME, PickerServicer
from router_grpc.listeners.fast import FastServer
from router_grpc.picker.session import PickerDesk
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BODY_BYTES = 60_000
TRANSPORTS = ("fast", "grpc")
CHOICE = {"index": 0, "delta": {"content": " word"}}
EVENT = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [CHOICE]}
USAGE = {"choices": [{"message": {"content": "word " * 40}}], "usage": {"prompt_tokens": 9, "completion_tokens": 9}}
CHUNK = b"data: " + json.dumps(EVENT).encode() + b"\n\n"
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class TrivialService:
    """Sends every request to one place."""

    runtime = None

    def admit(self, _ask: object) -> None:
        pass

    async def place(self, _admitted: object, _foretold: object, **_named: object) -> RouteAnswer:
        return RouteAnswer(
            request_id="0123456789abcdef", instance_id="a", endpoint="10.0.0.1:8000", fallbacks=(),
            predicted_output_tokens=1.0, policy="Trivial", policy_digest="", reason="", held_s=0.0, degraded=False,
        )  # fmt: skip


class TrivialReports:
    """Takes reports and forgets them."""

    def open_stream(self) -> int:
        return 1

    def close_stream(self, stream_id: int) -> None:
        pass

    async def report(self, _report: object, *, stream_id: int) -> bool:
        return bool(stream_id)


def trivial_desk() -> PickerDesk:
    nothing = SimpleNamespace(attended=lambda *_, **__: None, unheard=lambda *_: None, left=lambda *_: None)
    world: Any = SimpleNamespace(
        metrics=RouterMetrics(CollectorRegistry()),
        clock=time.monotonic,
        presuming=nothing,
        open_requests=nothing,
        lengths=SimpleNamespace(take_turn=lambda: None, ask=lambda _request, _prompt, told: told(None)),
        ledger=SimpleNamespace(is_immediate=True),
    )
    service: Any = TrivialService()
    reports: Any = TrivialReports()
    return PickerDesk(world, service, reports)


async def serve(transport: str, certificate: str, profile: str) -> None:
    """Serves on a free port, which is printed, until it is told to stop."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    desk = trivial_desk()
    measured = cProfile.Profile() if profile else contextlib.nullcontext()
    if transport == "fast":
        context = None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(f"{certificate}/tls.crt", f"{certificate}/tls.key")
            context.set_alpn_protocols(["h2"])
        fast = FastServer(desk, tls=context)
        print(await fast.listen("127.0.0.1", 0), flush=True)
        with measured:
            await stop.wait()
        await fast.drain(0.0)
    else:
        server = grpc.aio.server(maximum_concurrent_rpcs=16_384)
        server.add_generic_rpc_handlers((PickerServicer(desk).handler(),))
        if certificate:
            port = server.add_secure_port("127.0.0.1:0", _credentials(certificate))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        with measured:
            await stop.wait()
        await server.stop(0)
    if isinstance(measured, cProfile.Profile):
        measured.dump_stats(profile)


def _credentials(folder: str) -> grpc.ServerCredentials:
    key, chain = (Path(folder, name).read_bytes() for name in ("tls.key", "tls.crt"))
    return grpc.ssl_server_credentials([(key, chain)])


class Script:
    """What is said on one stream: after so many messages have come back, the next part goes out."""

    def __init__(self, body: bytes, chunks: int, *, at_once: bool) -> None:
        duplex = pb.ProtocolConfiguration(
            request_body_mode=pb.FULL_DUPLEX_STREAMED, response_body_mode=pb.FULL_DUPLEX_STREAMED
        )
        pairs = {":method": "POST", ":path": "/v1/chat/completions", "content-type": "application/json",
                 "host": "llm.example", "user-agent": "client/1.0", "x-request-id": "7d0d2b9e"}  # fmt: skip
        asked = [
            pb.ProcessingRequest(request_headers=_headers(pairs), protocol_config=duplex),
            pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True)),
        ]
        kind = "text/event-stream" if chunks else "application/json"
        began = pb.ProcessingRequest(response_headers=_headers({":status": "200", "content-type": kind}))
        last = b"data: [DONE]\n\n" if chunks else json.dumps(USAGE).encode()
        ended = pb.ProcessingRequest(response_body=pb.HttpBody(body=last, end_of_stream=True))
        chunk = pb.ProcessingRequest(response_body=pb.HttpBody(body=CHUNK))
        given = [asked, [began]] + ([[chunk] * chunks] if at_once else [[chunk]] * chunks) + [[ended]]
        if not chunks:
            given = [asked, [began, ended]]
        self.parts = [b"".join(map(_message, part)) for part in given]
        self.due = [sum(map(len, given[: place + 1])) for place in range(len(given))]


def _headers(pairs: dict[str, str]) -> pb.HttpHeaders:
    named = [pb.HeaderValue(key=name, raw_value=value.encode()) for name, value in pairs.items()]
    return pb.HttpHeaders(headers=pb.HeaderMap(headers=named))


def _message(message: pb.ProcessingRequest) -> bytes:
    raw = message.SerializeToString()
    return PREFIX.pack(0, len(raw)) + raw


class Gateway(asyncio.Protocol):
    """One connection with ``streams`` streams at a time, each as the script says, until ``left`` is empty."""

    def __init__(self, script: Script, streams: int, left: list[None], done: Callable[[], None]) -> None:
        self._script, self._width, self._left, self._done = script, streams, left, done
        encoder = Encoder()
        encoder.header_table_size = 0
        given = {":method": "POST", ":scheme": "http", ":path": f"/{PICKER_NAME}/{METHOD}", ":authority": "router",
                 "te": "trailers", "content-type": "application/grpc", "x-envoy-internal": "true"}  # fmt: skip
        self._block = encoder.encode(list(given.items()))
        self._streams: dict[int, list[Any]] = {}
        self._next, self._rest = 1, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        greeting = wire.settings({wire.INITIAL_WINDOW_SIZE: 2**30}) + wire.window_update(0, 2**30)
        transport.write(wire.PREFACE + greeting)  # type: ignore[attr-defined]
        self._out: list[bytes] = []
        for _ in range(self._width):
            self._open()
        self._flush()

    def _open(self) -> None:
        if not self._left:
            if not self._streams:
                self._done()
            return
        self._left.pop()
        stream_id, self._next = self._next, self._next + 2
        self._streams[stream_id] = [bytearray(), 0, 0]
        self._out.append(wire.frame(wire.HEADERS, wire.END_HEADERS, stream_id, self._block))
        self._say(stream_id, 0)

    def _say(self, stream_id: int, place: int) -> None:
        part = self._script.parts[place]
        last = place + 1 == len(self._script.parts)
        for at in range(0, len(part), wire.DEFAULT_FRAME_BYTES):
            cut = part[at : at + wire.DEFAULT_FRAME_BYTES]
            ends = last and at + wire.DEFAULT_FRAME_BYTES >= len(part)
            self._out.append(wire.frame(wire.DATA, wire.END_STREAM if ends else 0, stream_id, cut))

    def _flush(self) -> None:
        if self._out:
            self._transport.write(b"".join(self._out))
            self._out = []

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at, granted = 0, 0
        while len(data) - at >= wire.HEAD_BYTES:
            upper, lower, kind, flags, stream_id = wire.HEAD.unpack_from(data, at)
            end = at + wire.HEAD_BYTES + (upper << 8 | lower)
            if end > len(data):
                break
            payload, at = data[at + wire.HEAD_BYTES : end], end
            if kind == wire.DATA:
                granted += len(payload)
                self._heard(stream_id, payload)
            elif kind == wire.HEADERS and flags & wire.END_STREAM:
                del self._streams[stream_id]
                self._open()
            elif kind == wire.SETTINGS and not flags:
                self._out.append(wire.frame(wire.SETTINGS, wire.ACK, 0))
            elif kind == wire.PING and not flags:
                self._out.append(wire.frame(wire.PING, wire.ACK, 0, payload))
            elif kind in {wire.RST_STREAM, wire.GOAWAY}:
                raise RuntimeError(f"the server ended it: {kind} {payload!r}")
        self._rest = data[at:]
        if granted:
            self._out.append(wire.window_update(0, granted))
        self._flush()

    def _heard(self, stream_id: int, payload: bytes) -> None:
        state = self._streams[stream_id]
        buffer = state[0]
        buffer += payload
        at = 0
        while len(buffer) - at >= PREFIX.size:
            size = PREFIX.unpack_from(buffer, at)[1]
            end = at + PREFIX.size + size
            if end > len(buffer):
                break
            at = end
            state[1] += 1
        del buffer[:at]
        if state[2] + 1 < len(self._script.parts) and state[1] == self._script.due[state[2]]:
            state[2] += 1
            self._say(stream_id, state[2])


def cpu_s(process: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


async def played(port: int, script: Script, options: argparse.Namespace, *, total: int, tls: bool) -> float:
    """Plays a script so often; wall seconds."""
    left: list[None] = [None] * total
    loop = asyncio.get_running_loop()
    context = None
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
    began = time.perf_counter()
    over = [asyncio.Event() for _ in range(options.connections)]
    width = max(1, options.streams // options.connections)
    made = []
    for one in over:
        gateway = Gateway(script, width, left, one.set)
        made.append(await loop.create_connection(lambda given=gateway: given, "127.0.0.1", port, ssl=context))
    for one in over:
        await asyncio.wait_for(one.wait(), 120)
    for transport, _ in made:
        transport.close()
    return time.perf_counter() - began


def measured(transport: str, options: argparse.Namespace, certificate: str) -> dict[str, float]:
    """CPU µs per request and ms per 1,000 chunks of one server process, and requests per second."""
    given = [sys.executable, __file__, "--serve", transport, "--certificate", certificate, "--profile", options.profile]
    with subprocess.Popen(given, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None  # noqa: S101 - of PIPE
        port = int(server.stdout.readline())
        messages = [{"role": "user", "content": "x " * (options.body // 2)}]
        body = json.dumps({"model": "m", "messages": messages}).encode()
        streamed = body[:-1] + b', "stream": true}'
        found = {}

        def run(script: Script, total: int) -> tuple[float, float]:
            before = cpu_s(server.pid)
            wall_s = uvloop.run(played(port, script, options, total=total, tls=bool(certificate)))
            return cpu_s(server.pid) - before, wall_s

        plain = Script(body, 0, at_once=False)
        run(plain, options.requests // 10)
        used_s, wall_s = run(plain, options.requests)
        found["request_us"] = used_s / options.requests * 1e6
        found["requests_per_s"] = options.requests / wall_s
        for name, at_once in (("chunks_ms", False), ("chunks_at_once_ms", True)):
            streams = max(1, options.chunks // options.length)
            used_s, _ = run(Script(streamed, options.length, at_once=at_once), streams)
            used_s -= streams * found["request_us"] / 1e6
            found[name] = used_s / (streams * options.length) * 1e6
        server.send_signal(signal.SIGTERM)
    return found


def certificate_in(folder: str) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415

    from router_grpc.certificates import self_signed  # noqa: PLC0415

    made = self_signed(["localhost"], now=datetime.now(UTC))
    Path(folder, "tls.crt").write_bytes(made.chain)
    Path(folder, "tls.key").write_bytes(made.key)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6_000, help="of a repeat (default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=40_000, help="of a repeat (default: %(default)s)")
    parser.add_argument("--length", type=int, default=200, help="chunks of a stream (default: %(default)s)")
    parser.add_argument("--body", type=int, default=1_200, help="bytes of a prompt (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=32, help="at a time (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--only", choices=TRANSPORTS)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--profile", default="", help="write what the server's Python did to this file")
    parser.add_argument("--json", type=Path, default=Path("build/bench/transports.json"))
    parser.add_argument("--serve", choices=TRANSPORTS, help=argparse.SUPPRESS)
    parser.add_argument("--certificate", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 1 <= options.body <= MOST_BODY_BYTES:
        parser.error(f"--body must be 1 to {MOST_BODY_BYTES}: the gateway here waits for no windows")
    if options.serve:
        uvloop.run(serve(options.serve, options.certificate, options.profile))
        return 0
    chosen = (options.only,) if options.only else TRANSPORTS
    rows: dict[str, list[dict[str, float]]] = {one: [] for one in chosen}
    with tempfile.TemporaryDirectory() as folder:
        certificate = certificate_in(folder) if options.tls else ""
        for _ in range(options.repeats):
            for transport in chosen:
                rows[transport].append(measured(transport, options, certificate))
                said = {name: round(value, 1) for name, value in rows[transport][-1].items()}
                print(transport, said, file=sys.stderr)
    for transport, found in rows.items():
        for name in found[0]:
            values = [one[name] for one in found]
            around = f"({min(values):.1f} to {max(values):.1f})"
            print(f"{transport:>6} {name:>18} {statistics.median(values):9.1f}  {around}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"command": sys.argv[1:], "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
