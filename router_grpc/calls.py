"""A Route call and its answer as values, and the bounds of what is admitted."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter.domain import Role
from llmrouter.errors import InvalidRequestError
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmrouter.domain import Instance
    from llmrouter.lengths.distribution import LengthDistribution
    from router_grpc.runtime import Runtime

MAX_REQUEST_ID_LENGTH = 128
MAX_APPLICATION_LENGTH = 64
MAX_EXCLUDED = 64
MAX_SHOWN_LENGTH = 128
MAX_PROMPT_BYTES = 16 * 1024 * 1024
MAX_TENANT_LENGTH = 64
MAX_PRIORITY = 100
MAX_COUNT = 1_000_000
MAX_OUTPUT_TOKENS = 1_000_000_000
MAX_PREFIX_HASHES = 65_536
MAX_PREFIX_BLOCK_TOKENS = 65_536
MAX_SALT_LENGTH = 128
MAX_DEADLINE_MS = 86_400_000
"""A day."""


_ID_BYTES, _IDS_DRAWN = 16, 256


def new_ids() -> Iterator[str]:
    """Request ids that nobody can guess, without end: drawn from the system, many at a time."""
    while True:
        drawn = os.urandom(_ID_BYTES * _IDS_DRAWN).hex()
        for at in range(0, len(drawn), 2 * _ID_BYTES):
            yield drawn[at : at + 2 * _ID_BYTES]


@quick
@dataclass(frozen=True, slots=True)
class RouteAsk:
    """A Route call as it came in; bounds are not yet checked. ``None`` is what the client did not say.

    ``prompt_tokens`` of 0 are to be counted from ``prompt``.
    """

    model: str
    prompt_tokens: int
    request_id: str = ""
    application: str = ""
    max_output_tokens: int = 0
    excluded_instance_ids: frozenset[str] = frozenset()
    prompt: bytes | None = field(default=None, repr=False)
    temperature: float | None = None
    tools: int | None = None
    stop: int | None = None
    turn: int | None = None
    thinking: bool | None = None
    priority: int = 0
    tenant: str = ""
    deadline_ms: int = 0
    batch: bool = False
    prefix_hashes: Sequence[int] = ()
    prefix_block_tokens: int = 0
    cache_salt: str = ""
    subset: frozenset[str] | None = None
    """Endpoints, or bare hosts for all of their ports, that alone may serve it; ``None`` for any."""


@quick
@dataclass(frozen=True, slots=True)
class Admitted:
    """A call that is within its bounds, the runtime that it met, and when it came (s)."""

    ask: RouteAsk
    runtime: Runtime
    arrived_at_s: float


@dataclass(slots=True)
class RouteAnswer:
    """Where a request goes, and why: filled in on its way back."""

    request_id: str
    instance_id: str
    endpoint: str
    fallbacks: tuple[tuple[str, str], ...]
    predicted_output_tokens: float
    policy: str
    policy_digest: str
    reason: str
    held_s: float
    degraded: bool
    prompt_tokens: int = 0
    law: LengthDistribution | None = None
    """What was foretold of the answer's length."""
    prefill_instance_id: str = ""
    prefill_endpoint: str = ""
    """Of the instance that computes the prompt, where that is another one."""


class UnknownModelError(InvalidRequestError):
    """No pool serves the model."""

    reason = "UnknownModel"


def check_bounds(ask: RouteAsk, max_prompt_tokens: int) -> None:
    """Raises InvalidRequestError naming the first field out of its bound."""
    numbers = (
        ("prompt_tokens", ask.prompt_tokens, 1 if ask.prompt is None else 0, max_prompt_tokens),
        ("max_output_tokens", ask.max_output_tokens, 0, MAX_OUTPUT_TOKENS),
        ("temperature", ask.temperature, 0, MAX_COUNT),
        ("tools", ask.tools, 0, MAX_COUNT),
        ("stop", ask.stop, 0, MAX_COUNT),
        ("turn", ask.turn, 0, MAX_COUNT),
        ("priority", ask.priority, -MAX_PRIORITY, MAX_PRIORITY),
        ("deadline_ms", ask.deadline_ms, 0, MAX_DEADLINE_MS),
        ("prefix_block_tokens", ask.prefix_block_tokens, 1 if ask.prefix_hashes else 0, MAX_PREFIX_BLOCK_TOKENS),
    )
    for field_name, value, least, most in numbers:
        if value is not None and not least <= value <= most:
            raise InvalidRequestError(f"{field_name}: {value} is not within {least} and {most}")
    sizes = (
        ("request_id", len(ask.request_id), MAX_REQUEST_ID_LENGTH, "characters"),
        ("application", len(ask.application), MAX_APPLICATION_LENGTH, "characters"),
        ("tenant", len(ask.tenant), MAX_TENANT_LENGTH, "characters"),
        ("excluded_instance_ids", len(ask.excluded_instance_ids), MAX_EXCLUDED, "entries"),
        ("prompt", len(ask.prompt or b""), MAX_PROMPT_BYTES, "bytes"),
        ("prefix_hashes", len(ask.prefix_hashes), MAX_PREFIX_HASHES, "entries"),
        ("cache_salt", len(ask.cache_salt), MAX_SALT_LENGTH, "characters"),
    )
    for field_name, size, most, unit in sizes:
        if size > most:
            raise InvalidRequestError(f"{field_name}: {size} {unit}, more than {most}")


def check_prompt_tokens(prompt_tokens: int, max_prompt_tokens: int) -> None:
    """Raises InvalidRequestError where a prompt is longer than is admitted, by whoever counted it."""
    if prompt_tokens > max_prompt_tokens:
        raise InvalidRequestError(f"prompt: about {prompt_tokens} tokens, more than {max_prompt_tokens}")


def allows(subset: frozenset[str] | None, endpoint: str) -> bool:
    """Whether an endpoint, ``host:port``, may serve a request with this ``subset``."""
    if subset is None or endpoint in subset:
        return True
    host = endpoint.rpartition(":")[0]
    return host in subset or host.strip("[]") in subset


def excluded_of(ask: RouteAsk, instances: Sequence[Instance]) -> frozenset[str]:
    """Instances that must not serve a request: those that the client excludes, and those outside its subset.

    A subset is of destinations: one that names no instance of role Prefill says nothing of who computes the prompt.
    """
    if ask.subset is None:
        return ask.excluded_instance_ids
    outside = [one for one in instances if not allows(ask.subset, one.endpoint)]
    if any(one.role is Role.PREFILL for one in outside):
        names_prefills = any(one.role is Role.PREFILL and allows(ask.subset, one.endpoint) for one in instances)
        outside = [one for one in outside if names_prefills or one.role is not Role.PREFILL]
    return ask.excluded_instance_ids | frozenset(one.instance_id for one in outside)


def length_request(ask: RouteAsk) -> LengthRequest:
    """What is known of a request's length before it is answered, but for its prompt."""
    return LengthRequest(
        prompt_tokens=ask.prompt_tokens or None,
        application=ask.application,
        model=ask.model,
        max_output_tokens=ask.max_output_tokens or None,
        temperature=ask.temperature,
        tools=ask.tools,
        stop=ask.stop,
        turn=ask.turn,
        thinking=ask.thinking,
    )


def check_model(model: str, served: frozenset[str]) -> None:
    """Raises UnknownModelError where no pool serves the model."""
    if model not in served:
        raise UnknownModelError(f"model: no pool serves {model[:MAX_SHOWN_LENGTH]!r}")
