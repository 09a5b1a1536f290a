"""The endpoint-picker protocol, message by message, without a transport."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gateway import (
    chat,
    request_body,
    request_headers,
    response_body,
    response_headers,
    within,
)

from llmrouter.errors import LedgerUnavailableError, LLMRouterError, NoInstanceError, SaturatedError
from router_grpc.calls import UnknownModelError
from router_grpc.picker import headers as names
from router_grpc.picker.exchange import (
    Exchange,
    Forward,
    Pick,
    ProtocolError,
    Send,
    ServedElsewhere,
    Tell,
)
from router_grpc.picker.replies import CHUNK_BYTES
from router_grpc.reports import PROGRESS_TOKENS, ReportKind
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router_grpc.picker.exchange import Effect

ENDPOINT = "10.0.0.1:8000"


def receive(exchange: Exchange, message: pb.ProcessingRequest) -> list[Effect]:
    return exchange.receive(message.SerializeToString())


def sent(effects: Sequence[Effect]) -> list[pb.ProcessingResponse]:
    return [one.message for one in effects if isinstance(one, Send)]


def told(effects: Sequence[Effect]) -> list[tuple[ReportKind, int | None]]:
    return [(one.report.kind, one.report.output_tokens) for one in effects if isinstance(one, Tell)]


def kinds(effects: Sequence[Effect]) -> list[str]:
    return [str(message.WhichOneof("response")) for message in sent(effects)]


def set_headers(response: pb.CommonResponse) -> dict[str, str]:
    return {one.header.key: one.header.raw_value.decode() for one in response.header_mutation.set_headers}


def picking(body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[Exchange, Pick]:
    exchange = Exchange()
    assert receive(exchange, request_headers(headers=headers)) == []
    (pick,) = receive(exchange, request_body(chat() if body is None else body))
    assert isinstance(pick, Pick)
    return exchange, pick


def answering(*, stream: bool = False) -> Exchange:
    exchange, _ = picking(chat(stream=stream))
    exchange.picked(ENDPOINT, "r1")
    return exchange


class TestARequest:
    def test_nothing_is_said_before_the_body_ends(self) -> None:
        exchange, body = Exchange(), chat()
        assert receive(exchange, request_headers()) == []
        assert receive(exchange, request_body(body[:5], ends=False)) == []
        (pick,) = receive(exchange, request_body(body[5:]))
        assert isinstance(pick, Pick)
        assert (pick.ask.model, pick.ask.prompt, pick.ask.subset) == ("llama", b"Hello", None)

    def test_headers_come_first_and_then_the_body_as_it_was(self) -> None:
        body = chat(messages=[{"content": "x" * 150_000}])
        exchange, _ = picking(body)
        effects = exchange.picked(ENDPOINT, "r1")
        assert kinds(effects) == ["request_headers", *["request_body"] * 3]
        parts = [one.request_body.response.body_mutation.streamed_response for one in sent(effects)[1:]]
        assert b"".join(part.body for part in parts) == body
        assert [part.end_of_stream for part in parts] == [False, False, True]
        assert max(len(part.body) for part in parts) <= CHUNK_BYTES

    def test_destination_in_header_and_metadata_are_equal(self) -> None:
        exchange, _ = picking()
        first = sent(exchange.picked(ENDPOINT, "r1"))[0]
        response = first.request_headers.response
        assert response.clear_route_cache
        said = set_headers(response)[names.DESTINATION]
        assert said == ENDPOINT
        assert first.dynamic_metadata.fields["envoy.lb"].struct_value.fields[names.DESTINATION].string_value == said

    def test_headers_that_only_gateways_set_are_taken_out(self) -> None:
        exchange, _ = picking(headers={names.SERVED: "evil:1", names.DESTINATION: "evil:1"})
        response = sent(exchange.picked(ENDPOINT, "r1"))[0].request_headers.response
        assert set(response.header_mutation.remove_headers) == set(names.FORGEABLE)
        actions = {one.header.key: one.append_action for one in response.header_mutation.set_headers}
        assert actions[names.DESTINATION] == pb.OVERWRITE_IF_EXISTS_OR_ADD

    def test_who_computes_the_prompt_is_said_in_a_header_of_its_own(self) -> None:
        exchange, _ = picking(headers={names.PREFILLER: "evil:1"})
        response = sent(exchange.picked(ENDPOINT, "r1", "10.0.0.9:8000"))[0].request_headers.response
        said = set_headers(response)
        assert (said[names.DESTINATION], said[names.PREFILLER]) == (ENDPOINT, "10.0.0.9:8000")
        assert set(response.header_mutation.remove_headers) == set(names.FORGEABLE) - {names.PREFILLER}

    def test_a_request_id_is_given_where_there_is_none(self) -> None:
        exchange, _ = picking()
        assert set_headers(sent(exchange.picked(ENDPOINT, "r1"))[0].request_headers.response)["x-request-id"] == "r1"
        exchange, pick = picking(headers={"x-request-id": "theirs"})
        assert pick.ask.request_id == "", "a client's id is not one of ours: another client may send the same"
        assert "x-request-id" not in set_headers(sent(exchange.picked(ENDPOINT, "r1"))[0].request_headers.response)

    @pytest.mark.parametrize("raw", [True, False])
    def test_hints_in_headers(self, *, raw: bool) -> None:
        exchange = Exchange()
        hints = {"X-LLM-D-Inference-Fairness-ID": "team", "x-llmrouter-priority": "-3", "x-llmrouter-deadline-ms": "9s"}
        receive(exchange, request_headers(raw=raw, headers=hints))
        (pick,) = receive(exchange, request_body(chat()))
        assert isinstance(pick, Pick)
        assert (pick.ask.tenant, pick.ask.priority, pick.ask.deadline_ms) == ("team", -3, 0)

    def test_an_empty_body_is_a_body(self) -> None:
        exchange = Exchange()
        receive(exchange, request_headers(path="/v1/models"))
        assert receive(exchange, request_body(b"")) == [Forward(None)]
        parts = sent(exchange.picked(ENDPOINT, ""))
        assert [one.WhichOneof("response") for one in parts] == ["request_headers", "request_body"]
        assert parts[1].request_body.response.body_mutation.streamed_response.end_of_stream

    def test_without_a_body_there_is_one_answer(self) -> None:
        exchange = Exchange()
        assert receive(exchange, request_headers(method="GET", path="/v1/models", ends=True)) == [Forward(None)]
        assert kinds(exchange.picked(ENDPOINT, "")) == ["request_headers"]

    def test_trailers_follow_the_body(self) -> None:
        exchange = Exchange()
        receive(exchange, request_headers())
        receive(exchange, request_body(chat(), ends=False))
        trailers = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
        assert isinstance(receive(exchange, trailers)[0], Pick)
        effects = exchange.picked(ENDPOINT, "r1")
        assert kinds(effects) == ["request_headers", "request_body", "request_trailers"]
        assert not sent(effects)[1].request_body.response.body_mutation.streamed_response.end_of_stream

    def test_a_body_that_ends_twice_ends_once(self) -> None:
        exchange = answering()
        assert receive(exchange, request_body(b"")) == []


class TestSubsets:
    @pytest.mark.parametrize(
        ("said", "subset"),
        [
            (["a:1", "b:2"], {"a:1", "b:2"}),
            ("a:1, b:2", {"a:1", "b:2"}),
            (["a:1,b:2", "c"], {"a:1", "b:2", "c"}),
            ([], set()),
            ("", set()),
        ],
    )
    def test_all_shapes(self, said: str | list[str], subset: set[str]) -> None:
        for on_headers in (True, False):
            exchange = Exchange()
            first, second = request_headers(), request_body(chat())
            receive(exchange, within(first, said) if on_headers else first)
            (pick,) = receive(exchange, second if on_headers else within(second, said))
            assert isinstance(pick, Pick)
            assert pick.ask.subset == frozenset(subset)


class TestRefusals:
    @pytest.mark.parametrize(
        ("error", "code", "dropped"),
        [
            (NoInstanceError("nothing is ready"), 503, "rejected-no-endpoints"),
            (SaturatedError("full", reason="NoRoom", retry_after_s=2.0), 429, "rejected-saturated"),
            (UnknownModelError("model: no pool serves 'x'"), 404, None),
        ],
    )
    def test_by_error(self, error: LLMRouterError, code: int, dropped: str | None) -> None:
        exchange, _ = picking()
        (message,) = sent(exchange.refused(error))
        answer = message.immediate_response
        said = {one.header.key: one.header.raw_value.decode() for one in answer.headers.set_headers}
        assert answer.status.code == code
        assert json.loads(answer.body)["error"]["message"] == str(error)
        assert said["llmrouter-reason"] == error.reason
        assert said.get(names.DROPPED_REASON) == dropped
        assert said.get("retry-after") == ("2" if code == 429 else None)
        assert exchange.closed() == []

    @pytest.mark.parametrize("body", [b"{", b'{"messages": []}', b"5"])
    def test_a_body_that_cannot_be_read(self, body: bytes) -> None:
        exchange = Exchange()
        receive(exchange, request_headers())
        (message,) = sent(receive(exchange, request_body(body)))
        assert message.immediate_response.status.code == 400

    def test_a_body_that_is_too_long(self) -> None:
        exchange = Exchange(max_body_bytes=10)
        receive(exchange, request_headers())
        assert receive(exchange, request_body(b"x" * 10, ends=False)) == []
        (message,) = sent(receive(exchange, request_body(b"x", ends=False)))
        assert message.immediate_response.status.code == 413
        assert receive(exchange, request_body(b"x")) == [], "what still comes is dropped"

    def test_errors_of_the_router_itself_end_the_stream(self) -> None:
        exchange, _ = picking()
        with pytest.raises(LLMRouterError):
            exchange.refused(LedgerUnavailableError("a bug"))


class TestAnAnswer:
    def test_one_object(self) -> None:
        exchange = answering()
        assert kinds(receive(exchange, response_headers())) == ["response_headers"]
        body = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}).encode()
        first = receive(exchange, response_body(body[:20]))
        assert told(first) == [], "it comes whole, at its end: its first byte says nothing of its first token"
        last = receive(exchange, response_body(body[20:], ends=True))
        assert told(last) == [(ReportKind.FINISHED, 5)]
        echoed = b"".join(
            one.response_body.response.body_mutation.streamed_response.body for one in sent([*first, *last])
        )
        assert echoed == body
        assert exchange.closed() == []

    def test_a_stream_is_echoed_at_once_and_progress_told_now_and_then(self) -> None:
        exchange = answering(stream=True)
        receive(exchange, response_headers(content_type="text/event-stream"))
        happened: list[tuple[ReportKind, int | None]] = []
        for _ in range(2 * PROGRESS_TOKENS):
            effects = receive(exchange, response_body(b'data: {"choices": [{"text": "a"}]}\n\n'))
            assert isinstance(effects[0], Send), "a chunk never waits for a report"
            happened += told(effects)
        happened += told(receive(exchange, response_body(b"data: [DONE]\n\n", ends=True)))
        assert happened == [
            (ReportKind.FIRST_TOKEN, None),
            (ReportKind.PROGRESS, PROGRESS_TOKENS),
            (ReportKind.PROGRESS, 2 * PROGRESS_TOKENS),
            (ReportKind.FINISHED, 2 * PROGRESS_TOKENS),
        ]

    def test_usage_goes_with_the_end(self) -> None:
        exchange = answering()
        receive(exchange, response_headers())
        usage = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}
        effects = receive(exchange, response_body(json.dumps({"usage": usage}).encode(), ends=True))
        (report,) = [one.report for one in effects if isinstance(one, Tell) and one.report.kind is ReportKind.FINISHED]
        assert (report.output_tokens, report.prompt_tokens, report.cached_prompt_tokens) == (5, 3, 2)

    @pytest.mark.parametrize("status", [400, 404, 500, 503])
    def test_an_error_of_the_engine_is_a_failure(self, status: int) -> None:
        exchange = answering()
        receive(exchange, response_headers(status))
        assert told(receive(exchange, response_body(b'{"error": 1}', ends=True))) == [(ReportKind.FAILED, None)]

    def test_an_answer_without_a_body(self) -> None:
        exchange = answering()
        assert told(receive(exchange, response_headers(204, ends=True))) == [(ReportKind.FINISHED, None)]

    def test_trailers_end_it(self) -> None:
        exchange = answering()
        receive(exchange, response_headers())
        effects = receive(exchange, pb.ProcessingRequest(response_trailers=pb.HttpTrailers()))
        assert kinds(effects) == ["response_trailers"]
        assert told(effects) == [(ReportKind.FINISHED, None)]

    def test_where_it_was_served_is_compared(self) -> None:
        assert receive(answering(), response_headers(served=ENDPOINT))[0] != ServedElsewhere(ENDPOINT)
        assert receive(answering(), response_headers(served="10.0.0.2:8000"))[0] == ServedElsewhere("10.0.0.2:8000")

    def test_a_stream_that_ends_early_is_cancelled_once(self) -> None:
        exchange = answering(stream=True)
        receive(exchange, response_headers())
        assert told(exchange.closed()) == [(ReportKind.CANCELLED, None)]

    def test_what_was_forwarded_has_nothing_to_tell(self) -> None:
        exchange = Exchange()
        receive(exchange, request_headers(path="/v1/messages/count_tokens"))
        receive(exchange, request_body(b"{}"))
        exchange.picked(ENDPOINT, "")
        effects = [
            *receive(exchange, response_headers()),
            *receive(exchange, response_body(b"{}", ends=True)),
            *exchange.closed(),
        ]
        assert told(effects) == []


class TestOtherModes:
    def test_a_buffered_body_is_answered_after_its_headers(self) -> None:
        config = pb.ProtocolConfiguration(request_body_mode=pb.BUFFERED, response_body_mode=pb.STREAMED)
        exchange = Exchange()
        assert kinds(receive(exchange, request_headers(config=config))) == ["request_headers"]
        assert isinstance(receive(exchange, request_body(chat()))[0], Pick)
        effects = exchange.picked(ENDPOINT, "r1")
        assert kinds(effects) == ["request_body"]
        response = sent(effects)[0].request_body.response
        assert set_headers(response)[names.DESTINATION].startswith(ENDPOINT)
        assert not response.HasField("body_mutation")
        receive(exchange, response_headers())
        (echo,) = sent(receive(exchange, response_body(b"a")))
        assert not echo.response_body.response.HasField("body_mutation")

    @pytest.mark.parametrize("mode", [pb.NONE, pb.STREAMED])
    def test_without_the_body_the_destination_is_all(self, mode: pb.BodySendMode) -> None:
        exchange = Exchange()
        config = pb.ProtocolConfiguration(request_body_mode=mode)
        assert receive(exchange, request_headers(config=config)) == [Forward(None)]
        assert kinds(exchange.picked(ENDPOINT, "")) == ["request_headers"]

    def test_a_flag_that_gateways_send_either_way_means_nothing(self) -> None:
        for flag in (True, False):
            config = pb.ProtocolConfiguration(
                request_body_mode=pb.FULL_DUPLEX_STREAMED, send_body_without_waiting_for_header_response=flag
            )
            assert receive(Exchange(), request_headers(config=config)) == []


ANY = st.sampled_from(
    [
        *(request_headers(), request_headers(ends=True), request_body(chat()), request_body(b"{", ends=False)),
        *(response_headers(), response_headers(500, ends=True), response_body(b"a"), response_body(b"b", ends=True)),
        *(pb.ProcessingRequest(), pb.ProcessingRequest(request_trailers=pb.HttpTrailers())),
        pb.ProcessingRequest(response_trailers=pb.HttpTrailers()),
    ]
)


@settings(max_examples=300)
@given(st.lists(ANY, max_size=8))
def test_whatever_comes_a_reservation_ends_exactly_once(messages: list[pb.ProcessingRequest]) -> None:
    exchange, reserved, ended = Exchange(), 0, 0
    try:
        for message in messages:
            effects = receive(exchange, message)
            while effects:
                effect, *effects = effects
                if isinstance(effect, Pick):
                    reserved += 1
                    effects += exchange.picked(ENDPOINT, "r1")
                elif isinstance(effect, Forward):
                    effects += exchange.picked(ENDPOINT, "")
                elif isinstance(effect, Tell):
                    ended += effect.report.kind in {ReportKind.FINISHED, ReportKind.FAILED, ReportKind.CANCELLED}
    except ProtocolError:
        pass
    ended += len(told(exchange.closed()))
    assert reserved <= 1
    assert ended == reserved
