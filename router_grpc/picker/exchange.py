"""One HTTP request as a picker sees it: from its headers to the end of its answer, without a transport.

``receive`` takes the gateway's messages one after the other and returns what is to be done, in order; after a ``Pick``
or ``Forward`` comes ``picked`` or ``refused``, and no other message before. ``closed`` is called once, whenever and
however the stream ends.

Nothing is answered before the whole body is there: a gateway must not be told headers before the destination is known.
A body that came is passed on byte for byte. Where the answer is not to be seen, ``Leave`` comes last: the stream ends
well, and the gateway goes on alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from llmrouter.errors import InvalidRequestError, LLMRouterError, SaturatedError
from llmrouter.quick import quick
from router_grpc.picker import headers as names
from router_grpc.picker.asking import route_ask
from router_grpc.picker.bodies import asked_of, makes_tokens
from router_grpc.picker.intake import Intake
from router_grpc.picker.observation import Observed
from router_grpc.picker.reading import Said, read
from router_grpc.picker.replies import (
    CHUNK_BYTES,
    REQUEST_HEADERS,
    REQUEST_TRAILERS,
    RESPONSE_BODY,
    RESPONSE_HEADERS,
    RESPONSE_TRAILERS,
    SlowBodyError,
    TooLargeError,
    TooManyHeadersError,
    picked,
    pieces,
    refusal,
)
from router_grpc.picker.rewrap import REQUEST, RESPONSE, piece_message
from router_grpc.picker.usage import AnswerScan
from router_grpc.reports import MAX_REPORTED_TOKENS, PROGRESS_TOKENS, Report, ReportKind
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from router_grpc.calls import RouteAsk

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_HEADERS = 1_000
MAX_HEADERS_BYTES = 256 * 1024
BODY_S = 300.0
"""A body that is not whole after so long is given up: see ``Exchange.overdue``."""

FAILED_FROM, FAULT_FROM = 400, 500
"""Statuses of an answer that is none, and of one that its engine is to blame for."""

_HEADERS, _ANSWER, _BODY, _ANSWER_BODY, _TRAILERS, _ANSWER_TRAILERS = range(2, 8)
"""The fields of ``ProcessingRequest`` by their numbers."""

_BUFFERED, _DUPLEX = int(pb.BUFFERED), int(pb.FULL_DUPLEX_STREAMED)


@quick
@dataclass(frozen=True, slots=True)
class Send:
    """A message for the gateway, as it stands on the wire."""

    wire: bytes

    @property
    def message(self) -> pb.ProcessingResponse:
        """The message read again, for who looks into it."""
        return pb.ProcessingResponse.FromString(self.wire)


@quick
@dataclass(frozen=True, slots=True)
class Pick:
    """An instance is to be reserved for a request."""

    ask: RouteAsk


@dataclass(frozen=True, slots=True)
class Forward:
    """A request that makes no tokens goes to any instance, without a reservation."""

    subset: frozenset[str] | None


@quick
@dataclass(frozen=True, slots=True)
class Tell:
    """Something happened to the reserved request."""

    report: Report


@dataclass(frozen=True, slots=True)
class ServedElsewhere:
    """The gateway sent the request to another endpoint than it was told to."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The client is refused, for a reason fit for a metric's label, without an attempt to place its request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The stream ends well, before the answer: what becomes of the reservation, if there is one, is not seen."""

    request_id: str


@quick
@dataclass(frozen=True, slots=True)
class Unheard:
    """The answer comes whole, at its end: nothing is heard of the reservation before."""

    request_id: str


Effect = Send | Pick | Forward | Tell | ServedElsewhere | Refused | Leave | Unheard


class ProtocolError(LLMRouterError):
    """The gateway sent a message that cannot come now; the stream ends with an error."""

    reason = "ProtocolError"


class _Phase(Enum):
    HEADERS = auto()
    BODY = auto()
    PICKING = auto()
    ANSWER = auto()
    ANSWER_BODY = auto()
    OVER = auto()


class Exchange:
    """See the module's docstring."""

    def __init__(
        self,
        max_body_bytes: int = MAX_BODY_BYTES,
        *,
        observed: Observed | None = None,
        intake: Intake | None = None,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._observed = observed or Observed()
        self._intake = intake or Intake()
        self._phase = _Phase.HEADERS
        self._duplex_request = self._duplex_answer = True
        self._headers: dict[str, str] = {}
        self._subset: frozenset[str] | None = None
        self._body: bytes | bytearray = b""
        self._has_body = self._has_trailers = False
        self._endpoint = ""
        self._request_id = ""
        self._streams = False
        self._status: int | None = None
        self._scan: AnswerScan | None = None
        self._told_events = 0
        self._told_first = False

    @property
    def request_id(self) -> str:
        """Of the reservation that stands for this request; empty where there is none (any more)."""
        return self._request_id

    @property
    def streams(self) -> bool:
        """Whether its answer was asked for as a stream."""
        return self._streams

    @property
    def is_over(self) -> bool:
        """Whether all is said: what is left of the stream is the gateway's to end."""
        return self._phase is _Phase.OVER

    def receive(self, message: bytes) -> list[Effect]:
        """What the next message, as it stands on the wire, leads to.

        Raises:
            ProtocolError: it is none, or cannot come now.
        """
        said = read(message, names.READ, is_checked=False) or _read_unusual(message)
        kind = said.kind
        if self._phase is _Phase.OVER:
            return []
        metadata = None if said.metadata is None else _metadata_of(said.metadata)
        if metadata is not None and (subset := names.subset_of(metadata)) is not None:
            self._subset = subset
        if kind == _ANSWER_BODY:
            return self._on_answer_body(said)
        if kind == _BODY:
            return self._on_body(said)
        if kind == _HEADERS:
            return self._on_headers(said)
        if kind == _ANSWER:
            return self._on_answer(said, metadata)
        return self._on_seldom(kind)

    def _on_seldom(self, kind: int) -> list[Effect]:
        if kind == _TRAILERS:
            return self._on_trailers()
        if kind == _ANSWER_TRAILERS:
            return self._on_answer_trailers()
        raise ProtocolError("a message of no kind that a picker knows")

    def picked(self, endpoint: str, request_id: str, prefiller: str = "") -> list[Effect]:
        """The request goes there; ``request_id`` of its reservation is empty where it has none.

        ``prefiller`` is the endpoint that is to compute its prompt, where that is another one.
        """
        effects = self._sent_on(endpoint, request_id, prefiller)
        if self._observed.sees(request_id):
            return effects if self._streams or not request_id else [*effects, Unheard(request_id)]
        self._phase, self._request_id = _Phase.OVER, ""
        return [*effects, Leave(request_id)]

    def _sent_on(self, endpoint: str, request_id: str, prefiller: str) -> list[Effect]:
        self._phase = _Phase.ANSWER
        self._endpoint, self._request_id = endpoint, request_id
        told_id = "" if names.REQUEST_ID in self._headers else request_id
        if not self._duplex_request and self._has_body:
            self._let_go()
            return [Send(picked(endpoint, prefiller, told_id, by_body=True))]
        effects: list[Effect] = [Send(picked(endpoint, prefiller, told_id))]
        if self._has_body:
            whole = self._let_go()
            effects += [Send(piece) for piece in pieces(whole, ends=not self._has_trailers, of=REQUEST)]
        if self._has_trailers:
            effects.append(Send(REQUEST_TRAILERS))
        return effects

    def refused(self, error: LLMRouterError) -> list[Effect]:
        """The client is answered in place of the engine; raises the error where it is the router's own."""
        answer = refusal(error)
        if answer is None:
            raise error
        self._phase = _Phase.OVER
        self._let_go()
        return [Send(answer.SerializeToString())]

    def _refuse(self, error: LLMRouterError) -> list[Effect]:
        """Refuses what was not worth asking for a place."""
        return [Refused(error.reason), *self.refused(error)]

    def overdue(self) -> list[Effect]:
        """``BODY_S`` have passed since the headers: a body that is not whole is waited for no longer."""
        if self._phase is not _Phase.BODY:
            return []
        return self._refuse(SlowBodyError(f"body: not whole after {BODY_S:g} s"))

    def closed(self) -> list[Effect]:
        """The stream is over: what had no end is cancelled."""
        self._phase = _Phase.OVER
        self._let_go()
        if not self._request_id:
            return []
        return [Tell(Report(self._request_id, ReportKind.CANCELLED, reason="the stream ended before the answer"))]

    def _on_headers(self, said: Said) -> list[Effect]:
        self._expect(_Phase.HEADERS, "request_headers")
        sees_body = True
        if said.has_modes:
            self._duplex_request = said.request_mode == _DUPLEX
            self._duplex_answer = said.response_mode == _DUPLEX
            sees_body = self._duplex_request or said.request_mode == _BUFFERED
        if said.header_bytes > MAX_HEADERS_BYTES:
            return self._refuse(TooManyHeadersError(f"headers: more than {MAX_HEADERS_BYTES} bytes"))
        if said.header_count > MAX_HEADERS:
            return self._refuse(TooManyHeadersError(f"headers: more than {MAX_HEADERS}"))
        self._headers = said.headers
        self._phase = _Phase.BODY
        if said.ends or not sees_body:
            return self._pick()
        if not self._duplex_request:  # the gateway keeps the body until it has an answer to the headers
            return [Send(REQUEST_HEADERS)]
        return []

    def _on_body(self, said: Said) -> list[Effect]:
        if self._phase in {_Phase.ANSWER, _Phase.ANSWER_BODY}:
            return []  # some gateways end a large body twice
        self._expect(_Phase.BODY, "request_body")
        self._has_body = True
        body = said.body
        if len(self._body) + len(body) > self._max_body_bytes:
            return self._refuse(TooLargeError(f"body: more than {self._max_body_bytes} bytes"))
        try:
            self._intake.take(len(body))
        except SaturatedError as error:
            return self._refuse(error)
        if not self._body:
            self._body = body  # most come in one piece
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body
        return self._pick() if said.ends else []

    def _let_go(self) -> bytes:
        """The body, which is not kept any longer."""
        whole, self._body = bytes(self._body), b""
        self._intake.give(len(whole))
        return whole

    def _on_trailers(self) -> list[Effect]:
        self._expect(_Phase.BODY, "request_trailers")
        self._has_trailers = True
        return self._pick()

    def _pick(self) -> list[Effect]:
        self._phase = _Phase.PICKING
        path = self._headers.get(":path", "")
        if not self._has_body or self._headers.get(":method", "POST") != "POST" or not makes_tokens(path):
            return [Forward(self._subset)]
        try:
            asked = asked_of(path, bytes(self._body))
        except InvalidRequestError as error:
            return self._refuse(error)
        if asked is None:
            return [Forward(self._subset)]
        self._streams = asked.streams
        return [Pick(route_ask(asked, self._headers, self._subset))]

    def _on_answer(self, said: Said, metadata: pb.Metadata | None) -> list[Effect]:
        if self._phase is _Phase.BODY:  # the gateway's own answer, to a request that it did not take in whole
            self._let_go()
            self._phase = _Phase.ANSWER
        self._expect(_Phase.ANSWER, "response_headers")
        self._phase = _Phase.ANSWER_BODY
        found = said.headers
        self._status = names.status_code(found)
        is_stream = self._streams or found.get("content-type", "").startswith("text/event-stream")
        self._scan = AnswerScan(is_stream=is_stream)
        effects: list[Effect] = []
        served = "" if metadata is None else names.served_endpoint(metadata)
        if served and served != self._endpoint:
            effects.append(ServedElsewhere(served))
        effects.append(Send(RESPONSE_HEADERS))
        return effects + self._end() if said.ends else effects

    def _on_answer_body(self, said: Said) -> list[Effect]:
        self._expect(_Phase.ANSWER_BODY, "response_body")
        body, ends = said.body, said.ends
        effects: list[Effect]
        if not self._duplex_answer:
            effects = [Send(RESPONSE_BODY)]
        elif len(body) <= CHUNK_BYTES:
            effects = [Send(piece_message(body, ends=ends, of=RESPONSE))]
        else:
            effects = [Send(piece) for piece in pieces(body, ends=ends, of=RESPONSE)]
        if self._scan is not None and self._request_id:
            self._scan.feed(body)
            if self._scan.is_stream:
                effects += self._noticed(self._scan)
        if ends:
            effects += self._end()
        return effects

    def _on_answer_trailers(self) -> list[Effect]:
        return [Send(RESPONSE_TRAILERS), *self._end()]

    def _noticed(self, scan: AnswerScan) -> list[Effect]:
        """The first token once, then progress now and then; an answer that is no stream comes whole, at its end."""
        if scan.has_begun and not self._told_first and not self._has_failed:
            self._told_first = True
            return [Tell(Report(self._request_id, ReportKind.FIRST_TOKEN))]
        if scan.events >= self._told_events + PROGRESS_TOKENS:
            self._told_events = scan.events
            tokens = min(scan.events, MAX_REPORTED_TOKENS)
            return [Tell(Report(self._request_id, ReportKind.PROGRESS, output_tokens=tokens))]
        return []

    @property
    def _has_failed(self) -> bool:
        return self._status is not None and self._status >= FAILED_FROM

    def _end(self) -> list[Effect]:
        self._phase = _Phase.OVER
        if not self._request_id or self._scan is None:
            return []  # a reservation without an answer is cancelled in the end: see ``closed``
        request_id, self._request_id = self._request_id, ""
        if self._has_failed:
            is_fault = self._status is None or self._status >= FAULT_FROM
            return [Tell(Report(request_id, ReportKind.FAILED, reason=f"status {self._status}", is_fault=is_fault))]
        self._scan.end()
        usage = self._scan.usage
        return [
            Tell(
                Report(
                    request_id,
                    ReportKind.FINISHED,
                    output_tokens=self._scan.output_tokens,
                    prompt_tokens=usage.prompt_tokens,
                    cached_prompt_tokens=usage.cached_tokens,
                )
            )
        ]

    def _expect(self, phase: _Phase, kind: str) -> None:
        if self._phase is not phase:
            raise ProtocolError(f"{kind} came while {self._phase.name.lower()} is under way")


def _read_unusual(message: bytes) -> Said:
    """A message that protobuf must read first: what it says twice is merged, and what no picker knows is left out."""
    try:
        parsed = pb.ProcessingRequest.FromString(message)
    except DecodeError:
        raise ProtocolError("a message that is no ProcessingRequest") from None
    parsed.DiscardUnknownFields()
    said = read(parsed.SerializeToString(), names.READ, is_checked=True)
    if said is None:
        raise ProtocolError("a message that a picker cannot read")
    return said


def _metadata_of(raw: bytes) -> pb.Metadata:
    try:
        return pb.Metadata.FromString(raw)
    except DecodeError:
        raise ProtocolError("metadata that is none") from None
