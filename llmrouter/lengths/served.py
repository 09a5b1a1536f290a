"""What a router serves: a model's law where one has read the request, blended with what is learned online.

The model itself is asked elsewhere, once: its law comes as ``LengthRequest.given`` and is kept with the request, and so
are the features of its text. Learning from the answer then needs neither the prompt nor the model again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.artefact import features_of
from llmrouter.lengths.blended import Blended
from llmrouter.lengths.distribution import LEVELS, MIN_TOKENS, LengthDistribution, Lengths
from llmrouter.lengths.online import OnlineQuantiles
from llmrouter.lengths.online_text import OnlineText
from llmrouter.lengths.predictor import Batch, LengthRequest, label, limits, refusal
from llmrouter.lengths.recalibrated import Recalibrated
from llmrouter.lengths.simple import Fixed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.lengths.predictor import LengthPredictor, UsageRefusal
    from llmrouter.lengths.text import TextFeatures

REMEMBERED = 4_096
"""Applications whose last law stands ready; the one longest silent gives way."""


class GivenLaws(Fixed):
    """Repeats the law that each request was given; every request must have one."""

    def __init__(self, name: str, digest: str = "") -> None:
        self.name = name
        self.digest = digest

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises ValueError where one was given none."""
        if isinstance(requests, Batch) and (given := requests.laws) is not None:
            return Lengths(given.quantiles, requests.limit_N, self.name, self.digest, own_rank=given.rank)
        laws = [_of(one.given) for one in requests]
        return Lengths(
            np.array([law.quantiles for law in laws]).reshape(len(laws), len(LEVELS)),
            limits(requests),
            self.name,
            self.digest,
            own_rank=np.array([law.rank for law in laws]),
        )


class Frozen(Fixed):
    """A predictor that somebody else teaches."""

    def __init__(self, inner: LengthPredictor) -> None:
        self.inner = inner
        self.name = inner.name
        self.digest = inner.digest

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """The inner predictor's laws."""
        return self.inner.predict(requests)


def blend(
    model: LengthPredictor, quantiles: LengthPredictor, *, read: Callable[[Sequence[LengthRequest]], TextFeatures]
) -> Blended:
    """A model, recalibrated, quantiles learned online, and text learned online with that model's quantiles, as one.

    ``read`` gives the text features of requests.
    """
    experts = [Recalibrated(model), quantiles, OnlineText(read=read, model=model)]
    return Blended(experts, name=f"{model.name}+online", digest=model.digest)


class ServedLengths:
    """Laws of requests with a model's law and of those without; both learn from every answer they foretold.

    With a law given: the ``blend`` of that model and application quantiles, recalibrated.
    Without: application quantiles, recalibrated. Another model starts the blend anew and leaves the quantiles.
    """

    def __init__(self, *, exploration: float = 0.0, shared: bool = False, remembered: int = REMEMBERED) -> None:
        self.quantiles = OnlineQuantiles(exploration=exploration, shared=shared)
        self._alone = Recalibrated(Frozen(self.quantiles))
        self._model: tuple[str, str] | None = None
        self._blend: Recalibrated | None = None
        self._ready: dict[tuple[str, str], LengthDistribution] = {}
        self._max_ready = remembered

    @property
    def remembered(self) -> int:
        """Applications whose last law stands ready."""
        return len(self._ready)

    def explore(self, exploration: float) -> None:
        """How much sooner than its length says an application of few answers is ranked from now on."""
        self.quantiles.exploration = exploration

    def use(self, name: str, digest: str) -> None:
        """Names the model whose laws will be given from now on."""
        if self._model == (name, digest):
            return
        self._model = (name, digest)
        self._blend = Recalibrated(blend(GivenLaws(name, digest), Frozen(self.quantiles), read=features_of), suffix="")

    def predict(self, requests: Sequence[LengthRequest]) -> list[LengthDistribution]:
        """One law for each request."""
        parts = self._split(requests)
        if len(parts) == 1:
            return parts[0][0].predict(requests).rows()
        found: list[LengthDistribution | None] = [None] * len(requests)
        for predictor, rows in parts:
            for row, law in zip(rows, predictor.predict([requests[row] for row in rows]).rows(), strict=True):
                found[row] = law
        return [_of(law) for law in found]

    def learn(self, request: LengthRequest, output_tokens: float) -> UsageRefusal | None:
        """Takes note of a finished request; ``None`` where it was believed.

        It is held against what would be said of it now. What was said when it came is as many answers old as were in
        flight: held against that, each error would be corrected once for each of them, over and over.
        """
        reason = refusal(request, output_tokens)
        if reason is not None:
            return reason
        unlimited = replace(request, max_output_tokens=None)
        laws = self._alone.predict([unlimited, replace(unlimited, application="")])
        alone = laws.row(0)
        blend = self._blend_of(request)
        if blend is not None:
            blend.learn(request, output_tokens)
        self._alone.learn(request, output_tokens, limited(alone, request.max_output_tokens))
        self.quantiles.learn(request, output_tokens)
        self._remember(_key(request.application, request.model), alone)
        self._remember(_key("", request.model), laws.row(1))
        return None

    def of_application(self, request: LengthRequest) -> LengthDistribution | None:
        """The law of the request's application and model, else of its model, as last learned; ``None`` before.

        Costs nothing: what to answer with where there is no time. Safe to call from another thread.
        """
        law = self.of_class(request)
        return None if law is None else limited(law, request.max_output_tokens)

    def of_class(self, request: LengthRequest) -> LengthDistribution | None:
        """The same law without regard to what the request itself allows."""
        ready = self._ready
        own = ready.get(_key(request.application, request.model))
        return ready.get(_key("", request.model)) if own is None else own

    def _blend_of(self, request: LengthRequest) -> Recalibrated | None:
        """The blend, where the request was given a law by the model that it blends."""
        given = request.given
        return None if given is None or (given.source, given.digest) != self._model else self._blend

    def _split(self, requests: Sequence[LengthRequest]) -> list[tuple[Recalibrated, list[int]]]:
        blends = [self._blend_of(one) for one in requests]
        with_law = [row for row, blend in enumerate(blends) if blend is not None]
        without = [row for row, blend in enumerate(blends) if blend is None]
        parts = [(self._alone, without)] if without else []
        return [*parts, (self._blend, with_law)] if with_law and self._blend is not None else parts

    def _remember(self, key: tuple[str, str], law: LengthDistribution) -> None:
        self._ready.pop(key, None)
        self._ready[key] = law
        if len(self._ready) > self._max_ready:
            del self._ready[next(iter(self._ready))]


def limited(law: LengthDistribution, max_output_tokens: int | None) -> LengthDistribution:
    """A law without a limit, under one."""
    if max_output_tokens is None:
        return law
    limit = max(MIN_TOKENS, float(max_output_tokens))
    return replace(law, own_mean=None, own_rank=law.rank, max_output_tokens=limit)


def certain(tokens: float, request: LengthRequest, *, source: str) -> LengthDistribution:
    """The law of a number that is taken for certain, within the request's limit."""
    limit = limits([request]).item()
    length = min(float(tokens), limit)
    return LengthDistribution((length,) * len(LEVELS), length, length, source, max_output_tokens=limit)


def _key(application: str, model: str) -> tuple[str, str]:
    return label(application), label(model)


def _of(law: LengthDistribution | None) -> LengthDistribution:
    if law is None:
        raise ValueError("a request has no law")
    return law
