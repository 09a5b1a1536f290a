"""The OpenAI front: an HTTP server of OpenAI's API, for what a gateway cannot do."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiohttp import web

from llmrouter.errors import InvalidConfigError, InvalidRequestError, LLMRouterError, NoInstanceError, SaturatedError
from llmrouter.listener_specs import OpenAISpec
from router_grpc.listeners.openai_request import Passage, refusal_of
from router_grpc.listeners.openai_upstream import Upstream
from router_grpc.openai.intent import intent_of
from router_grpc.picker.exchange import BODY_S, MAX_BODY_BYTES
from router_grpc.picker.replies import SlowBodyError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router_grpc.openai.dispatch import FrontDesk
    from router_grpc.picker.intake import Intake

RETRY_AFTER_S = 1.0
BACKLOG = 1_024

_log = logging.getLogger(__name__)


class OpenAIFront:
    """Serves on one port; ``is_ready`` says what ``/health`` says. ``intake`` bounds the bodies of all listeners."""

    def __init__(
        self,
        desk: FrontDesk,
        *,
        intake: Intake,
        is_ready: Callable[[], bool],
        host: str,
        port: int,
        is_shared: bool = False,
    ) -> None:
        self._desk = desk
        self._intake = intake
        self._is_ready = is_ready
        self._address = host, port
        self._is_shared = is_shared
        self._upstream: Upstream | None = None
        self._runner: web.AppRunner | None = None
        self._open = 0
        self.port = 0

    async def start(self) -> None:
        """Listens; raises InvalidConfigError where the port cannot be listened on."""
        self._upstream = Upstream()
        app = web.Application(middlewares=[self._errors])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, keepalive_timeout=75.0)
        await self._runner.setup()
        host, port = self._address
        try:
            await web.TCPSite(self._runner, host, port, backlog=BACKLOG, reuse_port=self._is_shared or None).start()
        except OSError as error:
            raise InvalidConfigError(f"listeners.openai.port: cannot listen on {host}:{port}: {error}") from error
        self.port = self._runner.addresses[0][1]

    async def drain(self, grace_s: float) -> None:
        """Takes no new connection, lets requests under way end within ``grace_s``, then cuts them off."""
        if self._runner is not None:
            self._runner._shutdown_timeout = grace_s  # noqa: SLF001 - known only when the drain begins
            await self._runner.cleanup()
        if self._upstream is not None:
            await self._upstream.close()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self._is_ready() else 503)

    async def _models(self, _request: web.Request) -> web.Response:
        """All models that some pool serves."""
        runtime = self._desk.service.runtime
        names = [] if runtime is None else sorted(runtime.models)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "llmrouter"} for name in names]
        return web.json_response({"object": "list", "data": models})

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self._upstream is None:
            raise NoInstanceError("the front is not started")
        rules = self._rules()
        self._enter(rules)
        kept: list[bytes] = []
        try:
            await self._read(request, kept)
            kept[:] = [b"".join(kept)]
            if not request.raw_path.startswith("/"):
                raise InvalidRequestError("path: must begin with /")
            headers: dict[str, str] = {}
            for name, value in request.headers.items():
                headers.setdefault(name.lower(), value)
            intent = intent_of(request.method, request.raw_path, headers, kept[0], rules)
            return await Passage(self._desk, self._upstream, request, intent=intent, rules=rules).run()
        finally:
            self._intake.give(sum(map(len, kept)))
            self._open -= 1
            self._desk.world.metrics.front.open_requests.set(self._open)

    def _enter(self, rules: OpenAISpec) -> None:
        if self._open >= rules.max_requests:
            raise SaturatedError(
                f"{self._open} requests are open here, as many as listeners.openai.maxRequests allows",
                reason="FrontFull",
                retry_after_s=RETRY_AFTER_S,
            )
        self._open += 1
        self._desk.world.metrics.front.open_requests.set(self._open)

    async def _read(self, request: web.Request, kept: list[bytes]) -> None:
        """The request's whole body; what is kept of it is the caller's to give back."""
        size = 0
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.content.iter_any():
                    size += len(chunk)
                    if size > MAX_BODY_BYTES:
                        raise TooLargeError(f"body: more than {MAX_BODY_BYTES} bytes")
                    self._intake.take(len(chunk))
                    kept.append(chunk)
        except TimeoutError:
            raise SlowBodyError(f"body: not whole after {BODY_S:g} s") from None

    def _rules(self) -> OpenAISpec:
        runtime = self._desk.service.runtime
        spec = None if runtime is None else runtime.config.listeners.openai
        return spec or OpenAISpec()

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Errors before a request was on its way, as OpenAI's clients read them."""
        metrics = self._desk.world.metrics
        try:
            return await handler(request)
        except LLMRouterError as error:
            metrics.requests.labels(error.reason).inc()
            metrics.front.requests.labels("Refused").inc()
            return refusal_of(error)
        except (web.HTTPException, ConnectionError):
            raise  # an answer of the server itself, and a client that left
        except Exception:
            metrics.front.requests.labels("Error").inc()
            metrics.errors.labels("openai").inc()
            _log.exception("a request to the OpenAI front failed")
            raise
