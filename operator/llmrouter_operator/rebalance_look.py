"""One look at the replicas of an LLMRouter's pools: plans, takes one step, and gathers what is to be said of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from llmrouter.errors import InvalidInputError
from llmrouter.planning.split import propose
from llmrouter.planning.steps import Phase, taken_gpus
from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.models import Note
from llmrouter_operator.rebalance_decide import back_off, footing_of, least_gpus, states_of, step_of
from llmrouter_operator.rebalance_memory import Applied, Change
from llmrouter_operator.rebalance_plan import plan_inputs
from llmrouter_operator.rebalance_status import NO_MIX, Told, verdict_of
from llmrouter_operator.status import false

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.planning.inputs import Proposal
    from llmrouter.planning.steps import Step, Wish
    from llmrouter.rebalance_specs import RebalanceSpec
    from llmrouter.resources import LLMRouterSpec
    from llmrouter_operator.rebalance_decide import RollBack, Situation
    from llmrouter_operator.rebalance_memory import Block, Past
    from llmrouter_operator.rebalance_metrics import RebalanceMetrics
    from llmrouter_operator.scaling import Scaling
    from llmrouter_operator.scaling_view import TargetView
    from llmrouter_operator.status import Facts, Verdict

MOVING_AGAIN_S = 2.0
"""How soon pods are looked at again while something moves: they are not watched, there may be thousands."""
RESTING_AGAIN_S = 30.0
"""How soon at the latest while nothing does; sooner where wishes need not last as long."""
_LOOKS_PER_WISH = 4.0
_MOVING = frozenset({Phase.DRAINING, Phase.SHRINKING, Phase.GROWING})
_NAMED_PODS = 5
_CONFLICT, _LEAST_SERVER_ERROR = 409, 500


class _Outcome(NamedTuple):
    """What goes on after a look, and why."""

    phase: str
    message: str


class Look:
    """One look at the pools of one LLMRouter, and the step that it takes."""

    def __init__(
        self,
        scaling: Scaling,
        metrics: RebalanceMetrics,
        *,
        facts: Facts,
        spec: LLMRouterSpec,
        rebalance: RebalanceSpec,
        situation: Situation,
        past: Past,
        fixed: Mapping[str, int],
    ) -> None:
        self._scaling = scaling
        self._metrics = metrics
        self._facts = facts
        self._spec = spec
        self._rebalance = rebalance
        self._situation = situation
        self._past = past
        self._fixed = fixed
        self._footing = footing_of(situation, past, rebalance)
        self._blocked: dict[str, Block] = dict(self._footing.blocked)
        self._applied: dict[str, Applied] = dict(self._footing.applied)
        self._views: dict[str, TargetView] = {view.pool: view for view in situation.views}
        self._declared = {view.pool: view.declared for view in situation.views}
        self._states = states_of(situation, self._footing, rebalance)
        self._last = past.last
        self._proposal: Proposal | None = None
        self._why_not: Verdict | None = None
        self._wishes: Mapping[str, Wish] = {}
        self._outcome = _Outcome(Phase.SETTLED, "")
        self.notes: list[Note] = []
        looks_s = rebalance.stabilization_seconds / _LOOKS_PER_WISH
        self.again_s = min(max(looks_s, MOVING_AGAIN_S), RESTING_AGAIN_S)

    @property
    def plan_reason(self) -> str:
        """The reason of the plan, in words."""
        return "" if self._proposal is None else self._proposal.reason

    @property
    def wanted(self) -> dict[str, int]:
        """Replicas that the plan asks for, by pool with a scale target; nothing without a plan."""
        if self._proposal is None:
            return {}
        return {pool: self._proposal.replicas[pool] for pool in self._views}

    async def run(self) -> None:
        """Observes no more: plans, and takes one step."""
        key, now_s = self._facts.plan.key, self._situation.now_s
        is_auto = self._rebalance.mode == "Auto"
        if is_auto and self._footing.roll_back is not None:
            self._outcome = await self._roll_back(self._footing.roll_back)
        else:
            await self._plan()
            step, memory = step_of(self._states, self._rebalance, self._past, self.wanted, now_s)
            self._wishes = memory.wishes
            if step.again_after_s is not None:
                self.again_s = min(self.again_s, max(step.again_after_s, 0.1))
            self._outcome = await self._take(step) if is_auto else await self._recommend()
        if self._outcome.phase in _MOVING:
            self.again_s = min(self.again_s, MOVING_AGAIN_S)
        taken, budget = taken_gpus(self._states), self._rebalance.gpu_budget
        self._metrics.show(key, self._states, self.wanted, taken=taken, budget=budget)

    def told(self) -> Told:
        """What the look has to say."""
        phase, message = self._outcome
        if phase == Phase.BLOCKED and not self._blocked:
            verdict = false("NoRoom", message)
        elif self._why_not is not None and (self._why_not.status == "False" or not self._blocked):
            phase, verdict = Phase.BLOCKED if self._why_not.status == "False" else phase, self._why_not
        else:
            verdict = verdict_of(phase, message, self._blocked, self.plan_reason)
        return Told(
            mode=self._rebalance.mode,
            phase=phase,
            verdict=verdict,
            budget=self._rebalance.gpu_budget,
            taken=taken_gpus(self._states),
            wanted=self.wanted,
            wishes=self._wishes,
            applied=self._applied,
            blocked=self._blocked,
            last=self._last,
            declared=self._declared,
        )

    async def _plan(self) -> None:
        """Makes a plan, or says why there is none; the search is no work for the event loop."""
        least, budget = least_gpus(self._situation.pools), self._rebalance.gpu_budget
        if least > budget:
            self._why_not = false(
                "BudgetTooSmall", f"minReplicas of the pools take {least} GPUs, gpuBudget is {budget}"
            )
            return
        inputs = plan_inputs(
            self._spec,
            self._rebalance,
            self._facts.mixes,
            growth=1.0 if self._facts.forecast is None else self._facts.forecast.growth,
            declared=self._declared,
            fixed=self._fixed,
            held=self._blocked,
        )
        if inputs is None:
            self._why_not = NO_MIX
            return
        try:
            self._proposal = await asyncio.to_thread(propose, inputs)
        except InvalidInputError as error:
            self._why_not = false("PlanImpossible", str(error))

    async def _recommend(self) -> _Outcome:
        """Says what should be, and lets everything serve."""
        for view in self._views.values():
            await self._scaling.drain(view, 0, self._situation.now_s)
        if any(replicas != self._declared[pool] for pool, replicas in self.wanted.items()):
            return _Outcome("Recommending", "nothing is changed: mode is Recommend")
        return _Outcome(Phase.SETTLED, "every pool has the replicas that are wanted")

    async def _take(self, step: Step) -> _Outcome:
        """Does what the step says: who drains, and one change of a scale at most."""
        for pool, view in self._views.items():
            told = await self._scaling.drain(view, step.draining.get(pool, 0), self._situation.now_s)
            if told:
                self.notes.append(Note("RebalanceDraining", f"{pool}: no new requests for {_some(told)}"))
        if step.replicas is None:
            return _Outcome(step.phase, step.message)
        return await self._scale(step.pool, step.replicas, step.phase, step.message)

    async def _scale(self, pool: str, replicas: int, phase: str, message: str) -> _Outcome:
        view, now_s = self._views[pool], self._situation.now_s
        try:
            await self._scaling.set_replicas(view, replicas)
        except ClusterError as error:
            if error.status == _CONFLICT:
                return _Outcome(phase, f"{view.target} was changed meanwhile: it is looked at again")
            if error.status == 0 or error.status >= _LEAST_SERVER_ERROR:
                raise
            return self._refused(pool, phase, message, error)
        self._note_change(pool, replicas, phase)
        self._last = Change(pool, view.declared, replicas, now_s)
        self._applied[pool] = Applied(
            replicas, self._applied[pool].ready, is_ours=True, failures=self._applied[pool].failures
        )
        self.notes.append(Note("RebalanceApplied", f"{pool}: {view.declared} -> {replicas} replicas: {message}"))
        return _Outcome(phase, message)

    def _refused(self, pool: str, phase: str, message: str, error: ClusterError) -> _Outcome:
        """A change that the API server does not take is tried again later; others go on."""
        reason = "Forbidden" if error.reason == "Forbidden" and "admission" not in str(error) else "ChangeRefused"
        self._metrics.failures.labels(*self._facts.plan.key, reason).inc()
        self._applied[pool], self._blocked[pool] = back_off(
            self._applied[pool], reason, str(error), self._situation.now_s
        )
        return _Outcome(phase, message)

    async def _roll_back(self, roll_back: RollBack) -> _Outcome:
        pool, now_s = roll_back.pool, self._situation.now_s
        outcome = await self._scale(pool, roll_back.replicas, "RollingBack", roll_back.message)
        if self._last is not None and self._last.at_s == now_s:
            self._applied[pool], self._blocked[pool] = back_off(
                self._applied[pool], "RolloutStuck", roll_back.message, now_s
            )
            self.notes[-1] = Note("RebalanceRolledBack", f"{pool}: {roll_back.message}", warning=True)
        return outcome

    def _note_change(self, pool: str, replicas: int, phase: str) -> None:
        before = self._declared[pool]
        self._declared[pool] = replicas
        direction = "back" if phase == "RollingBack" else "up" if replicas > before else "down"
        self._metrics.changes.labels(*self._facts.plan.key, pool, direction).inc()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED_PODS} more" if len(names) > _NAMED_PODS else ""
    return ", ".join(names[:_NAMED_PODS]) + more
