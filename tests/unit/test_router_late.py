"""A router whose instances answer late, or not at all: which it leaves out, and how it takes them back."""

from __future__ import annotations

from support.router_world import Bench, config_of

from router_grpc.reports import ReportKind

ENDPOINTS = ("a:1", "b:1", "c:1", "d:1")
IN_TIME_S = 0.05


def four() -> Bench:
    return Bench(config_of(*ENDPOINTS, limits={"maxInFlightPerInstance": 500}))


async def dispatched(bench: Bench, requests: int) -> dict[str, list[str]]:
    """Requests whose first tokens would be told, by endpoint."""
    sent: dict[str, list[str]] = {endpoint: [] for endpoint in ENDPOINTS}
    stream_id = bench.reports.open_stream()
    for _ in range(requests):
        answer = await bench.route()
        bench.world.open_requests.attended(answer.request_id, stream_id=stream_id, tells_start=True)
        sent[answer.endpoint].append(answer.request_id)
    return sent


async def begun(bench: Bench, request_ids: list[str]) -> None:
    for request_id in request_ids:
        await bench.report(request_id, ReportKind.FIRST_TOKEN)
        await bench.report(request_id, output_tokens=10)


def out(bench: Bench) -> set[str]:
    return set(ENDPOINTS) - {one.endpoint for one in bench.world.ready()}


async def one_round(bench: Bench, *, late: str, late_s: float) -> None:
    sent = await dispatched(bench, 4 * 16)
    bench.clock.now_s += IN_TIME_S
    for endpoint in ENDPOINTS:
        if endpoint != late:
            await begun(bench, sent[endpoint])
    bench.clock.now_s += late_s
    await begun(bench, sent.get(late, []))
    bench.reports.judge()


async def test_one_that_is_far_later_than_the_others_is_left_out_and_taken_back() -> None:
    bench = four()
    await one_round(bench, late="a:1", late_s=10.0)
    assert out(bench) == {"a:1"}
    assert bench.count("llmrouter_ejections_total", reason="late") == 1
    bench.clock.now_s += 10.0
    sent = await dispatched(bench, 12)
    assert len(sent["a:1"]) == 1, "its trial, and no other"
    bench.clock.now_s += IN_TIME_S
    await begun(bench, sent["a:1"])
    assert out(bench) == set()


async def test_a_little_later_is_no_reason() -> None:
    bench = four()
    await one_round(bench, late="a:1", late_s=0.05)
    assert out(bench) == set()


async def test_where_all_are_late_all_stay() -> None:
    bench = four()
    sent = await dispatched(bench, 64)
    bench.clock.now_s += 30.0
    bench.reports.judge()
    for request_ids in sent.values():
        await begun(bench, request_ids)
    bench.reports.judge()
    assert out(bench) == set()


async def test_one_that_answers_nothing_is_left_out_without_an_answer() -> None:
    bench = four()
    await one_round(bench, late="", late_s=0.0)
    assert out(bench) == set()
    sent = await dispatched(bench, 64)
    bench.clock.now_s += IN_TIME_S
    for endpoint in ENDPOINTS[1:]:
        await begun(bench, sent[endpoint])
    bench.reports.judge()
    assert out(bench) == set(), "it may come any moment"
    bench.clock.now_s += 5.0
    bench.reports.judge()
    assert out(bench) == {"a:1"}


async def test_answers_of_which_no_first_token_is_told_are_not_waited_for() -> None:
    bench = four()
    await one_round(bench, late="", late_s=0.0)
    for _ in range(64):
        await bench.route()
    bench.clock.now_s += 50.0
    bench.reports.judge()
    assert out(bench) == set()
