"""gRPC health over the transport of ``fast.py``: one status for each name, asked for or watched."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from router_grpc.status import Status

if TYPE_CHECKING:
    from router_grpc.http2.calls import Call

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
"""As gRPC health numbers them."""

HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class HealthBoard:
    """What is known of each name, and who watches it."""

    def __init__(self) -> None:
        self._states: dict[str, int] = {}
        self._watches: defaultdict[str, set[_Watch]] = defaultdict(set)

    def set(self, name: str, status: int) -> None:
        """Shows a status, to those who watch it at once."""
        self._states[name] = status
        for watch in list(self._watches.get(name, ())):
            watch.say(status)

    def get(self, name: str) -> int | None:
        """The status of a name; ``None`` where it has none."""
        return self._states.get(name)

    def close(self) -> None:
        """Ends every watch."""
        for watches in list(self._watches.values()):
            for watch in list(watches):
                watch.close()

    def check(self, call: Call) -> _Check:
        """Serves ``Check``."""
        return _Check(self, call)

    def watch(self, call: Call) -> _Watch:
        """Serves ``Watch``."""
        return _Watch(self, call)

    def _begin(self, watch: _Watch) -> None:
        self._watches[watch.name].add(watch)

    def _end(self, watch: _Watch) -> None:
        watches = self._watches.get(watch.name)
        if watches is not None:
            watches.discard(watch)
            if not watches:
                del self._watches[watch.name]


class _Check:
    is_waiting = is_done = False

    def __init__(self, board: HealthBoard, call: Call) -> None:
        self._board, self._call = board, call
        self._has_asked = False

    def receive(self, message: bytes) -> None:
        if self._has_asked:
            self._call.finish(Status.INVALID_ARGUMENT, "one message is due")
            return
        self._has_asked = True
        try:
            name = health_pb2.HealthCheckRequest.FromString(message).service
        except DecodeError:
            self._call.finish(Status.INVALID_ARGUMENT, "a message that is no HealthCheckRequest")
            return
        self._asked(name)

    def _asked(self, name: str) -> None:
        status = self._board.get(name)
        if status is None:
            self._call.finish(Status.NOT_FOUND, "no service of that name")
            return
        self._say(status)
        self._call.finish(Status.OK, "")

    def _say(self, status: int) -> None:
        self._call.send(health_pb2.HealthCheckResponse(status=status).SerializeToString())

    def half_closed(self) -> None:
        if not self._has_asked:
            self._call.finish(Status.INVALID_ARGUMENT, "one message is due")

    def broken(self) -> None:
        """Nothing is left behind."""


class _Watch(_Check):
    def __init__(self, board: HealthBoard, call: Call) -> None:
        super().__init__(board, call)
        self.name = ""
        self._said: int | None = None

    def _asked(self, name: str) -> None:
        self.name = name
        self._board._begin(self)  # noqa: SLF001 - its own board
        self.say(self._board.get(name) or SERVICE_UNKNOWN)

    def say(self, status: int) -> None:
        if status != self._said:
            self._said = status
            self._say(status)

    def close(self) -> None:
        self.broken()
        self._call.finish(Status.UNAVAILABLE, "the router leaves")

    def broken(self) -> None:
        self._board._end(self)  # noqa: SLF001 - as above
