"""Counts of lengths by key, in bounded memory, that forget exponentially and add up over routers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.lengths.bins import BINS, BINS_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_RESCALE_ABOVE = 1e9
MAX_MERGED = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """``counts`` (keys, bins) as plain values: what routers exchange and what is stored."""

    keys: tuple[str, ...]
    counts: Floats
    bins_version: int = BINS_VERSION


class Sketches:
    """At most ``capacity`` rows of counts; the key that was longest not added to gives way.

    Each count added to a row weakens those before it by ``0.5 ** (1 / half_life)``; ``None`` forgets nothing. With
    ``shared``, what was added since the last ``delta`` is kept apart, in as many keys at most.
    """

    def __init__(self, *, capacity: int, half_life: float | None, shared: bool = False) -> None:
        self.evicted = 0
        self._capacity = capacity
        self._growth = 1.0 if half_life is None else 2.0 ** (1.0 / half_life)
        self._slots: OrderedDict[str, int] = OrderedDict()
        self._counts_SB = np.zeros((capacity + 1, BINS))
        self._total_S = np.zeros(capacity + 1)
        self._unit_S = np.ones(capacity + 1)  # what one count is worth now; the last row stays empty
        self._fresh: OrderedDict[str, Floats] | None = OrderedDict() if shared else None

    def __len__(self) -> int:
        return len(self._slots)

    def slot(self, key: str) -> int:
        """Row of a key for ``mixed`` and ``answers``; the empty row where it is not known. Does not count as a use."""
        return self._slots.get(key, self._capacity)

    def mixed(self, slots_NL: Sequence[Sequence[int]], weights_NL: Sequence[Sequence[float]]) -> Floats:
        """Sums (N, bins) of the decayed counts of L rows each, weighed."""
        if not slots_NL:
            return np.zeros((0, BINS))
        slots = np.array(slots_NL, dtype=np.int64)
        mixed_NB: Floats = np.einsum("nl,nlb->nb", weights_NL / self._unit_S[slots], self._counts_SB[slots])
        return mixed_NB

    def row(self, key: str) -> Floats:
        """Decayed counts (bins) of a key."""
        slot = self.slot(key)
        row_B: Floats = self._counts_SB[slot] / self._unit_S[slot]
        return row_B

    def answers(self, slot: int) -> float:
        """Decayed number of answers behind a row."""
        return self._total_S.item(slot) / self._unit_S.item(slot)

    def count(self, key: str) -> float:
        """Decayed number of answers behind a key."""
        return self.answers(self.slot(key))

    def add(self, key: str, bin_index: int) -> None:
        """Counts one answer."""
        slot = self._touch(key)
        unit = self._unit_S[slot] * self._growth
        self._unit_S[slot] = unit
        self._counts_SB[slot, bin_index] += unit
        self._total_S[slot] += unit
        if unit > _RESCALE_ABOVE:
            self._rescale(slot)
        if self._fresh is not None:
            self._fresh_row(self._fresh, key)[bin_index] += 1.0

    def add_spread(self, key: str, shares_B: Floats) -> None:
        """Counts one answer of which only the shares of bins are known; they add up to 1."""
        slot = self._touch(key)
        self._unit_S[slot] *= self._growth
        self._counts_SB[slot] += self._unit_S[slot] * shares_B
        self._total_S[slot] += self._unit_S[slot]
        if self._unit_S[slot] > _RESCALE_ABOVE:
            self._rescale(slot)
        if self._fresh is not None:
            self._fresh_row(self._fresh, key)[:] += shares_B

    def counts(self) -> Counts:
        """All rows, decayed, those longest not used first: what restores this object when merged into an empty one."""
        slots = list(self._slots.values())
        return Counts(tuple(self._slots), self._counts_SB[slots] / self._unit_S[slots][:, None])

    def delta(self) -> Counts:
        """What was added here (not merged) since the last call, not decayed; empty where not ``shared``."""
        fresh = self._fresh or OrderedDict()
        delta = Counts(tuple(fresh), np.array(list(fresh.values())).reshape(-1, BINS))
        if self._fresh is not None:
            self._fresh = OrderedDict()
        return delta

    def merge(self, other: Counts) -> None:
        """Adds what another router counted, as if it had happened here just now.

        Raises:
            InvalidInputError: other bins, another shape, or counts that are not finite, negative or too many.
        """
        counts_KB = np.asarray(other.counts, dtype=np.float64)
        _check(other, counts_KB)
        for key, counts_B in zip(other.keys, counts_KB, strict=True):
            slot = self._touch(key)
            added = float(counts_B.sum())
            decay = self._growth**-added
            counts_B = self._counts_SB[slot] / self._unit_S[slot] * decay + counts_B  # noqa: PLW2901
            self._counts_SB[slot], self._total_S[slot], self._unit_S[slot] = counts_B, counts_B.sum(), 1.0

    def keys(self) -> Iterable[str]:
        """Those longest not added to first."""
        return self._slots.keys()

    def _touch(self, key: str) -> int:
        slot = self._slots.get(key)
        if slot is not None:
            self._slots.move_to_end(key)
            return slot
        if len(self._slots) < self._capacity:
            slot = len(self._slots)
        else:
            _, slot = self._slots.popitem(last=False)
            self.evicted += 1
            self._counts_SB[slot], self._total_S[slot], self._unit_S[slot] = 0.0, 0.0, 1.0
        self._slots[key] = slot
        return slot

    def _rescale(self, slot: int) -> None:
        self._counts_SB[slot] /= self._unit_S[slot]
        self._total_S[slot] /= self._unit_S[slot]
        self._unit_S[slot] = 1.0

    def _fresh_row(self, fresh: OrderedDict[str, Floats], key: str) -> Floats:
        row_B = fresh.get(key)
        if row_B is None:
            if len(fresh) >= self._capacity:
                fresh.popitem(last=False)
            row_B = fresh[key] = np.zeros(BINS)
        return row_B


def _check(other: Counts, counts_KB: Floats) -> None:
    if other.bins_version != BINS_VERSION:
        raise InvalidInputError(f"counts are in bins of version {other.bins_version}, here it is {BINS_VERSION}")
    if counts_KB.shape != (len(other.keys), BINS):
        raise InvalidInputError(f"counts have the shape {counts_KB.shape}, not {(len(other.keys), BINS)}")
    if not np.isfinite(counts_KB).all() or (counts_KB < 0.0).any():
        raise InvalidInputError("counts must be finite and at least 0")
    if len(counts_KB) and counts_KB.sum(axis=1).max() > MAX_MERGED:
        raise InvalidInputError(f"a key has more than {MAX_MERGED:g} counts")
