"""What an HTTP request asks of routing: its body's part and its headers', as one value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router_grpc.calls import RouteAsk
from router_grpc.picker import headers as names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router_grpc.picker.bodies import Asked


def route_ask(asked: Asked, headers: Mapping[str, str], subset: frozenset[str] | None = None) -> RouteAsk:
    """``headers`` by lower-case name; ``subset`` are the endpoints that alone may serve it."""
    return RouteAsk(
        model=asked.model,
        prompt_tokens=asked.prompt_tokens,
        prompt=asked.prompt,
        max_output_tokens=asked.max_output_tokens,
        temperature=asked.temperature,
        tools=asked.tools,
        stop=asked.stop,
        turn=asked.turn,
        application=headers.get(names.APPLICATION, ""),
        tenant=next((headers[one] for one in names.TENANT if one in headers), ""),
        priority=names.whole_number(headers, names.PRIORITY),
        deadline_ms=names.whole_number(headers, names.DEADLINE_MS),
        cache_salt=asked.cache_salt,
        batch=headers.get(names.BATCH, "") == "true",
        subset=subset,
    )
