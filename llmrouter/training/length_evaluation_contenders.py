"""What a length model is compared with, under one name each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.lengths.artefact import features_of
from llmrouter.lengths.online import By, OnlineQuantiles
from llmrouter.lengths.online_text import OnlineText
from llmrouter.lengths.served import blend as served_blend
from llmrouter.lengths.simple import ConstantLengths, ThreeBucketRule
from llmrouter.training.length_evaluation_artefact import shipped_forest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.lengths.distribution import LengthDistribution, Lengths
    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest, UsageRefusal

TASK_MEAN = "task-mean"
BLENDED = "blended"
CONSTANT_TOKENS = 256.0
FEW = 2.0
"""Weight of the wider group in baselines: enough for a first answer, gone after ten."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A predictor by name. ``learns``: what it says depends on the requests that were finished before."""

    name: str
    description: str
    make: Callable[[], LengthPredictor]
    learns: bool


def baselines(*, half_life: float | None) -> tuple[Contender, ...]:
    """What needs no model of text. ``half_life`` of what the product's own online predictor remembers, in answers."""
    return (
        Contender(
            "constant", f"{CONSTANT_TOKENS:g} tokens for all", lambda: ConstantLengths(CONSTANT_TOKENS), learns=False
        ),
        Contender(
            "three-buckets",
            "4,096 tokens where thinking is asked for, 100 where tools are offered, else 1,000 (llm-d)",
            ThreeBucketRule,
            learns=False,
        ),
        Contender("all-requests", "mean and quantiles of all answers so far", _counting("all-requests"), learns=True),
        Contender(
            TASK_MEAN,
            "mean and quantiles of the task's answers so far",
            _counting(TASK_MEAN, By.APPLICATION),
            learns=True,
        ),
        Contender(
            "prompt-histogram",
            "histogram of answers by band of prompt length",
            _counting("prompt-histogram", By.BAND),
            learns=True,
        ),
        Contender("forest", "the shipped random forest on prompt length and application", shipped_forest, learns=False),
        Contender(
            "application-quantiles",
            "quantiles by application, model and band of prompt length, learned online",
            lambda: OnlineQuantiles(half_life=half_life),
            learns=True,
        ),
        Contender(
            "online-text",
            "words, labels and numbers of the request, learned online from nothing",
            lambda: OnlineText(read=features_of),
            learns=True,
        ),
    )


def blend(model: LengthPredictor, description: str) -> Contender:
    """A model, recalibrated, application quantiles, and text learned online, as one: what a router would serve."""

    def make() -> LengthPredictor:
        return served_blend(_AskedOnce(model), OnlineQuantiles(), read=features_of)

    what = f"{description}, application-quantiles and online-text with that model's quantiles, weighed online"
    return Contender(BLENDED, what, make, learns=True)


class _AskedOnce:
    """A model that learns nothing, asked once for a request that others ask for and learn one after another."""

    def __init__(self, inner: LengthPredictor) -> None:
        self.name, self.digest = inner.name, inner.digest
        self._inner = inner
        self._last: tuple[LengthRequest, Lengths] | None = None

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        if len(requests) != 1:
            return self._inner.predict(requests)
        if self._last is None or self._last[0] is not requests[0]:
            self._last = requests[0], self._inner.predict(requests)
        return self._last[1]

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        return self._inner.learn(request, output_tokens, predicted)


def _counting(name: str, *chain: By) -> Callable[[], LengthPredictor]:
    return lambda: OnlineQuantiles(chain=chain, half_life=None, shrinkage=FEW, name=name)
