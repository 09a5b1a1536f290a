"""A pick goes as far as it can at once: those of one turn together, in order, and in a task only where they wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from support.gateway import chat, request_body, request_headers
from support.picker_bench import PickerBench
from support.router_world import until

from router_grpc.length_service import QUICK_IN_A_ROW

if TYPE_CHECKING:
    from support.picker_bench import Gateway

    from router_grpc.picker.session import PickerSession

ASKED = (request_headers().SerializeToString(), request_body(chat()).SerializeToString())


def on_the_loop(**parts: object) -> PickerBench:
    """A desk whose lengths are foretold on the event loop, as those of a model that has shown to be quick."""
    bench = PickerBench(predictor={"type": "Applications"}, **parts)
    bench.router.world.lengths._quick = QUICK_IN_A_ROW
    return bench


def ask(bench: PickerBench) -> tuple[PickerSession, Gateway]:
    session, gateway = bench.open()
    for message in ASKED:
        session.receive(message)
    return session, gateway


def placed(gateway: Gateway) -> bool:
    return bool(gateway.messages) and gateway.messages[0].WhichOneof("response") == "request_headers"


async def test_picks_of_one_read_are_foretold_together_and_placed_without_a_task() -> None:
    bench = on_the_loop()
    asked = [ask(bench) for _ in range(5)]
    assert all(session.is_waiting for session, _ in asked)
    bench.desk.end_turn()
    assert not any(session.is_waiting for session, _ in asked)
    assert all(placed(gateway) for _, gateway in asked)
    assert not bench.desk._tasks
    batches = "llmrouter_length_prediction_batch_requests"
    assert (bench.router.count(f"{batches}_count"), bench.router.count(f"{batches}_sum")) == (1, 5)
    for session, _ in asked:
        session.broken()
    await bench.settled()
    assert not bench.left_behind()


async def test_a_turn_that_no_transport_ends_ends_with_the_loops() -> None:
    bench = on_the_loop()
    session, gateway = ask(bench)
    await session.picked()
    assert placed(gateway)
    assert not session.is_waiting
    session.broken()
    await bench.settled()
    assert not bench.left_behind()


async def test_a_stream_that_breaks_before_its_turn_ends_reserves_nothing() -> None:
    bench = on_the_loop()
    broken, unanswered = ask(bench)
    stays, answered = ask(bench)
    broken.broken()
    assert not broken.is_waiting
    bench.desk.end_turn()
    assert not unanswered.messages
    assert placed(answered)
    assert len(bench.router.world.open_requests) == 1
    stays.broken()
    await bench.settled()
    assert not bench.left_behind()


async def test_a_pick_that_must_wait_for_a_place_does_so_in_a_task() -> None:
    bench = on_the_loop(limits={"maxInFlightPerInstance": 1})
    served = [ask(bench) for _ in range(2)]
    bench.desk.end_turn()
    held, later = ask(bench)
    gone, never = ask(bench)
    bench.desk.end_turn()
    assert held.is_waiting
    assert gone.is_waiting
    assert len(bench.desk._tasks) == 2
    gone.broken()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not gone.is_waiting
    served[0][0].broken()
    await until(lambda: placed(later), what="the held one is placed")
    assert not never.messages
    for session in (held, served[1][0]):
        session.broken()
    await bench.settled()
    assert not bench.left_behind()


async def test_a_refused_pick_is_answered_within_its_turn() -> None:
    bench = on_the_loop()
    bench.router.instances.instances = ()
    session, gateway = ask(bench)
    bench.desk.end_turn()
    assert gateway.statuses == [503]
    session.broken()
    await bench.settled()
    assert not bench.left_behind()
