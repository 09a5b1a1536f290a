"""Laws learned online from finished requests: by application, model and prompt length, each leaning on a wider one."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.lengths.bins import BINS, bin_of, broad_prior, quantiles_of
from llmrouter.lengths.distribution import LEVELS, Lengths
from llmrouter.lengths.predictor import label, limits, refusal
from llmrouter.lengths.sketches import Sketches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.lengths.distribution import LengthDistribution
    from llmrouter.lengths.predictor import LengthRequest, UsageRefusal
    from llmrouter.lengths.sketches import Counts

    Floats = NDArray[np.float64]


class By(Enum):
    """What requests are told apart by: application, model, band of prompt length."""

    MODEL = ("model",)
    BAND = ("band",)
    APPLICATION = ("application",)
    MODEL_BAND = ("model", "band")
    APPLICATION_MODEL = ("application", "model")
    APPLICATION_BAND = ("application", "band")
    APPLICATION_MODEL_BAND = ("application", "model", "band")


PRODUCT_CHAIN = (By.MODEL, By.APPLICATION, By.APPLICATION_MODEL, By.APPLICATION_MODEL_BAND)
CAPACITY = 4_096
HALF_LIFE = 150.0
SHRINKAGE = 10.0
MAX_KNOWN = 4_096
"""Laws that are kept until something is learned, at most; one batch may have more."""

_MAX_BAND = 24
_UNKNOWN_BAND = -1


class OnlineQuantiles:
    """The law of the narrowest group of requests that is known, shrunk towards wider ones, down to all requests.

    A group with n answers (decayed) weighs n against ``shrinkage`` for the group before it in ``chain``; all requests
    stand before the first, and a broad log-normal law before them. An answer cut at its own limit counts as at least
    so long: it is spread over the bins from there on, as they are believed to be filled (Efron's self-consistency).
    ``exploration`` lowers the rank of applications with few answers, so that they are heard of sooner; laws do not
    depend on it. Memory: ``capacity`` groups of ``BINS`` counts, whatever labels clients send.
    """

    digest = ""

    def __init__(
        self,
        *,
        chain: Sequence[By] = PRODUCT_CHAIN,
        capacity: int = CAPACITY,
        half_life: float | None = HALF_LIFE,
        shrinkage: float = SHRINKAGE,
        exploration: float = 0.0,
        shared: bool = False,
        name: str = "application-quantiles",
    ) -> None:
        self.name = name
        self._chain = tuple(by.value for by in chain)
        self._shrinkage = shrinkage
        self.exploration = exploration
        self._everything = Sketches(capacity=1, half_life=half_life, shared=shared)
        self._groups = Sketches(capacity=capacity, half_life=half_life, shared=shared)
        self._prior_B = broad_prior()
        self._known: dict[tuple[str, str, int], tuple[Floats, float]] = {}

    @property
    def groups(self) -> int:
        """How many groups of requests are told apart now."""
        return len(self._groups)

    @property
    def evicted(self) -> int:
        """How many groups gave way to others."""
        return self._groups.evicted

    def predict(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request."""
        found = self._found(requests)
        quantiles_NQ = np.array([quantiles_Q for quantiles_Q, _ in found]).reshape(-1, len(LEVELS))
        laws = Lengths(quantiles_NQ, limits(requests), self.name)
        if self.exploration == 0.0:
            return laws
        seen_N = np.array([answers for _, answers in found])
        return replace(laws, own_rank=laws.expected_tokens * np.exp(-self.exploration / np.sqrt(1.0 + seen_N)))

    def _found(self, requests: Sequence[LengthRequest]) -> list[tuple[Floats, float]]:
        """Quantiles (levels) of each request, and answers behind its narrowest group; of those alike worked out once.

        They stand until something is learned.
        """
        alike = [(one.application, one.model, band_of(one.prompt_tokens)) for one in requests]
        if len(self._known) + len(alike) > MAX_KNOWN:
            self._known.clear()
        known = self._known
        new = {group: one for group, one in zip(alike, requests, strict=True) if group not in known}
        if new:
            shares_NB, seen = self._shares(list(new.values()))
            known.update(zip(new, zip(quantiles_of(shares_NB), seen, strict=True), strict=True))
        return [known[group] for group in alike]

    def learn(
        self, request: LengthRequest, output_tokens: float, predicted: LengthDistribution | None = None
    ) -> UsageRefusal | None:
        """Counts one answer in every group of the request."""
        del predicted
        reason = refusal(request, output_tokens)
        if reason is not None:
            return reason
        self._known.clear()
        keys = self._keys(request)
        bin_index = bin_of(output_tokens)
        cut = request.max_output_tokens is not None and output_tokens >= request.max_output_tokens
        if cut and bin_index < BINS - 1:
            spread_B = self._beyond(request, bin_index)
            self._everything.add_spread("", spread_B)
            for key in keys:
                self._groups.add_spread(key, spread_B)
            return None
        self._everything.add("", bin_index)
        for key in keys:
            self._groups.add(key, bin_index)
        return None

    def delta(self) -> tuple[Counts, Counts]:
        """What was learned here since the last call: of all requests, and of groups. For other routers to ``merge``."""
        return self._everything.delta(), self._groups.delta()

    def counts(self) -> tuple[Counts, Counts]:
        """All that is known, as plain arrays; merged into a new object it gives the same laws."""
        return self._everything.counts(), self._groups.counts()

    def merge(self, counts: tuple[Counts, Counts]) -> None:
        """Adds another router's ``delta`` or ``counts``; raises InvalidInputError as ``Sketches.merge`` does."""
        self._known.clear()
        everything, groups = counts
        self._everything.merge(everything)
        self._groups.merge(groups)

    def _shares(self, requests: Sequence[LengthRequest]) -> tuple[Floats, list[float]]:
        """Shares of bins (N, bins), and answers behind the narrowest group of each.

        A group's shares are (its counts + shrinkage · shares of the wider one) ÷ (its answers + shrinkage): from the
        narrowest on, each says what its counts weigh and leaves what remains to the next.
        """
        slots_NL = self._slots(requests)
        weights_NL, left, seen = [], [], []
        for slots in slots_NL:
            remaining, weights = 1.0, []
            answers = [self._groups.answers(slot) for slot in slots]
            for one in reversed(answers):
                weights.append(remaining / (one + self._shrinkage))
                remaining *= self._shrinkage / (one + self._shrinkage)
            weights_NL.append(weights[::-1])
            left.append(remaining)
            seen.append(answers[-1] if answers else self._everything.count(""))
        widest_B = self._everything.row("") + self._shrinkage * self._prior_B
        widest_B /= self._everything.count("") + self._shrinkage
        return self._groups.mixed(slots_NL, weights_NL) + np.multiply.outer(left, widest_B), seen

    def _beyond(self, request: LengthRequest, bin_index: int) -> Floats:
        shares_NB, _ = self._shares([request])
        tail_B: Floats = shares_NB[0]
        tail_B[:bin_index] = 0.0
        if not tail_B.any():
            tail_B[bin_index] = 1.0
        tail_B /= tail_B.sum()
        return tail_B

    def _slots(self, requests: Sequence[LengthRequest]) -> list[list[int]]:
        """Rows of each request's groups, the widest first."""
        slot = self._groups.slot
        return [[slot(key) for key in self._keys(one)] for one in requests]

    def _keys(self, request: LengthRequest) -> list[str]:
        parts = {
            "application": label(request.application),
            "model": label(request.model),
            "band": str(band_of(request.prompt_tokens)),
        }
        return ["\x1f".join([f"{kind}={parts[kind]}" for kind in kinds]) for kinds in self._chain]


def band_of(prompt_tokens: int | None) -> int:
    """Band of a prompt's length: each is twice as wide as the one before; −1 where the length is not known."""
    if prompt_tokens is None:
        return _UNKNOWN_BAND
    return min(max(int(prompt_tokens), 0).bit_length(), _MAX_BAND)
