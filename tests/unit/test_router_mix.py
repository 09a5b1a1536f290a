"""A traffic's mix in a router, from dispatch to gauges and acknowledgement. Under the test's own clock."""

from __future__ import annotations

import math

import pytest
from support.router_world import MODEL, Bench, config_of, said_of

from llmrouter.acknowledgement import MAX_MIX, MAX_MODELS, RouterAcknowledgement
from llmrouter.config import canonical_json
from llmrouter.lengths.distribution import LEVELS
from llmrouter.lengths.predictor import LengthRequest
from llmrouter.lengths.served import certain
from llmrouter.planning.mix import MIN_AGE_S, Dispatched, Mixes, TrafficMix, engine_seconds
from llmrouter.profiles import LLAMA_31_8B_RTX_4090
from router_grpc.gauges import Gauges
from router_grpc.reports import ReportKind

FORETOLD, PROMPT = 100.0, 100
SHORT = certain(5.0, LengthRequest(application="", model="", prompt_tokens=10), source="x")


@pytest.fixture
def bench() -> Bench:
    return Bench(config_of("a:1", limits={"maxInFlightPerInstance": 100}))


def mix_of(bench: Bench) -> TrafficMix:
    mix = bench.world.mix.whole(bench.clock.now_s)
    assert mix is not None
    return mix


def tokens_in_window(bench: Bench) -> tuple[float, float, float]:
    """Requests, prompt tokens and output tokens that count now."""
    mix = mix_of(bench)
    window_s = mix.requests / mix.requests_per_s
    return mix.requests, mix.prefill_tokens_per_s * window_s, mix.decode_tokens_per_s * window_s


async def test_a_dispatch_counts_as_foretold_and_its_finish_corrects_it(bench: Bench) -> None:
    await bench.route("r")
    assert tokens_in_window(bench) == pytest.approx((1, PROMPT, FORETOLD))
    await bench.report("r", ReportKind.FIRST_TOKEN)
    await bench.report("r", output_tokens=30)
    assert tokens_in_window(bench) == pytest.approx((1, PROMPT, 30))


async def test_engine_time_is_that_of_the_instance_and_its_batch(bench: Bench) -> None:
    await bench.route("a")
    await bench.route("b")
    shares = [engine_seconds(LLAMA_31_8B_RTX_4090, PROMPT, FORETOLD, sharers=sharers) for sharers in (1, 2)]
    prefill_s, both_s = sum(one[0] for one in shares), sum(sum(one) for one in shares)
    assert mix_of(bench).prefill_time_fraction == pytest.approx(prefill_s / both_s)


async def test_a_repeated_call_counts_once(bench: Bench) -> None:
    for _ in range(3):
        await bench.route("r")
    assert mix_of(bench).requests == pytest.approx(1)


@pytest.mark.parametrize("usage", [-1, 0, 10**9])
async def test_usage_that_lies_corrects_nothing(bench: Bench, usage: int) -> None:
    await bench.route("r")
    await bench.report("r", output_tokens=usage)
    assert tokens_in_window(bench) == pytest.approx((1, PROMPT, FORETOLD))


@pytest.mark.parametrize("kind", [ReportKind.FAILED, ReportKind.CANCELLED])
async def test_what_ends_without_an_answer_stays_as_foretold(bench: Bench, kind: ReportKind) -> None:
    await bench.route("r")
    await bench.report("r", kind)
    assert tokens_in_window(bench) == pytest.approx((1, PROMPT, FORETOLD))


async def test_a_request_that_was_dispatched_elsewhere_is_not_corrected(bench: Bench) -> None:
    other = Bench(config_of("a:1"), ledger=bench.world.ledger)
    await bench.route("r")
    assert await other.report("r", ReportKind.FIRST_TOKEN)
    assert await other.report("r", output_tokens=3)
    assert mix_of(other).requests == 0
    assert mix_of(other).decode_tokens_per_s == 0


async def test_gauges_show_rates_and_nothing_that_is_unknown(bench: Bench) -> None:
    gauges = Gauges(bench.world, bench.service)
    gauges.show()
    assert bench.count("llmrouter_mix_decode_tokens_per_second") == 0
    assert math.isnan(bench.count("llmrouter_mix_prefill_time_fraction"))
    for _ in range(6):
        await bench.route(prompt_tokens=200)
    gauges.show()
    assert bench.count("llmrouter_mix_prefill_tokens_per_second") == pytest.approx(6 * 200 / 60)
    assert bench.count("llmrouter_mix_decode_tokens_per_second") == pytest.approx(6 * 100 / 60)
    assert bench.count("llmrouter_mix_prefill_time_fraction") == mix_of(bench).prefill_time_fraction


async def test_the_mix_is_acknowledged_in_few_digits_and_read_back(bench: Bench) -> None:
    await bench.route()
    bench.clock.now_s += 1
    runtime = bench.service.runtime
    assert runtime is not None
    text = canonical_json(said_of(runtime, mixes=bench.world.mix.by_model(bench.clock.now_s)))
    [(model, read)] = RouterAcknowledgement.model_validate_json(text).mixes.items()
    assert model == MODEL
    assert len(canonical_json(read)) < 700
    assert read.decode_tokens_per_s == pytest.approx(mix_of(bench).decode_tokens_per_s, rel=1e-5)
    assert TrafficMix(**read.model_dump()).requests == pytest.approx(mix_of(bench).requests, rel=1e-5)


async def test_a_young_router_says_nothing_and_no_amount_is_beyond_its_bound(bench: Bench) -> None:
    runtime = bench.service.runtime
    assert runtime is not None
    young = Mixes(100.0)
    young.dispatched(Dispatched(SHORT, 10, LLAMA_31_8B_RTX_4090, sharers=1), now_s=101.0)
    assert young.by_model(100.0 + MIN_AGE_S / 2) == {}
    huge = TrafficMix(requests=1e300, engine_s_per_s=1e300, output_tokens=(1e300,) * len(LEVELS))
    acknowledged = said_of(runtime, mixes={"m": huge}).mixes["m"]
    assert acknowledged.requests == MAX_MIX
    assert acknowledged.output_tokens == (MAX_MIX,) * len(LEVELS)


async def test_of_too_many_models_the_busiest_are_told(bench: Bench) -> None:
    runtime = bench.service.runtime
    assert runtime is not None
    many = {f"m{n}": TrafficMix(engine_s_per_s=float(n)) for n in range(MAX_MODELS + 8)}
    assert sorted(said_of(runtime, mixes=many).mixes) == sorted(f"m{n}" for n in range(8, MAX_MODELS + 8))
