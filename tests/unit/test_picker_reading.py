"""A gateway's messages are read as protobuf's own classes read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from support.gateway import request_body, request_headers, response_body, response_headers

from router_grpc.picker.exchange import Exchange, ProtocolError
from router_grpc.picker.headers import READ
from router_grpc.picker.reading import read
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from router_grpc.picker.reading import Said

KINDS = {"request_headers": 2, "response_headers": 3, "request_body": 4, "response_body": 5, "request_trailers": 6,
         "response_trailers": 7, None: 0}  # fmt: skip

NAMES = st.sampled_from(sorted(READ.values())) | st.text(max_size=60)
NAMED = st.builds(
    lambda key, value, raw, upper: pb.HeaderValue(key=key.upper() if upper else key, value=value, raw_value=raw),
    NAMES,
    st.text(max_size=20),
    st.binary(max_size=20),
    st.booleans(),
)
HEADERS = st.builds(
    lambda headers, ends: pb.HttpHeaders(headers=pb.HeaderMap(headers=headers), end_of_stream=ends),
    st.lists(NAMED, max_size=6),
    st.booleans(),
) | st.just(pb.HttpHeaders())
BODIES = st.builds(lambda body, ends: pb.HttpBody(body=body, end_of_stream=ends), st.binary(), st.booleans())
CONFIGS = st.builds(
    lambda request, response, waits: pb.ProtocolConfiguration(
        request_body_mode=request, response_body_mode=response, send_body_without_waiting_for_header_response=waits
    ),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 4),
    st.booleans(),
)


@st.composite
def messages(draw: st.DrawFn) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    kind = draw(st.sampled_from(sorted(filter(None, KINDS))))
    if kind.endswith("headers"):
        getattr(message, kind).CopyFrom(draw(HEADERS))
    elif kind.endswith("body"):
        getattr(message, kind).CopyFrom(draw(BODIES))
    else:
        getattr(message, kind).CopyFrom(pb.HttpTrailers())
    if draw(st.booleans()):
        message.protocol_config.CopyFrom(draw(CONFIGS))
    if draw(st.booleans()):
        message.metadata_context.filter_metadata["a"]["b"] = draw(st.text(max_size=5))
    return message


def named(headers: pb.HeaderMap) -> dict[str, str]:
    found: dict[str, str] = {}
    for header in headers.headers:
        name = header.key.lower()
        if name in READ.values() and name not in found:
            found[name] = header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value
    return found


def check(said: Said, message: pb.ProcessingRequest) -> None:
    """What was read is what the generated classes say."""
    kind = message.WhichOneof("request")
    assert said.kind == KINDS[kind]
    if kind in {"request_headers", "response_headers"}:
        part = getattr(message, kind)
        assert (said.headers, said.header_count) == (named(part.headers), len(part.headers.headers))
        assert said.ends == part.end_of_stream
    if kind in {"request_body", "response_body"}:
        part = getattr(message, kind)
        assert (said.body, said.ends) == (part.body, part.end_of_stream)
    config = message.protocol_config
    modes = (config.request_body_mode, config.response_body_mode)
    assert said.has_modes == message.HasField("protocol_config")
    assert (said.request_mode, said.response_mode) == modes


@given(messages())
def test_whatever_protobuf_writes_is_read(message: pb.ProcessingRequest) -> None:
    raw = message.SerializeToString(deterministic=True)
    said = read(raw, READ, is_checked=True)
    assert said is not None
    check(said, message)
    if message.HasField("metadata_context"):
        assert said.metadata is not None
        assert pb.Metadata.FromString(said.metadata) == message.metadata_context
    else:
        assert said.metadata is None
    if message.WhichOneof("request") in {"request_headers", "response_headers"}:
        assert said.header_bytes == getattr(message, str(message.WhichOneof("request"))).headers.ByteSize()


@given(messages(), st.data())
def test_what_is_read_of_bytes_that_were_changed_is_what_protobuf_reads(
    message: pb.ProcessingRequest, data: st.DataObject
) -> None:
    message.ClearField("metadata_context")  # read later, by protobuf
    raw = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw)))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    said = read(bytes(raw), READ, is_checked=False)
    if said is not None and said.metadata is None:
        check(said, pb.ProcessingRequest.FromString(bytes(raw)))


@given(st.binary(max_size=80))
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x22\x02\x10")
def test_of_any_bytes_an_exchange_says_that_they_are_no_message_or_takes_them(raw: bytes) -> None:
    try:
        pb.ProcessingRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(ProtocolError):
            Exchange().receive(raw)
    else:
        said = read(raw, READ, is_checked=False)
        if said is not None and said.metadata is None:
            check(said, pb.ProcessingRequest.FromString(raw))


@pytest.mark.parametrize(
    "message",
    [
        request_headers(headers={"x-llmrouter-application": "chat"}),
        request_body(b"{}"),
        response_headers(served="10.0.0.1:8000"),
        response_body(b"data: 1\n\n", ends=False),
    ],
)
def test_what_gateways_send_is_read_without_protobuf(message: pb.ProcessingRequest) -> None:
    said = read(message.SerializeToString(), READ, is_checked=False)
    assert said is not None
    check(said, message)


def test_what_is_said_twice_is_what_protobuf_makes_of_it() -> None:
    twice = request_body(b"abc", ends=False).SerializeToString() + request_body(b"", ends=True).SerializeToString()
    assert read(twice, READ, is_checked=False) is None
    exchange = Exchange()
    exchange.receive(request_headers().SerializeToString())
    merged = pb.ProcessingRequest.FromString(twice)
    assert (merged.request_body.body, merged.request_body.end_of_stream) == (b"abc", True)
    assert len(exchange.receive(twice)) == 2, "a body that is no JSON is refused"


def test_what_no_picker_knows_is_left_out() -> None:
    unknown = b"\x4a\x03abc"  # field 9
    exchange = Exchange()
    assert exchange.receive(request_headers().SerializeToString() + unknown) == []
    assert exchange.receive(unknown + request_body(b"{}", ends=False).SerializeToString()) == []
