"""What a length predictor is asked, what it answers, and which reports of usage it believes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.lengths.distribution import MAX_TOKENS, MIN_TOKENS
from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution, Lengths
    from llmrouter.lengths.text import TextFeatures

MAX_LABEL_CHARS = 64


@quick
@dataclass(frozen=True, slots=True)
class LengthRequest:
    """What is known of a request before it is answered; ``None`` where it is not. Never logged, never stored.

    ``application`` is the label the client sent, which is also the task hint; "" where it sent none. ``turn`` counts
    from 1; ``stop`` is the number of stop sequences; ``tools`` the number of tools offered. ``given`` is what a model
    that has read the prompt said of the answer, where one has; ``features`` is what ``text_features`` makes of this one
    request, where somebody has asked already. Both are kept when the prompt is not.
    """

    prompt: str | None = field(default=None, repr=False)
    prompt_tokens: int | None = None
    application: str = ""
    model: str = ""
    max_output_tokens: int | None = None
    temperature: float | None = None
    tools: int | None = None
    stop: int | None = None
    turn: int | None = None
    thinking: bool | None = None
    given: LengthDistribution | None = None
    features: TextFeatures | None = field(default=None, repr=False, compare=False)


class Batch(list[LengthRequest]):
    """Requests that are asked for together, with what was made of all of them at once.

    Attributes:
        features: of their texts, row by row; ``None`` where nobody made them.
        laws: what a model that has read them says, row by row; ``None`` where there is none.
        limit_N: see ``limits``.
    """

    __slots__ = ("features", "laws", "limit_N")

    def __init__(
        self,
        requests: Iterable[LengthRequest],
        *,
        features: TextFeatures | None = None,
        laws: Lengths | None = None,
    ) -> None:
        super().__init__(requests)
        self.features, self.laws = features, laws
        self.limit_N = _limits(self)


class UsageRefusal(StrEnum):
    """Why a report of output tokens is not believed."""

    NOT_A_NUMBER = "NotANumber"
    NOT_POSITIVE = "NotPositive"
    TOO_LARGE = "TooLarge"  # more than any answer has
    BEYOND_LIMIT = "BeyondLimit"  # more than the request's own max_output_tokens


class LengthPredictor(Protocol):
    """Says how long answers will be, and learns from those that were given.

    ``name`` and ``digest`` are the source and digest of every law it gives. A batch answers as its requests alone do.
    """

    @property
    def name(self) -> str:
        """The source of its laws."""

    @property
    def digest(self) -> str:
        """Of the model behind it; "" where there is none."""

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises NotFiniteLengthsError where a model answers NaN."""

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        """Takes note of a finished request; ``None`` where it was believed, else why not (it then changes nothing).

        Whoever asks counts refusals: predictors within predictors say them once.
        ``predicted`` is the law this predictor gave for it, where the caller kept it; else it is asked for anew.
        """


def refusal(request: LengthRequest, output_tokens: float) -> UsageRefusal | None:
    """Why ``output_tokens`` cannot be what the engine produced; ``None`` where it can."""
    if output_tokens != output_tokens:  # noqa: PLR0124 - NaN is what differs from itself
        return UsageRefusal.NOT_A_NUMBER
    if output_tokens < MIN_TOKENS:
        return UsageRefusal.NOT_POSITIVE
    if output_tokens > MAX_TOKENS:
        return UsageRefusal.TOO_LARGE
    limit = request.max_output_tokens
    if limit is not None and output_tokens > max(limit, 1):
        return UsageRefusal.BEYOND_LIMIT
    return None


def limits(requests: Sequence[LengthRequest]) -> NDArray[np.float64]:
    """The most tokens each answer may have (N,), within 1 and 1e6; 1e6 where the request does not say."""
    return requests.limit_N if isinstance(requests, Batch) else _limits(requests)


def _limits(requests: Sequence[LengthRequest]) -> NDArray[np.float64]:
    given = [MAX_TOKENS if one.max_output_tokens is None else one.max_output_tokens for one in requests]
    return np.array([min(max(limit, MIN_TOKENS), MAX_TOKENS) for limit in given], dtype=np.float64)


def label(text: str) -> str:
    """A label as a key of bounded size: itself, or its digest where it is long."""
    if len(text) <= MAX_LABEL_CHARS:
        return text
    return "#" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
