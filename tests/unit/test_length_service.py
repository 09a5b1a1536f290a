"""Lengths foretold beside the event loop: batches, failures of a model, lateness, hostile prompts and usage."""

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from support.router_world import FakeClock

from llmrouter.lengths.distribution import LEVELS, LengthDistribution, lengths_of
from llmrouter.lengths.predictor import LengthRequest, limits
from llmrouter.lengths.prompt_tokens import PromptTokens
from llmrouter.lengths.served import ServedLengths
from llmrouter.metrics import RouterMetrics
from llmrouter.routing.lateness import LATE_IN_A_ROW, REST_S
from router_grpc.adapters.tokenizers import TokenizedPrompts
from router_grpc.excerpts import MAX_READ_BYTES
from router_grpc.length_service import (
    AT_ONCE_BYTES,
    LEARNED,
    MODEL_BUDGET_S,
    QUICK_IN_A_ROW,
    QUICK_S,
    Foretold,
    LengthPlan,
    LengthService,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from llmrouter.lengths.distribution import Lengths

LONG_S = 20.0
WINDOW = "window of a prompt"


class Scripted:
    """A model whose median is the prompt's length in characters; it fails, dallies or waits as it is told."""

    name = "scripted"
    digest = "d"
    provider = "cpu"
    reads_prompts = True

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.takes_s = 0.0
        self.error: Exception | None = None
        self.nan = False
        self.gate = threading.Event()
        self.gate.set()
        self.seen: list[LengthRequest] = []
        self.threads: list[str] = []

    def laws(self, requests: Sequence[LengthRequest]) -> Lengths:
        assert self.gate.wait(LONG_S)
        self.threads.append(threading.current_thread().name)
        self.seen += requests
        self.clock.now_s += self.takes_s
        if self.error is not None:
            raise self.error
        size_N = np.array([np.nan if self.nan else max(1.0, len(one.prompt or "")) for one in requests])
        return lengths_of(
            size_N[:, None] * np.linspace(0.5, 1.5, len(LEVELS)),
            source=self.name,
            limit_N=limits(requests),
            digest=self.digest,
        )


class Served:
    """A service with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.clock = FakeClock()
        self.model = Scripted(self.clock)
        self.learner = ServedLengths()
        metrics = RouterMetrics(self.registry)
        self.service = LengthService(
            self.learner,
            TokenizedPrompts(PromptTokens()),
            clock=self.clock,
            metrics=metrics,
            busy=self.clock,
        )
        self.service.use(LengthPlan(model=self.model, deadline_s=LONG_S))

    async def foretell(self, prompt: bytes | None = b"Say yes.", **fields: object) -> Foretold:
        return await self.service.foretell(LengthRequest(**{"model": "m", **fields}), prompt)  # type: ignore[arg-type]

    flat = LengthDistribution((9.0,) * len(LEVELS), 9.0, 9.0, "flat")

    async def finish(self, foretold: Foretold, output_tokens: int, prompt_tokens: int | None = None) -> None:
        self.service.finished(foretold, output_tokens=output_tokens, prompt_tokens=prompt_tokens)
        await self.settled()

    async def settled(self) -> None:
        """Everything that was to be learned is."""
        await self.service.settled()

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"llmrouter_{name}", labels) or 0.0


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    made.service.start()
    yield made
    made.model.gate.set()
    await made.service.close()


async def test_a_prompt_is_read_by_the_model_and_its_tokens_are_counted(served: Served) -> None:
    short, long = await served.foretell(b"Hi."), await served.foretell(b"word " * 100)
    assert short.law.source.startswith("scripted+")
    assert short.law.expected_tokens < long.law.expected_tokens
    assert short.prompt_tokens < long.prompt_tokens
    assert (await served.foretell(prompt_tokens=7)).prompt_tokens == 7


async def test_without_a_prompt_the_text_model_is_not_asked(served: Served) -> None:
    foretold = await served.foretell(None, prompt_tokens=5)
    assert served.model.seen == []
    assert foretold.law.source.startswith("application-quantiles")


async def test_the_request_that_is_kept_has_no_text(served: Served) -> None:
    prompt = WINDOW.encode()
    foretold = await served.foretell(prompt)
    served.model.seen.clear()
    await served.settled()
    assert WINDOW not in repr(foretold)
    gc.collect()
    kept = [one for one in gc.get_objects() if isinstance(one, LengthRequest) and one.prompt]
    assert not [one for one in kept if WINDOW in (one.prompt or "")]


async def test_the_limit_of_the_request_bounds_its_law(served: Served) -> None:
    foretold = await served.foretell(b"word " * 100, max_output_tokens=9)
    assert foretold.law.expected_tokens <= 9
    assert max(foretold.law.quantiles) <= 9


@pytest.mark.parametrize(
    ("reason", "error", "nan"), [("Error", RuntimeError("boom"), False), ("NotFinite", None, True)]
)
async def test_where_the_model_fails_the_quantiles_answer(
    served: Served, reason: str, error: Exception | None, *, nan: bool
) -> None:
    served.model.error, served.model.nan = error, nan
    assert (await served.foretell()).law.source.startswith("application-quantiles")
    assert served.count("length_fallbacks_total", reason=reason) == 1
    served.model.error, served.model.nan = None, False
    assert (await served.foretell()).law.source.startswith("scripted+")


async def test_a_model_that_is_too_slow_rests_and_comes_back(served: Served) -> None:
    served.model.takes_s = 2 * MODEL_BUDGET_S
    for _ in range(LATE_IN_A_ROW):
        await served.foretell()
    assert served.service.resting
    assert (await served.foretell()).law.source.startswith("application-quantiles")
    assert served.count("length_fallbacks_total", reason="Resting") == 1
    assert len(served.model.seen) == LATE_IN_A_ROW
    served.model.takes_s = 0.0
    served.clock.now_s += REST_S
    assert not served.service.resting
    assert (await served.foretell()).law.source.startswith("scripted+")


async def trusted(served: Served) -> None:
    """The model has shown to be quick: it runs on the event loop."""
    for _ in range(QUICK_IN_A_ROW):
        await served.foretell()


async def test_what_comes_in_one_turn_of_the_loop_is_foretold_there_together(served: Served) -> None:
    await trusted(served)
    served.model.threads.clear()
    prompts = [b"word " * (n + 1) for n in range(5)]
    together = await asyncio.gather(*map(served.foretell, prompts))
    assert served.model.threads == [threading.main_thread().name]
    alone = [await served.foretell(prompt) for prompt in prompts]
    assert [one.law.expected_tokens for one in together] == pytest.approx([one.law.expected_tokens for one in alone])
    assert len({one.law.expected_tokens for one in together}) == len(prompts)


async def test_long_prompts_and_a_model_that_was_slow_once_leave_the_loop_alone(served: Served) -> None:
    await trusted(served)
    served.model.threads.clear()
    await served.foretell(b"word " * AT_ONCE_BYTES)
    served.model.takes_s = 2 * QUICK_S
    for _ in range(3):
        await served.foretell()
    served.service.use(LengthPlan(model=Scripted(served.clock), deadline_s=LONG_S))
    loop = threading.main_thread().name
    assert [one == loop for one in served.model.threads] == [False, True, False, False]


async def test_a_request_beyond_what_foretelling_may_take_is_not_kept_waiting(served: Served) -> None:
    await trusted(served)
    served.model.takes_s = QUICK_S
    sources = [(await served.foretell()).law.source for _ in range(30)]
    assert served.count("length_fallbacks_total", reason="Busy") == sources.count("constant") > 10
    served.clock.now_s += 1.0
    assert (await served.foretell()).law.source.startswith("scripted+")


async def test_a_failure_on_the_loop_is_an_error_of_that_turn_alone(served: Served) -> None:
    await trusted(served)
    working = served.learner.predict
    served.learner.predict = failing  # type: ignore[method-assign, assignment]
    assert (await served.foretell()).law.source == "constant"
    assert served.count("length_fallbacks_total", reason="Error") == 1
    served.learner.predict = working  # type: ignore[method-assign]
    assert (await served.foretell()).law.source.startswith("scripted+")


def failing(_requests: Sequence[LengthRequest]) -> list[LengthDistribution]:
    raise ValueError("no law")


async def test_late_means_the_applications_quantiles_and_the_constant_where_there_are_none(served: Served) -> None:
    served.model.takes_s = 2 * QUICK_S
    for _ in range(30):
        await served.finish(await served.foretell(application="chat"), 40)
    served.model.gate.clear()
    served.service.use(LengthPlan(model=served.model, deadline_s=0.0, constant_tokens=99))
    known = await served.foretell(b"x" * 400, application="chat", max_output_tokens=1_000)
    stranger = await served.foretell(application="mail", model="another")
    assert known.law.source.startswith("application-quantiles")
    assert known.law.expected_tokens == pytest.approx(40, rel=0.3)
    assert known.prompt_tokens == 30
    assert (stranger.law.source, stranger.law.expected_tokens) == ("constant", 99)
    assert served.count("length_fallbacks_total", reason="Late") == 2


async def test_the_constant_alone_needs_no_model_and_learns_nothing(served: Served) -> None:
    served.service.use(LengthPlan(learns=False, constant_tokens=300))
    foretold = await served.foretell(prompt_tokens=3, max_output_tokens=200)
    assert (foretold.law.source, foretold.law.expected_tokens) == ("constant", 200)
    await served.finish(foretold, 20)
    assert served.learner.quantiles.groups == 0
    assert (await served.foretell(b"four words are here")).prompt_tokens > 2


async def test_answers_are_learned_and_lies_are_not(served: Served) -> None:
    foretold = await served.foretell(application="chat")
    for lie in (0, -5, 10**9):
        await served.finish(foretold, lie)
    assert served.learner.quantiles.groups == 0
    assert served.count("length_usage_refused_total", reason="NotPositive") == 2
    assert served.count("length_usage_refused_total", reason="TooLarge") == 1
    before = foretold.law.expected_tokens
    for _ in range(50):
        await served.finish(foretold, 900)
    assert (await served.foretell(application="chat")).law.expected_tokens > before


async def test_a_lie_beyond_the_requests_own_limit_is_refused(served: Served) -> None:
    await served.finish(await served.foretell(max_output_tokens=10), 11)
    assert served.count("length_usage_refused_total", reason="BeyondLimit") == 1


async def test_prompt_tokens_are_learned_from_what_engines_count(served: Served) -> None:
    prompt = "Zusammenfassung der Lage in kurzen Worten. " * 20
    first = await served.foretell(prompt.encode())
    for _ in range(40):
        await served.finish(await served.foretell(prompt.encode()), 10, prompt_tokens=400)
    later = await served.foretell(prompt.encode())
    assert abs(later.prompt_tokens - 400) < abs(first.prompt_tokens - 400)
    assert later.prompt_tokens == pytest.approx(400, rel=0.02)
    assert served.count("prompt_tokens_error_fraction_count") == 40


@pytest.mark.parametrize(
    "prompt",
    [b"", b"\x00\xff\xfe" * 1_000, bytes(range(256)) * 64, "\U0001f600".encode() * 5_000, b"ab " * 3_500_000],
    ids=["empty", "binary", "all bytes", "emoji", "10 MB"],
)
async def test_strange_prompts_are_foretold(served: Served, prompt: bytes) -> None:
    foretold = await served.foretell(prompt)
    assert foretold.law.expected_tokens >= 1
    assert 1 <= foretold.prompt_tokens <= max(1, 4 * len(prompt))
    assert all(len(one.prompt or "") <= MAX_READ_BYTES for one in served.model.seen)


async def test_tokens_of_a_long_prompt_are_those_of_all_of_it(served: Served) -> None:
    part, whole = await served.foretell(b"word " * 10_000), await served.foretell(b"word " * 1_000_000)
    assert whole.prompt_tokens == pytest.approx(100 * part.prompt_tokens, rel=0.05)


async def test_learning_that_falls_behind_is_dropped_and_counted(served: Served) -> None:
    foretold = await served.foretell()
    served.model.gate.clear()
    waiting = asyncio.create_task(served.foretell())
    await asyncio.sleep(0)
    for _ in range(2_000):
        served.service.finished(foretold, output_tokens=5, prompt_tokens=None)
    assert served.count("length_learning_dropped_total") == 2_000 - LEARNED.burst
    served.model.gate.set()
    assert (await waiting).law.source == foretold.law.source


async def test_predictions_that_order_badly_are_said_so_until_they_order_well(served: Served) -> None:
    assert served.service.watch.orders_well
    rng = np.random.default_rng(1)

    async def finish(count: int, *, ordered: bool) -> None:
        for length in rng.integers(1, 900, count).tolist():
            rank = float(length if ordered else rng.integers(1, 900))
            law = replace(served.flat, own_rank=rank)
            foretold = Foretold(LengthRequest(prompt_tokens=9, model="m"), law)
            served.service.finished(foretold, output_tokens=length, prompt_tokens=None)
        await served.settled()

    await finish(100, ordered=False)
    assert not served.service.watch.orders_well
    await finish(256, ordered=True)
    assert served.service.watch.orders_well


async def test_exploration_ranks_strangers_sooner(served: Served) -> None:
    for _ in range(40):
        await served.finish(await served.foretell(None, application="chat", prompt_tokens=9), 300)
    plain = await served.foretell(None, application="stranger", prompt_tokens=9)
    served.service.use(LengthPlan(exploration=2.0, deadline_s=LONG_S))
    explored = await served.foretell(None, application="stranger", prompt_tokens=9)
    known = await served.foretell(None, application="chat", prompt_tokens=9)
    assert explored.law.quantiles == plain.law.quantiles
    assert explored.law.rank < 0.5 * plain.law.rank
    assert explored.law.rank < known.law.rank


async def test_a_model_that_is_far_off_is_held_to_what_answers_of_the_application_have(served: Served) -> None:
    """Answers of 40 to 60 tokens, a model that says thousands of the next: it is believed up to p99, and counted."""
    before = await served.foretell(b"x" * 9_000, application="chat")
    assert before.law.expected_tokens > 500
    for n in range(60):
        await served.finish(await served.foretell(b"x" * (40 + n % 21), application="chat"), 40 + n % 21)
    assert served.count("length_clipped_total") == 0
    far = await served.foretell(b"x" * 9_000, application="chat")
    assert 40 < far.law.expected_tokens < 100
    assert served.count("length_clipped_total") == 1
    near = await served.foretell(b"x" * 50, application="chat")
    assert 40 < near.law.expected_tokens < 60
    await served.foretell(b"x" * 9_000, application="unheard of")
    assert served.count("length_clipped_total") == 1


async def test_the_limit_of_a_request_stands_above_the_range_of_its_class(served: Served) -> None:
    for n in range(60):
        await served.finish(await served.foretell(b"x" * (400 + n), application="chat"), 400 + n)
    assert (await served.foretell(b"x" * 9_000, application="chat", max_output_tokens=9)).law.expected_tokens <= 9


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
async def test_learning_goes_on_after_a_jump_of_the_clock(served: Served, jump_s: float) -> None:
    served.clock.now_s += jump_s
    for _ in range(3):
        await served.finish(await served.foretell(application="chat"), 9)
    assert served.count("length_learning_dropped_total") == 0
    assert served.service.groups > 0
