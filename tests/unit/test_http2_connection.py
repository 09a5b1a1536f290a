"""HTTP/2 of our own, in memory: what a peer may do, and what becomes of it when it does what it may not."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st
from support.http2_peer import PATH, SMALL, WIDE, CountedBudget, Peer, call, data, message, request

from router_grpc.http2 import frames as wire
from router_grpc.http2.frames import Code
from router_grpc.http2.limits import Limits
from router_grpc.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_call_is_answered_and_ends() -> None:
    peer = Peer()
    peer.send(call(peer, 1, b"one", b"", b"x" * 100_000))
    answer = peer.answers[1]
    assert answer.headers == {":status": "200", "content-type": "application/grpc"}
    assert answer.messages == [b"one", b"", b"x" * 100_000]
    assert answer.trailers == {"grpc-status": "0"}
    assert answer.reset is None
    assert peer.connection.streams == peer.budget.bytes == 0


def test_what_a_server_says_first() -> None:
    peer = Peer(greets=False)
    peer.take()
    assert [one.kind for one in peer.frames] == [wire.SETTINGS, wire.WINDOW_UPDATE]
    said = dict(wire.read_settings(peer.frames[0].payload))
    assert said[wire.HEADER_TABLE_SIZE] == 0
    assert said[wire.MAX_CONCURRENT_STREAMS] == Limits().streams


def test_the_table_is_used_until_the_peer_knows_that_there_is_none() -> None:
    peer = Peer(greets=False)
    peer.send(wire.PREFACE + WIDE)
    for stream_id in (1, 3):
        peer.send(peer.headers(stream_id, authority="router") + data(stream_id, message(b"a"), ends=True))
    assert len(list(peer.encoder.header_table.dynamic_entries)) > 0
    peer.send(wire.frame(wire.SETTINGS, wire.ACK, 0))
    peer.encoder.header_table_size = 0
    for stream_id in (5, 7, 9):
        peer.send(peer.headers(stream_id, authority="router") + data(stream_id, message(b"a"), ends=True))
    assert {stream_id: answer.status for stream_id, answer in peer.answers.items() if stream_id} == dict.fromkeys(
        (1, 3, 5, 7, 9), 0
    )


def test_a_peer_that_acknowledges_and_keeps_its_table_has_erred() -> None:
    peer = Peer(greets=False)
    peer.send(wire.PREFACE + WIDE + wire.frame(wire.SETTINGS, wire.ACK, 0) + call(peer, 1, b"a"))
    assert peer.reasons() == [Code.COMPRESSION_ERROR]


@given(
    bodies=st.lists(st.lists(st.binary(max_size=300), max_size=4), min_size=1, max_size=5),
    frame_bytes=st.integers(1, 200),
    draws=st.randoms(use_true_random=False),
    is_by_byte=st.booleans(),
)
def test_however_bytes_are_cut_and_streams_are_mixed(bodies, frame_bytes, draws, is_by_byte) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    peer = Peer()
    left = {}
    for place, messages in enumerate(bodies):
        stream_id, whole = 2 * place + 1, b"".join(map(message, messages))
        parts = [whole[at : at + frame_bytes] for at in range(0, len(whole), frame_bytes)] or [b""]
        last = len(parts) - 1
        left[stream_id] = [peer.headers(stream_id)] + [
            wire.frame(wire.DATA, wire.END_STREAM if n == last else 0, stream_id, part) for n, part in enumerate(parts)
        ]
    sent, opened = b"", 0
    while left:
        fresh = min((one for one in left if one > opened), default=None)
        begun = [one for one in left if one <= opened]
        if fresh is not None and (not begun or draws.random() < 0.3):
            opened = fresh
            sent += left[fresh].pop(0)
        else:
            chosen = draws.choice(begun)
            sent += left[chosen].pop(0)
            if not left[chosen]:
                del left[chosen]
    cuts = range(len(sent)) if is_by_byte else sorted(draws.randrange(len(sent)) for _ in range(5))
    peer.send(sent, cuts=cuts)
    assert [peer.answers[2 * n + 1].messages for n in range(len(bodies))] == bodies
    assert {peer.answers[2 * n + 1].status for n in range(len(bodies))} == {0}
    assert peer.connection.streams == 0
    assert peer.reasons() == []


@given(
    grants=st.lists(st.tuples(st.sampled_from((0, 1, 3)), st.integers(1, 5_000)), max_size=30),
    first=st.integers(0, 3_000),
    second=st.integers(0, 3_000),
)
def test_windows_are_kept_and_trailers_wait_for_what_is_before_them(grants, first, second) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Nothing goes out beyond what was granted, for the stream and for all; when all is granted, all has come."""
    peer = Peer(greets=False)
    peer.send(wire.PREFACE + wire.settings({wire.INITIAL_WINDOW_SIZE: first}))
    bodies = {1: b"a" * 30_000, 3: b"b" * 50_000}
    for stream_id, body in bodies.items():
        peer.send(call(peer, stream_id, body))
    allowed = {0: wire.DEFAULT_WINDOW, 1: first, 3: first}
    most = dict(allowed)

    def holds() -> None:
        sent = {stream_id: len(peer.answers[stream_id].data) for stream_id in bodies if stream_id in peer.answers}
        most.update({one: max(most[one], allowed[one]) for one in allowed})
        assert sum(sent.values()) <= most[0]
        for stream_id, size in sent.items():
            assert size <= most[stream_id]
            assert (peer.answers[stream_id].status is not None) == (size == len(bodies[stream_id]) + 5)

    holds()
    for place, (stream_id, size) in enumerate(grants):
        if place == 3:
            peer.send(wire.settings({wire.INITIAL_WINDOW_SIZE: second}))
            allowed |= {one: allowed[one] + second - first for one in bodies}
        if not stream_id or peer.answers.get(stream_id) is None or peer.answers[stream_id].status is None:
            peer.send(wire.window_update(stream_id, size))
            allowed[stream_id] += size
        holds()
    peer.send(wire.window_update(0, 200_000))
    for stream_id in bodies:
        if stream_id not in peer.answers or peer.answers[stream_id].status is None:
            peer.send(wire.window_update(stream_id, 200_000))
    assert {stream_id: peer.answers[stream_id].messages for stream_id in bodies} == {1: [bodies[1]], 3: [bodies[3]]}
    assert peer.budget.bytes == 0


def test_no_stream_starves_another() -> None:
    """Both have much to say and the connection's window is small: each gets its turns."""
    peer = Peer(greets=False)
    peer.send(wire.PREFACE + wire.settings({wire.INITIAL_WINDOW_SIZE: 2**30}))
    for stream_id in (1, 3):
        peer.send(call(peer, stream_id, b"z" * 2_000_000))
    for _ in range(20):
        peer.send(wire.window_update(0, 70_000))
    sizes = [len(peer.answers[stream_id].data) for stream_id in (1, 3)]
    assert min(sizes) > 0.7 * max(sizes)


BAD = {
    "no HTTP/2": (b"GET / HTTP/1.1\r\n\r\n", Code.PROTOCOL_ERROR),
    "a frame that is too long": (wire.head(16_385, wire.DATA, 0, 1), Code.FRAME_SIZE_ERROR),
    "data of a stream that is not there": (data(1, b"a"), Code.PROTOCOL_ERROR),
    "data of the connection": (data(0, b"a"), Code.PROTOCOL_ERROR),
    "a stream of the server's": (wire.frame(wire.HEADERS, wire.END_HEADERS, 2, b"\x82"), Code.PROTOCOL_ERROR),
    "a push": (wire.frame(wire.PUSH_PROMISE, wire.END_HEADERS, 1, b"\0\0\0\2"), Code.PROTOCOL_ERROR),
    "continuation of nothing": (wire.frame(wire.CONTINUATION, 0, 1, b"\x82"), Code.PROTOCOL_ERROR),
    "a frame within a block": (
        wire.frame(wire.HEADERS, 0, 1, b"\x82") + wire.frame(wire.PING, 0, 0, b"12345678"),
        Code.PROTOCOL_ERROR,
    ),
    "a block that goes on for ever": (
        wire.frame(wire.HEADERS, 0, 1, b"") + 5 * wire.frame(wire.CONTINUATION, 0, 1, b""),
        Code.ENHANCE_YOUR_CALM,
    ),
    "a block that is too long": (
        wire.frame(wire.HEADERS, 0, 1, b"a" * 1_500) + wire.frame(wire.CONTINUATION, 0, 1, b"a" * 1_500),
        Code.ENHANCE_YOUR_CALM,
    ),
    "a block that cannot be read": (
        wire.frame(wire.HEADERS, wire.END_HEADERS, 1, b"\xff\xff\xff"),
        Code.COMPRESSION_ERROR,
    ),
    "a table that changes its size for ever": (
        wire.frame(wire.HEADERS, wire.END_HEADERS, 1, b"\x20\x3f\xe1\x1f\x20" * 300),
        Code.COMPRESSION_ERROR,
    ),
    "priority that is cut": (
        wire.frame(wire.HEADERS, wire.END_HEADERS | wire.WITH_PRIORITY, 1, b"\0"),
        Code.FRAME_SIZE_ERROR,
    ),
    "more padding than frame": (
        wire.frame(wire.HEADERS, wire.END_HEADERS | wire.PADDED, 1, b"\x09ab"),
        Code.PROTOCOL_ERROR,
    ),
    "settings of a wrong length": (wire.frame(wire.SETTINGS, 0, 0, b"12345"), Code.FRAME_SIZE_ERROR),
    "settings of a stream": (wire.frame(wire.SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
    "a window that is too large": (wire.settings({wire.INITIAL_WINDOW_SIZE: 2**31}), Code.FLOW_CONTROL_ERROR),
    "a frame that may be too short": (wire.settings({wire.MAX_FRAME_SIZE: 1}), Code.PROTOCOL_ERROR),
    "a ping of a wrong length": (wire.frame(wire.PING, 0, 0, b"1"), Code.FRAME_SIZE_ERROR),
    "a reset of nothing": (wire.rst_stream(1, Code.CANCEL), Code.PROTOCOL_ERROR),
    "a window of nothing": (wire.window_update(0, 0), Code.FLOW_CONTROL_ERROR),
    "windows that add up": (wire.window_update(0, 2**31 - 1), Code.FLOW_CONTROL_ERROR),
    "a window of a stream that is not there": (wire.window_update(1, 5), Code.PROTOCOL_ERROR),
    "pings without end": (21 * wire.frame(wire.PING, 0, 0, b"12345678"), Code.ENHANCE_YOUR_CALM),
    "settings without end": (21 * wire.settings({}), Code.ENHANCE_YOUR_CALM),
    "unknown frames without end": (21 * wire.frame(99, 0, 0, b"?"), Code.ENHANCE_YOUR_CALM),
}


@pytest.mark.parametrize("name", BAD)
def test_what_breaks_the_rules_of_a_connection_ends_it(name: str) -> None:
    sent, code = BAD[name]
    peer = Peer(limits=SMALL, greets=False)
    peer.send(sent if name == "no HTTP/2" else wire.PREFACE + sent)
    assert (peer.reasons(), peer.connection.is_over) == ([code], True)
    assert peer.connection.reason == code.name


def test_the_streams_of_a_connection_that_ends_are_broken_once() -> None:
    peer = Peer()
    peer.send(peer.headers(1) + peer.headers(3) + data(3, message(b"a")))
    peer.send(wire.frame(wire.PING, 0, 0, b"1"))
    peer.connection.lost()
    assert [one.broke for one in peer.handlers] == [1, 1]


STREAMS: dict[str, tuple[Callable[[Peer], bytes], Code | None, Status | None]] = {
    "more than its window": (lambda p: p.headers(3) + data(3, b"a" * 1_001), Code.FLOW_CONTROL_ERROR, None),
    "too large a window": (lambda p: p.headers(3) + wire.window_update(3, 2**31 - 1), Code.FLOW_CONTROL_ERROR, None),
    "headers in the middle": (lambda p: p.headers(3) + p.headers(3), Code.PROTOCOL_ERROR, None),
    "data after the end": (lambda p: p.headers(3, flags=5) + data(3, b"a"), Code.STREAM_CLOSED, None),
    "no path": (
        lambda p: wire.frame(wire.HEADERS, wire.END_HEADERS, 3, p.encoder.encode([(":method", "POST")])),
        Code.PROTOCOL_ERROR,
        None,
    ),
    "headers that say too much": (lambda p: p.headers(3, long="x" * 2_100), Code.ENHANCE_YOUR_CALM, None),
    "compressed": (lambda p: p.headers(3) + data(3, message(b"a", flag=1)), Code.NO_ERROR, Status.UNIMPLEMENTED),
    "too long a message": (
        lambda p: p.headers(3) + data(3, message(b"", size=5_001)),
        Code.NO_ERROR,
        Status.RESOURCE_EXHAUSTED,
    ),
    "an end within a message": (
        lambda p: p.headers(3) + data(3, message(b"a", size=9), ends=True),
        None,
        Status.INTERNAL,
    ),
    "an unknown method": (lambda p: p.headers(3, path="/other"), Code.NO_ERROR, Status.UNIMPLEMENTED),
    "no gRPC": (lambda p: p.headers(3, content_type="text/html"), Code.NO_ERROR, None),
    "a GET": (lambda p: p.headers(3, method="GET"), Code.NO_ERROR, None),
    "a handler that fails": (lambda p: p.headers(3) + data(3, message(b"fail")), Code.NO_ERROR, Status.INTERNAL),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_ends_a_stream_ends_no_other(name: str) -> None:
    sent, reset, status = STREAMS[name]
    peer = Peer(limits=SMALL)
    peer.send(call(peer, 1, b"before"))
    peer.send(sent(peer))
    answer = peer.answers[3]
    assert (answer.reset, answer.status) == (reset, status)
    has_finished = name == "data after the end"
    assert [one.broke for one in peer.handlers[1:]] in ([], [0 if has_finished else 1])
    assert len(peer.failures) == (1 if name == "a handler that fails" else 0)
    peer.send(data(3, b"late") + wire.window_update(3, 9) + wire.rst_stream(3, Code.CANCEL))
    peer.send(call(peer, 5, b"still there"))
    assert (peer.answers[5].messages, peer.answers[5].status) == ([b"still there"], 0)
    assert peer.reasons() == []
    assert peer.connection.streams == peer.budget.bytes == 0


def test_no_grpc_is_said_in_http() -> None:
    peer = Peer()
    peer.send(peer.headers(1, content_type="text/html") + peer.headers(3, method="GET"))
    assert [peer.answers[one].headers[":status"] for one in (1, 3)] == ["415", "405"]


def test_streams_beyond_the_limit_are_refused() -> None:
    peer = Peer(limits=SMALL)
    for stream_id in (1, 3, 5, 7, 9):
        peer.send(peer.headers(stream_id))
    assert peer.answers[9].reset == Code.REFUSED_STREAM
    peer.send(data(1, message(b"a"), ends=True))
    peer.send(call(peer, 11, b"b"))
    assert peer.answers[11].status == 0


def test_the_window_of_the_connection_is_enforced() -> None:
    """Granted anew at once, whatever streams do with it; a peer that sends more in one go has erred."""
    peer = Peer(limits=Limits(stream_window_bytes=2**20, connection_window_bytes=100_000))
    sent = b"".join(data(1, bytes(16_384)) for _ in range(40))
    peer.send(peer.headers(1) + data(1, message(b"", size=700_000)[:5]) + sent)
    granted = [one for one in peer.frames if one.kind == wire.WINDOW_UPDATE and not one.stream_id][1:]
    assert sum(wire.read_word(one.payload) for one in granted) >= 40 * 16_384 - 100_000
    assert peer.reasons() == []


def test_a_handler_that_waits_is_sent_no_more() -> None:
    peer = Peer(limits=SMALL)
    peer.send(peer.headers(1))
    handler = peer.handlers[0]
    handler.is_waiting = True
    peer.send(b"".join(data(1, message(b"x" * 95)) for _ in range(10)))
    assert granted(peer, 1) == 0
    handler.is_waiting = False
    before = peer.outputs
    handler.call.resumed()
    peer.take()
    assert granted(peer, 1) == 1_000
    assert peer.outputs == before + 1


def test_a_peer_that_does_not_read_is_sent_to_no_more() -> None:
    """What waits for it is bounded by one window and what one message may be answered with, and counted."""
    peer = Peer(limits=SMALL, greets=False)
    peer.send(wire.PREFACE + wire.settings({wire.INITIAL_WINDOW_SIZE: 0}) + peer.headers(1))
    for _ in range(10):
        peer.send(data(1, message(b"x" * 95)))
    assert granted(peer, 1) < 1_000
    assert peer.budget.bytes == peer.handlers[0].call.unsent == 1_000
    peer.send(wire.window_update(1, 600))
    assert peer.budget.bytes == 400
    assert granted(peer, 1) > 0
    peer.send(wire.rst_stream(1, Code.CANCEL))
    assert peer.budget.bytes == 0


def granted(peer: Peer, stream_id: int) -> int:
    found = [one for one in peer.frames if one.kind == wire.WINDOW_UPDATE and one.stream_id == stream_id]
    return sum(wire.read_word(one.payload) for one in found)


def test_long_messages_that_have_begun_are_bounded_together() -> None:
    peer = Peer(limits=SMALL, budget=CountedBudget(most=5_000))
    peer.send(peer.headers(1) + data(1, message(b"x", size=4_000)))
    assert peer.budget.bytes == 4_000
    peer.send(peer.headers(3) + data(3, message(b"x", size=4_000)))
    assert peer.answers[3].status == Status.RESOURCE_EXHAUSTED
    peer.send(peer.headers(5) + data(5, message(b"x" * 900), ends=True))
    assert peer.answers[5].status == 0
    peer.send(wire.rst_stream(1, Code.CANCEL))
    assert peer.budget.bytes == 0


def test_a_long_message_arrives_through_a_small_window() -> None:
    peer = Peer(limits=SMALL)
    body = bytes(range(250)) * 20
    peer.send(peer.headers(1))
    sent, at = message(body), 0
    while at < len(sent):
        room = 1_000 + granted(peer, 1) - at
        assert room > 0
        peer.send(data(1, sent[at : at + room], ends=at + room >= len(sent)))
        at += room
    assert (peer.answers[1].messages, peer.answers[1].status) == ([body], 0)
    assert peer.budget.bytes == 0


def test_padding_takes_window_and_is_granted_again() -> None:
    peer = Peer(limits=SMALL)
    peer.send(peer.headers(1))
    padded = wire.frame(wire.DATA, wire.PADDED, 1, b"\xc7" + b"" + bytes(199))
    for _ in range(15):
        peer.send(padded)
    assert peer.reasons() == []
    assert granted(peer, 1) >= 2_000


def test_an_answer_that_comes_later_is_said_to_be_there() -> None:
    peer = Peer()
    peer.send(peer.headers(1, path=PATH))
    before = peer.outputs
    peer.handlers[0].call.send(b"later")
    assert peer.outputs == before + 1
    peer.take()
    assert peer.answers[1].messages == [b"later"]


def test_an_error_is_said_in_words_of_any_kind() -> None:
    peer = Peer()
    peer.send(peer.headers(1))
    peer.handlers[0].call.finish(Status.INTERNAL, "100 % übel\n")
    peer.take()
    assert peer.answers[1].headers["grpc-message"] == "100 %25 %C3%BCbel%0A"


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=60)), max_size=40)
)
def test_frames_at_random_raise_nothing_and_leave_nothing(sent) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    peer = Peer(limits=SMALL)
    block = Encoder().encode(list(request().items()))
    for kind, flags, stream_id, payload in sent:
        body = block if kind == wire.HEADERS and len(payload) % 2 else payload
        peer.send(wire.frame(kind, flags, stream_id, body))
    peer.connection.lost()
    assert peer.budget.bytes == 0
    assert peer.failures == []


@given(st.binary(max_size=300))
def test_bytes_at_random_raise_nothing(sent: bytes) -> None:
    peer = Peer(limits=SMALL)
    peer.send(sent)
    peer.connection.lost()
    assert peer.budget.bytes == 0


@pytest.mark.parametrize("ending", ["finished", "reset", "lost"])
def test_a_call_that_is_over_is_gone_without_a_collection(ending: str) -> None:
    peer = Peer()
    gc.collect()
    gc.disable()
    try:
        peer.send(peer.headers(1) + data(1, message(b"a")))
        handler = weakref.ref(peer.handlers.pop())
        assert handler() is not None
        if ending == "finished":
            peer.send(data(1, b"", ends=True))
        elif ending == "reset":
            peer.send(wire.rst_stream(1, Code.CANCEL))
        else:
            peer.connection.lost()
        assert handler() is None
    finally:
        gc.enable()
