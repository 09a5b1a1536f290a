"""An approximate index of prefix caches: which instances probably hold how much of the beginning of a prompt.

Nobody tells a router what an engine's cache holds. The index takes it to hold what was routed there, the least recently
used going first once the engine's KV is full, and believes reports of hits more than itself: an instance's expected
hits are scaled by the share of them that came true, and a hit that failed clears what was used before it.

A prompt is named by hashes of its beginnings, shortest first, so that a block stands for all of the prompt up to its
end. An instance that holds a block holds, but for what was cleared, all blocks before it: they are used together, and
the last ones go first.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter.quick import quick
from llmrouter.routing.prefix_hits import believed_share, faded, hit_tokens, is_stale

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

MAX_BLOCKS = 2_048
"""Leading blocks of one prompt that are looked at."""

LEAST_BLOCK_TOKENS = 64
"""Finer blocks are thinned to at least so many tokens: they would cost more and say little more."""

MAX_SETS = 1_024
"""Sets of instances whose members an index remembers."""

MAX_ENTRIES = 262_144
"""Pairs of a block and an instance that an index holds; ``bench/prefix_index.py`` says what each takes."""


@quick
@dataclass(frozen=True, slots=True)
class Use:
    """A prompt that was sent to an instance: how much of it was expected in the cache there.

    ``seen`` is when, in uses of the index, the last of the expected blocks had been used before; 0 where none was.
    """

    instance_id: str
    expected_tokens: int
    seen: int


@dataclass(slots=True)
class _Known:
    """What is taken to be in the cache of one instance: blocks and when they were last used, least recent first."""

    bit: int
    blocks: OrderedDict[int, int] = field(default_factory=OrderedDict)
    expected_tokens: float = 0.0
    reported_tokens: float = 0.0
    share: float = 1.0


class PrefixIndex:
    """Blocks by instance, one map for all of them: a match costs as many look-ups as the prompt has blocks.

    Args:
        max_entries: pairs of a block and an instance, all together; instances share them evenly.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._known: dict[str, _Known] = {}
        self._id_of: dict[int, str] = {}
        self._ids_of: dict[int, tuple[str, ...]] = {}
        """Those of several bits, as far as somebody asked."""
        self._is_scaled = False
        """Whether some share ever was not 1."""
        self._holders: dict[int, int] = {}
        self._uses = 0
        self.entries = 0

    @property
    def shares(self) -> Mapping[str, float]:
        """Share of the expected hits that came true, by instance id; 0 where hits count as none."""
        return {instance_id: known.share for instance_id, known in self._known.items()}

    def held(self, hashes: Sequence[int]) -> dict[str, int]:
        """Leading blocks of a prompt that each instance holds; instances that hold none are left out."""
        return {instance_id: blocks for bits, blocks in self._runs(hashes) for instance_id in self._ids(bits)}

    def hits(self, hashes: Sequence[int], block_tokens: float, prompt_tokens: int) -> dict[str, int]:
        """Prompt tokens that each instance probably has cached; instances that have none are left out."""
        hits: dict[str, int] = {}
        for bits, blocks in self._runs(hashes):
            worth = hit_tokens(blocks, block_tokens, prompt_tokens)
            if not worth:
                continue
            if not self._is_scaled:
                hits.update(dict.fromkeys(self._ids(bits), worth))
                continue
            for instance_id in self._ids(bits):
                hit = int(self._known[instance_id].share * worth)
                if hit:
                    hits[instance_id] = hit
        return hits

    def _runs(self, hashes: Sequence[int]) -> list[tuple[int, int]]:
        """Bits of instances, and how many leading blocks each of those holds, at least one."""
        holders, runs, alive = self._holders, [], 0
        for place, block in enumerate(hashes):
            still = holders.get(block, 0) if not place else alive & holders.get(block, 0)
            if still != alive and place:
                runs.append((alive ^ still, place))
            alive = still
            if not alive:
                return runs
        if alive:
            runs.append((alive, len(hashes)))
        return runs

    def _ids(self, bits: int) -> tuple[str, ...]:
        """The instances of some bits."""
        found = self._ids_of.get(bits)
        if found is None:
            if len(self._ids_of) >= MAX_SETS:
                self._ids_of.clear()
            found = self._ids_of[bits] = tuple(name for bit, name in self._id_of.items() if bit & bits)
        return found

    def use(
        self, instance_id: str, hashes: Sequence[int], *, block_tokens: float, prompt_tokens: int, kv_tokens: int
    ) -> Use:
        """A prompt goes to an instance, which will hold its blocks; those beyond ``kv_tokens`` are taken to go."""
        uses = self._uses = self._uses + 1
        known = self._known.get(instance_id) or self._add(instance_id)
        blocks, holders, matched, seen = known.blocks, self._holders, 0, 0
        for block in hashes:
            used = blocks.get(block)
            if used is None:
                break
            matched, seen = matched + 1, used
        for block in reversed(hashes):
            if block in blocks:
                blocks.move_to_end(block)
            else:
                holders[block] = holders.get(block, 0) | known.bit
                self.entries += 1
            blocks[block] = uses
        most = max(1, min(int(kv_tokens // block_tokens), self._max_entries // len(self._known)))
        while len(blocks) > most or (self.entries > self._max_entries and blocks):
            self._evict(known)
        return Use(instance_id, hit_tokens(matched, block_tokens, prompt_tokens), seen)

    def reported(self, use: Use, cached_tokens: int) -> None:
        """The engine said how many tokens of a prompt were cached when it came; where none was due, nothing is learned.

        Where less than half of what was expected came true, all that had not been used since is cleared.
        """
        known = self._known.get(use.instance_id)
        if known is None or use.expected_tokens <= 0:
            return
        cached = min(max(0, cached_tokens), use.expected_tokens)
        known.expected_tokens = faded(known.expected_tokens, use.expected_tokens)
        known.reported_tokens = faded(known.reported_tokens, cached)
        known.share = believed_share(known.expected_tokens, known.reported_tokens)
        self._is_scaled = self._is_scaled or known.share < 1.0
        if is_stale(use.expected_tokens, cached):
            while known.blocks and next(iter(known.blocks.values())) <= use.seen:
                self._evict(known)

    def keep_only(self, instance_ids: Collection[str]) -> None:
        """Drops instances that are gone: one that comes back begins empty."""
        for instance_id in self._known.keys() - set(instance_ids):
            known = self._known.pop(instance_id)
            del self._id_of[known.bit]
            self._ids_of.clear()
            while known.blocks:
                self._evict(known)

    def _add(self, instance_id: str) -> _Known:
        place = 0
        while 1 << place in self._id_of:
            place += 1
        known = self._known[instance_id] = _Known(1 << place)
        self._id_of[known.bit] = instance_id
        return known

    def _evict(self, known: _Known) -> None:
        block, _ = known.blocks.popitem(last=False)
        self.entries -= 1
        left = self._holders[block] & ~known.bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]


def thinned(hashes: Sequence[int], block_tokens: int) -> tuple[tuple[int, ...], int]:
    """Every so-manieth of the hashes, so that a block has at least ``LEAST_BLOCK_TOKENS``; and what it has then."""
    step = -(-LEAST_BLOCK_TOKENS // block_tokens)
    return tuple(hashes[step - 1 : step * MAX_BLOCKS : step]), block_tokens * step
