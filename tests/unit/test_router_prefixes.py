"""Prefix hits in a router: how prompts are named, what decisions and the ledger count, what usage corrects."""

from __future__ import annotations

from typing import Any

import pytest
from support.router_world import Bench, config_of

from llmrouter.domain import Request
from llmrouter.errors import InvalidRequestError
from llmrouter.routing.prefixes import MAX_BLOCKS
from router_grpc.calls import RouteAsk
from router_grpc.prefixing import BLOCK_BYTES, Prefixing
from router_grpc.reports import ReportKind

KEY = b"k" * 32
LONG = ("You are a careful assistant. " * 400).encode()
OPEN: dict[str, Any] = {"limits": {"maxInFlightPerInstance": 64}}


def named(prompt: bytes | None = None, *, key: bytes = KEY, prompt_tokens: int = 1_000, **fields: Any) -> Request:  # noqa: ANN401 - of a RouteAsk
    ask = RouteAsk(**{"model": "m", "prompt_tokens": prompt_tokens, "prompt": prompt, **fields})
    hashes, block_tokens = Prefixing(key).named(ask, prompt_tokens)
    return Request("r", ask.model, prompt_tokens, 10.0, 0.0, prefix_hashes=hashes, prefix_block_tokens=block_tokens)


def test_equal_beginnings_have_equal_hashes_and_others_do_not() -> None:
    one, other = named(LONG + b"tell me of cats" * 50), named(LONG + b"tell me of dogs" * 50)
    common = len(LONG) // BLOCK_BYTES
    assert one.prefix_hashes[:common] == other.prefix_hashes[:common]
    assert not set(one.prefix_hashes[common:]) & set(other.prefix_hashes[common:])
    assert len(set(one.prefix_hashes)) == len(one.prefix_hashes) == (len(LONG) + 750) // BLOCK_BYTES


def test_blocks_of_text_are_worth_their_share_of_the_prompts_tokens() -> None:
    request = named(b"x" * 10 * BLOCK_BYTES, prompt_tokens=640)
    assert request.prefix_block_tokens == 64.0
    assert named(b"x" * (BLOCK_BYTES - 1)).prefix_hashes == named(None).prefix_hashes == ()


@pytest.mark.parametrize("apart", [{"key": b"j" * 32}, {"model": "n"}, {"cache_salt": "tenant a"}])
def test_key_model_and_salt_keep_prompts_apart(apart: dict[str, Any]) -> None:
    ways: tuple[dict[str, Any], ...] = ({"prompt": LONG}, {"prefix_hashes": (1, 2, 3), "prefix_block_tokens": 64})
    for given in ways:
        assert not set(named(**given).prefix_hashes) & set(named(**{**given, **apart}).prefix_hashes)


def test_hashes_of_the_client_go_before_its_text() -> None:
    given: dict[str, Any] = {"prefix_hashes": (1, 2, 3, 4), "prefix_block_tokens": 32}
    assert named(**given) == named(LONG, **given)
    assert (len(named(**given).prefix_hashes), named(**given).prefix_block_tokens) == (2, 64.0)


def test_a_prompt_of_megabytes_and_a_flood_of_hashes_are_bounded() -> None:
    assert len(named(b"x" * 16_000_000).prefix_hashes) == MAX_BLOCKS
    assert len(named(prefix_hashes=range(65_536), prefix_block_tokens=16).prefix_hashes) == MAX_BLOCKS


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prefix_hashes": range(100_000), "prefix_block_tokens": 16}, "prefix_hashes: 100000 entries"),
        ({"prefix_hashes": (1,)}, "prefix_block_tokens: 0 is not within 1"),
        ({"prefix_hashes": (1,), "prefix_block_tokens": -5}, "prefix_block_tokens: -5"),
        ({"cache_salt": "s" * 129}, "cache_salt: 129 characters"),
    ],
)
async def test_what_is_out_of_its_bound_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        await Bench(config_of()).route("r", **fields)


async def placed(bench: Bench, request_id: str, prompt: bytes = LONG) -> str:
    return (await bench.route(request_id, prompt=prompt, prompt_tokens=len(prompt) // 4)).instance_id


@pytest.mark.parametrize("policy", ["WorkloadImpact", "LMetric", "TokenLoad", "PrefillLoad", "MinMin", "OwnLatency"])
async def test_a_prompt_goes_where_its_beginning_is(policy: str) -> None:
    bench = Bench(config_of("a:1", "b:1", "c:1", policy={"type": policy}, **OPEN))
    first = await placed(bench, "r0")
    await bench.report("r0")
    for number in range(1, 7):
        assert await placed(bench, f"r{number}", LONG + b"turn %d" % number) == first
        await bench.report(f"r{number}")


async def test_cached_tokens_are_no_queued_prefill() -> None:
    bench = Bench(config_of("a:1", policy={"type": "WorkloadImpact"}, **OPEN))
    await placed(bench, "r0")
    await bench.report("r0")
    await placed(bench, "r1")
    load = (await bench.world.ledger.loads())["a:1"]
    assert load.context_tokens == len(LONG) // 4
    assert 0 < load.queued_prefill_tokens <= BLOCK_BYTES // 4
    found = await bench.world.ledger.find("r1")
    assert found is not None
    assert bench.count("llmrouter_prefix_hit_tokens_total", kind="expected") == found.cached_tokens > 2_000


async def test_reports_of_nothing_make_hits_count_as_none_until_some_come_true() -> None:
    bench = Bench(config_of("a:1", policy={"type": "WorkloadImpact"}, **OPEN))

    async def believed(request_id: str, cached: int | None) -> int:
        await placed(bench, request_id)
        found = await bench.world.ledger.find(request_id)
        await bench.report(request_id, cached_prompt_tokens=cached)
        assert found is not None
        return found.cached_tokens

    assert await believed("r0", 0) == 0, "nothing was expected, nothing is learned"
    whole = await believed("r1", None)
    assert await believed("r2", 0) == whole > 0, "who does not say leaves it as it is"
    assert 0 < await believed("r3", 0) < 0.6 * whole
    for number in range(4, 80):
        last = await believed(f"r{number}", 0)
    assert last == 0
    bench.world.prefixes.show(bench.instances.current(), bench.world.metrics.prefixes)
    assert bench.count("llmrouter_prefix_hit_share", pool="main", instance="a:1") == 0
    for number in range(80, 200):
        last = await believed(f"r{number}", whole)
    assert last > 0.5 * whole
    assert bench.count("llmrouter_prefix_hit_tokens_total", kind="reported") > 0


async def test_an_instance_that_went_away_comes_back_empty() -> None:
    bench = Bench(config_of("a:1", policy={"type": "WorkloadImpact"}, **OPEN))
    await placed(bench, "r0")
    assert bench.world.prefixes.index.entries > 0
    bench.world.prefixes.index.keep_only(set())
    await placed(bench, "r1")
    found = await bench.world.ledger.find("r1")
    assert found is not None
    assert found.cached_tokens == 0


async def test_a_policy_may_leave_prefixes_alone() -> None:
    policy = {"type": "WorkloadImpact", "prefixAffinity": {"enabled": False}}
    bench = Bench(config_of("a:1", policy=policy, **OPEN))
    await placed(bench, "r0")
    await placed(bench, "r1")
    found = await bench.world.ledger.find("r1")
    assert found is not None
    assert (found.cached_tokens, bench.world.prefixes.index.entries) == (0, 0)


async def test_a_report_of_another_kind_says_nothing_of_the_cache() -> None:
    bench = Bench(config_of("a:1", policy={"type": "WorkloadImpact"}, **OPEN))
    await placed(bench, "r0")
    await placed(bench, "r1")
    await bench.report("r1", ReportKind.FAILED, cached_prompt_tokens=0)
    assert bench.count("llmrouter_prefix_hit_tokens_total", kind="checked") == 0


def test_hashes_of_the_client_do_not_show_how_they_differ() -> None:
    given: dict[str, Any] = {"prefix_block_tokens": 64}
    one, other = (named(prefix_hashes=hashes, **given).prefix_hashes for hashes in ((5, 9), (5 ^ 3, 9 ^ 3)))
    assert one[0] ^ one[1] not in (5 ^ 9, other[0] ^ other[1])
    assert len({*one, *other}) == 4


def test_another_key_empties_the_index_and_the_same_one_does_not() -> None:
    prefixes = Prefixing(KEY)
    prefixes.index.use("a:1", (1, 2), block_tokens=64, prompt_tokens=200, kv_tokens=10_000)
    assert not prefixes.change_key(KEY)
    name = prefixes.key_id
    assert prefixes.index.entries == 2
    assert prefixes.change_key(b"j" * 32)
    assert (prefixes.index.entries, prefixes.key) == (0, b"j" * 32)
    assert prefixes.key_id != name
    assert prefixes.key_id not in prefixes.key
