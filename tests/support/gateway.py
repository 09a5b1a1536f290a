"""A gateway's messages, made in one line each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from router_grpc.picker.headers import SERVED, SUBSET, SUBSET_NAMESPACE
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHAT_PATH = "/v1/chat/completions"
CHAT = {"model": "llama", "messages": [{"role": "user", "content": "Hello"}]}
DUPLEX = pb.ProtocolConfiguration(request_body_mode=pb.FULL_DUPLEX_STREAMED, response_body_mode=pb.FULL_DUPLEX_STREAMED)


def chat(**changes: object) -> bytes:
    return json.dumps(CHAT | changes).encode()


def header_map(headers: Mapping[str, str], *, raw: bool = True) -> pb.HeaderMap:
    return pb.HeaderMap(
        headers=[
            pb.HeaderValue(key=name, raw_value=value.encode()) if raw else pb.HeaderValue(key=name, value=value)
            for name, value in headers.items()
        ]
    )


def request_headers(
    *,
    path: str = CHAT_PATH,
    method: str = "POST",
    ends: bool = False,
    config: pb.ProtocolConfiguration | None = DUPLEX,
    raw: bool = True,
    headers: Mapping[str, str] | None = None,
) -> pb.ProcessingRequest:
    given = {":method": method, ":path": path, **(headers or {})}
    return pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=header_map(given, raw=raw), end_of_stream=ends), protocol_config=config
    )


def request_body(body: bytes, *, ends: bool = True) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=ends))


def response_headers(
    status: int = 200, *, content_type: str = "application/json", ends: bool = False, served: str = ""
) -> pb.ProcessingRequest:
    headers = header_map({":status": str(status), "content-type": content_type})
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=headers, end_of_stream=ends))
    if served:
        message.metadata_context.filter_metadata["envoy.lb"][SERVED] = served
    return message


def response_body(body: bytes, *, ends: bool = False) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=body, end_of_stream=ends))


def within(message: pb.ProcessingRequest, subset: str | Sequence[str]) -> pb.ProcessingRequest:
    """The same with a subset hint, a text or a list."""
    fields = message.metadata_context.filter_metadata[SUBSET_NAMESPACE]
    if isinstance(subset, str):
        fields[SUBSET] = subset
    else:
        fields.get_or_create_list(SUBSET).extend(subset)
    return message
