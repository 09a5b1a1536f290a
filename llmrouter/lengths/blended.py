"""Several predictors as one: each weighs as much as its answers so far say, for each application and model.

Exponential weights on the pinball loss of the logarithm of the length (Littlestone and Warmuth, 1994), with forgetting;
the quantiles of the blend are weighted means of the logarithms of the predictors' quantiles.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, Lengths
from llmrouter.lengths.laws import blended
from llmrouter.lengths.predictor import label, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest, UsageRefusal

    Floats = NDArray[np.float64]

CAPACITY = 4_096
HALF_LIFE = 150.0
SHARPNESS = 2.0
LEANING = 20.0


class Blended:
    """Weights of a group (application, model) follow its losses, and ``LEANING`` answers' worth of those of all.

    At most ``capacity`` groups; the one longest silent gives way. Digest and name are given: those of the blend.
    """

    def __init__(
        self, experts: Sequence[LengthPredictor], *, name: str = "blended", digest: str = "", capacity: int = CAPACITY
    ) -> None:
        self.name = name
        self.digest = digest
        self._experts = tuple(experts)
        self._capacity = capacity
        self._decay = 0.5 ** (1.0 / HALF_LIFE)
        self._none = (0.0,) * len(self._experts)
        self._losses: OrderedDict[str, tuple[float, ...]] = OrderedDict()
        self._known: dict[tuple[str, str], list[float]] = {}
        """Weights since the last answer that was learned, by application and model."""
        self._all = self._none
        self._all_answers = 0.0

    @property
    def groups(self) -> int:
        """How many groups have weights of their own now."""
        return len(self._losses)

    def weights(self, request: LengthRequest) -> Floats:
        """How much each predictor weighs for a request (experts); they add up to 1."""
        return np.array(self._weights(request))

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises NotFiniteLengthsError where a predictor does."""
        laws = tuple([expert.predict(requests) for expert in self._experts])
        weights_NE = np.array([self._weights(one) for one in requests]).reshape(len(requests), len(laws))
        latent_NQ, rank_N = blended(weights_NE, [(one.latent, one.rank) for one in laws])
        return Lengths(latent_NQ, laws[0].limit_tokens, self.name, self.digest, own_rank=rank_N, parts=laws)

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        """Weighs the predictors anew, then lets each learn."""
        reason = refusal(request, output_tokens)
        if reason is not None:
            return reason
        known = () if predicted is None else predicted.parts
        laws = known or self.predict([request]).row(0, parts=True).parts
        losses = [_loss(law, math.log(output_tokens)) for law in laws]
        self._known.clear()
        self._all = self._faded(self._all, losses)
        self._all_answers = self._decay * self._all_answers + 1.0
        key = _key(request)
        self._losses[key] = self._faded(self._losses.pop(key, self._none), losses)
        if len(self._losses) > self._capacity:
            self._losses.popitem(last=False)
        for expert, law in zip(self._experts, laws, strict=True):
            expert.learn(request, output_tokens, law)
        return None

    def _faded(self, sums: Sequence[float], added: Sequence[float]) -> tuple[float, ...]:
        return tuple([self._decay * one + more for one, more in zip(sums, added, strict=True)])

    def _weights(self, request: LengthRequest) -> list[float]:
        group = request.application, request.model
        weights = self._known.get(group)
        if weights is None:
            if len(self._known) >= self._capacity:
                self._known.clear()
            weights = self._known[group] = self._weighed(request)
        return weights

    def _weighed(self, request: LengthRequest) -> list[float]:
        leaning = LEANING / max(self._all_answers, 1.0)
        own = self._losses.get(_key(request), self._none)
        losses = [leaning * of_all + of_own for of_all, of_own in zip(self._all, own, strict=True)]
        least = min(losses)
        weights = [math.exp(-SHARPNESS * (loss - least)) for loss in losses]
        total = sum(weights)
        return [weight / total for weight in weights]


def _loss(law: LengthDistribution, log_tokens: float) -> float:
    """Mean pinball loss of the logarithm of the length."""
    over = [log_tokens - math.log(tokens) for tokens in law.quantiles]
    return sum([max(level * one, (level - 1.0) * one) for level, one in zip(LEVELS, over, strict=True)]) / len(LEVELS)


def _key(request: LengthRequest) -> str:
    return f"{label(request.application)}\x1f{label(request.model)}"
