"""A Route call and its answer as values, and the bounds of what is admitted."""

from __future__ import annotations

from dataclasses import dataclass

from llmrouter.errors import InvalidRequestError

MAX_REQUEST_ID_LENGTH = 128
MAX_APPLICATION_LENGTH = 64
MAX_EXCLUDED = 64
MAX_SHOWN_LENGTH = 128


@dataclass(frozen=True, slots=True)
class RouteAsk:
    """A Route call as it came in; bounds are not yet checked."""

    model: str
    prompt_tokens: int
    request_id: str = ""
    application: str = ""
    max_output_tokens: int = 0
    excluded_instance_ids: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """Where a request goes, and why."""

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


class UnknownModelError(InvalidRequestError):
    """No pool serves the model."""

    reason = "UnknownModel"


def check_bounds(ask: RouteAsk, max_prompt_tokens: int) -> None:
    """Raises InvalidRequestError naming the first field out of its bound."""
    if not 1 <= ask.prompt_tokens <= max_prompt_tokens:
        raise InvalidRequestError(f"prompt_tokens: {ask.prompt_tokens} is not within 1 and {max_prompt_tokens}")
    if ask.max_output_tokens < 0:
        raise InvalidRequestError(f"max_output_tokens: {ask.max_output_tokens} is below 0")
    if len(ask.request_id) > MAX_REQUEST_ID_LENGTH:
        raise InvalidRequestError(f"request_id: longer than {MAX_REQUEST_ID_LENGTH} characters")
    if len(ask.application) > MAX_APPLICATION_LENGTH:
        raise InvalidRequestError(f"application: longer than {MAX_APPLICATION_LENGTH} characters")
    if len(ask.excluded_instance_ids) > MAX_EXCLUDED:
        raise InvalidRequestError(f"excluded_instance_ids: more than {MAX_EXCLUDED}")


def check_model(model: str, served: frozenset[str]) -> None:
    """Raises UnknownModelError where no pool serves the model."""
    if model not in served:
        raise UnknownModelError(f"model: no pool serves {model[:MAX_SHOWN_LENGTH]!r}")
