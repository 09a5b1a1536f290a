"""The router's decision log: what is sampled, kept for a while, and handed to a thread that writes it down.

A decision costs the event loop a hash of its request's id and, where it is sampled, an object that refers to what was
seen, none of which ever changes. All else, the record, its line and the sink, is the writer's. What does not fit the
bounds is dropped and counted.
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
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from llmrouter.config import PolicyConfig, RouterConfig
    from llmrouter.decisions.record import DecisionRecord
    from llmrouter.domain import InstanceView, PoolSnapshot, Request
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

MAX_OPEN_VIEWS = 4_000_000
"""References to what instances looked like, of all open records; 8 bytes each."""

MAX_KEPT = 1_024
"""Records of ended requests that can still be asked for."""

_ENDS: Mapping[str, OutcomeKind] = {"finished": "Finished", "failed": "Failed", "cancelled": "Cancelled"}


class Terms:
    """What all records under one configuration have in common."""

    __slots__ = ("fraction", "in_force", "most", "router_id", "tenant_key")

    def __init__(self, router_id: str, config: RouterConfig | None) -> None:
        self.router_id = router_id
        self.fraction, self.most = (0.0, 8) if config is None else _sampling(config)
        self.tenant_key = "" if config is None else f"{config.namespace}/{config.name}"
        self.in_force: dict[tuple[str, str, str], PolicyInForce] = {}

    def policy(self, section: PolicyConfig, digest: str, guarded: Guarded | None, decided_by: str) -> PolicyInForce:
        """A policy as records have it."""
        key = (section.name, digest, decided_by)
        known = self.in_force.get(key)
        if known is None:
            known = self.in_force[key] = PolicyInForce(
                name=section.name,
                type=section.type,
                digest=digest,
                exploration_fraction=section.exploration.fraction,
                decided_by=decided_by,
            )
        if guarded is None or (guarded.fallback_reason is None and not guarded.actions):
            return known
        actions = tuple(str(one) for one in guarded.actions)[:8]
        return known.model_copy(update={"fallback_reason": guarded.fallback_reason, "actions": actions})


def _sampling(config: RouterConfig) -> tuple[float, int]:
    return config.decision_log.fraction, config.decision_log.max_candidates


class OpenRecord:
    """The record of a request that is under way; every end of it comes to ``close``, once.

    ``is_plain`` says that the policy alone decided, on the whole snapshot: else the odds of its choice are not known.
    """

    __slots__ = (
        "_log",
        "arm",
        "at_s",
        "epoch_s",
        "first_token_at_s",
        "foretold",
        "guard",
        "is_plain",
        "outcome",
        "placed",
        "reason",
        "request",
        "section",
        "served",
        "snapshot",
        "terms",
    )

    def __init__(
        self, log: DecisionLog, request: Request, snapshot: PoolSnapshot, guard: Guard, section: PolicyConfig
    ) -> None:
        self._log, self.terms = log, log.terms
        self.request, self.snapshot, self.guard, self.section = request, snapshot, guard, section
        self.at_s, self.epoch_s = log.clock(), log.now()
        self.arm, self.reason = CURRENT, ""
        self.placed: Placed | None = None
        self.is_plain = False
        self.foretold: tuple[float, float] | None = None
        self.served: str | None = None
        self.first_token_at_s: float | None = None
        self.outcome: Outcome | None = None

    def started(self, now_s: float) -> None:
        """The first token came."""
        self.first_token_at_s = now_s

    def ended(self, report: Report, now_s: float) -> None:
        """The request was reported as ended."""
        kind, arrived_at_s = _ENDS[report.kind.value], self.request.arrived_at_s
        ttft_s = None if self.first_token_at_s is None else max(0.0, self.first_token_at_s - arrived_at_s)
        is_whole = kind == "Finished" and not report.is_part
        tokens, tpot_s = _count(report.output_tokens), None
        if is_whole and self.first_token_at_s is not None and tokens is not None and tokens > 1:
            tpot_s = max(0.0, now_s - self.first_token_at_s) / (tokens - 1)
        self.outcome = Outcome.model_construct(  # of checked numbers; the record checks it as a whole
            kind=kind,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=max(0.0, now_s - arrived_at_s) if is_whole else None,
            output_tokens=tokens,
            prompt_tokens=_count(report.prompt_tokens),
            cached_tokens=_count(report.cached_prompt_tokens),
            reason=outcome_reason(report.reason),
            part=report.is_part,
        )

    def close(self) -> None:
        """The request is no longer in the book: what was not reported as ended is lost."""
        self._log.closed(self)

    def record(self) -> DecisionRecord:
        """The record as it is now; may be called by any thread. Raises ValueError where something is out of bounds."""
        request, terms, placed = self.request, self.terms, self.placed
        eligible, roomy = roomy_of(self.guard.room_of, request, self.snapshot.views)
        decided = Decided(
            request=request,
            router_id=terms.router_id,
            arrived_at_s=self.epoch_s - (self.at_s - request.arrived_at_s),
            decided_at_s=self.epoch_s,
            arm=self.arm,
            policy=self._policy(),
            reason=self.reason,
            explored=False,
            degraded=False,
            load_age_s=self.snapshot.load_age_s,
            eligible=eligible,
            roomy_ids=frozenset(one.instance.instance_id for one in roomy),
            views=(),
            candidates=(),
            propensities=None,
            chosen=None,
            served=self.served,
            foretold=self.foretold,
            sample_fraction=terms.fraction,
        )
        if placed is not None:
            self._add_placement(decided, placed, roomy)
        views = _eligible(request, self.snapshot)
        decided.views = described(views, decided.candidates, decided.roomy_ids, terms.most)
        return record_of(decided, self.outcome, tenant_key=terms.tenant_key)

    def _policy(self) -> PolicyInForce:
        placed = self.placed
        if placed is None:
            return self.terms.policy(self.section, self.section.digest, None, self.guard.primary.name)
        return self.terms.policy(self.section, placed.answer.policy_digest, placed.guarded, placed.guarded.policy)

    def _add_placement(self, decided: Decided, placed: Placed, roomy: list[InstanceView]) -> None:
        decision, answer = placed.guarded.decision, placed.answer
        decided.reason, decided.degraded = decision.reason, answer.degraded
        decided.chosen, decided.prefill = answer.instance_id, answer.prefill_instance_id
        if not isinstance(decision, Placement):
            return
        decided.candidates, decided.explored = decision.candidates, decision.explored
        if self.is_plain and roomy and all(one.prefill is None for one in decision.candidates):
            fraction = self.section.exploration.fraction
            decided.propensities = propensities(placed.guarded.policy, decision, roomy, fraction)


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
        self.clock, self.now = clock, now
        self.terms = Terms(router_id, None)
        self._router_id, self._metrics = router_id, metrics
        self._writer = DecisionWriter(router_id, folder=folder, metrics=metrics)
        self._open: dict[str, OpenRecord] = {}
        self._kept: OrderedDict[str, OpenRecord] = OrderedDict()

    def follow(self, config: RouterConfig) -> None:
        """Goes by a configuration."""
        self.terms = Terms(self._router_id, config)
        self.is_on = self.terms.fraction > 0.0
        self._writer.follow(config.decision_log if self.is_on else None)

    @property
    def readiness(self) -> Readiness | None:
        """Whether what is sampled can be written down; ``None`` where nothing is to be."""
        return self._writer.readiness

    def close(self) -> None:
        """Writes what is there, open requests as lost, and stops; may wait for the sink for some seconds."""
        for record in list(self._open.values()):
            self.closed(record)
        self._writer.close()

    def decided(self, world: World, runtime: Runtime, placed: Placed) -> None:
        """A decision was committed: where it is sampled, it is kept until the request ends."""
        request = placed.request
        if not is_sampled(request.request_id, self.terms.fraction):
            return
        entry = world.open_requests.get(request.request_id)
        if entry is None or entry.record is not None:
            return
        if len(self._open) >= MAX_OPEN or len(self._open) * len(placed.snapshot.views) >= MAX_OPEN_VIEWS:
            self._count("DroppedOpen")
            return
        guarded = placed.guarded
        section = _section(runtime, placed.answer.policy_digest)
        record = OpenRecord(self, request, placed.snapshot, placed.guard, section)
        record.placed = placed
        record.is_plain = not (
            guarded.fallback_reason or guarded.actions or request.batch or world.slow_start.is_ramping
        )
        record.arm = CURRENT if entry.life is None else entry.life.arm
        record.foretold = None if entry.cost is None else (entry.cost.first_token_s, entry.cost.seconds)
        entry.record = self._open[request.request_id] = record

    def refused(self, world: World, runtime: Runtime, request: Request, error: SaturatedError) -> None:
        """A request was turned away."""
        if not is_sampled(request.request_id, self.terms.fraction):
            return
        snapshot = world.replica.snapshot(world.ready(), now_s=self.clock())
        record = OpenRecord(self, request, snapshot, runtime.guard, runtime.config.policy)
        record.arm = world.trial.arm(runtime, request.request_id) or CURRENT
        record.reason, record.outcome = str(error), Outcome(kind="Refused", reason=outcome_reason(error.reason))
        self._keep(record)

    def served(self, request_id: str, endpoint: str) -> None:
        """A gateway said who served a request, where that was another one."""
        record = self._open.get(request_id)
        if record is not None:
            record.served = endpoint[:259]

    def closed(self, record: OpenRecord) -> None:
        """A request has left the book."""
        self._open.pop(record.request.request_id, None)
        record.outcome = record.outcome or Outcome(kind="Lost")
        self._keep(record)

    def find(self, request_id: str) -> DecisionRecord | None:
        """The record of a request that is open or ended lately; may be called by any thread."""
        found = self._kept.get(request_id) or self._open.get(request_id)
        return None if found is None else found.record()

    def _keep(self, record: OpenRecord) -> None:
        self._kept[record.request.request_id] = record
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        self._writer.put(record)

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
