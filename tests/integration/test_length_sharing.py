"""Routers share what they learned of lengths through a Redis that is a real one, and sometimes really gone."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import numpy as np
import pytest
from support.ledgers import emptied
from support.length_routers import Learner, SharingRouter, counts_of, redis_store

from llmrouter.errors import LedgerUnavailableError
from llmrouter.lengths.bins import BINS
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.sketches import Counts
from llmrouter.testbed.cluster.redis import RedisServer
from router_grpc.adapters.length_exchange import (
    LengthBoard,
    LengthStore,
    Position,
    RedisLengthStore,
    StoredLengthExchange,
)
from router_grpc.length_sharing import (
    GIVE_UP_AFTER_S,
    MAX_WAITING_COUNTS,
    MAX_WAITING_KEYS,
    SAVE_EVERY_S,
    LengthSharing,
    beyond,
)

pytest_plugins = ["support.redis_server", "support.ledger_fixtures"]

CAP = 20


@pytest.fixture
async def store(common_redis: RedisServer) -> AsyncIterator[RedisLengthStore]:
    async with redis_store(await emptied(common_redis.url), max_entries=CAP) as store:
        yield store


def router(store: LengthStore, author: str, *, half_life: float | None = None) -> SharingRouter:
    return SharingRouter(StoredLengthExchange(store, author), half_life=half_life)


async def steps(*routers: SharingRouter, now_s: float = 0.0, rounds: int = 2) -> None:
    for _ in range(rounds):
        for one in routers:
            await one.sharing.step(now_s)


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_routers_that_share_predict_the_same(store: RedisLengthStore, names: str) -> None:
    routers = [router(store, name, half_life=150.0) for name in names]
    for turn in range(12):
        for place, one in enumerate(routers):
            one.teach(f"app {place}", median=30 * 10**place, count=10, seed=10 * turn + place)
            one.teach("common", median=200, count=5, seed=10 * turn + place + 5)
        await steps(*routers, rounds=1)
    await steps(*routers)
    for application in ("common", *(f"app {place}" for place in range(len(names)))):
        said = [one.median(application) for one in routers]
        assert said == pytest.approx([said[0]] * len(said), rel=0.1)
    assert routers[0].median(f"app {len(names) - 1}") == pytest.approx(30 * 10 ** (len(names) - 1), rel=0.2)


@pytest.mark.parametrize("names", ["ab", "abc"])
async def test_every_answer_is_known_once_everywhere(store: RedisLengthStore, names: str) -> None:
    routers = [router(store, name) for name in names]
    for turn in range(60):  # three times the cap of the stream, and snapshots on the way
        routers[turn % len(names)].teach("chat", median=100, count=7, seed=turn)
        await steps(*routers, now_s=float(turn), rounds=1)
    await steps(*routers, now_s=60.0)
    assert [one.answers() for one in routers] == [pytest.approx(420.0)] * len(names)
    assert sum(one.events("SnapshotSaved") for one in routers) >= 1
    assert sum(one.events("SnapshotMerged") + one.events("Missed") for one in routers) == 0


async def test_they_agree_with_one_that_saw_all(store: RedisLengthStore) -> None:
    a, b, alone = router(store, "a"), router(store, "b"), Learner(half_life=None)
    for turn in range(8):
        a.teach("chat", median=100, count=20, seed=turn)
        b.teach("chat", median=300, count=20, seed=turn + 50)
        await steps(a, b)
    for one in (a, b):
        await alone.merge([one.learner.online.counts()])
    whole = alone.online.counts()[0].counts / 2.0
    assert a.learner.online.counts()[0].counts == pytest.approx(whole)


async def test_a_restarted_router_knows_what_was_learned(store: RedisLengthStore) -> None:
    a, b = router(store, "a/1"), router(store, "b")
    await steps(a, b)
    a.teach("long", median=3_000, count=100)
    b.teach("short", median=20, count=100)
    for now_s in (1.0, SAVE_EVERY_S + 1.0, SAVE_EVERY_S + 2.0):
        b.teach("short", median=20, count=10)
        await steps(a, b, now_s=now_s)
    b.teach("later", median=400, count=50)
    await steps(b, now_s=SAVE_EVERY_S + 3.0)

    again = router(store, "a/2")
    await steps(again)
    assert again.events("SnapshotMerged") == 1
    assert again.answers() == pytest.approx(280.0)
    assert b.answers() == pytest.approx(280.0)
    for application in ("long", "short", "later"):
        assert again.median(application) == pytest.approx(b.median(application), rel=0.01)


async def test_answers_that_come_while_a_snapshot_is_taken_are_counted_once(store: RedisLengthStore) -> None:
    """The learner goes on between the counts and what is published of them."""
    a = router(store, "a")

    class Busy(Learner):
        async def counts(self) -> tuple[Counts, Counts]:
            counts = await super().counts()
            a.teach("chat", median=100, count=5)
            return counts

    busy = Busy(half_life=None)
    a.learner = busy
    a.sharing._learner = busy
    await steps(a)
    a.teach("chat", median=100, count=30)
    await steps(a, now_s=SAVE_EVERY_S, rounds=1)
    newcomer = router(store, "b")
    await steps(newcomer)
    assert newcomer.answers() == pytest.approx(30.0)  # five are lost to newcomers, none is counted twice
    await steps(a, newcomer, now_s=SAVE_EVERY_S + 1.0)
    assert newcomer.answers() == pytest.approx(30.0)
    assert a.answers() == pytest.approx(35.0)


async def test_a_stale_router_takes_the_snapshot_and_counts_nothing_twice(store: RedisLengthStore) -> None:
    stale, a, b = (router(store, name) for name in ("stale", "a", "b"))
    await steps(stale, a, b)
    stale.teach("chat", median=100, count=50, seed=1)
    a.teach("chat", median=100, count=50, seed=2)
    await steps(stale, a, b)
    known = stale.learner.online.counts()[0].counts
    assert known.sum() == pytest.approx(100.0)
    for turn in range(2 * CAP):
        a.teach("new", median=1_000, count=5, seed=turn)
        await steps(a, b, now_s=float(turn), rounds=1)
    await steps(a, b, now_s=100.0, rounds=1)
    await steps(b, now_s=131.0, rounds=1)
    stale.teach("own", median=20, count=10)

    whole = b.learner.online.counts()[0].counts
    own = stale.learner.online.counts()[0].counts
    await steps(stale, now_s=132.0)
    assert stale.events("SnapshotMerged") == 1
    assert stale.events("Missed") == 0
    after = stale.learner.online.counts()[0].counts
    assert (after <= np.maximum(own, whole) + 1e-3).all()
    assert stale.median("new") == pytest.approx(b.median("new"), rel=0.02)
    await steps(a, b, now_s=133.0)
    assert b.answers() == pytest.approx(100.0 + 200.0 + 10.0)


async def test_a_stale_router_that_forgets_ends_near_the_others(store: RedisLengthStore) -> None:
    stale, a = router(store, "stale", half_life=150.0), router(store, "a", half_life=150.0)
    await steps(stale, a)
    stale.teach("chat", median=100, count=400, seed=1)
    await steps(stale, a)
    for turn in range(2 * CAP):
        a.teach("chat", median=400, count=20, seed=turn)
        await steps(a, now_s=float(turn), rounds=1)
    assert stale.median("chat") == pytest.approx(100, rel=0.2)
    await steps(stale, now_s=200.0)
    assert stale.median("chat") == pytest.approx(a.median("chat"), rel=0.1)
    assert stale.answers() <= 1.2 * a.answers()


async def test_steps_at_the_same_time_follow_each_other(store: RedisLengthStore) -> None:
    a, b = router(store, "a"), router(store, "b")
    await steps(a, b)
    for _ in range(10):
        a.teach("chat", median=100, count=10)
        await asyncio.gather(*(a.sharing.step(1.0) for _ in range(3)), *(b.sharing.step(1.0) for _ in range(3)))
    await steps(b)
    assert (a.answers(), b.answers()) == (100.0, 100.0)


async def test_an_entry_that_cannot_be_decoded_is_counted_and_skipped(store: RedisLengthStore) -> None:
    a, b = router(store, "a"), router(store, "b")
    await steps(a, b)
    await store.append("evil", 1, b"\x01\x01hostile")
    a.teach("chat", median=100, count=10)
    await steps(a, b)
    assert (b.answers(), b.events("Refused")) == (10.0, 1.0)


async def test_counts_that_the_learner_refuses_are_counted(store: RedisLengthStore) -> None:
    class Picky(OnlineQuantiles):
        def merge(self, counts: tuple[Counts, Counts]) -> None:
            super().merge((Counts(("",), np.full((1, 3), 1.0)), counts[1]))

    a, b = router(store, "a"), router(store, "b")
    b.learner.online = Picky(shared=True)
    await steps(a, b)
    a.teach("chat", median=100, count=10)
    await steps(a, b)
    assert (b.events("Refused"), b.events("Merged")) == (1.0, 0.0)


async def test_what_is_learned_while_redis_is_away_arrives_when_it_is_back(redis_server: RedisServer) -> None:
    async with redis_store(redis_server.url, timeout_s=0.3) as store:
        a, b = router(store, "a"), router(store, "b")
        a.teach("chat", median=100, count=10, seed=1)
        await steps(a, b)
        redis_server.stop()
        for turn in range(3):
            a.teach("chat", median=100, count=10, seed=turn)
            await steps(a, b, now_s=float(turn), rounds=1)
        assert a.events("Unavailable") == 3
        redis_server.start()
        await steps(a, b, now_s=4.0)
        assert (a.answers(), b.answers()) == (40.0, 40.0)
        assert a.dropped() == 0.0


async def test_what_arrived_without_an_answer_is_not_told_twice(redis_server: RedisServer) -> None:
    """A paused Redis holds calls that it executes later, when their callers have given up."""
    async with redis_store(redis_server.url, timeout_s=0.3) as store:
        a, b = router(store, "a"), router(store, "b")
        await steps(a, b)
        a.teach("chat", median=100, count=10)
        await a.sharing._gather()
        redis_server.pause()
        for _ in range(2):
            with pytest.raises(LedgerUnavailableError):
                await a.sharing._tell(0.0)
        redis_server.resume()
        a.teach("chat", median=100, count=5)
        await steps(a, b, now_s=1.0, rounds=3)
        assert (a.answers(), b.answers()) == (15.0, 15.0)
        assert [entry.author for entry in await store.after(Position(), 9)] == ["a", "a"]


class Away(LengthBoard):
    """A store whose append never answers, though what it is given arrives."""

    async def append(self, author: str, number: int, raw: bytes) -> Position:
        await super().append(author, number, raw)
        raise LedgerUnavailableError("late")


async def test_what_waits_is_bounded_and_what_has_no_room_is_counted() -> None:
    a = SharingRouter(StoredLengthExchange(Away(lambda: 0.0), "a"))
    for turn in itertools.count():
        a.teach("chat", median=100, count=400, seed=turn)
        await a.sharing.step(float(turn))
        if a.dropped() > 0:
            break
        assert turn < 30
    waiting = a.sharing._waiting.take()
    assert max(one.counts.sum(axis=1).max() for one in waiting) <= MAX_WAITING_COUNTS * 1.001


async def test_keys_that_have_no_room_are_counted() -> None:
    class Full(Learner):
        async def delta(self) -> tuple[Counts, Counts]:
            number = next(names)
            many = Counts(tuple(f"{number} {place}" for place in range(1_000)), np.full((1_000, BINS), 0.5))
            return counts_of("x")[0], many

    names = itertools.count()
    a = SharingRouter(StoredLengthExchange(Away(lambda: 0.0), "a"))
    full = Full()
    sharing = LengthSharing(a.sharing._exchange, full, metrics=a.metrics)
    for turn in range(8):
        await sharing.step(float(turn))
    told = 1_000 * next(names)
    assert a.dropped() == 0.5 * BINS * (told - 1_000 - MAX_WAITING_KEYS)  # one entry is on its way
    assert len(sharing._waiting.take()[1].keys) == MAX_WAITING_KEYS


async def test_an_entry_of_which_nobody_knows_is_given_up_in_the_end() -> None:
    a = SharingRouter(StoredLengthExchange(Away(lambda: 0.0), "a"))
    a.teach("chat", median=100, count=10)
    await a.sharing.step(0.0)
    assert a.dropped() == 0.0
    await a.sharing.step(GIVE_UP_AFTER_S + 1.0)
    assert a.dropped() == 50.0  # ten answers in five groups each


def test_beyond_is_what_is_missing() -> None:
    known, other = counts_of("a", 3.0, in_bin=3), counts_of("a", 5.0, in_bin=3)
    assert beyond(other, known)[1].counts.sum() == pytest.approx(2.0)
    assert beyond(known, other)[1].counts.sum() == pytest.approx(0.0)
    assert beyond(counts_of("b", 4.0), known)[1].counts.sum() == pytest.approx(4.0)
    assert beyond(counts_of("a", 4.0, in_bin=9), known)[1].counts.sum() == pytest.approx(4.0)
