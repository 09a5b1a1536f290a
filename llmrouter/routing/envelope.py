"""The ranges that a model was made for: what lies beyond is clamped to them, and too much of it rests the model."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.lateness import Rest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from llmrouter.manifest import Bounds
    from llmrouter.routing.learned import PaperNetwork, SharedNetwork
    from llmrouter.routing.policies import ScorerLike

WINDOW_DECISIONS = 64
"""So many decisions are looked back on; half of them are enough to judge by."""


class Envelope:
    """Clamps the features of one model, and counts decisions that needed it.

    Args:
        low_F: smallest values, shape (F,).
        high_F: largest values, shape (F,).
        names: of the features.
        max_clamped_fraction: with a larger share of the last decisions clamped, the model rests for a while.
    """

    def __init__(
        self,
        low_F: NDArray[np.float32],
        high_F: NDArray[np.float32],
        names: Sequence[str],
        *,
        max_clamped_fraction: float,
    ) -> None:
        self._low_F, self._high_F, self._names = low_F, high_F, tuple(names)
        self._most = max_clamped_fraction
        self._outside: str | None = None
        self._recent: deque[bool] = deque(maxlen=WINDOW_DECISIONS)
        self._rest = Rest()
        self.why_resting = ""

    @classmethod
    def of(cls, bounds: Mapping[str, Bounds], names: Sequence[str], *, max_clamped_fraction: float) -> Envelope:
        """The envelope that a manifest's ``bounds`` declare for the features ``names``, in their order."""
        low_F = np.array([bounds[name].min for name in names], dtype=np.float32)
        high_F = np.array([bounds[name].max for name in names], dtype=np.float32)
        return cls(low_F, high_F, names, max_clamped_fraction=max_clamped_fraction)

    def clamp(self, values_XF: NDArray[np.float32], first: int = 0) -> NDArray[np.float32]:
        """Values of F features from the ``first`` on, of shape (F,) or (rows, F), within their ranges; NaN stays."""
        places = slice(first, first + values_XF.shape[-1])
        low_F, high_F = self._low_F[places], self._high_F[places]
        outside_XF = (values_XF < low_F) | (values_XF > high_F)
        if not outside_XF.any():
            return values_XF
        outside_F = np.atleast_2d(outside_XF).any(axis=0)
        self._outside = self._names[first + int(np.argmax(outside_F))]
        clamped_XF: NDArray[np.float32] = np.clip(values_XF, low_F, high_F)
        return clamped_XF

    def resting(self, now_s: float) -> bool:
        """Whether the model rests now because too much was clamped."""
        return self._rest.lasts(now_s)

    def settle(self, now_s: float) -> str | None:
        """Ends a decision: the name of the first feature that was clamped in it, if one was."""
        outside, self._outside = self._outside, None
        recent = self._recent
        recent.append(outside is not None)
        if outside is not None and 2 * len(recent) >= WINDOW_DECISIONS and sum(recent) > self._most * len(recent):
            self.why_resting = f"{sum(recent)} of {len(recent)} decisions beyond the model's ranges, last in {outside}"
            recent.clear()
            self._rest.begin(now_s)
        return outside


class Enveloped:
    """A scorer that is shown nothing beyond its envelope."""

    def __init__(self, scorer: ScorerLike, envelope: Envelope) -> None:
        self._scorer = scorer
        self.envelope = envelope

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        """As the scorer's own, for clamped features."""
        return self._scorer.score(self.envelope.clamp(features_IF), weights_W)


class EnvelopedNetwork:
    """A network for any number of instances that is shown nothing beyond its envelope."""

    def __init__(self, network: SharedNetwork, envelope: Envelope) -> None:
        self._network = network
        self._envelope = envelope

    def scores(self, instances_IF: NDArray[np.float32], line_H: NDArray[np.float32]) -> NDArray[np.float32]:
        """As the network's own, for clamped features: those of an instance first, then those of the line."""
        clamp = self._envelope.clamp
        return self._network.scores(clamp(instances_IF), clamp(line_H, instances_IF.shape[1]))


class EnvelopedState:
    """A network of the paper's state that is shown nothing beyond its envelope."""

    def __init__(self, network: PaperNetwork, envelope: Envelope) -> None:
        self._network = network
        self._envelope = envelope
        self.instances = network.instances

    def values(self, state_S: NDArray[np.float32]) -> NDArray[np.float32]:
        """As the network's own, for a clamped state."""
        return self._network.values(self._envelope.clamp(state_S))
