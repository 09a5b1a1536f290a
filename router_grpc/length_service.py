"""Foretells how long answers will be, and learns from those that came, within a deadline.

A short prompt is foretold on the event loop, all that came with one read of a connection or in one turn of the loop
together, once the model has shown to be quick: to hand it to a thread and back costs more than a batch does, and both
share the interpreter's lock. What would keep the loop goes to the thread: long prompts, tokenizers, models that are
not quick, and what other routers learned. While the loop is behind, foretelling gets less of its time, and who gets
none is answered from its application's last law. Answers are learned one by one, between the loop's other work.

Of a prompt, no more than ``excerpts.MAX_READ_BYTES`` are looked at, and nothing is kept once its length is foretold:
what is kept with an open request are numbers and labels.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from llmrouter.lengths.artefact import rows_of
from llmrouter.lengths.class_range import ENOUGH_ANSWERS, within_class
from llmrouter.lengths.distribution import NotFiniteLengthsError
from llmrouter.lengths.drift import DriftWatch
from llmrouter.lengths.predictor import Batch, LengthRequest, label, refusal
from llmrouter.lengths.served import REMEMBERED, certain
from llmrouter.lengths.text import text_features
from llmrouter.quick import changed, quick
from llmrouter.routing.lateness import Lateness
from router_grpc.excerpts import excerpt
from router_grpc.length_allowance import Allowance
from router_grpc.length_watch import LengthWatch
from router_grpc.rates import Meter, Rate
from router_grpc.turns import Turns
from router_grpc.worker import BatchWorker, NotInTimeError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.prompt_tokens import CountedPrompt
    from llmrouter.lengths.served import ServedLengths
    from llmrouter.lengths.sketches import Counts
    from llmrouter.lengths.text import TextFeatures
    from llmrouter.metrics import RouterMetrics
    from router_grpc.adapters.tokenizers import TokenCounter, TokenizedPrompts
    from router_grpc.excerpts import Excerpt
    from router_grpc.ports import LengthModel

AT_ONCE_BYTES = 8 * 1024
"""A prompt up to so long is read on the event loop."""

AT_ONCE_REQUESTS = 32
"""So many are foretold together on the event loop before others have a turn."""

QUICK_S, QUICK_IN_A_ROW = 0.01, 20
"""A model that took no longer for what is foretold in one turn, so many times in a row, runs on the event loop."""

T = TypeVar("T")

MODEL_BUDGET_S = 0.05
"""A model that needs longer for a batch, several times in a row, rests for a while."""

CONSTANT = "constant"

LEARN_EVERY_S, MAX_TO_LEARN = 0.02, 4_096
"""Answers are learned one by one, with time for others between; so many may wait for it."""

LEARNED = Rate(burst=1_000.0, per_s=20.0)
"""Answers that are learned from, at most: laws need no more, and learning takes time from foretelling."""

_NO_TIME_BYTES_PER_TOKEN = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LengthPlan:
    """What the configuration says: a model or none, and the constant where nothing is known.

    ``learns`` is false where the constant is all that is asked for. ``counters`` count prompt tokens of models whose
    tokenizer could be read.
    """

    model: LengthModel | None = None
    learns: bool = True
    constant_tokens: float = 256.0
    deadline_s: float = 0.002
    exploration: float = 0.0
    counters: Mapping[str, TokenCounter] = field(default_factory=dict)


@quick
@dataclass(frozen=True, slots=True)
class Foretold:
    """What was foretold of a request, and what has to be kept to learn from its answer: no text.

    ``counted`` is there where the router counted the prompt's tokens.
    """

    request: LengthRequest
    law: LengthDistribution
    counted: CountedPrompt | None = None

    @property
    def prompt_tokens(self) -> int:
        """The client's count, or the router's."""
        return self.request.prompt_tokens or 1


@quick
@dataclass(frozen=True, slots=True)
class _Asked:
    """``counted`` is there where the prompt's tokens are counted already: ``request`` has both then."""

    request: LengthRequest
    prompt: Excerpt | None
    plan: LengthPlan
    counted: CountedPrompt | None = None


@quick
@dataclass(frozen=True, slots=True)
class _Waiting:
    """What is to be foretold of a prompt of so many bytes, asked for at ``since_s``, and who is told."""

    asked: _Asked
    prompt_bytes: int
    since_s: float
    told: Callable[[Foretold], None]


class LengthService:
    """The laws of all requests of one router. Methods belong to the event loop, the learner to who holds the lock.

    Args:
        learner: learns online; nobody else may touch it.
        tokens: counts prompt tokens.
        clock: seconds, never going back.
        metrics: of the router.
        busy: seconds that the thread which asks has computed: says how quick a model is, however busy the machine.

    ``watch`` is told of every answer that is learned, on the thread that learns it.
    """

    def __init__(
        self,
        learner: ServedLengths,
        tokens: TokenizedPrompts,
        *,
        clock: Callable[[], float],
        metrics: RouterMetrics,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        self._learner = learner
        self._tokens = tokens
        self._clock = clock
        self._metrics = metrics.lengths
        self.watch = LengthWatch(metrics, DriftWatch())
        self._plan = LengthPlan()
        self._learned = Meter(LEARNED, clock())
        self._answers: dict[str, int] = {}
        self._lateness = Lateness(budget_s=MODEL_BUDGET_S, clock=clock)
        self._worker: BatchWorker[_Asked, Foretold] = BatchWorker(self._answer_alone, name="lengths")
        self._lock = threading.Lock()
        self._busy = busy
        self._quick = 0
        self._time = Allowance(clock)
        self._to_learn: deque[Callable[[], None]] = deque()
        self._turns = Turns(self._answer_turn, self._came_round, most=AT_ONCE_REQUESTS, clock=clock)

    @property
    def resting(self) -> bool:
        """Whether the model rests now because it was too slow."""
        return self._plan.model is not None and self._lateness.resting

    @property
    def groups(self) -> int:
        """Groups of requests whose lengths are told apart."""
        return self._learner.quantiles.groups

    def start(self) -> None:
        """Starts the thread; must run on the event loop."""
        self._worker.start()

    async def close(self) -> None:
        """Ends the thread; answers that were not learned yet are not."""
        self._to_learn.clear()
        await self._worker.close()

    def use(self, plan: LengthPlan) -> None:
        """Puts a plan in force for requests from now on."""
        if plan.model is not self._plan.model:
            self._quick = 0
        self._plan = plan
        self._tokens.use(plan.counters)

    async def foretell(self, request: LengthRequest, prompt: bytes | None) -> Foretold:
        """The law of a request's answer, and its prompt's tokens where the client did not count them; never raises.

        Where there is no time, the last law of the request's application answers; where there is none, the constant.

        Args:
            request: without its prompt; ``prompt_tokens`` is ``None`` where they are to be counted.
            prompt: UTF-8, or nearly.
        """
        told: asyncio.Future[Foretold] = asyncio.get_running_loop().create_future()
        self.ask(request, prompt, partial(_tell, told))
        return await told

    def ask(self, request: LengthRequest, prompt: bytes | None, told: Callable[[Foretold], None]) -> None:
        """As ``foretell``; ``told`` gets the answer: before this returns, in this turn of the loop, or from the thread.

        It must not raise.
        """
        plan, since_s = self._plan, self._clock()
        asked = self._asked(request, prompt, plan)
        waiting = _Waiting(asked, 0 if prompt is None else len(prompt), since_s, told)
        if not plan.learns and asked.request.prompt_tokens is not None:
            law = certain(plan.constant_tokens, asked.request, source=CONSTANT)
            self._tell(waiting, Foretold(_kept(asked.request), law, asked.counted))
        elif asked.prompt is not None or self._quick < QUICK_IN_A_ROW:
            self._hand_over(waiting)
        elif not self._time.is_left():
            self._tell_known(waiting, "Busy")
        else:
            self._turns.wait(waiting)

    def take_turn(self) -> None:
        """Foretells what waits for this turn of the loop now: to be called once all of a read has asked."""
        self._turns.take()

    def finished(self, foretold: Foretold, *, output_tokens: int, prompt_tokens: int | None) -> None:
        """Has the answer's length learned, soon; ``prompt_tokens`` is what the engine counted."""
        learn = self._learn if self._plan.learns else self._watch_alone
        step = partial(learn, foretold, output_tokens=output_tokens, prompt_tokens=prompt_tokens)
        if len(self._to_learn) >= MAX_TO_LEARN or not self._learned.allows(self._clock()):
            self._metrics.learning_dropped.inc()
            return
        self._to_learn.append(step)
        if len(self._to_learn) == 1:
            self._learn_later()

    async def delta(self) -> tuple[Counts, Counts]:
        """What was learned here since the last call: see ``LengthLearner``."""
        return await self._worker.run(partial(self._locked, self._learner.quantiles.delta))

    async def merge(self, counts: Sequence[tuple[Counts, Counts]]) -> None:
        """Adds what others learned; raises InvalidInputError as ``OnlineQuantiles.merge`` does."""
        for one in counts:
            await self._worker.run(partial(self._locked, partial(self._learner.quantiles.merge, one)))

    async def counts(self) -> tuple[Counts, Counts]:
        """All that is known, merged or learned."""
        return await self._worker.run(partial(self._locked, self._learner.quantiles.counts))

    async def settled(self) -> None:
        """Learns everything that has finished."""
        while self._to_learn:
            self._locked(self._to_learn.popleft())

    def _learn_later(self) -> None:
        asyncio.get_running_loop().call_later(LEARN_EVERY_S, self._learn_next)

    def _learn_next(self) -> None:
        """Learns one answer, unless the thread has the lock or there is no time; then goes on with the others."""
        if self._to_learn and self._time.is_left() and self._lock.acquire(blocking=False):
            started_s = self._clock()
            try:
                self._to_learn.popleft()()
            except Exception:  # noqa: BLE001 - nobody waits for it; what is served goes on, the log says what failed
                _log.exception("learning a length failed")
            finally:
                self._lock.release()
                self._time.took(self._clock() - started_s, late=False)
        if self._to_learn:
            self._learn_later()

    def _locked(self, step: Callable[[], T]) -> T:
        """A step that has the learner to itself."""
        with self._lock:
            return step()

    def _asked(self, request: LengthRequest, prompt: bytes | None, plan: LengthPlan) -> _Asked:
        """The request with the text of a short prompt and, where no tokenizer has to count it, its tokens."""
        if prompt is None:
            return _Asked(request, None, plan)
        if len(prompt) > AT_ONCE_BYTES or request.model in plan.counters:
            return _Asked(request, excerpt(prompt), plan)
        text = prompt.decode("utf-8", "replace")
        if request.prompt_tokens is not None:
            return _Asked(changed(request, prompt=text), None, plan)
        counted = self._tokens.count(text, request.model)
        return _Asked(changed(request, prompt=text, prompt_tokens=counted.tokens), None, plan, counted)

    def _came_round(self, took_s: float, besides_s: float) -> None:
        """Late is a turn where the loop's other work takes it longer than the deadline."""
        if took_s:
            self._time.took(took_s, late=besides_s > self._plan.deadline_s)

    def _answer_turn(self, turn: list[_Waiting]) -> float:
        """On the loop; through the thread where that has the lock. Returns the seconds that it took."""
        if not self._lock.acquire(blocking=False):
            for one in turn:
                self._hand_over(one)
            return 0.0
        started_s = self._clock()
        found: list[Foretold] | None = None
        try:
            found = self._answer([one.asked for one in turn])
        except Exception:  # noqa: BLE001 - whatever fails, requests are routed; counted as an Error, and logged
            _log.exception("foretelling lengths failed")
        finally:
            self._lock.release()
        took_s = self._clock() - started_s
        for place, one in enumerate(turn):
            if found is None:
                self._tell_known(one, "Error")
            else:
                self._tell(one, found[place])
        return took_s

    def _hand_over(self, waiting: _Waiting) -> None:
        """Has the thread answer."""
        answered: asyncio.Future[Foretold] = asyncio.get_running_loop().create_future()
        answered.add_done_callback(partial(self._answered, waiting))
        self._worker.hand_over(waiting.asked, answered, deadline_s=waiting.asked.plan.deadline_s)

    def _answered(self, waiting: _Waiting, answered: asyncio.Future[Foretold]) -> None:
        try:
            foretold = answered.result()
        except NotInTimeError as error:
            self._tell_known(waiting, error.reason)
        else:
            self._tell(waiting, foretold)

    def _tell(self, waiting: _Waiting, foretold: Foretold) -> None:
        self._metrics.prediction_seconds.observe(self._clock() - waiting.since_s)
        self._metrics.predictions.labels(foretold.law.source).inc()
        waiting.told(foretold)

    def _tell_known(self, waiting: _Waiting, reason: str) -> None:
        """Answers with what was known before, for want of time."""
        self._metrics.fallbacks.labels(reason).inc()
        self._tell(waiting, self._at_once(waiting.asked, waiting.prompt_bytes))

    def _at_once(self, asked: _Asked, prompt_bytes: int) -> Foretold:
        """An answer that needs neither model nor thread."""
        request, plan = _kept(asked.request), asked.plan
        if request.prompt_tokens is None:
            tokens = max(1, prompt_bytes // _NO_TIME_BYTES_PER_TOKEN)
            request = changed(request, prompt_tokens=tokens)
        known = self._learner.of_application(request) if plan.learns else None
        return Foretold(request, known or certain(plan.constant_tokens, request, source=CONSTANT), asked.counted)

    def _answer_alone(self, batch: Sequence[_Asked]) -> list[Foretold]:
        """On the worker's thread."""
        with self._lock:
            return self._answer(batch)

    def _answer(self, batch: Sequence[_Asked]) -> list[Foretold]:
        """Tokens of prompts, the model's laws where one reads them, then what is served."""
        started_s = self._busy()
        self._metrics.batch_requests.observe(len(batch))
        read = [self._read(one) for one in batch]
        plan = batch[-1].plan
        kept = self._asked_of_model([request for request, _ in read], plan)
        if plan.learns:
            self._learner.explore(plan.exploration)
            laws = [self._within_class(*one) for one in zip(kept, self._learner.predict(kept), strict=True)]
        else:
            laws = [certain(plan.constant_tokens, request, source=CONSTANT) for request in kept]
        counted = [counted for _, counted in read]
        turns = -(-len(batch) // AT_ONCE_REQUESTS)
        self._quick = self._quick + 1 if self._busy() - started_s <= QUICK_S * turns else 0
        return [Foretold(*one) for one in zip(kept, laws, counted, strict=True)]

    def _within_class(self, request: LengthRequest, law: LengthDistribution) -> LengthDistribution:
        """A model's law, its expected tokens within what answers of the application have."""
        if request.given is None or self._answers.get(label(request.application), 0) < ENOUGH_ANSWERS:
            return law
        of_class = self._learner.of_class(request)
        believed = law if of_class is None else within_class(law, of_class)
        if believed is not law:
            self._metrics.clipped.inc()
        return believed

    def _note_answer(self, request: LengthRequest) -> None:
        application = label(request.application)
        if application in self._answers or len(self._answers) < REMEMBERED:
            self._answers[application] = self._answers.get(application, 0) + 1

    def _read(self, asked: _Asked) -> tuple[LengthRequest, CountedPrompt | None]:
        """The request with its prompt as text and the prompt's tokens, and how these were counted."""
        if asked.prompt is None:
            return asked.request, asked.counted
        text = asked.prompt.text
        if asked.request.prompt_tokens is not None:
            return changed(asked.request, prompt=text), None
        counted = self._tokens.count(text, asked.request.model, share=asked.prompt.share)
        return changed(asked.request, prompt=text, prompt_tokens=counted.tokens), counted

    def _asked_of_model(self, requests: list[LengthRequest], plan: LengthPlan) -> Sequence[LengthRequest]:
        """The requests without prompts; each that the model answers with its law and the features of its text."""
        model = plan.model
        if model is None:
            return [_kept(one) for one in requests]
        self._learner.use(model.name, model.digest)
        rows = [row for row, one in enumerate(requests) if one.prompt is not None or not model.reads_prompts]
        answered = self._laws_of(model, [requests[row] for row in rows]) if rows else None
        if answered is None or len(rows) == len(requests):
            return answered or [_kept(one) for one in requests]
        kept = [_kept(one) for one in requests]
        for row, one in zip(rows, answered, strict=True):
            kept[row] = one
        return kept

    def _laws_of(self, model: LengthModel, requests: list[LengthRequest]) -> Batch | None:
        """The requests with what the model says of them; ``None`` where it says nothing."""
        if self._lateness.resting:
            self._metrics.fallbacks.labels("Resting").inc(len(requests))
            return None
        started_s = self._clock()
        features = text_features(requests)
        try:
            laws = model.laws(Batch(requests, features=features))
        except NotFiniteLengthsError:
            self._metrics.fallbacks.labels("NotFinite").inc(len(requests))
            return None
        except Exception:  # noqa: BLE001 - whatever a model does, requests are routed; counted and logged
            self._metrics.fallbacks.labels("Error").inc(len(requests))
            _log.exception("the length model failed")
            return None
        if self._lateness.note(self._clock() - started_s):
            self._metrics.fallbacks.labels("Slow").inc()
        read = zip(requests, laws.rows(), rows_of(features), strict=True)
        return Batch([_read(*one) for one in read], features=features, laws=laws)

    def _watch_alone(self, foretold: Foretold, *, output_tokens: int, prompt_tokens: int | None) -> None:
        """Where nothing is learned."""
        del prompt_tokens
        request = foretold.request
        self.watch.finished(request, foretold.law, output_tokens, refusal(request, output_tokens))

    def _learn(self, foretold: Foretold, *, output_tokens: int, prompt_tokens: int | None) -> None:
        request = foretold.request
        refused = self._learner.learn(request, output_tokens)
        if refused is None:
            self._note_answer(request)
        self.watch.finished(request, foretold.law, output_tokens, refused)
        if prompt_tokens is None or foretold.counted is None:
            return
        if self._tokens.learn_from(foretold.counted, prompt_tokens) is None:
            error = abs(foretold.prompt_tokens - prompt_tokens) / prompt_tokens
            self._metrics.prompt_tokens_error_fraction.observe(error)


def _tell(told: asyncio.Future[Foretold], foretold: Foretold) -> None:
    if not told.done():
        told.set_result(foretold)


def _kept(request: LengthRequest) -> LengthRequest:
    """The request without its prompt."""
    return request if request.prompt is None else changed(request, prompt=None)


def _read(request: LengthRequest, given: LengthDistribution, features: TextFeatures) -> LengthRequest:
    """The request with a model's law and the features of its text in place of its prompt."""
    return LengthRequest(
        None,
        request.prompt_tokens,
        request.application,
        request.model,
        request.max_output_tokens,
        request.temperature,
        request.tools,
        request.stop,
        request.turn,
        request.thinking,
        given,
        features,
    )
