"""The decision log of a simulated router: records as a router makes them, of a run whose every turn is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llmrouter.decisions.making import Decided, described, record_of
from llmrouter.decisions.record import MAX_CANDIDATES, Outcome, OutcomeKind, PolicyInForce
from llmrouter.domain import Placement
from llmrouter.routing.exploring import propensities, roomy_of
from llmrouter.sim.outcomes import Status

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from llmrouter.decisions.record import DecisionRecord
    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Request, Room
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.outcomes import Outcomes


class Recording:
    """A policy whose placements are kept, to be made records of when the run is over: one router, of exact loads.

    Args:
        policy: decides; it may explore.
        section: what records say of it; its ``exploration_fraction`` is the policy's.
    """

    def __init__(self, policy: Policy, section: PolicyInForce) -> None:
        self.name = policy.name
        self.room_of: Callable[[InstanceView], Room] = policy.room_of
        self._policy, self._section = policy, section
        self._placed: dict[str, tuple[Request, PoolSnapshot, Placement]] = {}

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """The policy's decision."""
        decision = self._policy.decide(request, snapshot, rng)
        if isinstance(decision, Placement):
            self._placed[request.request_id] = (request, snapshot, decision)
        return decision

    def records(self, outcomes: Outcomes) -> list[DecisionRecord]:
        """Records of the requests that were placed, in the order of the workload."""
        rows = range(len(outcomes.status))
        return [self._record(outcomes, row) for row in rows if f"r{row}" in self._placed]

    def _record(self, outcomes: Outcomes, row: int) -> DecisionRecord:
        request, snapshot, placement = self._placed[f"r{row}"]
        eligible, roomy = roomy_of(self.room_of, request, snapshot.views)
        roomy_ids = frozenset(one.instance.instance_id for one in roomy)
        decided = Decided(
            request=request,
            router_id="simulated",
            arrived_at_s=request.arrived_at_s,
            decided_at_s=snapshot.taken_at_s,
            arm="current",
            policy=self._section,
            reason=placement.reason,
            explored=placement.explored,
            degraded=False,
            load_age_s=snapshot.load_age_s,
            eligible=eligible,
            roomy_ids=roomy_ids,
            views=described(snapshot.views, placement.candidates, roomy_ids, MAX_CANDIDATES),
            candidates=placement.candidates,
            propensities=propensities(self.name, placement, roomy, self._section.exploration_fraction),
            chosen=placement.candidates[0].instance_id,
        )
        return record_of(decided, outcome_of(outcomes, row))


def outcome_of(outcomes: Outcomes, row: int) -> Outcome:
    """What came of one simulated request."""
    kinds: dict[Status, OutcomeKind] = {Status.FINISHED: "Finished", Status.CANCELLED: "Cancelled", Status.LOST: "Lost"}
    kind = kinds.get(Status(int(outcomes.status[row])), "Failed")
    arrived_s, first_s = float(outcomes.arrived_at_s[row]), float(outcomes.first_token_at_s[row])
    finished_s, tokens = float(outcomes.finished_at_s[row]), int(outcomes.workload.output_tokens[row])
    is_whole = kind == "Finished"
    return Outcome(
        kind=kind,
        ttft_s=None if math.isnan(first_s) else first_s - arrived_s,
        tpot_s=(finished_s - first_s) / (tokens - 1) if is_whole and tokens > 1 else None,
        e2e_s=finished_s - arrived_s if is_whole else None,
        output_tokens=tokens if is_whole else None,
    )
