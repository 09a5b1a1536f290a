"""What moving late requests does, without a clock: the router and its watch as they are, engines as they are simulated.

One of four engines stands still for six seconds, again and again, or none does. ``pytest -s`` shows the waits.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from support.router_world import MODEL, PROFILE, Bench, config_of

from llmrouter.listener_specs import OpenAISpec
from llmrouter.profiles import PROFILES
from llmrouter.sim.engine import Engine, EngineRequest
from router_grpc.openai.journey import Cause, InstanceFailedError, Journey
from router_grpc.openai.moving import LOOK_S, Watch
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from router_grpc.calls import RouteAnswer

ENDPOINTS = ("a:1", "b:1", "c:1", "d:1")
PAUSE_S = HANG_S = 6.0
SECONDS = 60.0


@dataclass
class Waiting:
    arrived_at_s: float
    prompt_tokens: int
    output_tokens: int
    journey: Journey
    watch: Watch | None = None


@dataclass
class Play:
    """One run, event by event."""

    rules: OpenAISpec
    rate: float
    hangs: bool
    seed: int
    ttft_s: list[float] = field(default_factory=list)
    moves: int = 0

    def __post_init__(self) -> None:
        policy = {"type": "WorkloadImpact"}
        self.bench = Bench(config_of(*ENDPOINTS, policy=policy, limits={"maxInFlightPerInstance": 512}))
        self.engines = {one.instance_id: Engine(PROFILES[PROFILE]) for one in self.bench.instances.instances}
        self.stepping: set[str] = set()
        self.waiting: dict[str, Waiting] = {}
        self.events: list[tuple[float, int, Callable[[], object]]] = []
        self.numbers = count()
        self.began_s = self.bench.clock.now_s

    def at(self, at_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self.events, (at_s, next(self.numbers), what))

    async def run(self) -> Play:
        rng, at_s = random.Random(self.seed), self.began_s
        while (at_s := at_s + rng.expovariate(self.rate)) < self.began_s + SECONDS:
            tokens = max(4, min(1_000, round(rng.lognormvariate(math.log(60), 1.0))))
            one = Waiting(at_s, rng.randint(200, 1_500), tokens, Journey(self.rules))
            self.at(at_s, lambda one=one: self.place(one))  # type: ignore[misc]
        self.at(self.began_s, self.look)
        while self.events:
            now_s, _, what = heapq.heappop(self.events)
            self.bench.clock.now_s = now_s
            done = what()
            if hasattr(done, "__await__"):
                await done
        return self

    async def place(self, one: Waiting) -> None:
        answer: RouteAnswer = await self.bench.route(
            prompt_tokens=one.prompt_tokens, excluded_instance_ids=frozenset(one.journey.excluded)
        )
        now_s = self.bench.clock.now_s
        one.watch = Watch(self.bench.world, one.journey, MODEL, answer, placed_at_s=now_s)
        self.waiting[answer.request_id] = one
        self.engines[answer.instance_id].add(EngineRequest(answer.request_id, one.prompt_tokens, one.output_tokens))
        self.step(answer.instance_id)

    def step(self, instance_id: str) -> None:
        engine = self.engines[instance_id]
        if instance_id in self.stepping or not engine.has_work:
            return
        self.stepping.add(instance_id)
        ends_s = self.bench.clock.now_s + engine.begin_step().duration_s
        if self.hangs and instance_id == next(iter(self.engines)):
            into_s = (ends_s - self.began_s) % (PAUSE_S + HANG_S)
            ends_s += max(0.0, PAUSE_S + HANG_S - into_s) if into_s > PAUSE_S else 0.0
        self.at(ends_s, lambda: self.stepped(instance_id))

    async def stepped(self, instance_id: str) -> None:
        self.stepping.discard(instance_id)
        result = self.engines[instance_id].finish_step()
        for request_id in result.first_tokens:
            one = self.waiting.pop(request_id, None)
            if one is not None:
                self.ttft_s.append(self.bench.clock.now_s - one.arrived_at_s)
                await self.bench.report(request_id, ReportKind.FIRST_TOKEN)
        for request_id, tokens in result.finished.items():
            await self.bench.report(request_id, output_tokens=tokens)
        self.step(instance_id)

    async def look(self) -> None:
        world = self.bench.world
        world.replica.replace(await world.ledger.loads(), now_s=world.clock())
        world.outliers.judge(now_s=world.clock(), instances=len(ENDPOINTS))
        for request_id, one in list(self.waiting.items()):
            assert one.watch is not None
            if one.watch.look() is Cause.LATE:
                instance_id = one.watch.placed.instance_id
                del self.waiting[request_id]
                self.engines[instance_id].cancel(request_id)
                await self.bench.report(request_id, ReportKind.CANCELLED, is_late=True)
                one.journey.goes_on(instance_id, InstanceFailedError(Cause.LATE, "late"))
                self.moves += 1
                await self.place(one)
        if self.events:
            self.at(self.bench.clock.now_s + LOOK_S, self.look)


async def waits(*, rate: float, hangs: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Seconds to the first token of all requests without and with moving, over some seeds, and how many moved."""
    found: list[list[float]] = [[], []]
    moves = 0
    for seed in range(3):
        for column, after_s in enumerate((0.0, 1.0)):
            play = await Play(OpenAISpec(redispatch_after_seconds=after_s), rate, hangs, seed).run()
            assert len(play.bench.world.open_requests) == 0
            found[column] += play.ttft_s
            moves += play.moves
    without, moving = (np.array(one) for one in found)
    assert len(without) == len(moving)
    for name, one in (("stay", without), ("move", moving)):
        p50, p95, p99 = (float(np.percentile(one, share)) for share in (50, 95, 99))
        shown = f"p50 {p50:.3f} s, p95 {p95:.3f} s, p99 {p99:.3f} s of {len(one)}"
        print(f"rate {rate:g}, hangs {hangs}: {name}: {shown}; {moves} moves")  # noqa: T201 - for whoever asks with -s
    return without, moving, moves


async def test_where_an_engine_hangs_moving_takes_the_long_waits_away() -> None:
    without, moving, moves = await waits(rate=8.0, hangs=True)
    assert moves > 0
    assert np.percentile(without, 99) > 2 * np.percentile(moving, 99)


async def test_where_none_does_moving_does_no_harm() -> None:
    for rate in (8.0, 20.0, 40.0):
        without, moving, _ = await waits(rate=rate, hangs=False)
        assert np.percentile(moving, 99) < 1.1 * np.percentile(without, 99) + 0.1
