"""Several predictors as one: each weighs as much as its answers so far say, for each application and model.

Exponential weights on the pinball loss of the logarithm of the length (Littlestone and Warmuth, 1994), with forgetting;
the quantiles of the blend are weighted means of the logarithms of the predictors' quantiles.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.distribution import LEVELS, lengths_of
from llmrouter.lengths.predictor import label, refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution, Lengths
    from llmrouter.lengths.predictor import LengthPredictor, LengthRequest, UsageRefusal

    Floats = NDArray[np.float64]

CAPACITY = 4_096
HALF_LIFE = 150.0
SHARPNESS = 2.0
LEANING = 20.0
_LEVELS_Q = np.array(LEVELS)


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
        self._losses: OrderedDict[str, Floats] = OrderedDict()
        self._all_E = np.zeros(len(self._experts))
        self._all_answers = 0.0

    @property
    def groups(self) -> int:
        """How many groups have weights of their own now."""
        return len(self._losses)

    def weights(self, request: LengthRequest) -> Floats:
        """How much each predictor weighs for a request (experts); they add up to 1."""
        weights_E: Floats = self._weights([request])[0]
        return weights_E

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises NotFiniteLengthsError where a predictor does."""
        laws = [expert.predict(requests) for expert in self._experts]
        weights_NE = self._weights(requests)
        log_ENQ = np.log(np.stack([one.latent for one in laws]))
        log_rank_EN = np.log(np.maximum(np.stack([one.rank for one in laws]), 1e-9))
        return lengths_of(
            np.exp(np.einsum("ne,enq->nq", weights_NE, log_ENQ)),
            source=self.name,
            limit_N=laws[0].limit_tokens,
            rank_N=np.exp(np.einsum("ne,en->n", weights_NE, log_rank_EN)),
            digest=self.digest,
        )

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        """Weighs the predictors anew, then lets each learn."""
        del predicted
        reason = refusal(request, output_tokens)
        if reason is not None:
            return reason
        laws = [expert.predict([request]) for expert in self._experts]
        over_EQ = np.log(output_tokens) - np.log(np.stack([one.quantiles[0] for one in laws]))
        loss_E = np.maximum(_LEVELS_Q * over_EQ, (_LEVELS_Q - 1.0) * over_EQ).mean(axis=1)
        self._all_E = self._decay * self._all_E + loss_E
        self._all_answers = self._decay * self._all_answers + 1.0
        key = _key(request)
        own_E = self._losses.pop(key, None)
        self._losses[key] = loss_E if own_E is None else self._decay * own_E + loss_E
        if len(self._losses) > self._capacity:
            self._losses.popitem(last=False)
        for expert, law in zip(self._experts, laws, strict=True):
            expert.learn(request, output_tokens, law.row(0))
        return None

    def _weights(self, requests: Sequence[LengthRequest]) -> Floats:
        """Weights (N, experts)."""
        losses_NE = np.tile(LEANING * self._all_E / max(self._all_answers, 1.0), (len(requests), 1))
        for row, request in enumerate(requests):
            own_E = self._losses.get(_key(request))
            if own_E is not None:
                losses_NE[row] += own_E
        weights_NE: Floats = np.exp(-SHARPNESS * (losses_NE - losses_NE.min(axis=1, keepdims=True)))
        weights_NE /= weights_NE.sum(axis=1, keepdims=True)
        return weights_NE


def _key(request: LengthRequest) -> str:
    return f"{label(request.application)}\x1f{label(request.model)}"
