"""Observations of step times from what a router sees: reports of its own requests, and the loads of the ledger.

Of a request that got k tokens between two reports, on an instance that meanwhile had on average B sequences decoding
with C context tokens, and that computed P prompt tokens of others in m prefill steps::

    seconds = k·(b + g2·C + g3·B) + g1·P                       an engine that mixes prompts into its decode steps
    seconds = k·(b + g2·C + g3·B) + g1·P + m·b_p               an engine that runs prompts by themselves

A request that met an idle instance tells of prefill alone: its first token comes after ``b_p + g1·p`` (and what the way
takes, which is not known apart). Requests that waited behind others are not used so: what they waited for is not known.
One whose prompt another instance computes tells of its decoding alone, from its first token on.

B is the ledger's requests less those without a first token, C the ledger's context less their prompts. Prompts of this
router's own requests count when their first token is reported; those of other routers by how much the queued prompt
tokens of the ledger fell from one refresh to the next, which misses what was queued in the same tenth of a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain import EngineMode
from llmrouter.routing.calibration import Observation

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain import EngineProfile, Instance, InstanceView

LEAST_S = 1.0
"""An interval lasts so long, unless its request ends first: a report comes up to a step late."""

LEAST_TOKENS = 8
SPACING_S = 0.25
"""Between two observations of one instance: its requests all see the same steps."""

LONGEST_PAUSE_S = 1.0
"""Refreshes further apart than this, or in the past: the router stood still or its clock jumped."""

FORGET_S = 600.0
"""A request nobody reported for so long is not watched any more."""

MAX_REQUESTS = 16_384
_PREFILL_SHARE = 0.5


@dataclass(slots=True)
class _Prefilled:
    """What an instance has prefilled up to the end of one step: base steps in proportion, and tokens."""

    steps: float = 0.0
    tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class _Mark:
    """An instance's sums at the beginning of an interval."""

    at_s: float
    tokens: int
    sequences_s: float
    context_s: float
    foreign_s: float
    prefilled: _Prefilled


@dataclass(slots=True)
class _Watched:
    """One request of this router; ``mark`` is ``None`` while nothing is measured."""

    on: _Watch
    prompt_tokens: int
    dispatched_at_s: float
    alone: bool
    reported_at_s: float
    waiting: bool = True
    mark: _Mark | None = None


class _Watch:
    """One instance: what it carries now, and sums over time since it is watched."""

    def __init__(self, instance: Instance, now_s: float) -> None:
        self.instance = instance
        self.at_s = now_s
        self.sequences = self.context = 0.0
        self.foreign = False
        self.sequences_s = self.context_s = self.foreign_s = 0.0
        self.requests = self.prompted = self.prompts = 0
        self.waiting = self.queued = 0
        self.others_queued: int | None = None
        self.prefilled = _Prefilled()
        self.prefilled_at_s = -math.inf
        self.observed_at_s = -math.inf

    def see(self, view: InstanceView, now_s: float) -> None:
        """Takes the loads of now; between two of them, their mean counts."""
        load = view.load
        others = max(0, load.queued_prefill_tokens - self.queued)
        if self.others_queued is not None and others < self.others_queued:
            self.add_prompt(self.others_queued - others, now_s)
        self.others_queued = others
        queued = self.waiting + others * self.prompted / max(self.prompts, 1)
        sequences = max(1.0, load.requests - queued)
        context = max(0.0, float(load.context_tokens - load.queued_prefill_tokens))
        passed_s = max(0.0, now_s - self.at_s)
        self.sequences_s += passed_s * 0.5 * (self.sequences + sequences if self.sequences else 2.0 * sequences)
        self.context_s += passed_s * 0.5 * (self.context + context if self.sequences else 2.0 * context)
        self.foreign = view.foreign.requests > 0
        self.foreign_s += passed_s * self.foreign
        self.at_s, self.sequences, self.context = now_s, sequences, context

    def add_prompt(self, tokens: int, now_s: float) -> None:
        """A prompt got its first token; prompts whose first tokens come together were one step's."""
        profile = self.instance.profile
        steps, effective = prompt_terms(profile, tokens)
        together = now_s - self.prefilled_at_s <= 0.5 * profile.base_decode_s
        if together and profile.mode is EngineMode.PREFILL_FIRST:
            steps = 0.0
        if not together:
            self.prefilled = _Prefilled(self.prefilled.steps, self.prefilled.tokens)
        self.prefilled_at_s = now_s
        self.prefilled.steps += steps
        self.prefilled.tokens += effective

    def mark(self, tokens: int, now_s: float) -> _Mark:
        """The sums of now."""
        passed_s = max(0.0, now_s - self.at_s)
        return _Mark(
            at_s=now_s,
            tokens=tokens,
            sequences_s=self.sequences_s + passed_s * self.sequences,
            context_s=self.context_s + passed_s * self.context,
            foreign_s=self.foreign_s + passed_s * self.foreign,
            prefilled=self.prefilled,
        )


class Intervals:
    """Turns reports and loads into observations; time comes in as a parameter, memory is bounded.

    Args:
        learn: called with each observation and the instance it is of.
    """

    def __init__(self, learn: Callable[[Instance, Observation], None]) -> None:
        self._learn = learn
        self._requests: dict[str, _Watched] = {}
        self._watches: dict[str, _Watch] = {}
        self._refreshed_at_s: float | None = None
        self._swept_at_s = 0.0

    def __len__(self) -> int:
        return len(self._requests)

    def dispatched(self, request_id: str, instance: Instance, *, prompt_tokens: int, alone: bool, now_s: float) -> None:
        """This router placed a request; ``alone``: on an instance without any other. A repeated answer adds nothing.

        ``prompt_tokens`` are those that the instance computes; 0 where another one does.
        """
        known = self._requests.get(request_id)
        if known is not None:
            if known.on.instance.instance_id == instance.instance_id:
                return
            self.ended(request_id, None, now_s=now_s)
        if len(self._requests) >= MAX_REQUESTS:
            return
        watch, profile = self._watches.get(instance.instance_id), instance.profile
        if watch is None or (watch.instance.profile is not profile and watch.instance.profile != profile):
            watch = self._watches[instance.instance_id] = _Watch(instance, now_s)
        watch.requests += 1
        watch.prompted += prompt_tokens > 0
        watch.prompts += prompt_tokens
        watch.waiting += 1
        watch.queued += prompt_tokens
        self._requests[request_id] = _Watched(watch, prompt_tokens, now_s, alone, now_s)

    def advanced(self, request_id: str, tokens: int, *, now_s: float) -> None:
        """A request has ``tokens`` output tokens, the first one at least."""
        request = self._requests.get(request_id)
        if request is None:
            return
        request.reported_at_s = now_s
        tokens = max(tokens, 1)
        if request.waiting:
            self._first_token(request, now_s)
        if request.mark is None:
            request.mark = request.on.mark(tokens, now_s)
        elif tokens > request.mark.tokens and now_s - request.mark.at_s >= LEAST_S:
            self._observe(request.on, request.mark, tokens, now_s)
            request.mark = request.on.mark(tokens, now_s)

    def ended(self, request_id: str, tokens: int | None, *, now_s: float) -> None:
        """A request is over, for whatever reason; ``tokens`` is its whole answer, where somebody said."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        watch = request.on
        if request.mark is not None and tokens is not None:
            self._observe(watch, request.mark, tokens, now_s)
        self._stop_waiting(request)
        watch.requests -= 1
        watch.prompted -= request.prompt_tokens > 0
        watch.prompts -= request.prompt_tokens
        instance_id = watch.instance.instance_id
        if watch.requests == 0 and self._watches.get(instance_id) is watch:
            del self._watches[instance_id]

    def refreshed(self, view_of: Callable[[Instance], InstanceView], *, now_s: float) -> None:
        """The ledger's loads are those of now. After a pause that is none of the plan's, intervals begin anew."""
        before_s, self._refreshed_at_s = self._refreshed_at_s, now_s
        if before_s is not None and not 0.0 <= now_s - before_s <= LONGEST_PAUSE_S:
            self._begin_anew(now_s)
        for watch in self._watches.values():
            watch.see(view_of(watch.instance), now_s)
        if not 0.0 <= now_s - self._swept_at_s <= FORGET_S / 10.0:
            self._swept_at_s = now_s
            silent = [key for key, one in self._requests.items() if now_s - one.reported_at_s > FORGET_S]
            for request_id in silent:
                self.ended(request_id, None, now_s=now_s)

    def _begin_anew(self, now_s: float) -> None:
        for request in self._requests.values():
            request.mark, request.alone = None, False
            request.reported_at_s = now_s
        for watch in self._watches.values():
            watch.at_s, watch.others_queued = now_s, None
            watch.prefilled_at_s = watch.observed_at_s = -math.inf

    def _first_token(self, request: _Watched, now_s: float) -> None:
        watch = request.on
        self._stop_waiting(request)
        if not request.prompt_tokens:
            return
        watch.add_prompt(request.prompt_tokens, now_s)
        profile = watch.instance.profile
        steps, tokens = prefill_terms(profile, request.prompt_tokens)
        prefill_s = profile.prefill_s_per_token * tokens
        if request.alone and prefill_s >= _PREFILL_SHARE * (prefill_s + steps * profile.base_decode_s):
            seconds = now_s - request.dispatched_at_s
            self._learn(watch.instance, Observation(watch.instance.instance_id, seconds, steps, tokens, 0.0, 0.0))

    @staticmethod
    def _stop_waiting(request: _Watched) -> None:
        if request.waiting:
            request.waiting = False
            request.on.waiting -= 1
            request.on.queued -= request.prompt_tokens

    def _observe(self, watch: _Watch, since: _Mark, tokens: int, now_s: float) -> None:
        now = watch.mark(tokens, now_s)
        seconds, made = now_s - since.at_s, tokens - since.tokens
        if made < LEAST_TOKENS or seconds <= 0.0 or now_s - watch.observed_at_s < SPACING_S:
            return
        if now.foreign_s > since.foreign_s:
            return  # what came past the routers has prompts that nobody here saw
        if now_s - watch.at_s > LONGEST_PAUSE_S:
            return  # nobody said for too long what else the instance carries
        watch.observed_at_s = now_s
        self._learn(
            watch.instance,
            Observation(
                instance_id=watch.instance.instance_id,
                seconds=seconds,
                steps=made + now.prefilled.steps - since.prefilled.steps,
                prefill_tokens=now.prefilled.tokens - since.prefilled.tokens,
                context_tokens=made * (now.context_s - since.context_s) / seconds,
                sequences=made * (now.sequences_s - since.sequences_s) / seconds,
            ),
        )


def prefill_terms(profile: EngineProfile, tokens: int) -> tuple[float, float]:
    """A prompt that an idle engine computes: decode steps that its steps' base is worth, and tokens.

    Tokens count with their squares, in the profile's proportion of the two coefficients.
    """
    steps = 1 if profile.mode is EngineMode.PREFILL_FIRST else math.ceil(tokens / profile.token_budget)
    base = profile.base_prefill_s / profile.base_decode_s
    linear_s = profile.prefill_s_per_token
    squared = profile.prefill_s_per_token_squared / linear_s if linear_s > 0.0 else 0.0
    return steps * base, tokens + squared * tokens * tokens


def prompt_terms(profile: EngineProfile, tokens: int) -> tuple[float, float]:
    """What a prompt adds to the decoding of others: steps' bases and tokens, as ``prefill_terms``.

    A mixed step takes ``max(b_d, b_p + g1·P)`` and what its sequences take: of the prompt's base the difference to a
    decode step's counts, and a prompt that fits beneath a decode step's base adds nothing.
    """
    steps, effective = prefill_terms(profile, tokens)
    if profile.mode is EngineMode.PREFILL_FIRST:
        return steps, effective
    steps -= math.ceil(tokens / profile.token_budget)
    if steps * profile.base_decode_s + profile.prefill_s_per_token * effective <= 0.0:
        return 0.0, 0.0
    return steps, effective
