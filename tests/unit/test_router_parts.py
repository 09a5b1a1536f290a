"""The parts of a router on their own: scrapes, the replica, the file, runtimes, environment, and waiting lines."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from support.router_world import FakeClock, config_of, instances_of, until

from llmrouter.domain import EngineSignal, Load
from llmrouter.errors import InvalidConfigError
from llmrouter.metrics import RouterMetrics
from llmrouter.routing.lateness import LATE_IN_A_ROW, REST_S, Lateness
from router_grpc.__main__ import main, settings_from
from router_grpc.adapters.engine_metrics import MAX_SCRAPE_BYTES, UNREACHABLE_AFTER, EngineScraper, parse_signal
from router_grpc.adapters.file_source import FileSource, compile_file
from router_grpc.adapters.instances import InstanceDirectory, endpoint_of
from router_grpc.replica import FOREIGN_WINDOW, SIGNAL_LIFETIME_S, LoadReplica
from router_grpc.unbroken import Unbroken, at_once, end_tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from router_grpc.runtime import ConfigBundle


METRICS = """# HELP vllm:num_requests_running Number of requests in execution.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m",engine="0"} 3.0
vllm:num_requests_running{model_name="m",engine="1"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="m",engine="0"} 1.0
vllm:kv_cache_usage_perc{model_name="m",engine="0"} 0.5
vllm:kv_cache_usage_perc{model_name="m",engine="1"} 0.9
vllm:num_preemptions_total{model_name="m"} 12.0
vllm:e2e_request_latency_seconds_bucket{le="0.3",model_name="m"} 0.0
"""


def test_vllms_metrics_are_read() -> None:
    signal = parse_signal(METRICS, scraped_at_s=5.0)
    assert (signal.running, signal.waiting, signal.preemptions_total) == (7, 1, 12)
    assert signal.kv_usage_fraction == pytest.approx(0.7)
    assert signal.scraped_at_s == 5.0


def test_what_is_missing_is_unknown_and_not_zero() -> None:
    assert parse_signal("", scraped_at_s=1.0) == EngineSignal(1.0)
    assert parse_signal("vllm:gpu_cache_usage_perc 0.25\n", scraped_at_s=1.0) == EngineSignal(1.0, None, None, 0.25)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "x"])
def test_what_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_signal(f"vllm:num_requests_running {value}\n", scraped_at_s=1.0)


class Engine:
    """Serves ``/metrics`` as the test says."""

    def __init__(self) -> None:
        self.body = METRICS.encode()
        self.asked = 0
        self.runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> int:
        app = web.Application()
        app.router.add_get("/metrics", self._serve)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        return int(self.runner.addresses[0][1])

    async def stop(self) -> None:
        if self.runner is not None:
            await self.runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """In pieces, as a large answer comes over a network."""
        self.asked += 1
        response = web.StreamResponse()
        await response.prepare(request)
        for at in range(0, len(self.body), 200_000):
            await response.write(self.body[at : at + 200_000])
            await asyncio.sleep(0)
        return response


@pytest.fixture
async def engine() -> AsyncIterator[tuple[Engine, int]]:
    engine = Engine()
    port = await engine.start()
    yield engine, port
    await engine.stop()


class Scrapes:
    """A scraper with what it said."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.signals: list[tuple[str, EngineSignal]] = []
        self.failures: list[str] = []
        self.scraper = EngineScraper(
            session,
            clock=lambda: 1.0,
            rng=random.Random(1),
            on_signal=lambda instance, signal: self.signals.append((instance.instance_id, signal)),
            on_failure=self.failures.append,
        )

    async def round(self, *endpoints: str) -> None:
        self.scraper.begin_round(instances_of(config_of(*endpoints)), interval_s=0.0)
        await self.scraper.settled()


@pytest.fixture
async def scrapes() -> AsyncIterator[Scrapes]:
    async with aiohttp.ClientSession() as session:
        yield Scrapes(session)


async def test_a_large_answer_is_read_to_its_end(engine: tuple[Engine, int], scrapes: Scrapes) -> None:
    served, port = engine
    served.body = b"# " + b"x" * 1_000_000 + b"\n" + served.body
    await scrapes.round(f"127.0.0.1:{port}")
    assert [(name, signal.running) for name, signal in scrapes.signals] == [(f"127.0.0.1:{port}", 7)]


@pytest.mark.parametrize("body", [b"# " + b"x" * MAX_SCRAPE_BYTES, b"vllm:num_requests_running NaN\n"])
async def test_a_bad_answer_is_counted_and_the_instance_stays(
    engine: tuple[Engine, int], scrapes: Scrapes, body: bytes
) -> None:
    served, port = engine
    served.body = body
    for _ in range(UNREACHABLE_AFTER):
        await scrapes.round(f"127.0.0.1:{port}")
    assert scrapes.failures == ["BadAnswer"] * UNREACHABLE_AFTER
    assert scrapes.scraper.unreachable == frozenset()


async def test_who_does_not_connect_is_unreachable_until_it_does(engine: tuple[Engine, int], scrapes: Scrapes) -> None:
    served, port = engine
    name = f"127.0.0.1:{port}"
    await served.stop()
    for n in range(UNREACHABLE_AFTER):
        assert (name in scrapes.scraper.unreachable) is False, n
        await scrapes.round(name)
    assert scrapes.scraper.unreachable == {name}
    again = Engine()
    await again.start(port)
    await scrapes.round(name)
    assert scrapes.scraper.unreachable == frozenset()
    await again.stop()


async def test_an_engine_is_asked_once_at_a_time(engine: tuple[Engine, int], scrapes: Scrapes) -> None:
    served, port = engine
    for _ in range(5):
        scrapes.scraper.begin_round(instances_of(config_of(f"127.0.0.1:{port}")), interval_s=0.0)
    await scrapes.scraper.settled()
    assert served.asked == 1


def test_unreachable_declared_endpoints_leave_the_ready_set_and_come_back() -> None:
    told: list[int] = []
    directory = InstanceDirectory(
        None, namespace="", on_change=lambda: told.append(len(directory.current())), on_error=lambda _e: None
    )
    directory.apply(config_of("a:1", "b:1"))
    directory.set_unreachable(frozenset({"a:1"}))
    assert [i.instance_id for i in directory.current()] == ["b:1"]
    assert directory.get("a:1") is None
    assert (directory.total, len(directory.all_instances())) == (2, 2)
    directory.set_unreachable(frozenset())
    assert [i.instance_id for i in directory.current()] == ["a:1", "b:1"]
    assert told == [2, 1, 2]
    assert directory.synced


def test_addresses_become_endpoints() -> None:
    assert endpoint_of("10.0.0.1", 80) == "10.0.0.1:80"
    assert endpoint_of("fd00::1", 80) == "[fd00::1]:80"


class TestReplica:
    @pytest.fixture(autouse=True)
    def _replica(self) -> None:
        self.replica = LoadReplica()
        self.instance = instances_of(config_of("a:1"))[0]

    def note(self, running: int, *, at_s: float = 0.0) -> None:
        self.replica.note_signal(self.instance, EngineSignal(at_s, running, 0, 0.5))

    def foreign(self, *, now_s: float = 0.0) -> int:
        self.replica.replace({}, now_s=now_s)
        return self.replica.snapshot([self.instance], now_s=now_s).views[0].foreign.requests

    def test_foreign_load_is_believed_after_the_window_and_at_its_least(self) -> None:
        for n, running in enumerate((9, 5, 7)[:FOREIGN_WINDOW]):
            assert self.foreign() == 0, n
            self.note(running)
        assert self.foreign() == 5

    def test_an_old_report_is_unknown(self) -> None:
        for _ in range(FOREIGN_WINDOW):
            self.note(5)
        assert self.foreign(now_s=SIGNAL_LIFETIME_S) == 5
        assert self.foreign(now_s=SIGNAL_LIFETIME_S + 0.1) == 0
        assert self.replica.snapshot([self.instance], now_s=SIGNAL_LIFETIME_S + 0.1).views[0].signal is None
        self.replica.forget_except([])
        assert self.replica.oldest_signal_age_s(5.0) is None

    def test_what_is_absorbed_is_seen_at_once(self) -> None:
        def seen() -> Load:
            return self.replica.snapshot([self.instance], now_s=0.0).views[0].load

        assert seen() == Load()
        self.replica.absorb({"a:1": Load(2, 10, 10, 5.0)})
        assert seen() == Load(2, 10, 10, 5.0)
        self.replica.subtract("a:1", Load(1, 30, 0, 1.0))  # a refresh had taken it out already
        assert seen() == Load(1, 0, 10, 4.0)
        self.replica.subtract("a:1", Load(1, 0, 10, 4.0))
        assert seen() == Load()
        self.replica.absorb({"a:1": Load()})
        assert not self.replica.replace({}, now_s=1.0)


FILE = """
apiVersion: llmrouter.dev/v1alpha1
kind: LLMRouter
metadata: {name: llm}
spec:
  models: [{name: llama}]
  pools: [{name: main, endpoints: ["127.0.0.1:1"], profile: {name: llama-3.1-8b-rtx4090}}]
  policyRef: {name: policy}
  router: {replicas: 1}
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: policy}
spec: {type: LeastInFlight}
"""


TRIAL = FILE.replace("router: {", "candidate: {policyRef: {name: next}, mode: Canary}\n  router: {")
NEXT = """
---
apiVersion: llmrouter.dev/v1alpha1
kind: RoutingPolicy
metadata: {name: next}
spec: {type: RoundRobin}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("- 1", "document 1: must be a resource"),
        ("", "exactly one LLMRouter, it holds 0"),
        (FILE + "---\n" + FILE.split("---", maxsplit=1)[0], "exactly one LLMRouter, it holds 2"),
        (FILE.split("---", maxsplit=1)[0], "exactly one RoutingPolicy 'policy', it holds 0"),
        (FILE.replace('endpoints: ["127.0.0.1:1"]', "selector: {matchLabels: {a: b}}"), "selector needs Kubernetes"),
        (
            FILE.replace('endpoints: ["127.0.0.1:1"]', "inferencePoolRef: {name: chat}"),
            r"pools\[main\]\.inferencePoolRef needs Kubernetes",
        ),
        (
            FILE.replace("router: {", "listeners: {extProc: {certificateSecretRef: {name: x}}}\n  router: {"),
            "standalone has --certificate DIR",
        ),
        (FILE.replace("{type: LeastInFlight}", "{type: Best}"), "RoutingPolicy policy: type"),
        (FILE.replace("metadata: {name: policy}", "metadata: {}"), "metadata.name must be set"),
        (FILE.replace("llama-3.1-8b-rtx4090", "abacus"), "'abacus' is none of"),
        (FILE.replace("{type: LeastInFlight}", "{type: LeastInFlight, wishes: 3}"), "wishes"),
        (TRIAL, "exactly one RoutingPolicy 'next', it holds 0"),
        (TRIAL + NEXT.replace("RoundRobin", "LeastInFlight"), "a policy that is the same as policyRef's"),
        (TRIAL.replace("Canary", "Canary, percent: 101") + NEXT, "percent"),
        (
            TRIAL + NEXT.replace("RoundRobin", f"Onnx, model: {{configMap: {{name: m}}, sha256: {'a' * 64}}}"),
            "RoutingPolicy next: model.configMap needs Kubernetes",
        ),
    ],
)
def test_a_bad_file_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(InvalidConfigError, match=message) as refusal:
        compile_file(text)
    assert "\n" not in str(refusal.value)


def test_a_file_may_have_a_candidate() -> None:
    config = compile_file(TRIAL + NEXT)
    assert config.candidate is not None
    assert (config.policy.name, config.candidate.policy.name, config.candidate.mode) == ("policy", "next", "Canary")
    assert config.trial


async def test_a_file_is_followed_and_a_broken_version_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text(FILE)
    got: list[ConfigBundle] = []
    refused: list[InvalidConfigError] = []

    async def follow() -> None:
        async for bundle in FileSource(path).bundles(refused.append):
            got.append(bundle)  # noqa: PERF401 - seen while it is followed

    task = asyncio.create_task(follow())
    await until(lambda: len(got) == 1)
    path.write_text("a: [")
    await until(lambda: len(refused) == 1)
    path.write_text(FILE)
    await until(lambda: len(got) == 2)
    path.unlink()
    await until(lambda: len(refused) == 2)
    path.write_text(FILE.replace("LeastInFlight", "Random"))
    await until(lambda: len(got) == 3)
    assert got[0] == got[1] != got[2]
    assert len(refused) == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigError, match=r"nowhere\.yaml"):
        FileSource(tmp_path / "nowhere.yaml").read()


def test_five_late_answers_in_a_row_rest_a_model() -> None:
    clock = FakeClock()
    lateness = Lateness(budget_s=0.1, clock=clock)
    assert not lateness.note(0.1)
    for _ in range(LATE_IN_A_ROW - 1):
        assert lateness.note(0.2)
    assert not lateness.resting
    lateness.note(0.0)
    for _ in range(LATE_IN_A_ROW):
        lateness.note(0.2)
    assert lateness.resting
    clock.now_s += REST_S
    assert not lateness.resting


async def test_a_step_that_fails_after_its_caller_left_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    unbroken = Unbroken()
    gate = asyncio.Event()

    async def step() -> None:
        await gate.wait()
        raise ValueError("late failure")

    caller = asyncio.create_task(unbroken.run(step()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    gate.set()
    with caplog.at_level(logging.ERROR):
        await unbroken.settled()
    assert "late failure" in caplog.text


COMPLETE = {
    "POD_NAME": "r1",
    "LLMROUTER_NAMESPACE": "ns",
    "LLMROUTER_CONFIG_MAP": "c",
    "LLMROUTER_ACKNOWLEDGEMENTS_CONFIG_MAP": "a",
}


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_a_missing_variable_is_one_line_and_status_2(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value in COMPLETE.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv(name)
    handlers = logging.getLogger().handlers[:]
    try:
        assert main() == 2
    finally:
        logging.getLogger().handlers[:] = handlers
    assert capsys.readouterr().err == f"router_grpc: {name}: must be set in the environment\n"


def test_the_environment_says_ports_and_the_ledgers_namespace() -> None:
    assert settings_from(COMPLETE).ledger_namespace == "ns/c"
    assert settings_from({**COMPLETE, "LLMROUTER_GRPC_PORT": "7"}).grpc_port == 7
    for port in ("x", "0", "65536"):
        with pytest.raises(InvalidConfigError, match="LLMROUTER_GRPC_PORT"):
            settings_from({**COMPLETE, "LLMROUTER_GRPC_PORT": port})
    with pytest.raises(InvalidConfigError, match="LLMROUTER_EXT_PROC_TRANSPORT: 'fast'"):
        settings_from({**COMPLETE, "LLMROUTER_EXT_PROC_TRANSPORT": "fast"})


def test_metrics_have_the_products_prefix() -> None:
    registry = CollectorRegistry()
    RouterMetrics(registry)
    assert all(family.name.startswith("llmrouter_") for family in registry.collect())


async def test_a_task_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if swallowed.is_set():
                    raise
                swallowed.set()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end_tasks([task])
    assert swallowed.is_set()
    assert task.cancelled()


def test_a_step_that_waits_for_nothing_is_run_at_once_and_one_that_waits_is_refused() -> None:
    async def answer() -> int:
        return 7

    async def wait() -> None:
        await asyncio.sleep(0)

    assert at_once(answer()) == 7
    with pytest.raises(RuntimeError, match="does wait"):
        at_once(wait())
