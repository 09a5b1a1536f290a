"""The port at which Prometheus asks for metrics."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import make_wsgi_app, start_http_server

from llmrouter.errors import InvalidConfigError
from router_grpc.decision_log_port import with_decisions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry


@contextmanager
def serving_metrics(
    registry: CollectorRegistry, host: str, port: int, *, find: Callable[[str], bytes | None] | None = None
) -> Iterator[None]:
    """Serves a registry's metrics meanwhile, and decisions that ``find`` brings by request id.

    Raises:
        InvalidConfigError: the port cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise InvalidConfigError(f"listeners.metricsPort: cannot listen on {host}:{port}: {error}") from error
    if find is not None:
        server.set_app(with_decisions(make_wsgi_app(registry), find))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
