"""Instances that fail again and again, or answer far later than the others, are left out for a while, then tried.

An instance whose requests failed ``consecutive_failures`` times in a row, nothing of it having answered meanwhile, is
*ejected*; so is one whose first tokens come ``ttft_factor`` times later than foretold, compared with the others
(``late_starts``). It gets no request for ``eject_s``, and twice as long each time that it fails its trial. Then it is
*half open*: one request may go there, and no other before that one has answered, failed, or kept silent for
``PROBE_S``. What takes it back: where it failed, any answer; where it was late, the trial's first token in time, or, of
a trial whose first token is not seen, its end. Never more than a share of the instances are ejected at a time: where
most of them fail, it is not they.

Time is a parameter; a clock that went back ends what it would prolong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmrouter.routing.late_starts import LateStarts, bound

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

LONGEST_EJECTION_S = 300.0
MOST_DOUBLINGS = 16
PROBE_S = 10.0
"""How long a trial may take before another one is made."""


NOBODY_WAITS: Mapping[str, Sequence[float]] = MappingProxyType({})


class Why(StrEnum):
    """Why an instance is ejected."""

    FAILURES = "failures"
    LATE = "late"


@dataclass(frozen=True, slots=True)
class OutlierRules:
    """When an instance is ejected; 0 of ``consecutive_failures`` or ``ttft_factor`` ejects none for that reason."""

    consecutive_failures: int = 5
    eject_s: float = 10.0
    max_ejected_fraction: float = 0.5
    ttft_factor: float = 4.0


@dataclass(slots=True)
class _Record:
    failures: int = 0
    ejections: int = 0
    why: Why = Why.FAILURES
    ejected_at_s: float | None = None
    probed_at_s: float | None = None
    trial: str = ""


_NOBODY: frozenset[str] = frozenset()


class Outliers:
    """Of one router: each learns from the requests that it sent itself."""

    def __init__(self, rules: OutlierRules | None = None) -> None:
        self._rules = rules or OutlierRules()
        self._records: dict[str, _Record] = {}
        self._late = LateStarts()
        self._bound: float | None = None

    @property
    def ejected(self) -> int:
        """Instances that are ejected or on trial."""
        return sum(1 for one in self._records.values() if one.ejected_at_s is not None)

    def follow(self, rules: OutlierRules) -> None:
        """Other rules, for what is ejected as well."""
        self._rules = rules
        unwanted = {Why.FAILURES: not rules.consecutive_failures, Why.LATE: not rules.ttft_factor}
        for name in [name for name, one in self._records.items() if unwanted[one.why]]:
            del self._records[name]

    def failed(self, instance_id: str, *, now_s: float, instances: int) -> bool:
        """A request failed there, of so many instances; returns whether the instance is ejected by this."""
        rules, record = self._rules, self._records.setdefault(instance_id, _Record())
        record.failures += 1
        if record.ejected_at_s is not None:
            if record.probed_at_s is None:
                return False  # sent before it was ejected
            return self._eject(instance_id, record.why, now_s)
        if not rules.consecutive_failures:
            del self._records[instance_id]
            return False
        if record.failures < rules.consecutive_failures or not self._may_eject(instances):
            return False
        return self._eject(instance_id, Why.FAILURES, now_s)

    def started(self, instance_id: str, request_id: str, late: float, *, now_s: float) -> bool:
        """A first token came so late there (``late_starts``); returns whether a trial has failed by this.

        What takes the instance back is told by ``answered``, which is to be called after it.
        """
        if not self._rules.ttft_factor:
            return False
        record = self._records.get(instance_id)
        if record is None or record.ejected_at_s is None:
            self._late.note(instance_id, late, now_s=now_s)
            return False
        is_trial = record.why is Why.LATE and record.trial == request_id
        is_late = self._bound is not None and late > self._bound
        return is_trial and is_late and self._eject(instance_id, Why.LATE, now_s)

    def judge(
        self, waiting: Mapping[str, Sequence[float]] = NOBODY_WAITS, *, now_s: float, instances: int
    ) -> list[str]:
        """Ejects those of so many instances that are far later than the others, the latest first; returns them.

        To be called about once a second. ``waiting`` says how late first tokens are that have not come, by instance id.
        """
        if not self._rules.ttft_factor:
            return []
        least = math.inf if self._bound is None else self._bound + math.log(2.0)
        overdue = {name: [one for one in late if one > least] for name, late in waiting.items()}
        medians = self._late.medians(overdue, now_s=now_s)
        self._bound = limit = bound(medians.values(), self._rules.ttft_factor)
        if limit is None:
            return []
        late = sorted((name for name, one in medians.items() if one > limit), key=lambda name: -medians[name])
        return [name for name in late if self._may_eject(instances) and self._eject(name, Why.LATE, now_s)]

    def answered(self, instance_id: str, request_id: str = "") -> bool:
        """Something of a request came back from there: what failed before is forgotten.

        Returns whether that takes an ejected instance back.
        """
        record = self._records.get(instance_id)
        if record is None:
            return False
        if record.ejected_at_s is not None and record.why is Why.LATE and record.trial != request_id:
            record.failures = 0
            return False
        del self._records[instance_id]
        return record.ejected_at_s is not None

    def dispatched(self, instance_id: str, request_id: str = "", *, now_s: float) -> None:
        """A request goes there; of an instance on trial it is the trial."""
        record = self._records.get(instance_id)
        if record is not None and record.ejected_at_s is not None:
            record.probed_at_s, record.trial = now_s, request_id

    def left_out(self, *, now_s: float) -> frozenset[str]:
        """The instances that get no request now."""
        if not self._records:
            return _NOBODY
        return frozenset(one for one in self._records if self._is_out(one, now_s))

    def keep_only(self, instance_ids: Collection[str]) -> None:
        """Forgets instances that are gone: one that comes back has failed nobody."""
        self._late.keep_only(instance_ids)
        for gone in self._records.keys() - set(instance_ids):
            del self._records[gone]

    def why(self, instance_id: str) -> Why | None:
        """Why an instance is ejected, or on trial; ``None`` where it is neither."""
        record = self._records.get(instance_id)
        return None if record is None or record.ejected_at_s is None else record.why

    def _eject(self, instance_id: str, why: Why, now_s: float) -> bool:
        record = self._records.setdefault(instance_id, _Record())
        record.why, record.ejected_at_s, record.probed_at_s, record.trial = why, now_s, None, ""
        record.ejections += 1
        self._late.forget(instance_id)
        return True

    def _may_eject(self, instances: int) -> bool:
        return self.ejected + 1 <= self._rules.max_ejected_fraction * instances

    def _is_out(self, instance_id: str, now_s: float) -> bool:
        record = self._records.get(instance_id)
        if record is None or record.ejected_at_s is None:
            return False
        doubled = min(record.ejections - 1, MOST_DOUBLINGS)
        lasts_s = min(self._rules.eject_s * 2.0**doubled, LONGEST_EJECTION_S)
        if 0.0 <= now_s - record.ejected_at_s < lasts_s:
            return True
        return record.probed_at_s is not None and 0.0 <= now_s - record.probed_at_s < PROBE_S
