"""Holds at will: a policy may keep a request waiting though there is room, but not for nothing and not for long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.domain import SHORTEST_HOLD_S
from llmrouter.routing.batching import MOST_OF_WAIT
from llmrouter.routing.guard_shares import is_eligible
from llmrouter.routing.lateness import Rest

if TYPE_CHECKING:
    from llmrouter.domain import Hold, PoolSnapshot, Request

OVERRULED_IN_A_ROW = 5
"""After so many holds in a row that were overruled the policy rests."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The hold as it may be, or ``None``; ``detail`` says what was wrong with it, if anything was.

    ``is_fault`` where the policy could have known: it sees idle instances and the age of the head.
    """

    hold: Hold | None
    detail: str = ""
    stale: bool = False
    is_fault: bool = False


class VoluntaryHolds:
    """Judges holds at will by the snapshot.

    None while an eligible instance idles, none on loads older than ``stale_after_s``, none once the request has gone
    first for ``longest_s`` or has used up most of the ``longest_wait_s`` after which it would be refused; and each gets
    an end within that time, so that no request waits for an event that may never
    come, and not at once: it would be asked again and again. A clock that went back, so that nobody can say how long it
    was, counts as too long.
    """

    def __init__(self, *, stale_after_s: float, longest_s: float, longest_wait_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._longest_s = longest_s
        self._most_of_wait_s = MOST_OF_WAIT * longest_wait_s
        self._overruled = 0
        self._rest = Rest()

    def resting(self, now_s: float) -> bool:
        """Whether the policy rests now because it held as it may not, again and again."""
        return self._rest.lasts(now_s)

    def kept(self) -> None:
        """The policy placed a request by itself, or held one as it may."""
        self._overruled = 0

    def judge(self, hold: Hold, request: Request, snapshot: PoolSnapshot) -> Verdict:
        """The verdict on a hold while there is room."""
        now_s, verdict = snapshot.taken_at_s, self._judge(hold, request, snapshot)
        if verdict.hold is not None:
            self.kept()
        elif verdict.is_fault:
            self._overruled += 1
            if self._overruled >= OVERRULED_IN_A_ROW:
                self._overruled = 0
                self._rest.begin(now_s)
        return verdict

    def _judge(self, hold: Hold, request: Request, snapshot: PoolSnapshot) -> Verdict:
        now_s = snapshot.taken_at_s
        if not snapshot.load_age_s <= self._stale_after_s:
            detail = f"loads are {snapshot.load_age_s:.3g} s old, more than guard.staleAfterSeconds"
            return Verdict(None, detail, stale=True)
        for view in snapshot.views:
            if view.total.requests <= 0 and is_eligible(view, request):
                return Verdict(None, f"held while {view.instance.instance_id} is idle", is_fault=True)
        held_s = 0.0 if snapshot.head_since_s is None else now_s - snapshot.head_since_s
        if not 0.0 <= held_s < self._longest_s:
            detail = f"first of its line for {held_s:.3g} s, guard.maxHoldSeconds is {self._longest_s:g}"
            return Verdict(None, detail, is_fault=self._longest_s > 0.0)
        last_s = min(now_s + self._longest_s - held_s, request.arrived_at_s + self._most_of_wait_s)
        if last_s <= now_s:
            return Verdict(None, f"it waits for {now_s - request.arrived_at_s:.3g} s and would soon be refused")
        soonest_s = now_s + SHORTEST_HOLD_S
        if hold.until_s is None or not hold.until_s <= last_s:
            return Verdict(replace(hold, until_s=max(last_s, soonest_s)), f"held until {hold.until_s}")
        return Verdict(hold if hold.until_s >= soonest_s else replace(hold, until_s=soonest_s))
