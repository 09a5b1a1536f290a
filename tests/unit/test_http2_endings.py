"""When connections of our own HTTP/2 end: too many resets, drains, silence, idleness."""

from __future__ import annotations

from support.http2_peer import SMALL, Peer, call, data, message

from router_grpc.http2 import frames as wire
from router_grpc.http2.frames import Code


def test_resets_beyond_measure_end_the_connection_once_its_streams_have_ended() -> None:
    peer = Peer(limits=SMALL)
    peer.send(peer.headers(1))
    for stream_id in range(3, 15, 2):
        peer.send(peer.headers(stream_id) + wire.rst_stream(stream_id, Code.CANCEL))
    assert peer.reasons() == [Code.NO_ERROR]
    assert not peer.connection.is_over
    peer.send(data(1, message(b"a"), ends=True))
    assert peer.answers[1].status == 0
    peer.send(wire.frame(wire.PING, wire.ACK, 0, b"drained?"))
    assert (peer.connection.is_over, peer.connection.reason) == (True, "resets")


def test_resets_after_all_was_said_are_how_gateways_end_streams() -> None:
    peer = Peer(limits=SMALL)
    for stream_id in range(1, 99, 2):
        peer.send(call(peer, stream_id, b"a") + wire.rst_stream(stream_id, Code.CANCEL))
    assert peer.reasons() == []


def test_a_stream_that_is_done_may_be_reset() -> None:
    peer = Peer(limits=SMALL)
    for stream_id in range(1, 99, 2):
        peer.send(peer.headers(stream_id) + data(stream_id, message(b"a")))
        peer.handlers[-1].is_done = True
        peer.send(wire.rst_stream(stream_id, Code.INTERNAL_ERROR))
    assert peer.reasons() == []


def test_a_drain_lets_streams_end() -> None:
    peer = Peer()
    peer.send(peer.headers(1))
    peer.connection.go_away("drained")
    peer.take()
    assert [one.kind for one in peer.frames[-2:]] == [wire.GOAWAY, wire.PING]
    assert int.from_bytes(peer.frames[-2].payload[:4]) == 2**31 - 1
    peer.send(call(peer, 3, b"on its way"))
    assert peer.answers[3].status == 0
    peer.send(wire.frame(wire.PING, wire.ACK, 0, b"drained?"))
    assert int.from_bytes(next(f for f in reversed(peer.frames) if f.kind == wire.GOAWAY).payload[:4]) == 3
    peer.send(peer.headers(5))
    assert peer.answers[5].reset == Code.REFUSED_STREAM
    assert not peer.connection.is_over
    peer.send(data(1, message(b"last"), ends=True))
    assert (peer.answers[1].messages, peer.connection.is_over) == ([b"last"], True)


def test_a_peer_that_never_says_that_it_knows_is_waited_for_a_while() -> None:
    peer = Peer()
    peer.connection.go_away("drained")
    peer.connection.tick(peer.now_s + 5.0)
    assert not peer.connection.is_over
    peer.connection.tick(peer.now_s + 11.0)
    assert peer.connection.is_over


def test_silence_is_asked_about_and_ends_the_connection() -> None:
    peer = Peer()
    peer.send(peer.headers(1))
    peer.connection.tick(peer.now_s + 21.0)
    peer.take()
    assert peer.frames[-1].kind == wire.PING
    peer.now_s += 22.0
    peer.send(wire.frame(wire.PING, wire.ACK, 0, peer.frames[-1].payload))
    peer.connection.tick(peer.now_s + 19.0)
    peer.connection.tick(peer.now_s + 21.0)
    peer.connection.tick(peer.now_s + 30.0)
    assert not peer.connection.is_over
    peer.connection.tick(peer.now_s + 32.0)
    assert (peer.connection.is_over, peer.connection.reason) == (True, "silent")
    assert peer.handlers[0].broke == 1


def test_a_client_that_never_begins_is_let_go() -> None:
    peer = Peer(greets=False)
    peer.send(wire.PREFACE[:5])
    peer.connection.tick(peer.now_s + 9.0)
    assert not peer.connection.is_over
    peer.connection.tick(peer.now_s + 11.0)
    assert peer.connection.is_over


def test_a_connection_without_streams_is_closed_in_time() -> None:
    peer = Peer()
    for seconds in range(0, 895, 5):
        peer.now_s = 100.0 + seconds
        peer.send(wire.frame(wire.PING, wire.ACK, 0, b"any answ"))
        peer.connection.tick(peer.now_s)
    reasons = [peer.connection.reason]
    peer.connection.tick(1_001.0)
    assert [*reasons, peer.connection.reason] == ["", "idle"]
