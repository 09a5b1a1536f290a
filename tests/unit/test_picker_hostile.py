"""Gateways, clients and engines that send anything at all: a clear status, nothing left behind, no fault of ours.

Hypothesis draws the same examples in every run; the examples given are those that once went wrong, or might.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.gateway import chat, request_body, request_headers, response_body, response_headers
from support.picker_bench import PickerBench

from router_grpc.picker.exchange import BODY_S, MAX_HEADERS, MAX_HEADERS_BYTES
from router_grpc.picker.intake import Intake
from router_grpc.status import Status
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from support.picker_bench import Gateway

    from router_grpc.picker.session import PickerSession

SAME = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/messages/count_tokens",
    "/tokenize",
)


def put(*messages: pb.ProcessingRequest | bytes, bench: PickerBench | None = None) -> Gateway:
    """A stream of messages to a router of its own, which must be left as it was."""

    async def run() -> Gateway:
        where = bench or PickerBench()
        gateway = await where.put(one if isinstance(one, bytes) else one.SerializeToString() for one in messages)
        assert where.left_behind() == {}
        return gateway

    return asyncio.run(run())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *(
            "model",
            "messages",
            "prompt",
            "input",
            "instructions",
            "system",
            "stream",
            "stream_options",
            "tools",
            "stop",
        ),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "temperature", "cache_salt", "user", "n"),
    ]
)
GOOD = {"model": "llama", "messages": [{"role": "user", "content": "a"}], "prompt": "a", "input": "a"}
BODIES = st.dictionaries(FIELDS, JSON, max_size=4).map(lambda changes: json.dumps(GOOD | changes).encode())


class TestBodies:
    @SAME
    @given(st.sampled_from(PATHS), BODIES)
    @example(PATHS[0], json.dumps(GOOD | {"cache_salt": "\ud800"}).encode())
    @example(PATHS[0], json.dumps(GOOD | {"model": "\ud800"}).encode())
    @example(PATHS[0], json.dumps(GOOD | {"temperature": float("nan")}).encode())
    @example(PATHS[0], json.dumps(GOOD | {"temperature": 10**400}).encode())
    @example(PATHS[0], json.dumps(GOOD | {"max_tokens": 10**400}).encode())
    @example(PATHS[1], json.dumps(GOOD | {"prompt": [True, False]}).encode())
    @example(PATHS[1], json.dumps(GOOD | {"prompt": [-1, 10**30]}).encode())
    @example(PATHS[0], b'{"model": "other", "model": "llama", "messages": [{"content": "a"}]}')
    def test_any_value_in_any_field(self, path: str, body: bytes) -> None:
        gateway = put(request_headers(path=path), request_body(body))
        assert gateway.ended == []
        first = gateway.messages[0].WhichOneof("response")
        assert first == "request_headers" or gateway.statuses in ([400], [404])

    @SAME
    @given(st.binary(max_size=200))
    @example(b"\xff\xfe{}")
    @example(b'"' + b"\xed\xa0\x80" + b'"')
    @example(b"[" * 100_000)
    @example(b'{"a":' * 100_000)
    @example(b"9" * 100_000)
    @example(b"")
    def test_any_bytes(self, body: bytes) -> None:
        assert put(request_headers(), request_body(body)).statuses == [400]

    @pytest.mark.parametrize("part", [b"{},", b"[],", b'"ab",', b"1.5,"])
    def test_a_body_of_very_many_values_is_refused_unread(self, part: bytes) -> None:
        body = b'{"model": "llama", "prompt": "a", "x": [' + part * 1_100_000 + b"0]}"
        gateway = put(request_headers(path="/v1/completions"), request_body(body))
        assert gateway.statuses == [400]
        assert b"values" in gateway.messages[0].immediate_response.body

    def test_a_long_prompt_with_commas_is_not(self) -> None:
        body = chat(messages=[{"role": "user", "content": "a, b: [c]; " * 100_000}])
        bench = PickerBench(limits={"maxPromptTokens": 10_000_000})
        assert put(request_headers(), request_body(body), bench=bench).statuses == []

    def test_a_body_of_100_mb_is_refused_as_soon_as_it_is_too_long(self) -> None:
        bench, piece = PickerBench(), b"x" * 1_000_000
        gateway = put(request_headers(), *[request_body(piece, ends=False)] * 100, bench=bench)
        assert gateway.statuses == [413]
        assert bench.router.count("llmrouter_requests_total", outcome="BodyTooLarge") == 1

    def test_a_byte_at_a_time(self) -> None:
        body = chat()
        parts = [request_body(body[at : at + 1], ends=at + 1 == len(body)) for at in range(len(body))]
        gateway = put(request_headers(), *parts)
        echoed = b"".join(
            one.request_body.response.body_mutation.streamed_response.body for one in gateway.messages[1:]
        )
        assert echoed == body

    async def test_one_that_never_ends_is_given_up(self) -> None:
        bench = PickerBench()
        session, gateway = bench.open()
        for message in (request_headers(), request_body(b"{", ends=False)):
            session.receive(message.SerializeToString())
        bench.router.clock.now_s += BODY_S
        bench.desk.sweep()
        assert gateway.statuses == []
        bench.router.clock.now_s += 1.0
        bench.desk.sweep()
        assert gateway.statuses == [408]
        assert bench.desk.intake.bytes == 0
        assert bench.router.count("llmrouter_requests_total", outcome="BodyTooSlow") == 1
        session.broken()
        await bench.settled()
        assert bench.left_behind() == {}

    async def test_all_of_them_together_have_a_bound(self) -> None:
        bench = PickerBench()
        bench.desk.intake = Intake(max_bytes=1000)
        streams = [bench.open() for _ in range(3)]
        for session, _ in streams:
            session.receive(request_headers().SerializeToString())
            session.receive(request_body(b"x" * 400, ends=False).SerializeToString())
        assert [gateway.statuses for _, gateway in streams] == [[], [], [429]]
        assert bench.router.count("llmrouter_requests_total", outcome="BodiesFull") == 1
        streams[0][0].broken()
        streams[1][0].receive(request_body(b"x" * 500, ends=False).SerializeToString())
        assert streams[1][1].statuses == []
        for session, _ in streams[1:]:
            session.broken()
        await bench.settled()
        assert bench.left_behind() == {}


class TestHeaders:
    def test_very_many_are_refused(self) -> None:
        many = {f"x-{place}": "a" for place in range(MAX_HEADERS)}
        assert put(request_headers(headers=many)).statuses == [431]

    def test_very_long_ones_are_refused(self) -> None:
        assert put(request_headers(headers={"x-a": "a" * MAX_HEADERS_BYTES})).statuses == [431]

    @SAME
    @given(
        st.dictionaries(
            st.sampled_from(
                [
                    *(":path", ":method", "content-length", "x-request-id", "x-llmrouter-priority"),
                    *("x-llmrouter-deadline-ms", "x-llmrouter-batch", "x-llmrouter-application"),
                    *("x-llm-d-inference-fairness-id", "x-gateway-destination-endpoint", "\ud7ff", ""),
                ]
            ),
            st.binary(max_size=12) | st.just(b"9" * 500),
        )
    )
    def test_any_value_in_any_header(self, headers: dict[str, bytes]) -> None:
        message = request_headers()
        del message.request_headers.headers.headers[:]
        for name, value in {":method": b"POST", ":path": b"/v1/chat/completions", **headers}.items():
            message.request_headers.headers.headers.add(key=name, raw_value=value)
        gateway = put(message, request_body(chat()))
        assert gateway.ended == []
        assert gateway.messages

    @SAME
    @given(JSON)
    def test_any_hint_of_a_subset(self, said: Any) -> None:  # noqa: ANN401 - JSON
        message = request_headers()
        fields = message.metadata_context.filter_metadata["envoy.lb.subset_hint"]
        try:
            fields["x-gateway-destination-endpoint-subset"] = said
        except (ValueError, UnicodeEncodeError):  # protobuf itself does not take it
            return
        gateway = put(message, request_body(chat()))
        assert gateway.statuses in ([], [503])

    @SAME
    @given(JSON)
    def test_any_word_of_who_served_it(self, said: Any) -> None:  # noqa: ANN401 - JSON
        message = response_headers()
        try:
            message.metadata_context.filter_metadata["envoy.lb"]["x-gateway-destination-endpoint-served"] = said
        except (ValueError, UnicodeEncodeError):  # as above
            return
        gateway = put(request_headers(), request_body(chat()), message, response_body(b"{}", ends=True))
        assert gateway.ended == []


VALID = [
    request_headers(),
    request_headers(ends=True),
    request_body(chat()),
    request_body(chat(stream=True), ends=False),
    request_body(b""),
    response_headers(),
    response_headers(content_type="text/event-stream"),
    response_headers(500, ends=True),
    response_body(b'data: {"choices": [{"text": "a"}]}\n\n'),
    response_body(b'{"usage": {"completion_tokens": 3}}', ends=True),
    pb.ProcessingRequest(),
    pb.ProcessingRequest(request_trailers=pb.HttpTrailers()),
    pb.ProcessingRequest(response_trailers=pb.HttpTrailers()),
]
WIRE = [one.SerializeToString() for one in VALID]
CUT = st.tuples(st.sampled_from(WIRE), st.integers(0, 400), st.binary(max_size=6)).map(
    lambda made: made[0][: made[1]] + made[2] + made[0][made[1] + len(made[2]) :]
)
FRAMES = st.sampled_from(WIRE) | CUT | st.binary(max_size=40)


class TestFrames:
    @settings(SAME, max_examples=300)
    @given(
        st.lists(FRAMES, max_size=7),
        st.sampled_from(["breaks", "closes"]),
        st.sampled_from(["Full", "Sampled", "None"]),
    )
    @example([WIRE[0], WIRE[2], b"\x2a\xff\xff\xff\xff\x0f"], "breaks", "Full")
    @example([WIRE[0], WIRE[2], WIRE[5], b"\x2a\x05\x0a\xff\xff\xff\x7f"], "breaks", "Full")
    def test_whatever_comes_the_stream_ends_and_nothing_is_left(
        self,
        frames: list[bytes],
        end: str,
        observation: str,
    ) -> None:
        async def run() -> None:
            bench = PickerBench(listeners={"extProc": {"responseObservation": observation}})
            gateway = await bench.put(frames, breaks=end == "breaks")
            bench.router.clock.now_s += 100_000.0
            await bench.settled()
            assert bench.left_behind() == {}
            assert set(gateway.ended) <= {Status.OK, Status.INVALID_ARGUMENT}

        asyncio.run(run())

    @SAME
    @given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(WIRE)), max_size=30))
    def test_many_streams_at_once_that_end_in_the_middle_of_a_pick(self, sent: Sequence[tuple[int, bytes]]) -> None:
        async def run() -> None:
            bench = PickerBench()
            opened: dict[int, PickerSession] = {}
            for place, message in sent:
                if place not in opened:
                    opened[place], _ = bench.open()
                opened[place].receive(message)
            for session in opened.values():
                session.broken()
            await bench.settled()
            assert bench.left_behind() == {}

        asyncio.run(run())


USAGES = st.dictionaries(
    st.sampled_from(
        [
            *("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "cache_read_input_tokens"),
            *("prompt_tokens_details", "input_tokens_details"),
        ]
    ),
    JSON | st.sampled_from([-1, 10**18, 10**400, "12", 1.5, {"cached_tokens": -5}, {"cached_tokens": 10**18}]),
)


class TestAnswersThatLie:
    @SAME
    @given(USAGES | JSON, st.sampled_from(["stream", "whole"]))
    @example({"prompt_tokens": 10**18, "completion_tokens": 10**18, "cache_read_input_tokens": 10**18}, "stream")
    @example({"completion_tokens": -1}, "whole")
    @example({"prompt_tokens": "12", "completion_tokens": "9"}, "stream")
    def test_any_usage(self, usage: Any, answer: str) -> None:  # noqa: ANN401 - JSON
        streams = answer == "stream"
        text = json.dumps({"choices": [{"text": "a"}], "usage": usage}).encode()
        body = b"data: " + text + b"\n\ndata: [DONE]\n\n" if streams else text
        kind = "text/event-stream" if streams else "application/json"
        bench = PickerBench(policy={"prefixAffinity": {"enabled": True}})
        gateway = put(
            *(request_headers(), request_body(chat(stream=streams)), response_headers(content_type=kind)),
            response_body(body, ends=True),
            bench=bench,
        )
        assert gateway.messages[-1].response_body.response.body_mutation.streamed_response.body == body
        assert bench.router.count("llmrouter_reservations_total", event="finished") == 1

    @SAME
    @given(st.lists(st.binary(max_size=60), max_size=8), st.sampled_from([200, 204, 400, 503, 999, 0, -1]))
    def test_any_bytes_with_any_status(self, parts: list[bytes], status: int) -> None:
        answer = [response_body(part) for part in parts]
        gateway = put(
            *(request_headers(), request_body(chat(stream=True)), response_headers(status), *answer),
            response_body(b"", ends=True),
        )
        assert gateway.ended == []

    def test_an_engine_that_says_usage_in_every_event_and_never_ends(self) -> None:
        line = b'data: {"choices": [{}], "usage": {"completion_tokens": 1}}\n\n' * 50
        put(request_headers(), request_body(chat(stream=True)), response_headers(), *[response_body(line)] * 40)

    def test_a_line_without_an_end_is_not_kept(self) -> None:
        bench = PickerBench()
        pieces = [response_body(b"x" * 60_000)] * 100
        put(request_headers(), request_body(chat(stream=True)), response_headers(), *pieces, bench=bench)
