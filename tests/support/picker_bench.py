"""A picker's sessions on a router in memory: a gateway's messages in as bytes, and all that is left behind counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support.router_world import Bench, config_of

from router_grpc.picker.session import PickerDesk, PickerSession
from router_grpc.v1 import ext_proc_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from router_grpc.status import Status


@dataclass
class Gateway:
    """The other end of a stream; says whether the session keeps to what an outlet may be told."""

    messages: list[pb.ProcessingResponse] = field(default_factory=list)
    ended: list[Status] = field(default_factory=list)

    def send(self, message: bytes) -> None:
        assert not self.ended, "nothing comes after the end"
        self.messages.append(pb.ProcessingResponse.FromString(message))

    def finish(self, status: Status, detail: str) -> None:
        assert not self.ended, "a stream ends once"
        assert detail.isprintable(), "a status line"
        self.ended.append(status)

    def resumed(self) -> None:
        """Messages are sent whenever the test likes."""

    @property
    def statuses(self) -> list[int]:
        """Of the answers that the client got in the engine's place."""
        return [
            one.immediate_response.status.code
            for one in self.messages
            if one.WhichOneof("response") == "immediate_response"
        ]


class PickerBench:
    """A desk, and the router behind it."""

    def __init__(self, **parts: object) -> None:
        self.router = Bench(config_of("a:1", "b:1", **{"limits": {"maxInFlightPerInstance": 64}, **parts}))  # type: ignore[arg-type]
        self.desk = PickerDesk(self.router.world, self.router.service, self.router.reports)

    def open(self) -> tuple[PickerSession, Gateway]:
        """A new stream."""
        gateway = Gateway()
        return self.desk.open(gateway), gateway

    async def put(self, messages: Iterable[bytes], *, breaks: bool = True) -> Gateway:
        """A whole stream of messages, each after what the one before led to; it breaks, or is half-closed."""
        session, gateway = self.open()
        for message in messages:
            session.receive(message)
            await session.picked()
        if not breaks:
            session.half_closed()
        session.broken()
        await self.settled()
        return gateway

    async def settled(self) -> None:
        """Returns when all that was begun is over, and what is presumed has been looked at."""
        await self.desk.settled()
        await self.router.world.unbroken.settled()
        await self.router.world.presuming.step(self.router.world, self.router.service.kick)

    def left_behind(self) -> dict[str, float]:
        """What is not as before the first stream; nothing should be."""
        world = self.router.world
        loads = sum(world.replica.load_of(one.instance_id).requests for one in world.instances.current())
        found = {
            "reservations": len(world.open_requests),
            "loads": loads,
            "bytes of bodies": self.desk.intake.bytes,
            "sessions": len(self.desk._open),
            "presumed": len(world.presuming),
            "faults": self.router.count("llmrouter_errors_total", part="picker"),
            "reports": self.router.count("llmrouter_errors_total", part="report"),
        }
        return {name: value for name, value in found.items() if value}
