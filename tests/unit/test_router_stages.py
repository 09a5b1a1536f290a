"""A router with pools for one stage: both instances are reserved, told, learned from, and given back."""

# ruff: noqa: ANN401 - keyword arguments are handed on to pydantic, which checks them

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from support.router_world import MODEL, PROFILE, Bench, config_of, until

from llmrouter.domain import Load
from llmrouter.errors import NoInstanceError, SaturatedError
from router_grpc.adapters.memory_ledger import MemoryBook
from router_grpc.forwarding import least_loaded
from router_grpc.reports import ReportKind

LONG = 2_000
ROLES = "Prefill", "Decode"


def pool(name: str, role: str, *endpoints: str) -> dict[str, Any]:
    return {"name": name, "role": role, "endpoints": list(endpoints), "profile": {"name": PROFILE}}


PREFILL = pool("prefill", "Prefill", "p1:1", "p2:1")
DECODE = pool("decode", "Decode", "d1:1", "d2:1")
MIXED = pool("mixed", "Mixed", "m1:1", "m2:1")


def bench_of(*pools: dict[str, Any], book: MemoryBook | None = None, router_id: str = "r1", **parts: Any) -> Bench:
    return Bench(config_of(pools=list(pools), **parts), book=book, router_id=router_id)


@pytest.fixture
def bench() -> Bench:
    return bench_of(PREFILL, DECODE)


def in_flight(bench: Bench) -> dict[str, int]:
    replica = bench.world.replica
    loads = {one.instance_id: replica.load_of(one.instance_id).requests for one in bench.instances.current()}
    return {name: count for name, count in loads.items() if count}


async def test_a_long_prompt_is_computed_elsewhere(bench: Bench) -> None:
    answer = await bench.route("r", prompt_tokens=LONG)
    assert answer.endpoint in {"d1:1", "d2:1"}
    assert answer.prefill_endpoint in {"p1:1", "p2:1"}
    assert "the prompt is computed at p" in answer.reason
    loads = await bench.world.ledger.loads()
    assert loads == {
        answer.instance_id: Load(1, LONG, 0, 100.0),
        answer.prefill_instance_id: Load(1, LONG, LONG, 0.0),
    }


async def test_a_short_prompt_is_computed_where_it_decodes(bench: Bench) -> None:
    answer = await bench.route("r", prompt_tokens=255)
    assert answer.endpoint in {"d1:1", "d2:1"}
    assert (answer.prefill_instance_id, answer.prefill_endpoint) == ("", "")
    assert "255 tokens are not cached there, fewer than 256" in answer.reason


async def test_the_first_token_gives_the_prefill_instance_back_and_the_end_the_other(bench: Bench) -> None:
    answer = await bench.route("r", prompt_tokens=LONG)
    assert in_flight(bench) == {answer.instance_id: 1, answer.prefill_instance_id: 1}
    assert await bench.report("r", ReportKind.STARTED)
    assert in_flight(bench) == {answer.instance_id: 1, answer.prefill_instance_id: 1}
    for _ in range(2):
        assert await bench.report("r", ReportKind.FIRST_TOKEN)
        assert in_flight(bench) == {answer.instance_id: 1}
    assert await bench.report("r", output_tokens=7)
    assert in_flight(bench) == {}
    assert await bench.world.ledger.loads() == {}


@pytest.mark.parametrize("kind", [ReportKind.FINISHED, ReportKind.FAILED, ReportKind.CANCELLED])
async def test_an_end_before_the_first_token_gives_both_back(bench: Bench, kind: ReportKind) -> None:
    await bench.route("r", prompt_tokens=LONG)
    assert await bench.report("r", kind)
    assert not await bench.report("r", kind)
    assert in_flight(bench) == {}
    assert await bench.world.ledger.loads() == {}


async def test_a_silent_client_gives_both_back(bench: Bench) -> None:
    await bench.route("r", prompt_tokens=LONG)
    bench.clock.now_s += 31
    await bench.sweep()
    assert in_flight(bench) == {}
    assert await bench.world.ledger.loads() == {}


async def test_prompts_are_spread_over_the_prefill_instances() -> None:
    bench = bench_of(PREFILL, DECODE)
    answers = [await bench.route(f"r{n}", prompt_tokens=LONG) for n in range(4)]
    for of in ("prefill_endpoint", "endpoint"):
        chosen = [getattr(answer, of) for answer in answers]
        assert sorted(chosen.count(one) for one in set(chosen)) == [2, 2]


async def test_a_repeated_call_repeats_both() -> None:
    bench = bench_of(PREFILL, DECODE)
    first = await bench.route("r", prompt_tokens=LONG)
    again = await bench.route("r", prompt_tokens=LONG)
    assert (again.endpoint, again.prefill_endpoint) == (first.endpoint, first.prefill_endpoint)
    assert sum(in_flight(bench).values()) == 2


async def test_another_router_takes_both_over() -> None:
    book = MemoryBook()
    one, other = (bench_of(PREFILL, DECODE, book=book, router_id=name) for name in ("a", "b"))
    answer = await one.route("r", prompt_tokens=LONG)
    assert await other.report("r", ReportKind.FIRST_TOKEN)
    assert await other.world.ledger.loads() == {answer.instance_id: Load(1, LONG, 0, 100.0)}
    assert await other.report("r")
    assert not await one.report("r")
    assert await one.world.ledger.loads() == {}


@pytest.mark.parametrize("excluded", ["d", "p"])
async def test_a_repeated_call_that_excludes_one_of_them_is_placed_anew(excluded: str) -> None:
    bench = bench_of(PREFILL, DECODE)
    first = await bench.route("r", prompt_tokens=LONG)
    gone = first.instance_id if excluded == "d" else first.prefill_instance_id
    again = await bench.route("r", prompt_tokens=LONG, excluded_instance_ids=frozenset({gone}))
    assert gone not in {again.instance_id, again.prefill_instance_id}
    assert again.prefill_instance_id
    assert in_flight(bench) == {again.instance_id: 1, again.prefill_instance_id: 1}


async def test_an_instance_that_goes_while_it_computes_the_prompt_is_replaced() -> None:
    bench = bench_of(PREFILL, DECODE)
    first = await bench.route("r", prompt_tokens=LONG)
    gone = first.prefill_instance_id
    bench.instances.instances = tuple(one for one in bench.instances.instances if one.instance_id != gone)
    again = await bench.route("r", prompt_tokens=LONG)
    assert again.prefill_instance_id not in {"", gone}
    await bench.report("r", ReportKind.FIRST_TOKEN)
    bench.instances.instances = tuple(one for one in bench.instances.instances if one.pool == "decode")
    third = await bench.route("r", prompt_tokens=LONG)
    assert (third.instance_id, third.prefill_instance_id) == (again.instance_id, "")


async def test_without_a_prefill_instance_decode_ones_do_it_all() -> None:
    bench = bench_of(PREFILL, DECODE)
    bench.instances.instances = tuple(one for one in bench.instances.instances if one.pool == "decode")
    answer = await bench.route("r", prompt_tokens=LONG)
    assert answer.endpoint in {"d1:1", "d2:1"}
    assert answer.prefill_endpoint == ""
    assert answer.reason.endswith("no prefill instance is ready")


async def test_prefill_instances_alone_serve_nobody() -> None:
    bench = bench_of(PREFILL, DECODE)
    bench.instances.instances = tuple(one for one in bench.instances.instances if one.pool == "prefill")
    with pytest.raises(NoInstanceError, match="no ready instance decodes"):
        await bench.route("r", prompt_tokens=10)


async def test_full_prefill_instances_make_long_prompts_wait_until_a_first_token() -> None:
    bench = bench_of(pool("prefill", "Prefill", "p1:1"), DECODE, limits={"maxInFlightPerInstance": 1})
    await bench.route("r0", prompt_tokens=LONG)
    waiting = asyncio.ensure_future(bench.route("r1", prompt_tokens=LONG))
    await until(lambda: bench.service.held > 0, what="held")
    await bench.report("r0", ReportKind.FIRST_TOKEN)
    answer = await asyncio.wait_for(waiting, 5)
    assert answer.prefill_endpoint == "p1:1"
    short = bench_of(
        pool("prefill", "Prefill", "p1:1"),
        DECODE,
        limits={"maxInFlightPerInstance": 1},
        policy={"type": "LeastInFlight", "hold": {"enabled": False}},
    )
    await short.route("r0", prompt_tokens=LONG)
    with pytest.raises(SaturatedError, match="none of 1 prefill instances has room"):
        await short.route("r1", prompt_tokens=LONG)


async def test_failures_before_the_first_token_leave_a_broken_prefill_instance_out() -> None:
    bench = bench_of(pool("prefill", "Prefill", "p1:1"), DECODE, outliers={"consecutiveFailures": 2})
    for n in range(2):
        await bench.route(f"r{n}", prompt_tokens=LONG)
        await bench.report(f"r{n}", ReportKind.FAILED)
    assert bench.world.outliers.left_out(now_s=bench.clock()) == {"p1:1"}
    answer = await bench.route("r", prompt_tokens=LONG)
    assert answer.prefill_endpoint == ""


async def test_failures_after_the_first_token_are_the_decode_instances() -> None:
    bench = bench_of(PREFILL, pool("decode", "Decode", "d1:1"), outliers={"consecutiveFailures": 2})
    for n in range(2):
        answer = await bench.route(f"r{n}", prompt_tokens=LONG)
        await bench.report(f"r{n}", ReportKind.FIRST_TOKEN)
        await bench.report(f"r{n}", ReportKind.FAILED)
        assert answer.prefill_instance_id not in bench.world.outliers.left_out(now_s=bench.clock())


async def test_a_prompt_that_was_handed_over_is_cached_at_both() -> None:
    bench = bench_of(PREFILL, DECODE)
    prompt = b"once upon a time " * 600
    first = await bench.route("r1", prompt_tokens=LONG, prompt=prompt)
    await bench.report("r1", ReportKind.FIRST_TOKEN)
    await bench.report("r1", output_tokens=3, prompt_tokens=LONG, cached_prompt_tokens=0)
    again = await bench.route("r2", prompt_tokens=LONG, prompt=prompt)
    assert (again.instance_id, again.prefill_instance_id) == (first.instance_id, "")
    assert "tokens are not cached there" in again.reason
    longer = await bench.route("r3", prompt_tokens=2 * LONG, prompt=prompt + b"then it was over" * 600)
    assert longer.prefill_instance_id == first.prefill_instance_id
    found = await bench.world.ledger.find("r3")
    assert found is not None
    assert LONG / 2 < found.prefill_cached_tokens < 1.1 * LONG


async def test_mixed_instances_take_prompts_that_are_cheaper_there() -> None:
    bench = bench_of(pool("prefill", "Prefill", "p1:1"), MIXED, limits={"maxInFlightPerInstance": 64})
    roles = []
    for n in range(6):
        answer = await bench.route(f"r{n}", prompt_tokens=LONG)
        roles.append(answer.prefill_endpoint)
    assert "p1:1" in roles
    assert "" in roles


async def test_the_degraded_policy_chooses_both_stages_too() -> None:
    bench = bench_of(PREFILL, DECODE)
    bench.degraded = True
    answer = await bench.route("r", prompt_tokens=LONG)
    assert answer.endpoint.startswith("d")
    assert answer.prefill_endpoint.startswith("p")


async def test_a_model_without_stages_is_not_touched_by_those_of_another() -> None:
    parts: dict[str, Any] = {"models": [{"name": MODEL}, {"name": "other"}]}
    staged = [one | {"models": ["other"]} for one in (PREFILL, DECODE)]
    bench = bench_of(*staged, MIXED | {"models": [MODEL]}, **parts)
    answer = await bench.route("r", prompt_tokens=LONG)
    assert answer.endpoint.startswith("m")
    assert "prefill" not in answer.reason


async def test_batch_requests_wait_for_a_gap_at_both_stages() -> None:
    bench = bench_of(pool("prefill", "Prefill", "p1:1"), DECODE, limits={"maxInFlightPerInstance": 64})
    await bench.route("r0", prompt_tokens=LONG)
    waiting = asyncio.ensure_future(bench.route("r1", prompt_tokens=LONG, batch=True))
    await until(lambda: bench.service.held > 0, what="held")
    await bench.report("r0", ReportKind.FIRST_TOKEN)
    answer = await asyncio.wait_for(waiting, 5)
    assert answer.prefill_endpoint == "p1:1"


@pytest.mark.parametrize("policy", ["WorkloadImpact", "Onnx", "OwnLatency", "LeastInFlight", "RoundRobin", "Learned"])
async def test_every_kind_of_policy_chooses_both_stages(policy: str) -> None:
    builtin = {"Onnx": "marginal-cost", "Learned": "learned"}
    model = {"model": {"builtin": builtin[policy]}} if policy in builtin else {}
    bench = bench_of(PREFILL, DECODE, MIXED, policy={"type": policy, **model})
    draw = random.Random(1)
    for n in range(12):
        answer = await bench.route(f"r{n}", prompt_tokens=draw.choice([50, 500, 3_000]))
        assert not answer.endpoint.startswith("p")
        assert answer.prefill_endpoint[:1] in {"", "p"}
        assert not (
            answer.endpoint.startswith("d") and not answer.prefill_endpoint and "fewer than" not in answer.reason
        )
        if n % 3 == 0:
            await bench.report(f"r{n}", ReportKind.FIRST_TOKEN)
    for n in range(12):
        await bench.report(f"r{n}")
    assert await bench.world.ledger.loads() == {}
    assert bench.count("llmrouter_policy_fallbacks_total", reason="Error") == 0


async def test_near_instances_are_chosen_for_each_other() -> None:
    bench = bench_of(
        *(
            pool(f"{role.lower()}-{n}", role, f"{role[0].lower()}{n}:1") | {"locality": f"rack {n}"}
            for role in ROLES
            for n in (1, 2)
        )
    )
    for n in range(4):
        answer = await bench.route(f"r{n}", prompt_tokens=300)
        assert answer.instance_id[1] == answer.prefill_instance_id[1]
        await bench.report(f"r{n}")


@pytest.mark.parametrize(
    "policy", [{"type": "WorkloadImpact"}, {"type": "Onnx", "model": {"builtin": "marginal-cost"}}]
)
async def test_slow_prefill_of_those_that_decode_is_no_reason_to_decode_there(policy: dict[str, Any]) -> None:
    decode = [
        pool(name, "Decode", f"{name}:1") | {"profile": {"name": profile}}
        for name, profile in (("slow", PROFILE), ("fast", "llama-3-8b-h100"))
    ]
    bench = bench_of(PREFILL, *decode, policy=policy)
    assert (await bench.route("r", prompt_tokens=LONG)).endpoint == "fast:1"


@pytest.mark.parametrize("policy", ["WorkloadImpact", "OwnLatency"])
async def test_by_cost_whoever_decodes_near_the_free_prefill_instance_is_chosen(policy: str) -> None:
    near = [pool(f"decode-{n}", "Decode", f"d{n}:1") | {"locality": f"rack {n}"} for n in (1, 2)]
    bench = bench_of(pool("prefill", "Prefill", "p1:1") | {"locality": "rack 2"}, *near, policy={"type": policy})
    for n in range(5):
        assert (await bench.route(f"r{n}", prompt_tokens=LONG)).endpoint == "d2:1"
        await bench.report(f"r{n}")


async def test_requests_that_make_no_tokens_go_to_no_prefill_instance() -> None:
    bench = bench_of(PREFILL, DECODE)
    for n in range(6):
        await bench.route(f"r{n}", prompt_tokens=10)
    assert {least_loaded(bench.world, None) for _ in range(20)} <= {"d1:1", "d2:1"}
    with pytest.raises(NoInstanceError):
        least_loaded(bench.world, frozenset({"p1:1"}))


async def test_cached_tokens_of_nobody_knows_which_cache_correct_nothing() -> None:
    bench = bench_of(PREFILL, DECODE)
    prompt = b"once upon a time " * 600
    for n, tokens in enumerate((LONG, 2 * LONG)):
        await bench.route(f"r{n}", prompt_tokens=tokens, prompt=prompt * (n + 1))
        await bench.report(f"r{n}", output_tokens=3, prompt_tokens=tokens, cached_prompt_tokens=0)
    assert bench.count("llmrouter_prefix_hit_tokens_total", kind="expected") > 0
    assert bench.count("llmrouter_prefix_hit_tokens_total", kind="checked") == 0


async def test_what_a_dispatch_takes_is_foretold_with_the_way_of_its_prompt() -> None:
    bench = bench_of(pool("prefill", "Prefill", "p1:1"), DECODE)
    await bench.route("r0", prompt_tokens=4 * LONG)
    foretold = []
    for n in (1, 2):
        await bench.route(f"r{n}", prompt_tokens=LONG)
        entry = bench.world.open_requests.get(f"r{n}")
        assert entry is not None
        assert entry.cost is not None
        foretold.append(entry.cost)
        await bench.report("r0")
    behind, alone = foretold
    waits_s = 4 * LONG * bench.instances.current()[0].profile.prefill_s_per_token
    assert behind.first_token_s - alone.first_token_s > 0.5 * waits_s
    assert behind.seconds - behind.first_token_s == pytest.approx(alone.seconds - alone.first_token_s, rel=0.3)


async def test_decode_steps_are_learned_of_those_that_decode_and_nothing_of_their_prompts() -> None:
    bench = bench_of(pool("prefill", "Prefill", "p1:1"), pool("decode", "Decode", "d1:1"))
    calibrating = bench.world.calibrating
    await bench.route("r", prompt_tokens=LONG)
    for wait, report in ((20, ReportKind.FIRST_TOKEN), (12, ReportKind.PROGRESS)):
        for _ in range(wait):
            bench.clock.now_s += 0.1
            bench.world.replica.replace(await bench.world.ledger.loads(), now_s=bench.clock())
            calibrating.refreshed(bench.world.replica, now_s=bench.clock())
        await bench.report("r", report, output_tokens=61 if report is ReportKind.PROGRESS else 1)
    learned = {name: calibrating.of(name) for name in ("prefill", "decode")}
    assert learned["prefill"] is None
    assert learned["decode"] is not None
    assert learned["decode"].observations == 1
    await bench.report("r", output_tokens=70)
    assert len(calibrating) == 0


@pytest.mark.parametrize(
    ("subset", "prefills"),
    [({"d1:1"}, {"p1:1", "p2:1"}), ({"d1:1", "p2:1"}, {"p2:1"}), ({"d1:1", "p1"}, {"p1:1"})],
)
async def test_a_subset_of_destinations_alone_says_nothing_of_who_computes_the_prompt(
    subset: set[str], prefills: set[str]
) -> None:
    bench = bench_of(PREFILL, DECODE)
    answers = [await bench.route(f"r{n}", prompt_tokens=LONG, subset=frozenset(subset)) for n in range(4)]
    assert {one.endpoint for one in answers} == {"d1:1"}
    assert {one.prefill_endpoint for one in answers} == prefills
    with pytest.raises(NoInstanceError):
        await bench.route("r", prompt_tokens=LONG, subset=frozenset({"p1:1"}))
