"""The messages that a picker answers a gateway with."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidRequestError, LLMRouterError, NoInstanceError, SaturatedError
from router_grpc.calls import UnknownModelError
from router_grpc.picker.headers import (
    DESTINATION,
    DESTINATION_NAMESPACE,
    DROPPED_REASON,
    FORGEABLE,
    PREFILLER,
    REQUEST_ID,
)
from router_grpc.picker.rewrap import piece_message
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHUNK_BYTES = 62_000
"""Bytes of a body in one message: some gateways take no more than 64 KiB."""


class TooLargeError(InvalidRequestError):
    """A body is longer than is read."""

    reason = "BodyTooLarge"


class SlowBodyError(InvalidRequestError):
    """A body is not whole after a long time."""

    reason = "BodyTooSlow"


class TooManyHeadersError(InvalidRequestError):
    """Headers are more, or longer, than are read."""

    reason = "HeadersTooLarge"


STATUS_OF = (
    (TooLargeError, 413, "invalid_request_error"),
    (SlowBodyError, 408, "invalid_request_error"),
    (TooManyHeadersError, 431, "invalid_request_error"),
    (UnknownModelError, 404, "not_found_error"),
    (InvalidRequestError, 400, "invalid_request_error"),
    (NoInstanceError, 503, "service_unavailable"),
    (SaturatedError, 429, "rate_limit_exceeded"),
)
"""The HTTP status of an error, and its type in OpenAI's words. Others end the stream: failureMode says what then."""

DROPPED = {503: "rejected-no-endpoints", 429: "rejected-saturated"}


REQUEST_HEADERS = pb.ProcessingResponse(request_headers=pb.HeadersResponse()).SerializeToString()
REQUEST_TRAILERS = pb.ProcessingResponse(request_trailers=pb.TrailersResponse()).SerializeToString()
RESPONSE_HEADERS = pb.ProcessingResponse(response_headers=pb.HeadersResponse()).SerializeToString()
RESPONSE_BODY = pb.ProcessingResponse(response_body=pb.BodyResponse()).SerializeToString()
RESPONSE_TRAILERS = pb.ProcessingResponse(response_trailers=pb.TrailersResponse()).SerializeToString()
"""Replies that change nothing."""


def picked(endpoint: str, prefiller: str = "", request_id: str = "", *, by_body: bool = False) -> bytes:
    """Where a request goes: the reply to its headers or, ``by_body``, to its body; the others where they are said.

    One endpoint alone, though the protocol lets fallbacks follow: a plain Envoy takes the whole header for an address.
    It is said as metadata too: the protocol wants both, and both equal.
    """
    if request_id:
        return _picked(endpoint, prefiller, request_id, by_body=by_body)
    return _known(endpoint, prefiller, by_body=by_body)


def _picked(endpoint: str, prefiller: str, request_id: str, *, by_body: bool) -> bytes:
    values = {DESTINATION: endpoint, REQUEST_ID: request_id, PREFILLER: prefiller}
    said = {name: value for name, value in values.items() if value}
    mutation = _setting(said, remove=tuple(name for name in FORGEABLE if name not in said))
    response = pb.CommonResponse(header_mutation=mutation, clear_route_cache=True)
    if by_body:
        answer = pb.ProcessingResponse(request_body=pb.BodyResponse(response=response))
    else:
        answer = pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=response))
    answer.dynamic_metadata.get_or_create_struct(DESTINATION_NAMESPACE)[DESTINATION] = endpoint
    return answer.SerializeToString()


@lru_cache(maxsize=4096)
def _known(endpoint: str, prefiller: str, *, by_body: bool) -> bytes:
    return _picked(endpoint, prefiller, "", by_body=by_body)


def pieces(body: bytes, *, ends: bool, of: int) -> Iterator[bytes]:
    """The messages of a whole body, ``of`` a request or a response, in pieces; an empty one is one empty piece."""
    for at in range(0, max(1, len(body)), CHUNK_BYTES):
        yield piece_message(body[at : at + CHUNK_BYTES], ends=ends and at + CHUNK_BYTES >= len(body), of=of)


def refused_with(error: LLMRouterError) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers and body of what a client is answered in place of its request; ``None`` as for ``refusal``."""
    found = next(((code, kind) for error_type, code, kind in STATUS_OF if isinstance(error, error_type)), None)
    if found is None:
        return None
    code, kind = found
    values = {"content-type": "application/json", "llmrouter-reason": error.reason}
    if code in DROPPED:
        values[DROPPED_REASON] = DROPPED[code]
    if isinstance(error, SaturatedError):
        values["retry-after"] = str(max(1, round(error.retry_after_s)))
    return code, values, json.dumps(error_object(error, kind)).encode()


def error_object(error: LLMRouterError, kind: str) -> dict[str, dict[str, str]]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": str(error), "type": kind, "code": error.reason}}


def refusal(error: LLMRouterError) -> pb.ProcessingResponse | None:
    """What a client is answered in place of its request; ``None`` for an error that is the router's own."""
    found = refused_with(error)
    if found is None:
        return None
    code, values, body = found
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.HttpStatus(code=code),
            headers=_setting(values),
            body=body,
            details=f"llmrouter_{error.reason}",
        )
    )


def _setting(values: Mapping[str, str], remove: tuple[str, ...] = ()) -> pb.HeaderMutation:
    return pb.HeaderMutation(
        set_headers=[
            pb.HeaderValueOption(
                header=pb.HeaderValue(key=name, raw_value=value.encode()),
                append_action=pb.OVERWRITE_IF_EXISTS_OR_ADD,
            )
            for name, value in values.items()
        ],
        remove_headers=remove,
    )
