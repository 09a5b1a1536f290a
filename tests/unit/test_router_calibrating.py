"""A router that learns step times: from its own calls and reports, into metrics, and across restarts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from support.router_world import Bench, config_of

from llmrouter.domain import Instance, Load, Reservation
from llmrouter.errors import LedgerUnavailableError
from llmrouter.metrics import RouterMetrics
from llmrouter.profiles import H100_MIX
from llmrouter.routing.calibration_use import Calibrate
from router_grpc.calibrating import MAX_POOLS, SAVE_EVERY_S, Calibrating
from router_grpc.replica import LoadReplica
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from llmrouter.domain import EngineProfile

INSTANCE = Instance("i", "i:1", "main", H100_MIX, frozenset({"m"}))
SLOWNESS = 2.0


@dataclass
class Saved:
    """A store in memory; ``fails`` as Redis does when it is away."""

    raw: dict[str, bytes] = field(default_factory=dict)
    fails: bool = False
    saves: int = 0

    async def load(self, pool: str) -> bytes | None:
        if self.fails:
            raise LedgerUnavailableError("away")
        return self.raw.get(pool)

    async def save(self, pool: str, raw: bytes) -> None:
        if self.fails:
            raise LedgerUnavailableError("away")
        self.saves += 1
        self.raw[pool] = raw


def serve(calibrating: Calibrating, count: int, *, profile: EngineProfile = H100_MIX, pool: str = "main") -> None:
    """Requests one after the other on an engine that takes twice the seconds of ``H100_MIX``."""
    instance = replace(INSTANCE, profile=profile, pool=pool)
    replica, now_s = LoadReplica(), 100.0
    step_s = SLOWNESS * (H100_MIX.base_decode_s + H100_MIX.context_s_per_token * 1_000 + H100_MIX.sequence_s)
    for number in range(count):
        reservation = Reservation(f"r{number}", "router", "i", 1_000, 100.0)
        replica.absorb({"i": Load(1, 1_000, 1_000)})
        calibrating.dispatched(reservation, instance, replica, now_s=now_s)
        calibrating.refreshed(replica, now_s=now_s)
        now_s += SLOWNESS * (H100_MIX.base_prefill_s + 1_000 * H100_MIX.prefill_s_per_token)
        replica.absorb({"i": Load(1, 1_000, 0)})
        calibrating.refreshed(replica, now_s=now_s)
        calibrating.advanced(f"r{number}", None, now_s=now_s)
        for _ in range(10):
            now_s += 10 * step_s
            calibrating.refreshed(replica, now_s=now_s)
        calibrating.ended(f"r{number}", 101, now_s=now_s)


def test_a_pool_that_is_slower_than_its_profile_is_seen() -> None:
    calibrating = Calibrating()
    assert calibrating.of("main") is None
    serve(calibrating, 100)
    known = calibrating.of("main")
    assert known is not None
    assert known.ratios["base_decode_s"] == pytest.approx(SLOWNESS, rel=0.1)
    assert known.ratios["prefill_s_per_token"] == pytest.approx(SLOWNESS, rel=0.2)
    assert len(calibrating) == 0


def test_a_new_profile_begins_anew() -> None:
    calibrating = Calibrating()
    serve(calibrating, 100)
    serve(calibrating, 1, profile=H100_MIX.slower(2.0))
    known = calibrating.of("main")
    assert known is not None
    assert known.observations <= 2


def test_pools_are_bounded() -> None:
    calibrating = Calibrating()
    for number in range(MAX_POOLS + 5):
        serve(calibrating, 1, pool=str(number))
    assert calibrating.of("0") is None
    assert calibrating.of(str(MAX_POOLS + 4)) is not None


def test_what_is_learned_is_shown_and_gone_instances_are_not() -> None:
    calibrating, registry = Calibrating(), CollectorRegistry()
    metrics = RouterMetrics(registry).calibration
    calibrating.show(metrics, ["i"])
    serve(calibrating, 100)
    calibrating.show(metrics, ["i", "other"])

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"llmrouter_calibration_{name}", {"pool": "main", **labels})

    assert value("coefficient_ratio", coefficient="base_decode_s") == pytest.approx(SLOWNESS, rel=0.1)
    assert value("frozen", reason="BadResiduals") == 0
    assert value("observations") == 200
    assert (value("relative_residual", **{"with": "learned"}) or 1) < (
        value("relative_residual", **{"with": "profile"}) or 0
    )
    assert value("learned_share", coefficient="sequence_s") is not None
    assert value("instance_slowness", instance="i") == pytest.approx(1.0)
    calibrating.show(metrics, ["other"])
    assert value("instance_slowness", instance="i") is None


def seen(calibrating: Calibrating, replica: LoadReplica, *, now_s: float = 0.0) -> EngineProfile:
    """The profile that a decision sees."""
    replica.believe(calibrating.believed([INSTANCE], now_s=now_s))
    return replica.snapshot([INSTANCE], now_s=now_s).views[0].instance.profile


def test_decisions_see_what_was_learned_and_only_where_they_may() -> None:
    calibrating, replica = Calibrating(), LoadReplica()
    serve(calibrating, 100)
    assert seen(calibrating, replica) is H100_MIX, "a pool that is not named uses nothing"
    calibrating.follow({"main": Calibrate.FULL})
    believed = seen(calibrating, replica)
    assert believed.base_decode_s == pytest.approx(SLOWNESS * H100_MIX.base_decode_s, rel=0.1)
    assert seen(calibrating, replica, now_s=1.0) is believed
    view = replica.view(INSTANCE, now_s=1.0)
    assert replica.view(INSTANCE, now_s=1.0) is view
    assert (view.instance.instance_id, view.instance.endpoint) == (INSTANCE.instance_id, INSTANCE.endpoint)
    calibrating.follow({"main": Calibrate.NONE})
    assert seen(calibrating, replica) is H100_MIX


def test_an_instance_that_is_declared_anew_is_seen_as_declared() -> None:
    calibrating, replica = Calibrating(), LoadReplica()
    calibrating.follow({"main": Calibrate.FULL})
    serve(calibrating, 100)
    believed = seen(calibrating, replica)
    again = replace(INSTANCE)
    assert replica.view(again, now_s=0.0).instance.profile is believed
    other = replace(INSTANCE, profile=H100_MIX.slower(3.0))
    assert replica.view(other, now_s=0.0).instance is other
    assert calibrating.believed([other], now_s=1.0) == {}, "another profile begins anew"


@pytest.mark.parametrize("now_s", [-1e9, 1e9, float("nan"), float("inf")])
def test_jumps_of_the_clock_change_no_belief_by_much(now_s: float) -> None:
    calibrating, replica = Calibrating(), LoadReplica()
    calibrating.follow({"main": Calibrate.FULL})
    serve(calibrating, 100)
    before = seen(calibrating, replica)
    assert seen(calibrating, replica, now_s=now_s) is before


def test_what_decisions_use_is_shown_and_told() -> None:
    calibrating, registry = Calibrating(), CollectorRegistry()
    metrics = RouterMetrics(registry).calibration
    calibrating.follow({"main": Calibrate.FULL})
    assert calibrating.told(["i"]) == {}
    serve(calibrating, 100)

    def in_use(part: str) -> float | None:
        return registry.get_sample_value("llmrouter_calibration_in_use", {"pool": "main", "part": part})

    calibrating.show(metrics, ["i"])
    assert in_use("coefficients") == 0
    calibrating.believed([INSTANCE], now_s=0.0)
    calibrating.show(metrics, ["i"])
    assert (in_use("coefficients"), in_use("slowness")) == (1, 0)
    calibrate, known = calibrating.told(["i", "other"])["main"]
    assert (calibrate, known.observations) == (Calibrate.FULL, 200)
    assert known.slowness.keys() == {"i"}
    assert calibrating.told([])["main"][1].slowness == {}


async def test_a_restarted_router_decides_with_what_was_known_from_its_first_request() -> None:
    store = Saved()
    before = Calibrating(store)
    serve(before, 100)
    await before.keep(0.0)
    after, replica = Calibrating(store), LoadReplica()
    after.follow({"main": Calibrate.FULL})
    assert seen(after, replica) is H100_MIX
    await after.keep(0.0)
    assert seen(after, replica).base_decode_s == pytest.approx(SLOWNESS * H100_MIX.base_decode_s, rel=0.1)
    assert store.saves == 1, "what was taken up is not saved again"


async def test_a_router_goes_on_where_another_left() -> None:
    store = Saved()
    before = Calibrating(store)
    serve(before, 100)
    await before.keep(0.0)
    assert store.saves == 1
    await before.keep(SAVE_EVERY_S)
    assert store.saves == 1, "nothing new"
    after = Calibrating(store)
    serve(after, 1)
    await after.keep(0.0)
    known = after.of("main")
    assert known is not None
    assert known.observations == 200
    assert known.ratios["base_decode_s"] == pytest.approx(SLOWNESS, rel=0.1)


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"{}", json.dumps({"prior": [1, 2, 3, 4]}).encode()])
async def test_a_broken_save_is_as_none(raw: bytes) -> None:
    calibrating = Calibrating(Saved({"main": raw}))
    serve(calibrating, 5)
    await calibrating.keep(0.0)
    known = calibrating.of("main")
    assert known is not None
    assert known.observations == 10


async def test_a_store_that_is_away_is_tried_again() -> None:
    store = Saved(fails=True)
    calibrating = Calibrating(store)
    serve(calibrating, 5)
    with pytest.raises(LedgerUnavailableError):
        await calibrating.keep(0.0)
    store.fails = False
    await calibrating.keep(1.0)
    assert store.saves == 1


async def test_a_router_watches_its_requests_from_the_answer_to_the_end() -> None:
    bench = Bench(config_of())
    calibrating = bench.world.calibrating
    answer = await bench.route("a")
    await bench.route("b")
    assert len(calibrating) == 2

    async def refresh() -> None:
        bench.world.replica.replace(await bench.world.ledger.loads(), now_s=bench.clock())
        calibrating.refreshed(bench.world.replica, now_s=bench.clock())

    await refresh()
    assert await bench.report("a", ReportKind.STARTED)
    assert await bench.report("a", ReportKind.FIRST_TOKEN)
    for _ in range(12):
        bench.clock.now_s += 0.1
        await refresh()
    assert await bench.report("a", ReportKind.PROGRESS, output_tokens=61)
    pool = bench.instances.instances[0].pool
    known = calibrating.of(pool)
    assert known is not None
    assert known.observations == 1
    assert await bench.report("a", ReportKind.FINISHED, output_tokens=70)
    assert len(calibrating) == 1
    assert await bench.report("b", ReportKind.FAILED, reason="gone")
    assert len(calibrating) == 0
    assert answer.instance_id in {one.instance_id for one in bench.instances.instances}


async def test_a_request_that_is_given_up_is_not_watched_any_more() -> None:
    bench = Bench(config_of())
    await bench.route("a")
    bench.clock.now_s += 60.0
    await bench.sweep()
    assert len(bench.world.calibrating) == 0
