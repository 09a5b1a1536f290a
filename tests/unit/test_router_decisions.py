"""What a router keeps and writes down of its decisions, and that nothing of it is in a request's way."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from support.router_world import EPOCH_S, Bench, bundle_of, config_of, until

from llmrouter.decision_log_spec import DecisionLogSpec
from llmrouter.decisions.record import read_log
from llmrouter.errors import InvalidInputError, SaturatedError
from llmrouter.replay.explain_command import of_routers
from router_grpc import decision_log
from router_grpc.decision_log import DecisionLog
from router_grpc.decision_log_port import asking, finder, told_decisions
from router_grpc.decision_log_sinks import FileSink, ObjectStoreSink, SinkError, sink_of
from router_grpc.metrics_port import serving_metrics
from router_grpc.processes import Place
from router_grpc.reports import ReportKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from llmrouter.decisions.record import DecisionRecord

FILE = {"fraction": 1.0, "sink": "File"}


def bench_of(
    tmp_path: Path, *endpoints: str, log: dict[str, Any] | None = None, policy: dict[str, Any] | None = None
) -> Bench:
    config = config_of(*(endpoints or ("a:1", "b:1")), policy=policy, decisionLog=log or FILE)
    bench = Bench(config_of(*(endpoints or ("a:1", "b:1"))))
    kept = DecisionLog(
        "r1", folder=tmp_path, metrics=bench.world.metrics, clock=bench.clock, now=lambda: EPOCH_S + bench.clock()
    )
    object.__setattr__(bench.world, "decisions", kept)
    bench.put(config)
    return bench


def written(bench: Bench, tmp_path: Path) -> list[DecisionRecord]:
    bench.world.decisions.close()
    return list(read_log(tmp_path / "r1.jsonl"))


async def test_a_finished_request_is_written_with_what_was_seen_and_what_came(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    where = (await bench.route("r", application="chat", tenant="acme")).instance_id
    bench.clock.now_s += 0.5
    await bench.report("r", ReportKind.FIRST_TOKEN)
    bench.clock.now_s += 1.0
    await bench.report("r", output_tokens=11, prompt_tokens=90)
    (one,) = written(bench, tmp_path)
    assert (one.request_id, one.router_id, one.chosen, one.arm) == ("r", "r1", where, "current")
    assert one.arrived_at_s == one.decided_at_s == EPOCH_S + 1000.0
    assert one.outcome is not None
    assert (one.outcome.kind, one.outcome.ttft_s, one.outcome.e2e_s) == ("Finished", 0.5, 1.5)
    assert one.outcome.tpot_s == pytest.approx(0.1)
    assert (one.outcome.output_tokens, one.outcome.prompt_tokens) == (11, 90)
    assert [each.propensity for each in one.candidates] == [0.5, 0.5]
    assert one.policy.digest == bench.service.runtime.policy_digest  # type: ignore[union-attr]
    assert one.foretold is not None
    assert one.application == "chat"
    assert bench.count("llmrouter_decision_records_total", outcome="Written") == 1


async def test_the_second_decision_sees_the_first(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    first = (await bench.route("r1")).instance_id
    await bench.route("r2")
    second = bench.world.decisions.find("r2")
    assert second is not None
    assert second.outcome is None  # it is under way
    busy = second.candidate(first)
    assert busy is not None
    assert (busy.requests, busy.queued_prefill_tokens, busy.propensity) == (1, 100, 0.0)
    bench.world.decisions.close()


@pytest.mark.parametrize(
    ("kind", "fields", "ended"),
    [
        (ReportKind.FAILED, {"reason": "EngineOverloaded"}, ("Failed", "EngineOverloaded")),
        (ReportKind.FAILED, {"reason": "cannot parse: my secret prompt"}, ("Failed", "")),
        (ReportKind.CANCELLED, {}, ("Cancelled", "")),
    ],
)
async def test_other_ends(tmp_path: Path, kind: ReportKind, fields: dict[str, Any], ended: tuple[str, str]) -> None:
    bench = bench_of(tmp_path)
    await bench.route("r")
    await bench.report("r", kind, **fields)
    (one,) = written(bench, tmp_path)
    assert one.outcome is not None
    assert (one.outcome.kind, one.outcome.reason, one.outcome.e2e_s) == (*ended, None)


async def test_what_nobody_reports_is_lost_and_what_finds_no_room_is_refused(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, "a:1", policy={"hold": {"enabled": False}})
    for number in range(4):
        await bench.route(f"r{number}")
    with pytest.raises(SaturatedError):
        await bench.route("late")
    bench.clock.now_s += 100.0
    await bench.sweep()
    records = {one.request_id: one for one in written(bench, tmp_path)}
    refused = records.pop("late")
    assert refused.outcome is not None
    assert (refused.chosen, refused.outcome.kind, refused.outcome.reason) == (None, "Refused", "NoRoom")
    assert (refused.eligible, refused.roomy) == (1, 0)
    assert {one.outcome.kind for one in records.values() if one.outcome} == {"Lost"}
    assert len(records) == 4


async def test_a_router_that_stops_writes_down_what_it_leaves(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.route("r")
    (one,) = written(bench, tmp_path)
    assert one.outcome is not None
    assert one.outcome.kind == "Lost"


async def test_a_sample_is_written_and_without_a_log_nothing_is_kept(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, log={**FILE, "fraction": 0.2})
    for number in range(200):
        await bench.route(f"r{number}")
        await bench.report(f"r{number}", output_tokens=3)
    records = written(bench, tmp_path)
    assert 20 < len(records) < 60
    assert {one.sample_fraction for one in records} == {0.2}
    bench.put(config_of("a:1", "b:1"))
    await bench.route("after")
    entry = bench.world.open_requests.get("after")
    assert entry is not None
    assert entry.record is None
    assert bench.world.decisions.readiness is None


async def test_exploration_is_served_and_written(tmp_path: Path) -> None:
    policy = {"type": "LeastInFlight", "exploration": {"fraction": 0.2}}
    bench = bench_of(tmp_path, "a:1", "b:1", "c:1", policy=policy)
    await bench.route("held")  # one instance has one request, and is not the policy's choice
    for number in range(120):
        await bench.route(f"r{number}")
        await bench.report(f"r{number}", output_tokens=3)
    records = [one for one in written(bench, tmp_path) if one.request_id != "held"]
    explored = [one for one in records if one.explored]
    assert 8 <= len(explored) <= 45
    assert {one.policy.exploration_fraction for one in records} == {0.2}
    for one in records:
        odds = [each.propensity or 0.0 for each in one.candidates]
        assert sum(odds) == pytest.approx(1.0)
        assert min(odds) == pytest.approx(0.2 / 3)


async def test_more_open_records_than_the_bound_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "MAX_OPEN", 2)
    bench = bench_of(tmp_path)
    for number in range(3):
        await bench.route(f"r{number}")
    assert bench.count("llmrouter_decision_records_total", outcome="DroppedOpen") == 1
    bench.world.decisions.close()


async def test_a_full_disk_is_said_and_counted_and_routing_goes_on(tmp_path: Path) -> None:
    (tmp_path / "r1.jsonl").symlink_to("/dev/full")
    bench = bench_of(tmp_path)
    await bench.route("r")
    await bench.report("r", output_tokens=3)
    await until(lambda: bench.count("llmrouter_decision_records_total", outcome="Failed") == 1, what="failed")
    said = bench.world.decisions.readiness
    assert said is not None
    assert (said.ready, said.reason) == (False, "DiskFull")
    assert bench.count("llmrouter_decision_log_up") == 0
    (tmp_path / "r1.jsonl").unlink()  # somebody made room
    await bench.route("s")
    await bench.report("s", output_tokens=3)
    await until(lambda: bench.count("llmrouter_decision_log_up") == 1, what="written again")
    assert [one.request_id for one in written(bench, tmp_path)] == ["s"]


async def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    bench = bench_of(tmp_path / "none")
    await until(lambda: bench.count("llmrouter_decision_log_up") == 0, what="said")
    said = bench.world.decisions.readiness
    assert said is not None
    assert said.reason == "NoFolder"
    await bench.route("r")
    bench.world.decisions.close()


def test_files_turn_over_at_half_of_their_bytes_and_every_line_is_whole(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "log", 2_000)
    for number in range(100):
        sink.write([f"{number:049d}\n".encode()] * 2)
    sink.close()
    both = [tmp_path / "log.1", tmp_path / "log"]
    assert all(file.stat().st_size <= 1_000 for file in both)
    lines = b"".join(file.read_bytes() for file in both).splitlines()
    assert {len(line) for line in lines} == {49}
    assert int(lines[-1]) == 99


def test_objects_are_put_and_kept_waiting_while_the_store_is_away() -> None:
    objects: dict[str, bytes] = {}
    away = [True]

    def put(name: str, content: bytes) -> None:
        if away[0]:
            raise ConnectionError("no such host")
        objects[name] = content

    sink = ObjectStoreSink(put, "r1", "s3://b/f")
    assert not sink.write([b"one\n"])
    assert not sink.flush(0.0, final=False)  # not due yet
    with pytest.raises(SinkError, match="s3://b/f: ConnectionError: no such host"):
        sink.flush(61.0, final=False)
    sink.write([b"two\n"])
    away[0] = False
    assert sink.flush(122.0, final=False)
    assert list(objects.values()) == [b"one\ntwo\n"]
    (name,) = objects
    assert name.endswith("-0.jsonl")
    assert "/r1-" in name


def test_lines_that_wait_for_a_store_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router_grpc.decision_log_sinks.MAX_WAITING_BYTES", 100)
    sink = ObjectStoreSink(lambda _name, _content: None, "r1", "s3://b/f")
    with pytest.raises(SinkError) as caught:
        sink.write([b"x" * 50] * 3)
    assert caught.value.lost == 1


def test_a_folder_as_an_object_store(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    spec = DecisionLogSpec.model_validate({"sink": "ObjectStore", "url": f"file://{tmp_path}/objects"})
    sink = sink_of(spec, "r1", None)
    sink.write([b"line\n"])
    assert sink.flush(0.0, final=True)
    (found,) = (tmp_path / "objects").rglob("*.jsonl")
    assert found.read_bytes() == b"line\n"


@contextmanager
def s3(objects: dict[str, bytes]) -> Iterator[int]:
    """What S3 answers to a PUT, and nothing more."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            length = int(self.headers["Content-Length"])
            objects[self.path] = self.rfile.read(length)
            assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=key/")
            self.send_response(200)
            self.send_header("ETag", '"x"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_s3_store_is_spoken_to_with_the_environments_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    objects: dict[str, bytes] = {}
    with s3(objects) as port:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "here")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        spec = DecisionLogSpec.model_validate({"sink": "ObjectStore", "url": "s3://bucket/folder"})
        sink = sink_of(spec, "r1", None)
        sink.write([b"line\n"])
        assert sink.flush(0.0, final=True)
    ((path, content),) = objects.items()
    assert path.startswith("/bucket/folder/")
    assert content == b"line\n"


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - a port of this test
        content: bytes = answer.read()
        return content


async def test_decisions_are_told_on_the_port_for_metrics(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.route("chat/1 ü")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving_metrics(bench.registry, "127.0.0.1", port, find=finder(bench.world.decisions)):
        url = f"http://127.0.0.1:{port}"
        assert of_routers([url], "chat/1 ü").chosen is not None
        with pytest.raises(InvalidInputError, match="no decision on request 'nobody'"):
            of_routers([url], "nobody")
        assert b"llmrouter_decision_log_up" in fetched(f"{url}/metrics")
    bench.world.decisions.close()


async def test_a_process_of_several_tells_its_supervisor(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    await bench.route("r")
    here, gone = Place(0, tmp_path), Place(1, tmp_path)
    find = asking([gone, here])
    async with told_decisions(finder(bench.world.decisions), here):
        found: list[bytes | None] = []
        thread = threading.Thread(target=lambda: found.extend([find("r"), find("nobody")]))
        thread.start()
        await until(lambda: len(found) == 2, what="two answers")
        thread.join()
    assert found[0] is not None
    assert json.loads(found[0])["request_id"] == "r"
    assert found[1] is None
    bench.world.decisions.close()


async def test_a_declared_log_is_in_the_configurations_bytes() -> None:
    plain, logged = config_of("a:1"), config_of("a:1", decisionLog={"fraction": 0.5})
    assert bundle_of(plain).content != bundle_of(logged).content
    assert plain.policy.digest == logged.policy.digest
