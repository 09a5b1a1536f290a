"""What reconciles read without asking the API server: the newest of events, reads and writes, never an absence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmrouter_operator.models import CONFIG_MAP, DEPLOYMENT, ObjectKey
from llmrouter_operator.seen import LARGE_CHARACTERS, PODS_AGAIN_S, READ_AGAIN_S, SeenObjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter_operator.models import Kind

Object = dict[str, Any]
KEY = ObjectKey("team", "fleet")


LABELS = {"app.kubernetes.io/managed-by": "llmrouter-operator", "llmrouter.dev/router": "fleet"}


def value(version: int, **fields: object) -> Object:
    metadata = {"namespace": "team", "name": "one", "uid": "u", "resourceVersion": str(version), "labels": LABELS}
    return {"metadata": metadata, **fields}


class Server:
    def __init__(self) -> None:
        self.there: Object | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.reads = 0

    async def get(self, _: Kind, __: str, ___: str) -> Object | None:
        self.reads += 1
        self.meanwhile()
        return self.there

    async def find(self, *_: object, **__: object) -> list[Object]:
        self.reads += 1
        self.meanwhile()
        return [value(1)]


class Bench:
    def __init__(self) -> None:
        self.now_s, self.server = 0.0, Server()
        self.seen = SeenObjects(self.server, lambda: self.now_s)  # type: ignore[arg-type]

    async def get(self) -> Object | None:
        return await self.seen.get(DEPLOYMENT, "team", "one")


async def test_what_an_event_told_is_not_read() -> None:
    bench = Bench()

    assert bench.seen.event(DEPLOYMENT, value(3), deleted=False)
    assert await bench.get() == value(3)
    assert bench.server.reads == 0


async def test_what_was_not_seen_is_asked_for_each_time() -> None:
    bench = Bench()

    assert await bench.get() is None
    assert await bench.get() is None
    bench.server.there = value(1)
    assert await bench.get() == await bench.get() == value(1)
    assert bench.server.reads == 3


async def test_a_write_is_newer_than_the_event_before_it_and_its_own_event_is_no_news() -> None:
    bench = Bench()
    bench.seen.take(DEPLOYMENT, value(5))

    assert not bench.seen.event(DEPLOYMENT, value(4), deleted=False)
    assert not bench.seen.event(DEPLOYMENT, value(5), deleted=False)
    assert await bench.get() == value(5)
    assert bench.seen.event(DEPLOYMENT, value(6), deleted=False)


async def test_what_is_gone_is_asked_for() -> None:
    bench = Bench()
    bench.seen.take(DEPLOYMENT, value(5))

    assert bench.seen.event(DEPLOYMENT, value(6), deleted=True)
    assert await bench.get() is None


async def test_without_news_it_is_read_again_after_a_while() -> None:
    bench = Bench()
    bench.seen.take(DEPLOYMENT, value(5))
    bench.now_s = READ_AGAIN_S - 1
    assert await bench.get() == value(5)

    bench.now_s = READ_AGAIN_S
    assert await bench.get() is None  # it went while no watch told


async def test_a_read_that_is_no_newer_is_good_for_another_while() -> None:
    bench = Bench()
    bench.seen.take(DEPLOYMENT, value(5))
    bench.server.there = value(5)
    bench.now_s = READ_AGAIN_S

    assert await bench.get() == await bench.get() == value(5)
    assert bench.server.reads == 1


async def test_large_models_are_not_kept() -> None:
    bench = Bench()
    bench.server.there = value(5, binaryData={"policy.onnx": "x" * (LARGE_CHARACTERS + 1)})

    for _ in range(2):
        assert await bench.seen.get(CONFIG_MAP, "team", "one") == bench.server.there
    assert bench.server.reads == 2


async def test_pods_are_listed_when_they_may_have_changed() -> None:
    bench = Bench()
    is_known = True

    async def listed() -> int:
        await bench.seen.pods(KEY, {}, known_by=lambda _: is_known)
        return bench.server.reads

    assert [await listed() for _ in range(3)] == [1, 1, 1]
    bench.seen.drop_pods(KEY)
    assert await listed() == 2
    bench.now_s = PODS_AGAIN_S
    assert await listed() == 3
    is_known = False  # a router speaks whose pod is not among them
    assert await listed() == 4


async def test_what_is_told_while_a_read_is_under_way_is_newer() -> None:
    bench = Bench()
    bench.server.there = value(5)
    bench.server.meanwhile = lambda: bench.seen.event(DEPLOYMENT, value(6), deleted=True)
    assert await bench.get() == value(5)
    bench.server.there, bench.server.meanwhile = None, lambda: None
    assert await bench.get() is None

    bench.server.meanwhile = lambda: bench.seen.drop_pods(KEY)
    await bench.seen.pods(KEY, {}, known_by=lambda _: True)
    before = bench.server.reads
    await bench.seen.pods(KEY, {}, known_by=lambda _: True)
    assert bench.server.reads == before + 1


async def test_somebody_elses_object_which_no_watch_tells_of_is_asked_for_each_time() -> None:
    bench = Bench()
    bench.server.there = value(5) | {"metadata": value(5)["metadata"] | {"labels": {}}}

    for _ in range(2):
        assert await bench.get() == bench.server.there
    assert bench.server.reads == 2
