"""CPU that simulated engines use to stream tokens, measured on the server process alone.

    python bench/engine_server.py [--instances 8] [--streams 120] [--seconds 10] [--json FILE]

Starts ``python -m llmrouter.testbed.engine_server`` as a process of its own, keeps ``--streams`` streaming requests
open over all its instances from raw sockets in this process, and reads the server's CPU time from ``/proc``.

On a shared 2-core virtual machine, Python 3.11, plain asyncio, 8 engines in one process:

    streams  chunks/s  requests/s  of one core  CPU s per 1,000 chunks
         40     2,779          25        0.062                  0.0225
        120     7,887          60        0.101                  0.0128
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path

PORT = 18_400
PROFILE = "llama-3.1-8b-rtx-pro-6000"
OUTPUT_TOKENS = 120


class Reader(asyncio.Protocol):
    """Sends one request after another on a connection, counting the token events that come back."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts
        body = json.dumps({"prompt": 200, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "stream": True}).encode()
        self._request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows the type
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._counts["chunks"] += data.count(b'"text"')
        if data.endswith(b"0\r\n\r\n"):
            self._counts["requests"] += 1
            if self._transport is not None and not self._transport.is_closing():
                self._transport.write(self._request)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(options: argparse.Namespace) -> dict[str, float]:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmrouter.testbed.engine_server", "--profile", PROFILE, "--port", str(PORT)),
        *("--instances", str(options.instances), "--drain-seconds", "0"),
        stdout=asyncio.subprocess.PIPE,
    )
    transports: list[asyncio.BaseTransport] = []
    try:
        assert server.stdout is not None  # noqa: S101 - asked for a pipe above
        for _ in range(options.instances):
            await server.stdout.readline()
        counts = {"chunks": 0, "requests": 0}
        loop = asyncio.get_running_loop()
        for index in range(options.streams):
            transport, _ = await loop.create_connection(
                lambda: Reader(counts), "127.0.0.1", PORT + index % options.instances
            )
            transports.append(transport)
        await asyncio.sleep(1.0)
        began_s, chunks, requests, used_s = time.monotonic(), counts["chunks"], counts["requests"], cpu_s(server.pid)
        await asyncio.sleep(options.seconds)
        wall_s = time.monotonic() - began_s
        used_s = cpu_s(server.pid) - used_s
        chunks, requests = counts["chunks"] - chunks, counts["requests"] - requests
    finally:
        for opened in transports:
            opened.close()
        server.terminate()
        await server.wait()
    return {
        "instances": options.instances,
        "streams": options.streams,
        "wall_s": round(wall_s, 2),
        "chunks_per_s": round(chunks / wall_s),
        "requests_per_s": round(requests / wall_s, 1),
        "server_cpu_fraction": round(used_s / wall_s, 3),
        "server_cpu_s_per_1000_chunks": round(1_000 * used_s / chunks, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--streams", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    result = {"command": " ".join(sys.argv), **asyncio.run(measure(options))}
    text = json.dumps(result, indent=2)
    print(text)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
