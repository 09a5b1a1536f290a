"""Simulated engines behind vLLM's HTTP API, in wall-clock time.

A client states an answer's true length as load generators do, with ``max_tokens`` and ``ignore_eos: true``; otherwise
a length is drawn from a seeded log-normal law, cut at ``max_tokens``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import math
import random
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiohttp import HttpVersion11, web

from llmrouter.errors import InvalidRequestError
from llmrouter.profiles import PROFILES
from llmrouter.sim.engine import EngineRequest
from llmrouter.testbed.engine_api import (
    MAX_BODY_BYTES,
    Answer,
    BodyError,
    Generation,
    StreamBytes,
    error_body,
    parse_generation,
    stream_bytes,
    whole_body,
)
from llmrouter.testbed.engine_loop import EngineLoop
from llmrouter.testbed.engine_metrics import EngineMetrics
from llmrouter.testbed.engine_stages import PromptsElsewhere

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llmrouter.domain import EngineProfile

logger = logging.getLogger(__name__)

DRAWN_MEDIAN_TOKENS = 120
DRAWN_SIGMA = 1.0
DRAWN_MAX_TOKENS = 4_096
MAX_UNREAD_BYTES = 256 * 1024
DEFAULT_DRAIN_S = 30.0
RETRY_AFTER_S = "1"
ACCEPT_S = 0.01
MAX_PORT = 65_535
MAX_INSTANCES = 1_024


@dataclass(frozen=True, slots=True)
class EngineServerConfig:
    """One simulated engine. ``seed`` rules the drawn lengths; ``max_in_flight`` bounds what it accepts."""

    profile: EngineProfile
    model: str
    speed: float = 1.0
    seed: int = 0
    max_in_flight: int = 4_096


class _StreamSink:
    """Writes each token's bytes straight to the connection; a client that does not read is dropped past a bound."""

    def __init__(self, transport: asyncio.Transport, answer: StreamBytes) -> None:
        self._transport = transport
        self._next = answer.first
        self._token = answer.token
        self._nth = answer.nth
        self._tokens = 1
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def token(self) -> bool:
        transport = self._transport
        transport.write(self._next)
        self._tokens += 1
        self._next = self._token if self._nth is None else self._nth(self._tokens)
        return transport.get_write_buffer_size() <= MAX_UNREAD_BYTES

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def abandon(self, reason: str) -> None:
        logger.warning("stream dropped", extra={"reason": reason})
        self._transport.abort()


class _WholeSink:
    """Waits for the last token."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def token(self) -> bool:
        return True

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def abandon(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(web.HTTPInternalServerError(reason=reason))


class EngineServer:
    """One simulated engine on one port."""

    def __init__(self, config: EngineServerConfig) -> None:
        self._config = config
        self._metrics = EngineMetrics(config.model)
        self._loop = EngineLoop(config.profile, speed=config.speed, on_first_token=self._metrics.observe_first_token)
        self._metrics.watch(self._loop)
        self._lengths = random.Random(config.seed)
        self._elsewhere = PromptsElsewhere(config.model)
        self._ids = itertools.count()
        self._started_at_s = int(time.time())
        self._draining = False
        self._stepping: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def loop(self) -> EngineLoop:
        """The engine behind the port."""
        return self._loop

    async def start(self, host: str, port: int) -> None:
        """Listens on ``host``:``port`` (0 takes a free one, see ``self.port``) and starts to step.

        Raises:
            OSError: the address cannot be bound.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._render_metrics)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=1_024)
        try:
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]
        self._stepping = asyncio.create_task(self._loop.run(), name=f"engine {self.port}")

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests, fails ``/health``, and waits for those in flight, at most ``timeout_s``."""
        self._draining = True
        with suppress(TimeoutError):  # what is left is cut off by close
            async with asyncio.timeout(timeout_s):
                await self._loop.wait_empty()

    async def close(self) -> None:
        """Stops stepping and listening; what is still in flight is cut off."""
        if self._stepping is not None:
            self._stepping.cancel()
            with suppress(asyncio.CancelledError):  # the cancellation asked for in the line above
                await self._stepping
        if self._runner is not None:
            await self._runner.cleanup()
        await self._elsewhere.close()

    async def die(self) -> None:
        """Ends as a killed process does: every connection is reset, nobody listens any more."""
        if self._runner is not None and self._runner.server is not None:
            for site in list(self._runner.sites):
                await site.stop()
            await asyncio.sleep(ACCEPT_S)  # connections that were accepted before become known
            for connection in self._runner.server.connections:
                if connection.transport is not None:
                    connection.transport.abort()
        await self.close()

    async def wait_failed(self) -> None:
        """Returns when the stepping task ends, raising what ended it."""
        if self._stepping is not None:
            await asyncio.shield(self._stepping)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "completion")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "chat")

    async def _models(self, _request: web.Request) -> web.Response:
        model = {
            "id": self._config.model,
            "object": "model",
            "created": self._started_at_s,
            "owned_by": "llmrouter",
            "root": self._config.model,
            "max_model_len": self._loop.max_request_tokens,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=503 if self._draining or self._loop.failed else 200)

    async def _render_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _generate(self, request: web.Request, kind: Literal["completion", "chat"]) -> web.StreamResponse:
        generation = parse_generation(kind, await request.read())
        self._check(generation)
        answer = self._plan_answer(generation)
        prompt_tokens = await self._elsewhere.left_to_compute(request.headers, generation.prompt_tokens)
        engine_request = EngineRequest(answer.answer_id, prompt_tokens, answer.answer_tokens)
        if generation.stream:
            return await self._stream(request, engine_request, answer)
        sink = _WholeSink()
        self._loop.submit(engine_request, sink)
        try:
            await sink.done
        finally:
            self._loop.cancel(answer.answer_id)
        return web.json_response(whole_body(answer))

    async def _stream(self, request: web.Request, engine_request: EngineRequest, answer: Answer) -> web.StreamResponse:
        if request.version < HttpVersion11:
            raise BodyError("streaming needs HTTP/1.1", "stream")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client left before the stream began")
        answer_bytes = stream_bytes(answer)
        sink = _StreamSink(transport, answer_bytes)
        self._loop.submit(engine_request, sink)
        try:
            await sink.done
        finally:
            self._loop.cancel(answer.answer_id)
        await response.write_eof(answer_bytes.last)
        return response

    def _check(self, generation: Generation) -> None:
        """Refuses what this engine cannot serve now or ever."""
        if self._draining or self._loop.failed:
            raise web.HTTPServiceUnavailable(
                reason="The engine is shutting down", headers={"Retry-After": RETRY_AFTER_S}
            )
        if self._loop.in_flight >= self._config.max_in_flight:
            raise web.HTTPServiceUnavailable(reason="The engine is full", headers={"Retry-After": RETRY_AFTER_S})
        if generation.model not in (None, self._config.model):
            raise web.HTTPNotFound(reason=f"The model {generation.model!r} does not exist")
        limit = self._loop.max_request_tokens
        least = generation.prompt_tokens + 1
        if least > limit:
            raise BodyError(
                f"This model's maximum context length is {limit} tokens, but the prompt has {generation.prompt_tokens}",
                "prompt" if generation.kind == "completion" else "messages",
            )
        if generation.exact and generation.prompt_tokens + (generation.max_tokens or 1) > limit:
            raise BodyError(
                f"This model's maximum context length is {limit} tokens, but you asked for {generation.prompt_tokens} "
                f"of prompt and {generation.max_tokens} of output",
                "max_tokens",
            )

    def _plan_answer(self, generation: Generation) -> Answer:
        bound = self._loop.max_request_tokens - generation.prompt_tokens
        if generation.max_tokens is not None:
            bound = min(bound, generation.max_tokens)
        tokens = bound
        if not generation.exact:
            drawn = round(self._lengths.lognormvariate(math.log(DRAWN_MEDIAN_TOKENS), DRAWN_SIGMA))
            tokens = min(bound, max(1, min(drawn, DRAWN_MAX_TOKENS)))
        prefix = "chatcmpl" if generation.kind == "chat" else "cmpl"
        return Answer(
            answer_id=f"{prefix}-{self.port}-{next(self._ids)}",
            model=self._config.model,
            created_at_s=int(time.time()),
            generation=generation,
            answer_tokens=tokens,
            finish_reason="length" if tokens == bound else "stop",
        )


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except BodyError as error:
        body = error_body(str(error), kind="BadRequestError", param=error.param, code=400)
        return web.json_response(body, status=400)
    except InvalidRequestError as error:
        return web.json_response(error_body(str(error), kind="BadRequestError", param=None, code=400), status=400)
    except web.HTTPException as error:
        headers = {name: error.headers[name] for name in ("Retry-After", "Allow") if name in error.headers}
        kind = type(error).__name__.removeprefix("HTTP") + "Error"
        body = error_body(error.reason, kind=kind, param=None, code=error.status)
        return web.json_response(body, status=error.status, headers=headers)


async def serve(configs: Sequence[EngineServerConfig], *, host: str, port: int, drain_s: float) -> None:
    """Runs one engine per configuration on consecutive ports until SIGTERM or SIGINT, then drains them.

    Raises:
        OSError: a port cannot be bound.
    """
    servers = [EngineServer(config) for config in configs]
    stop = asyncio.Event()
    running_loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running_loop.add_signal_handler(number, stop.set)
    try:
        for offset, server in enumerate(servers):
            await server.start(host, port + offset if port else 0)
            config = configs[offset]
            print(f"{config.model} ({config.profile.name}) on http://{host}:{server.port}", flush=True)
        await _first_of(stop.wait(), *(server.wait_failed() for server in servers))
        await asyncio.gather(*(server.drain(drain_s) for server in servers))
    finally:
        await asyncio.gather(*(server.close() for server in servers))


async def _first_of(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def _bounded(kind: type[int | float], low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {low:g} to {high:g}, not {text}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmrouter.testbed.engine_server",
        description="Simulated LLM engines behind vLLM's HTTP API, in wall-clock time.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=_bounded(int, 0, MAX_PORT), default=8000, help="first port; 0 takes free ones (default: 8000)"
    )
    parser.add_argument(
        "--instances",
        type=_bounded(int, 1, MAX_INSTANCES),
        default=1,
        help="engines, on consecutive ports (default: 1)",
    )
    parser.add_argument("--profile", required=True, choices=sorted(PROFILES), help="step-time profile")
    parser.add_argument("--model", default="llama-3.1-8b", help="served model's name (default: %(default)s)")
    parser.add_argument(
        "--speed", type=_bounded(float, 1e-3, 1e3), default=1.0, help="how much faster than the profile (default: 1)"
    )
    parser.add_argument(
        "--seed", type=_bounded(int, 0, 2**31), default=0, help="of the lengths that clients leave open (default: 0)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=_bounded(float, 0, 3_600),
        default=DEFAULT_DRAIN_S,
        help="bound of a graceful stop (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.port + options.instances > MAX_PORT + 1:
        parser.error(f"--port must leave room for {options.instances} ports up to {MAX_PORT}, not {options.port}")
    configs = [
        EngineServerConfig(
            profile=PROFILES[options.profile],
            model=options.model,
            speed=options.speed,
            seed=options.seed * MAX_INSTANCES + index,
        )
        for index in range(options.instances)
    ]
    try:
        asyncio.run(serve(configs, host=options.host, port=options.port, drain_s=options.drain_seconds))
    except OSError as error:
        print(f"cannot listen: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
