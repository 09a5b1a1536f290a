"""Routers tell each other what they sent where through a Redis that is a real one, and sometimes really gone."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import pytest
from support.ledgers import emptied
from support.prefix_routers import STREAM, PrefixRouter, RedisRoom, redis_room
from support.router_world import LiveRouter, PushedSource, config_of, live_router, until

from llmrouter.routing.prefixes import MAX_BLOCKS, PrefixIndex
from router_grpc.adapters.prefix_exchange import PAGE
from router_grpc.prefix_batches import MAX_BATCH_BYTES, ToldUse, encode
from router_grpc.prefix_sharing import AWAY_S, STEP_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llmrouter.errors import InvalidConfigError
    from llmrouter.testbed.cluster.redis import RedisServer
    from router_grpc.runtime import ConfigBundle

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

CAP = 2 * PAGE
CATS = b"tell me all about cats, large ones and small ones. " * 100
DOGS = b"tell me all about dogs, large ones and small ones. " * 100


@pytest.fixture
async def room(common_redis: RedisServer) -> AsyncIterator[RedisRoom]:
    async with redis_room(await emptied(common_redis.url), max_entries=CAP) as room:
        yield room


async def steps(*routers: PrefixRouter, rounds: int = 2) -> None:
    for _ in range(rounds):
        for one in routers:
            await one.sharing.step()


async def joined(room: RedisRoom, *names: str) -> list[PrefixRouter]:
    routers = [room.router(name) for name in names]
    await steps(*routers)
    return routers


async def test_what_one_sent_the_others_expect_as_it_does(room: RedisRoom) -> None:
    a, b, c = await joined(room, "a", "b", "c")
    assert b.expected(CATS) == {}
    a.send(CATS, "a:1")
    c.send(DOGS, "b:1")
    await steps(a, b, c)
    for one in (a, b, c):
        assert one.expected(CATS) == a.expected(CATS) == {"a:1": one.expected(CATS)["a:1"]}
        assert one.expected(CATS)["a:1"] > 0.9 * len(CATS) / 4
        assert set(one.expected(DOGS)) == {"b:1"}
    assert (a.uses("Published"), a.uses("Received"), b.uses("Published"), b.uses("Received")) == (1, 1, 0, 2)
    assert (a.batches("Published"), b.batches("Received"), b.batches("Missed")) == (1, 2, 0)


async def test_all_hash_with_the_first_ones_key_which_stays_within_redis_and_routers(
    room: RedisRoom, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    first = room.router("a")
    first.send(CATS, "a:1")
    await steps(first)
    assert first.prefixes.key == b"\x01" * 32, "the first brings the key and keeps what it knows"
    assert first.expected(CATS)
    second = room.router("b")
    second.send(DOGS, "a:1")
    await steps(second)
    assert second.prefixes.key == first.prefixes.key
    assert second.expected(DOGS) == {}, "what was hashed otherwise is dropped"
    assert second.uses("Dropped") == 1
    assert second.expected(CATS) == first.expected(CATS)
    said = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "common key" in said
    assert not any(key in said for key in (first.prefixes.key.hex(), str(first.prefixes.key)))
    keys = set(await room.client.keys("*"))
    assert keys == {STREAM, f"{STREAM}:key"}
    assert all([await room.client.pttl(key) > 0 for key in keys])


async def test_routers_that_start_at_once_agree_on_one_key(room: RedisRoom) -> None:
    routers = [room.router(name) for name in "abcd"]
    await asyncio.gather(*(one.sharing.step() for one in routers))
    assert len({one.prefixes.key for one in routers}) == 1
    assert routers[0].prefixes.key in {bytes([number]) * 32 for number in range(1, 5)}


@pytest.mark.parametrize("seed", range(3))
async def test_all_indexes_hold_what_one_would_that_saw_all(room: RedisRoom, seed: int) -> None:
    rng = random.Random(seed)
    routers = await joined(room, "a", "b", "c")
    prompts = [b"%d " % rng.randrange(9) * 200 + b"and %d" % number * 100 for number in range(40)]
    whole = PrefixRouter(room.exchange("whole"), key=routers[0].prefixes.key)
    for prompt in prompts:
        home = rng.choice(("a:1", "b:1"))
        rng.choice(routers).send(prompt, home)
        whole.send(prompt, home)
        if rng.random() < 0.3:
            await rng.choice(routers).sharing.step()
    await steps(*routers)
    for one in routers:
        assert one.prefixes.index.entries == whole.prefixes.index.entries
        assert [one.expected(prompt) for prompt in prompts] == [whole.expected(prompt) for prompt in prompts]


async def test_another_namespace_shares_nothing(room: RedisRoom) -> None:
    (a,) = await joined(room, "a")
    a.send(CATS, "a:1")
    await steps(a)
    from router_grpc.adapters.prefix_exchange import RedisPrefixExchange  # noqa: PLC0415

    stranger = PrefixRouter(RedisPrefixExchange(room.client, "tests/other", "x", timeout_s=5.0), key=b"x" * 32)
    await steps(stranger)
    assert stranger.prefixes.key == b"x" * 32
    assert stranger.batches("Received") == 0


async def test_a_restarted_router_hears_what_is_still_there(room: RedisRoom) -> None:
    a, b = await joined(room, "a/1", "b")
    a.send(CATS, "a:1")
    b.send(DOGS, "b:1")
    await steps(a, b)
    (again,) = await joined(room, "a/2")
    assert again.expected(CATS) == b.expected(CATS)
    assert again.expected(DOGS) == b.expected(DOGS)
    assert again.batches("Missed") == 0


async def test_a_router_with_prefixes_turned_off_neither_tells_nor_hears(room: RedisRoom) -> None:
    a, b = await joined(room, "a", "b")
    b.prefixes.enabled = False
    a.send(CATS, "a:1")
    b.send(DOGS, "a:1")
    await steps(a, b)
    assert (b.uses("Received"), b.uses("Published"), b.prefixes.index.entries) == (0, 0, 0)


async def test_uses_of_instances_that_are_not_here_are_counted_and_left(room: RedisRoom) -> None:
    a, b = await joined(room, "a", "b")
    b.instances.instances = b.instances.instances[1:]
    a.send(CATS, "a:1")
    a.send(DOGS, "b:1")
    await steps(a, b)
    assert (b.uses("Unknown"), b.uses("Received")) == (1, 1)
    assert (b.expected(CATS), set(b.expected(DOGS))) == ({}, {"b:1"})


JUNK = [b"", b"hostile", b"\x01" + b"k" * 8 + b"\xff" * 99, b"\x02" * 30, b"\x01" * MAX_BATCH_BYTES]


async def test_junk_is_counted_and_skipped(room: RedisRoom) -> None:
    a, b = await joined(room, "a", "b")
    await room.client.xadd(STREAM, {"author": "evil", "uses": "x" * 2_000_000}, id="1-1")
    await room.client.xadd(STREAM, {"something": "else"}, id="1-2")
    for raw in JUNK:
        await room.client.xadd(STREAM, {"author": b"evil", "uses": raw}, id="1-*")
    await room.put(encode(b"otherkey", [ToldUse("a:1", (1, 2), 64.0, 200)]))
    a.send(CATS, "a:1")
    await steps(a, b)
    assert b.expected(CATS) == a.expected(CATS)
    assert (b.batches("Refused"), b.batches("OtherKey"), b.uses("Received")) == (2 + len(JUNK), 1, 1)
    await steps(b)
    assert b.batches("Refused") == 2 + len(JUNK), "once"


async def test_a_flood_of_hashes_is_bounded(room: RedisRoom) -> None:
    rng = random.Random(1)
    (b,) = await joined(room, "b")
    b.prefixes.index = PrefixIndex(max_entries=5_000)
    for _ in range(CAP):
        flood = ToldUse("a:1", tuple(rng.getrandbits(64) for _ in range(MAX_BLOCKS)), 1.0, 10**6)
        await room.put(encode(b.prefixes.key_id, [flood]))
    received = 0.0
    while True:
        await b.sharing.step()
        gained, received = b.uses("Received") - received, b.uses("Received")
        assert gained <= 9, "a step reads 128 KiB and one batch more"
        if gained == 0:
            break
    assert received == CAP
    assert b.prefixes.index.entries <= 5_000


async def test_a_flood_of_requests_is_told_in_part_and_the_rest_counted(room: RedisRoom) -> None:
    a, b = await joined(room, "a", "b")
    for number in range(2_000):
        a.send(b"%d " % number + CATS, "a:1")
    await steps(a, b, rounds=8)
    assert a.uses("Published") + a.uses("Dropped") == 2_000
    assert b.uses("Received") == a.uses("Published")
    assert a.batches("Published") <= 5
    assert (await room.client.memory_usage(STREAM) or 0) < 6 * MAX_BATCH_BYTES


async def test_who_was_away_for_long_goes_on_from_the_newest(room: RedisRoom) -> None:
    a, b = await joined(room, "a", "b")
    a.send(CATS, "a:1")
    await steps(a, b)
    for number in range(CAP + 50):
        a.send(b"%d " % number + DOGS, "b:1")
        await a.sharing.step()
    await steps(b)
    assert b.uses("Received") == 1 + PAGE
    assert b.batches("Missed") == CAP + 50 - PAGE
    assert b.expected(b"%d " % (CAP + 49) + DOGS)
    assert not b.expected(b"0 " + DOGS)


async def test_the_stream_is_capped(room: RedisRoom) -> None:
    for _ in range(CAP + 50):
        await room.put(b"x")
    assert await room.client.xlen(STREAM) == CAP


async def test_a_router_without_redis_keeps_its_own_index_and_changes_over_later(redis_server: RedisServer) -> None:
    async with redis_room(redis_server.url, timeout_s=0.3) as room:
        (a,) = await joined(room, "a")
        redis_server.pause()
        late = room.router("late")
        late.send(CATS, "b:1")
        await steps(late, rounds=1)
        assert set(late.expected(CATS)) == {"b:1"}
        assert (late.batches("Unavailable"), late.sharing.pause_s) == (1, AWAY_S)
        redis_server.resume()
        a.send(DOGS, "a:1")
        await steps(a, late)
        assert late.prefixes.key == a.prefixes.key
        assert (late.expected(CATS), late.expected(DOGS)) == ({}, a.expected(DOGS))
        assert late.sharing.pause_s == STEP_S
        late.send(CATS, "b:1")
        await steps(late, a)
        assert set(a.expected(CATS)) == {"b:1"}


async def test_a_redis_that_forgot_gets_the_same_key_again(redis_server: RedisServer) -> None:
    async with redis_room(redis_server.url, timeout_s=0.3) as room:
        a, b = await joined(room, "a", "b")
        key = a.prefixes.key
        a.send(CATS, "a:1")
        await steps(a, b)
        redis_server.stop()
        a.send(DOGS, "b:1")
        await steps(a, b)
        assert a.uses("Dropped") == 1, "what was on its way"
        redis_server.start()
        await room.client.flushall()
        await steps(b, a)
        assert a.prefixes.key == b.prefixes.key == key
        assert set(b.expected(CATS)) == {"a:1"}, "nothing is dropped"
        a.send(DOGS, "b:1")
        await steps(a, b)
        assert set(b.expected(DOGS)) == {"b:1"}


async def test_a_key_that_is_none_is_refused_and_nothing_is_shared_until_it_is_gone(room: RedisRoom) -> None:
    await room.client.set(f"{STREAM}:key", "short")
    a, b = await joined(room, "a", "b")
    a.send(CATS, "a:1")
    await steps(a, b)
    assert (a.batches("Published"), b.batches("Received")) == (0, 0)
    assert b.batches("Refused") > 0
    assert set(a.expected(CATS)) == {"a:1"}
    await room.client.delete(f"{STREAM}:key")
    await steps(a, b)
    assert set(b.expected(CATS)) == {"a:1"}


def shared(server: RedisServer, *ports: int, **parts: Any) -> Any:  # noqa: ANN401 - handed on to pydantic
    state = {"redis": {"address": f"127.0.0.1:{server.port}"}}
    return config_of(
        *(f"127.0.0.1:{port}" for port in ports),
        state=state,
        policy={"type": "WorkloadImpact"},
        limits={"maxInFlightPerInstance": 64, "scrapeIntervalSeconds": 60},
        **parts,
    )


async def test_composed_routers_send_a_prompt_where_another_sent_its_beginning(redis_server: RedisServer) -> None:
    config = shared(redis_server, 1, 2, 3, 4)

    async def placed(live: LiveRouter, request_id: str, prompt: bytes) -> str:
        answer = await live.route(request_id, prompt=prompt, prompt_tokens=len(prompt) // 4)
        await live.finish(request_id)
        return answer.instance_id

    async with live_router(config, router_id="r1") as first, live_router(config, router_id="r2") as second:
        one, other = (live.router.app.world.prefixes for live in (first, second))
        assert one.key == other.key, "the key is common before a router is ready"
        homes = {number: await placed(first, f"{number}", b"%d " % number + CATS) for number in range(8)}
        assert len(set(homes.values())) > 1
        await until(
            lambda: second.count("llmrouter_prefix_exchange_uses_total", event="Received") == 8,
            what="the second router has heard of all",
        )
        for number, home in homes.items():
            assert await placed(second, f"{number} again", b"%d " % number + CATS + b"and one turn more") == home
        assert second.count("llmrouter_prefix_hit_tokens_total", kind="expected") > 0
    async with live_router(config, router_id="r3") as third:
        for number, home in homes.items():
            assert await placed(third, f"{number} late", b"%d " % number + CATS) == home


class LateSource(PushedSource):
    """Gives its configuration when the router's loops have had time to run without."""

    async def bundles(self, on_refused: Callable[[InvalidConfigError], None]) -> AsyncIterator[ConfigBundle]:
        await asyncio.sleep(5 * STEP_S)
        async for bundle in super().bundles(on_refused):
            yield bundle


async def test_nothing_that_others_told_is_lost_while_instances_are_not_known(redis_server: RedisServer) -> None:
    config, source = shared(redis_server, 1, 2), LateSource()
    async with live_router(config, router_id="r1") as first:
        home = (await first.route("r", prompt=CATS, prompt_tokens=1_000)).instance_id
        await until(
            lambda: first.count("llmrouter_prefix_exchange_uses_total", event="Published") == 1, what="it is told"
        )
        source.push(config)
        async with live_router(config, router_id="r2", source=source) as second:
            assert second.count("llmrouter_prefix_exchange_uses_total", event="Unknown") == 0
            assert set(second.router.app.world.prefixes.index.shares) == {home}


async def test_a_router_alone_counts_nothing_of_others() -> None:
    async with live_router(config_of("127.0.0.1:1", limits={"scrapeIntervalSeconds": 60})) as live:
        await live.route("r", prompt=CATS)
        assert len(live.router.app.world.prefixes.outbox) == 0
        samples = [
            one for family in live.router.registry.collect() for one in family.samples if "prefix_exchange" in one.name
        ]
        assert samples == []
