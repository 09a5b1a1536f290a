"""The router's decision log: what is sampled, kept for a while, and handed to a thread that writes it down.

A decision costs the event loop a hash of its request's id and, where it is sampled, a look at the views that it saw.
All else, the record, its line and the sink, is the writer's. What does not fit the bounds is dropped and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from llmrouter.decisions.making import Decided, described, is_sampled, outcome_reason, record_of
from llmrouter.decisions.record import Outcome, OutcomeKind, PolicyInForce
from llmrouter.domain import Placement
from llmrouter.rollout.arms import CURRENT
from llmrouter.routing.exploring import propensities, roomy_of
from router_grpc.decision_log_writer import DecisionWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from llmrouter.config import PolicyConfig, RouterConfig
    from llmrouter.decisions.record import DecisionRecord
    from llmrouter.domain import Candidate, InstanceView, PoolSnapshot, Request
    from llmrouter.errors import SaturatedError
    from llmrouter.metrics import RouterMetrics
    from llmrouter.routing.guard import Guard, Guarded
    from router_grpc.arms import Placed
    from router_grpc.readiness import Readiness
    from router_grpc.reports import Report
    from router_grpc.runtime import Runtime
    from router_grpc.world import World

MAX_OPEN = 20_000
"""Sampled requests that may be open at a time; the records of more are dropped."""

MAX_KEPT = 1_024
"""Records of ended requests that can still be asked for."""


class OpenRecord:
    """The record of a request that is under way; every end of it comes to ``close``, once."""

    __slots__ = ("_log", "arrived_at_s", "decided", "first_token_at_s", "outcome")

    def __init__(self, log: DecisionLog, decided: Decided, arrived_at_s: float) -> None:
        self._log = log
        self.decided = decided
        self.arrived_at_s = arrived_at_s
        self.first_token_at_s: float | None = None
        self.outcome: Outcome | None = None

    def started(self, now_s: float) -> None:
        """The first token came."""
        self.first_token_at_s = now_s

    def ended(self, report: Report, now_s: float) -> None:
        """The request was reported as ended, as ``OutcomeKind`` spells it."""
        kind: OutcomeKind = _ENDS[report.kind.value]
        ttft_s = None if self.first_token_at_s is None else max(0.0, self.first_token_at_s - self.arrived_at_s)
        is_whole = kind == "Finished" and not report.is_part
        tokens = report.output_tokens if report.output_tokens is not None and report.output_tokens >= 0 else None
        tpot_s = None
        if is_whole and self.first_token_at_s is not None and tokens is not None and tokens > 1:
            tpot_s = max(0.0, now_s - self.first_token_at_s) / (tokens - 1)
        self.outcome = Outcome(
            kind=kind,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=max(0.0, now_s - self.arrived_at_s) if is_whole else None,
            output_tokens=tokens,
            prompt_tokens=_count(report.prompt_tokens),
            cached_tokens=_count(report.cached_prompt_tokens),
            reason=outcome_reason(report.reason),
            part=report.is_part,
        )

    def close(self) -> None:
        """The request is no longer in the book: what was not reported as ended is lost."""
        self._log.closed(self)


_ENDS: Mapping[str, OutcomeKind] = {"finished": "Finished", "failed": "Failed", "cancelled": "Cancelled"}


def _count(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


class DecisionLog:
    """Samples, keeps and hands on; see the module's docstring.

    Args:
        router_id: who says so, in every record and in names of files.
        folder: where files go; ``None`` where none may.
        metrics: counted in.
        clock: seconds, never going back.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        router_id: str = "",
        *,
        folder: Path | None = None,
        metrics: RouterMetrics | None = None,
        clock: Callable[[], float] = lambda: 0.0,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.is_on = False
        """Whether any decision is written down."""
        self._router_id, self._clock, self._now = router_id, clock, now
        self._metrics = metrics
        self._writer = DecisionWriter(router_id, folder=folder, metrics=metrics)
        self._fraction, self._most, self._tenant_key = 0.0, 8, ""
        self._policies: dict[str, PolicyInForce] = {}
        self._open: dict[str, OpenRecord] = {}
        self._kept: OrderedDict[str, tuple[Decided, Outcome]] = OrderedDict()

    def follow(self, config: RouterConfig) -> None:
        """Goes by a configuration."""
        spec = config.decision_log
        self._fraction, self._most = spec.fraction, spec.max_candidates
        self._tenant_key = f"{config.namespace}/{config.name}"
        self._policies.clear()
        self._writer.follow(spec if spec.fraction > 0.0 else None, self._tenant_key)
        self.is_on = spec.fraction > 0.0

    @property
    def readiness(self) -> Readiness | None:
        """Whether what is sampled can be written down; ``None`` where nothing is to be."""
        return self._writer.readiness

    def close(self) -> None:
        """Writes what is there, and stops; may wait for the sink for some seconds."""
        self._writer.close()

    def decided(self, world: World, runtime: Runtime, placed: Placed) -> None:
        """A decision was committed: where it is sampled, it is kept until the request ends."""
        request, answer = placed.request, placed.answer
        if not is_sampled(request.request_id, self._fraction):
            return
        entry = world.open_requests.get(request.request_id)
        if entry is None or entry.record is not None:
            return
        if len(self._open) >= MAX_OPEN:
            self._count("DroppedOpen")
            return
        decided = self._decided(world, placed, _section(runtime, answer.policy_digest))
        decided.arm = CURRENT if entry.life is None else entry.life.arm
        decided.foretold = None if entry.cost is None else (entry.cost.first_token_s, entry.cost.seconds)
        entry.record = self._open[request.request_id] = OpenRecord(self, decided, request.arrived_at_s)

    def refused(self, world: World, runtime: Runtime, request: Request, error: SaturatedError) -> None:
        """A request was turned away."""
        if not is_sampled(request.request_id, self._fraction):
            return
        snapshot = world.replica.snapshot(world.ready(), now_s=self._clock())
        policy, arm = runtime.config.policy, world.trial.arm(runtime, request.request_id)
        decided = self._seen(request, snapshot, runtime.guard, self._in_force(policy, runtime.guard.primary.name, None))
        decided.arm, decided.reason = arm or CURRENT, str(error)
        self._keep(decided, Outcome(kind="Refused", reason=outcome_reason(error.reason)))

    def served(self, request_id: str, endpoint: str) -> None:
        """A gateway said who served a request, where that was another one."""
        record = self._open.get(request_id)
        if record is not None:
            record.decided.served = endpoint[:259]

    def closed(self, record: OpenRecord) -> None:
        """A request has left the book."""
        self._open.pop(record.decided.request.request_id, None)
        self._keep(record.decided, record.outcome or Outcome(kind="Lost"))

    def find(self, request_id: str) -> DecisionRecord | None:
        """The record of a request that is open or ended lately; may be called by any thread."""
        kept = self._kept.get(request_id)
        if kept is not None:
            return record_of(*kept, tenant_key=self._tenant_key)
        under_way = self._open.get(request_id)
        return None if under_way is None else record_of(under_way.decided, None, tenant_key=self._tenant_key)

    def _keep(self, decided: Decided, outcome: Outcome) -> None:
        self._kept[decided.request.request_id] = (decided, outcome)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        self._writer.put(decided, outcome)

    def _decided(self, world: World, placed: Placed, section: PolicyConfig) -> Decided:
        guarded, decision, answer = placed.guarded, placed.guarded.decision, placed.answer
        named = decision.candidates if isinstance(decision, Placement) else ()
        policy = self._in_force(section, guarded.policy, guarded)
        decided = self._seen(placed.request, placed.snapshot, placed.guard, policy, named)
        decided.reason, decided.degraded = decision.reason, answer.degraded
        decided.chosen, decided.prefill = answer.instance_id, answer.prefill_instance_id
        if isinstance(decision, Placement):
            decided.explored = decision.explored
            if decided.roomy_ids and _is_plain(world, placed.request, guarded, decision):
                roomy = [one for one in placed.snapshot.views if one.instance.instance_id in decided.roomy_ids]
                decided.propensities = propensities(guarded.policy, decision, roomy, section.exploration.fraction)
        return decided

    def _seen(
        self,
        request: Request,
        snapshot: PoolSnapshot,
        guard: Guard,
        policy: PolicyInForce,
        named: Sequence[Candidate] = (),
    ) -> Decided:
        """What a decision saw, and nothing yet of what it was."""
        epoch_s, now_s = self._now(), self._clock()
        eligible, roomy = roomy_of(guard.room_of, request, snapshot.views)
        roomy_ids = frozenset(one.instance.instance_id for one in roomy)
        return Decided(
            request=request,
            router_id=self._router_id,
            arrived_at_s=epoch_s - (now_s - request.arrived_at_s),
            decided_at_s=epoch_s,
            arm=CURRENT,
            policy=policy,
            reason="",
            explored=False,
            degraded=False,
            load_age_s=snapshot.load_age_s,
            eligible=eligible,
            roomy_ids=roomy_ids,
            views=described(_eligible(request, snapshot), named, roomy_ids, self._most),
            candidates=named,
            propensities=None,
            chosen=None,
            sample_fraction=self._fraction,
        )

    def _in_force(self, section: PolicyConfig, decided_by: str, guarded: Guarded | None) -> PolicyInForce:
        """As records have it; the digest of a policy is not cheap, and known of those that were seen."""
        plain = guarded is None or (guarded.fallback_reason is None and not guarded.actions)
        key = f"{section.name} {decided_by}"
        known = self._policies.get(key)
        if known is None:
            known = self._policies[key] = PolicyInForce(
                name=section.name,
                type=section.type,
                digest=section.digest,
                exploration_fraction=section.exploration.fraction,
                decided_by=decided_by,
            )
        if plain or guarded is None:
            return known
        return known.model_copy(
            update={"fallback_reason": guarded.fallback_reason, "actions": tuple(map(str, guarded.actions))[:8]}
        )

    def _count(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.decision_log.records.labels(outcome).inc()


def _section(runtime: Runtime, policy_digest: str) -> PolicyConfig:
    """The policy section that a digest names: the current one, or the candidate's."""
    candidate = runtime.candidate
    if candidate is not None and policy_digest == candidate.digest:
        return candidate.config.policy
    return runtime.config.policy


def _eligible(request: Request, snapshot: PoolSnapshot) -> list[InstanceView]:
    """Instances that serve the model, those included that compute prompts alone."""
    out = request.excluded_instance_ids
    return [
        one for one in snapshot.views if request.model in one.instance.models and one.instance.instance_id not in out
    ]


def _is_plain(world: World, request: Request, guarded: Guarded, decision: Placement) -> bool:
    """Whether the policy alone decided, on the whole snapshot: else the odds of its choice are not known."""
    return (
        guarded.fallback_reason is None
        and not guarded.actions
        and not request.batch
        and not world.slow_start.is_ramping
        and all(one.prefill is None for one in decision.candidates)
    )
