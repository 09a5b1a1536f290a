"""Laws of a whole run, checked at the end of every instant of random worlds, interpreted over objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from support.sim_books import check_books, check_nobody_waits_for_the_idle, check_work
from support.sim_worlds import Case, cases, interpret

if TYPE_CHECKING:
    from llmrouter.sim.kernel.records import World

pytestmark = pytest.mark.timeout(600)  # random worlds, step by step


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_the_books_agree_with_the_sequences_at_every_instant(case: Case) -> None:
    """KV never exceeds its capacity; every list, heap, count, cache entry and ledger load is what a recount says."""
    interpret(case, check_books)


@given(case=cases())
@settings(max_examples=200, deadline=None)
def test_work_is_conserved(case: Case) -> None:
    """No engine with work rests, and none is held while an instance that may take it is idle."""
    side = case.setup.routers
    sees_all = side.shared and side.refresh_s == 0 and side.decision_every_s == 0

    def check(world: World) -> None:
        check_work(world)
        if sees_all:
            check_nobody_waits_for_the_idle(world)

    interpret(case, check)
