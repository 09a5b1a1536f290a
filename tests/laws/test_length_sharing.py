"""Whatever is lost, late, repeated or restarted, no router ever counts an answer twice."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from support.length_routers import SharingRouter

from llmrouter.errors import LedgerUnavailableError
from llmrouter.lengths.bins import BINS, STARTS_B, bin_of
from llmrouter.lengths.predictor import LengthRequest
from router_grpc.adapters.length_exchange import Entry, LengthBoard, Position, Snapshot, StoredLengthExchange

CAP = 6


class Flaky(LengthBoard):
    """Now and then a call fails, before or after it was done."""

    def __init__(self, rng: random.Random, *, failing: float) -> None:
        super().__init__(lambda: self.now_s, max_entries=CAP)
        self.now_s = 0.0
        self.failing = failing
        self._rng = rng

    def _maybe(self) -> None:
        if self._rng.random() < self.failing:
            raise LedgerUnavailableError("flaky")

    async def append(self, author: str, number: int, raw: bytes) -> Position:
        self._maybe()
        place = await super().append(author, number, raw)
        self._maybe()
        return place

    async def after(self, position: Position, count: int) -> Sequence[Entry]:
        self._maybe()
        return await super().after(position, count)

    async def snapshot(self) -> Snapshot | None:
        self._maybe()
        return await super().snapshot()

    async def keep(self, snapshot: Snapshot) -> bool:
        self._maybe()
        kept = await super().keep(snapshot)
        self._maybe()
        return kept


def life(board: LengthBoard, name: str) -> SharingRouter:
    return SharingRouter(StoredLengthExchange(board, name), half_life=None)


def learn(router: SharingRouter, truth_B: np.ndarray[tuple[int], np.dtype[np.float64]], rng: random.Random) -> None:
    tokens = float(STARTS_B[rng.randrange(BINS)])
    router.learner.online.learn(LengthRequest(application="a", model="m"), tokens)
    truth_B[bin_of(tokens)] += 1.0


def known(router: SharingRouter) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    known_B: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = router.learner.online.counts()[0].counts.sum(axis=0)
    return known_B


@pytest.mark.parametrize("failing", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(6))
async def test_no_bin_ever_holds_more_answers_than_there_were(seed: int, failing: float) -> None:
    rng, truth_B, lives = random.Random(seed), np.zeros(BINS), 0
    board = Flaky(rng, failing=failing)
    routers = [life(board, f"{place}/0") for place in range(3)]
    merged = 0.0
    for _ in range(600):
        place = rng.randrange(3)
        draw = rng.random()
        if draw < 0.5:
            learn(routers[place], truth_B, rng)
        elif draw < 0.99:
            board.now_s += rng.choice([0.5, 1.0, 10.0])
            await routers[rng.choice([place, 0, 0])].sharing.step(board.now_s)  # the others are away for long
        else:
            lives += 1
            routers[place] = life(board, f"{place}/{lives}")
        for router in routers:
            assert (known(router) <= truth_B + 1e-3).all()
        merged += routers[place].events("SnapshotMerged")
    assert merged > 0


@pytest.mark.parametrize("seed", range(4))
async def test_routers_that_keep_up_know_all(seed: int) -> None:
    rng, truth_B = random.Random(seed), np.zeros(BINS)
    board = Flaky(rng, failing=0.2)
    routers = [life(board, str(place)) for place in range(3)]
    for turn in range(100):
        for router in routers:
            learn(router, truth_B, rng)
        board.now_s = float(turn)
        while not all([await _stepped(router, board.now_s) for router in routers]):
            pass
    board.failing = 0.0
    for _ in range(2):
        for router in routers:
            await router.sharing.step(board.now_s)
    for router in routers:
        assert router.events("Missed") + router.events("SnapshotMerged") == 0
        assert known(router) == pytest.approx(truth_B)


async def _stepped(router: SharingRouter, now_s: float) -> bool:
    """Whether the step came through."""
    before = router.events("Unavailable")
    await router.sharing.step(now_s)
    return router.events("Unavailable") == before
