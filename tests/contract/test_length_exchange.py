"""What every exchange of lengths promises: one suite over the one in memory and the one in Redis."""

from collections.abc import AsyncIterator, Sequence

import pytest
from support.ledgers import emptied
from support.length_routers import counts_of, keys_of, redis_store

from llmrouter.errors import InvalidInputError
from llmrouter.testbed.cluster.redis import RedisServer
from router_grpc.adapters.length_exchange import (
    LEASE_S,
    PAGE,
    Entry,
    LengthBoard,
    LengthStore,
    Position,
    RedisLengthStore,
    Snapshot,
    StoredLengthExchange,
)

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

CAP = 2 * PAGE


class Club:
    """A store, and exchanges over it."""

    def __init__(self, store: LengthStore) -> None:
        self.store = store

    def router(self, author: str) -> StoredLengthExchange:
        return StoredLengthExchange(self.store, author)


@pytest.fixture(params=["memory", "redis"])
async def club(request: pytest.FixtureRequest, common_redis: RedisServer) -> AsyncIterator[Club]:
    if request.param == "redis":
        async with redis_store(await emptied(common_redis.url), max_entries=CAP) as store:
            yield Club(store)
    else:
        yield Club(LengthBoard(lambda: 0.0, max_entries=CAP))


@pytest.fixture
async def store(common_redis: RedisServer) -> AsyncIterator[RedisLengthStore]:
    async with redis_store(await emptied(common_redis.url)) as store:
        yield store


async def heard(exchange: StoredLengthExchange) -> list[str]:
    """Keys of all entries that came, in order; a page of one's own is empty."""
    return [key for _ in range(CAP // PAGE + 2) for key in keys_of((await exchange.receive()).entries)]


async def test_others_hear_what_one_publishes_once(club: Club) -> None:
    a, b, c = (club.router(name) for name in "abc")
    for router in (a, b, c):
        await router.receive()
    await a.publish(counts_of("a1"))
    await b.publish(counts_of("b1"))
    await a.publish(counts_of("a2"))
    assert [await heard(router) for router in (a, b, c)] == [["b1"], ["a1", "a2"], ["a1", "b1", "a2"]]
    assert [await heard(router) for router in (a, b, c)] == [[], [], []]


async def test_counts_arrive_as_they_were(club: Club) -> None:
    a, b = club.router("a"), club.router("b")
    sent = counts_of("ключ\x1f\n", 2.5, in_bin=7)
    await a.publish(sent)
    (arrived,) = (await b.receive()).entries
    for before, after in zip(sent, arrived, strict=True):
        assert after.keys == before.keys
        assert (after.counts == before.counts).all()


async def test_nothing_was_said_yet(club: Club) -> None:
    first = await club.router("a").receive()
    assert (first.snapshot, first.entries, first.missed, first.refused) == (None, (), 0, 0)


async def test_a_newcomer_hears_what_is_still_there(club: Club) -> None:
    await club.router("a").publish(counts_of("before"))
    assert await heard(club.router("b")) == ["before"]


async def test_a_newcomer_begins_with_the_snapshot_and_goes_on_after_it(club: Club) -> None:
    a, b = club.router("a"), club.router("b")
    await b.receive()
    await a.publish(counts_of("old"))
    await heard(b)
    await b.publish(counts_of("old too"))
    assert await b.save(counts_of("all"))
    await a.publish(counts_of("new"))

    newcomer = club.router("c")
    first = await newcomer.receive()
    assert first.snapshot is not None
    assert keys_of([first.snapshot]) == ["all"]
    assert keys_of(first.entries) == ["new"]
    assert (await newcomer.receive()).snapshot is None


async def test_what_a_snapshot_does_not_hold_comes_after_it(club: Club) -> None:
    """Published before the snapshot was kept, but not received by who kept it."""
    a, b = club.router("a"), club.router("b")
    await b.receive()
    await a.publish(counts_of("unheard"))
    await b.publish(counts_of("held"))
    assert await b.save(counts_of("all"))
    assert keys_of((await club.router("c").receive()).entries) == ["unheard"]


async def test_the_next_life_of_a_router_hears_what_its_last_one_said(club: Club) -> None:
    await club.router("a/1").publish(counts_of("mine"))
    assert await heard(club.router("a/2")) == ["mine"]


async def test_only_the_holder_of_the_lease_keeps_snapshots(club: Club) -> None:
    a, b = club.router("a"), club.router("b")
    assert await a.save(counts_of("of a"))
    assert not await b.save(counts_of("of b"))
    assert await a.save(counts_of("of a again"))
    first = await club.router("c").receive()
    assert first.snapshot is not None
    assert keys_of([first.snapshot]) == ["of a again"]


async def test_a_snapshot_without_the_lease_is_not_kept(club: Club) -> None:
    await club.store.lease("a")
    assert not await club.store.keep(Snapshot(Position(1, 1), "b", Position(1, 1), b"x"))
    assert await club.store.snapshot() is None


async def test_a_router_that_missed_entries_gets_the_snapshot(club: Club) -> None:
    stale, a = club.router("stale"), club.router("a")
    await stale.receive()
    await stale.publish(counts_of("mine"))
    await heard(a)
    for number in range(CAP + 10):
        await a.publish(counts_of(f"a{number}"))
    await heard(a)
    assert await a.save(counts_of("all"))
    await a.publish(counts_of("after"))

    back = await stale.receive()
    assert back.snapshot is not None
    assert keys_of([back.snapshot]) == ["all"]
    assert keys_of(back.entries) == ["after"]
    assert back.missed == 0
    assert await heard(stale) == []


async def test_a_router_that_missed_entries_without_a_snapshot_says_how_many(club: Club) -> None:
    stale, a = club.router("stale"), club.router("a")
    await stale.receive()
    for number in range(CAP + 10):
        await a.publish(counts_of(f"a{number}"))
    back = await stale.receive()
    assert (back.snapshot, back.missed) == (None, 10)
    assert [*keys_of(back.entries), *await heard(stale)] == [f"a{number}" for number in range(10, CAP + 10)]


async def test_an_older_snapshot_is_of_no_use_to_who_missed_entries(club: Club) -> None:
    stale, a = club.router("stale"), club.router("a")
    await a.publish(counts_of("first"))
    assert await a.save(counts_of("all"))
    await heard(stale)
    await a.publish(counts_of("second"))
    assert await heard(stale) == ["second"]
    for number in range(CAP + 10):
        await a.publish(counts_of(f"a{number}"))
    back = await stale.receive()
    assert (back.snapshot, back.missed) == (None, 10)
    assert "second" not in keys_of(back.entries)


async def test_a_call_gives_a_bounded_number_of_entries(club: Club) -> None:
    a, b = club.router("a"), club.router("b")
    for number in range(PAGE + 5):
        await a.publish(counts_of(f"a{number}"))
    assert [len((await b.receive()).entries) for _ in range(3)] == [PAGE, 5, 0]


@pytest.mark.parametrize("raw", [b"", b"\x01\x01hostile", b"\x02\x01", b"\xff" * 99])
async def test_an_entry_that_cannot_be_decoded_is_counted_and_skipped(club: Club, raw: bytes) -> None:
    a, b = club.router("a"), club.router("b")
    await club.store.append("evil", 1, raw)
    await a.publish(counts_of("good"))
    got = await b.receive()
    assert (keys_of(got.entries), got.refused) == (["good"], 1)
    assert (await b.receive()).refused == 0


async def test_a_snapshot_that_cannot_be_decoded_is_counted_and_skipped(club: Club) -> None:
    a = club.router("a")
    await a.publish(counts_of("good"))
    await club.store.lease("evil")
    await club.store.keep(Snapshot(Position(1, 1), "evil", Position(), b"hostile"))
    got = await club.router("b").receive()
    assert (got.snapshot, keys_of(got.entries), got.refused) == (None, ["good"], 1)


async def test_an_author_appends_each_number_once(club: Club) -> None:
    place = await club.store.append("a", 1, b"x")
    assert await club.store.append("a", 1, b"x") == place
    assert await club.store.append("a", 2, b"y") == Position(place.birth, place.number + 1)
    assert await club.store.append("b", 1, b"z") == Position(place.birth, place.number + 2)
    entries: Sequence[Entry] = await club.store.after(Position(), 9)
    assert [(entry.author, entry.raw) for entry in entries] == [("a", b"x"), ("a", b"y"), ("b", b"z")]


async def test_what_is_too_large_is_refused_before_it_is_sent(club: Club) -> None:
    a = club.router("a")
    with pytest.raises(InvalidInputError):
        await a.publish(counts_of("x" * 5_000))
    with pytest.raises(InvalidInputError):
        await a.save(counts_of("x" * 5_000))
    await a.publish(counts_of("short"))
    assert await heard(club.router("b")) == ["short"]


async def test_the_lease_of_a_router_that_is_gone_ends() -> None:
    now_s = [0.0]
    board = LengthBoard(lambda: now_s[0])
    assert await StoredLengthExchange(board, "a").save(counts_of("of a"))
    now_s[0] = LEASE_S + 1.0
    assert await StoredLengthExchange(board, "b").save(counts_of("of b"))


async def test_all_keys_in_redis_are_of_the_namespace_and_end(store: RedisLengthStore) -> None:
    a = StoredLengthExchange(store, "a")
    await a.publish(counts_of("x"))
    assert await a.save(counts_of("all"))
    keys = {key.decode() for key in await store._ask("KEYS", "*")}
    assert keys == {f"{{llmrouter:tests/suite}}:lengths{end}" for end in ("", ":author:a", ":lease", ":snapshot")}
    assert all([await store._ask("PTTL", key) > 0 for key in keys])


async def test_the_lease_in_redis_ends(common_redis: RedisServer) -> None:
    async with redis_store(await emptied(common_redis.url), lease_s=0.001) as store:
        assert await store.lease("a")
        while not await store.lease("b"):  # a millisecond
            pass


@pytest.mark.parametrize("fields", [{"covers": "nonsense"}, {"covers": "1-1"}, {"covers": "1-1", "own": "x-y"}])
async def test_a_snapshot_of_any_fields_is_refused(store: RedisLengthStore, fields: dict[str, str]) -> None:
    words = [word for item in fields.items() for word in item]
    await store._ask("HSET", "{llmrouter:tests/suite}:lengths:snapshot", *words)
    got = await StoredLengthExchange(store, "a").receive()
    assert (got.snapshot, got.refused) == (None, 1)


async def test_a_stream_made_anew_is_read_from_its_beginning(store: RedisLengthStore) -> None:
    a, b = StoredLengthExchange(store, "a"), StoredLengthExchange(store, "b")
    for number in range(3):
        await a.publish(counts_of(f"old {number}"))
    assert len(await heard(b)) == 3
    for birth in (1, 9_999_999_999_999):  # the server's clock went back, or forth
        await store._ask("DEL", "{llmrouter:tests/suite}:lengths")
        await store._ask("XADD", "{llmrouter:tests/suite}:lengths", f"{birth}-1", "author", "c", "counts", "")
        await a.publish(counts_of(f"new {birth}"))
        got = await b.receive()
        assert (keys_of(got.entries), got.missed, got.refused) == ([f"new {birth}"], 0, 1)
