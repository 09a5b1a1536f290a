"""Arms as routers write them into their acknowledgement."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmrouter.resource_types import Resource
from llmrouter.rollout.arm_stats import ArmStats, Moments

MAX_COUNT = 10**15
_Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
_Sum = Annotated[float, Field(ge=-1e18, le=1e18, allow_inf_nan=False)]


class WireMoments(Resource):
    """The fields of ``Moments``."""

    count: _Count = 0
    seconds: _Sum = 0.0
    y: _Sum = 0.0
    yy: _Sum = 0.0
    x: _Sum = 0.0
    xx: _Sum = 0.0
    xy: _Sum = 0.0


class WireArm(Resource):
    """The fields of ``ArmStats``."""

    requests: _Count = 0
    finished: _Count = 0
    errors: _Count = 0
    waiting: _Count = 0
    ttft: WireMoments = WireMoments()
    tpot: WireMoments = WireMoments()
    e2e: WireMoments = Field(default=WireMoments(), alias="e2e")

    def stats(self) -> ArmStats:
        """The arm as it was measured."""
        ttft, tpot, e2e = (Moments(**one.model_dump()) for one in (self.ttft, self.tpot, self.e2e))
        return ArmStats(
            requests=self.requests,
            finished=self.finished,
            errors=self.errors,
            waiting=self.waiting,
            ttft=ttft,
            tpot=tpot,
            e2e=e2e,
        )


def wire_of(arm: ArmStats) -> WireArm:
    """An arm as it is written; sums with twelve digits, which is more than they are worth."""
    return WireArm(
        requests=arm.requests,
        finished=arm.finished,
        errors=arm.errors,
        waiting=arm.waiting,
        ttft=_wire(arm.ttft),
        tpot=_wire(arm.tpot),
        e2e=_wire(arm.e2e),
    )


def _wire(moments: Moments) -> WireMoments:
    sums = {name: float(f"{getattr(moments, name):.12g}") for name in ("seconds", "y", "yy", "x", "xx", "xy")}
    return WireMoments(count=moments.count, **sums)
