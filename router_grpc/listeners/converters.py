"""Between the native protocol's messages and the service's values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from llmrouter.errors import InvalidRequestError, LLMRouterError, NoInstanceError, SaturatedError
from router_grpc.calls import RouteAsk, UnknownModelError
from router_grpc.reports import Report, ReportKind
from router_grpc.v1 import router_pb2 as pb

if TYPE_CHECKING:
    from llmrouter.domain import InstanceView, Reservation
    from router_grpc.calls import RouteAnswer

STATUS_OF = (
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (InvalidRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (NoInstanceError, grpc.StatusCode.UNAVAILABLE),
    (SaturatedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LLMRouterError, grpc.StatusCode.INTERNAL),
)


def status_of(error: LLMRouterError) -> grpc.StatusCode:
    """The status code of an error: the one translation of this edge."""
    return next(code for kind, code in STATUS_OF if isinstance(error, kind))


def trailers_of(error: LLMRouterError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata: the reason, and when to come again."""
    reason = ("llmrouter-reason", error.reason)
    if isinstance(error, SaturatedError):
        return reason, ("retry-after-ms", str(int(error.retry_after_s * 1000)))
    return (reason,)


def route_ask(message: pb.RouteRequest) -> RouteAsk:
    """A RouteRequest as a value."""
    return RouteAsk(
        model=message.model,
        prompt_tokens=message.prompt_tokens,
        request_id=message.request_id,
        application=message.application,
        max_output_tokens=message.max_output_tokens,
        excluded_instance_ids=frozenset(message.excluded_instance_ids),
        prompt=message.prompt or None,
        temperature=_said(message, "temperature"),
        tools=_said(message, "tools"),
        stop=_said(message, "stop"),
        turn=_said(message, "turn"),
        thinking=_said(message, "thinking"),
        priority=message.priority,
        tenant=message.tenant,
        deadline_ms=message.deadline_ms,
        batch=message.batch,
        prefix_hashes=message.prefix_hashes,
        prefix_block_tokens=message.prefix_block_tokens,
        cache_salt=message.cache_salt,
    )


def _said(message: pb.RouteRequest, field: str) -> Any:  # noqa: ANN401 - of the field's own type
    return getattr(message, field) if message.HasField(field) else None


def route_response(answer: RouteAnswer) -> pb.RouteResponse:
    """An answer as a message."""
    return pb.RouteResponse(
        request_id=answer.request_id,
        instance_id=answer.instance_id,
        endpoint=answer.endpoint,
        fallbacks=[pb.Endpoint(instance_id=name, endpoint=endpoint) for name, endpoint in answer.fallbacks],
        reservation_id=answer.request_id,
        predicted_output_tokens=answer.predicted_output_tokens,
        policy=answer.policy,
        policy_digest=answer.policy_digest,
        reason=answer.reason,
        held_seconds=answer.held_s,
        degraded=answer.degraded,
        prompt_tokens=answer.prompt_tokens,
        predicted_output_quantiles=answer.law.quantiles if answer.law else (),
        predictor=answer.law.source if answer.law else "",
        predictor_digest=answer.law.digest if answer.law else "",
        prefill=_prefill_of(answer),
    )


def _prefill_of(answer: RouteAnswer) -> pb.Endpoint | None:
    if not answer.prefill_instance_id:
        return None
    return pb.Endpoint(instance_id=answer.prefill_instance_id, endpoint=answer.prefill_endpoint)


def report_of(message: pb.ReportEvent) -> Report:
    """A ReportEvent as a value; raises InvalidRequestError where it carries no event.

    Counts have no presence on the wire: 0 says that the client does not know.
    """
    kind = message.WhichOneof("event")
    if kind is None:
        raise InvalidRequestError("event: must be set")
    event = getattr(message, kind)
    return Report(
        request_id=message.request_id,
        kind=ReportKind(kind),
        output_tokens=getattr(event, "output_tokens", 0) or None,
        prompt_tokens=getattr(event, "prompt_tokens", 0) or None,
        reason=getattr(event, "reason", ""),
        cached_prompt_tokens=_cached_prompt_tokens(event),
    )


def _cached_prompt_tokens(event: Any) -> int | None:  # noqa: ANN401 - one of the event's kinds
    said: bool = isinstance(event, pb.Finished) and event.HasField("cached_prompt_tokens")
    return event.cached_prompt_tokens if said else None


def reservation_message(reservation: Reservation) -> pb.Reservation:
    """A reservation as a message."""
    return pb.Reservation(
        request_id=reservation.request_id,
        router_id=reservation.router_id,
        instance_id=reservation.instance_id,
        prompt_tokens=reservation.prompt_tokens,
        predicted_output_tokens=reservation.predicted_output_tokens,
        prefilled=reservation.prefilled,
        generated_tokens=reservation.generated_tokens,
        prefill_instance_id=reservation.prefill_instance_id,
    )


def instance_state(view: InstanceView, *, now_s: float) -> pb.InstanceState:
    """An instance as a router sees it; what the engine did not say is absent."""
    state = pb.InstanceState(
        instance_id=view.instance.instance_id,
        endpoint=view.instance.endpoint,
        pool=view.instance.pool,
        profile=view.instance.profile.name,
        role=view.instance.role,
        locality=view.instance.locality,
        in_flight_requests=view.load.requests,
        in_flight_context_tokens=view.load.context_tokens,
        queued_prefill_tokens=view.load.queued_prefill_tokens,
        remaining_decode_tokens=view.load.remaining_decode_tokens,
    )
    if view.signal is not None:
        state.scrape_age_seconds = max(0.0, now_s - view.signal.scraped_at_s)
        for field in ("running", "waiting", "kv_usage_fraction"):
            value = getattr(view.signal, field)
            if value is not None:
                setattr(state, field, value)
    return state
