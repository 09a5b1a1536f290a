"""Instances that fail again and again are left out for a while, then tried with one request at a time.

An instance whose requests failed ``consecutive_failures`` times in a row, nothing of it having answered meanwhile, is
*ejected*: it gets no request for ``eject_s``, and twice as long each time that it fails its trial. Then it is *half
open*: one request may go there, and no other before that one has answered, failed, or kept silent for ``PROBE_S``. The
first answer takes it back. Never more than a share of the instances are ejected at a time: where most of them fail, it
is not they.

Time is a parameter; a clock that went back ends what it would prolong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

LONGEST_EJECTION_S = 300.0
PROBE_S = 10.0
"""How long a trial may take before another one is made."""


@dataclass(frozen=True, slots=True)
class OutlierRules:
    """When an instance is ejected; ``consecutive_failures`` of 0 ejects none."""

    consecutive_failures: int = 5
    eject_s: float = 10.0
    max_ejected_fraction: float = 0.5


@dataclass(slots=True)
class _Record:
    failures: int = 0
    ejections: int = 0
    ejected_at_s: float | None = None
    probed_at_s: float | None = None


class Outliers:
    """Of one router: each learns from the requests that it sent itself."""

    def __init__(self, rules: OutlierRules | None = None) -> None:
        self._rules = rules or OutlierRules()
        self._records: dict[str, _Record] = {}

    @property
    def ejected(self) -> int:
        """Instances that are ejected or on trial."""
        return sum(1 for one in self._records.values() if one.ejected_at_s is not None)

    def follow(self, rules: OutlierRules) -> None:
        """Other rules, for what is ejected as well."""
        self._rules = rules
        if not rules.consecutive_failures:
            self._records.clear()

    def failed(self, instance_id: str, *, now_s: float, instances: int) -> bool:
        """A request failed there, of so many instances; returns whether the instance is ejected by this."""
        rules, record = self._rules, self._records.setdefault(instance_id, _Record())
        if not rules.consecutive_failures:
            del self._records[instance_id]
            return False
        record.failures += 1
        if record.ejected_at_s is not None:
            if record.probed_at_s is None:
                return False  # sent before it was ejected
        elif record.failures < rules.consecutive_failures or not self._may_eject(instances):
            return False
        record.ejected_at_s, record.probed_at_s = now_s, None
        record.ejections += 1
        return True

    def answered(self, instance_id: str) -> None:
        """Something of a request came back from there: what failed before is forgotten."""
        self._records.pop(instance_id, None)

    def dispatched(self, instance_id: str, *, now_s: float) -> None:
        """A request goes there; of an instance on trial it is the trial."""
        record = self._records.get(instance_id)
        if record is not None and record.ejected_at_s is not None:
            record.probed_at_s = now_s

    def left_out(self, instance_ids: Iterable[str], *, now_s: float) -> frozenset[str]:
        """Those of the instances that get no request now."""
        if not self._records:
            return frozenset()
        return frozenset(one for one in instance_ids if self._is_out(one, now_s))

    def keep_only(self, instance_ids: Collection[str]) -> None:
        """Forgets instances that are gone: one that comes back has failed nobody."""
        for gone in self._records.keys() - set(instance_ids):
            del self._records[gone]

    def _may_eject(self, instances: int) -> bool:
        return self.ejected + 1 <= self._rules.max_ejected_fraction * instances

    def _is_out(self, instance_id: str, now_s: float) -> bool:
        record = self._records.get(instance_id)
        if record is None or record.ejected_at_s is None:
            return False
        lasts_s = min(self._rules.eject_s * 2.0 ** (record.ejections - 1), LONGEST_EJECTION_S)
        if 0.0 <= now_s - record.ejected_at_s < lasts_s:
            return True
        return record.probed_at_s is not None and 0.0 <= now_s - record.probed_at_s < PROBE_S
