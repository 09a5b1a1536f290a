"""The two-level pick: one instance decodes a request, another may compute its prompt.

Instances of role Prefill compute prompts for others, and nothing else. Those of role Decode are for requests whose
prompt such an instance computes; those of role Mixed may do either. For each instance that could decode a request:

- it computes the prompt itself where fewer than ``min_prefill_tokens`` of it are not in its prefix cache;
- a Decode instance leaves all other prompts to a Prefill instance, and only where none is ready computes them itself;
- a Mixed one computes a prompt itself where no Prefill instance has room, and where that is cheaper in seconds: those
  of the prompt itself, and those that it makes each of the others there wait (``own`` and the imposed part of the
  marginal cost, ``rules``), against those that the prompt takes elsewhere and ``LEAST_GAIN_S``.

The Prefill instance is the one that has the prompt ready first: ``g1·Q + g1·(p − c) + g1b·(p² − c²)``, ``own`` of the
marginal cost of a request without output, and ``cross_locality_s`` more where both say that they are in different
localities.

The policy orders the instances that could decode. It sees a prompt that is computed elsewhere as cached, all of it.
Where its scores are seconds, those that the prompt costs elsewhere are added, by the same weights; what it says in
favour of caches, ``reuse``, counts where the prompt is computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.domain import Candidate, Hold, NoCandidate, Placement, Role
from llmrouter.routing.features import feature_row, profile_features
from llmrouter.routing.policies import MAX_CANDIDATES, RoomyPolicy
from llmrouter.routing.rooms import per_profile
from llmrouter.routing.rules import IMPOSED_ALONE, OWN_ALONE, PROMPT, QUEUED, Rule, marginal_cost_row, own_latency
from llmrouter.routing.table import Table

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from llmrouter.domain import Decision, Instance, InstanceView, ObjectiveWeights, PoolSnapshot, Request
    from llmrouter.routing.policies import Policy

EVERYBODYS = tuple(own + imposed for own, imposed in zip(OWN_ALONE, IMPOSED_ALONE, strict=True))
"""Weights of the marginal cost under which every second counts once, whoever's it is."""

LEAST_GAIN_S = 0.01
"""Seconds that handing a prompt over must spare where it need not be: it takes that much itself."""

_tail_of = per_profile(profile_features)


@dataclass(frozen=True, slots=True)
class StageRules:
    """When a prompt is worth handing over, and what it costs to do so across localities (s)."""

    min_prefill_tokens: int = 256
    cross_locality_s: float = 0.1


def has_stages(snapshot: PoolSnapshot, model: str) -> bool:
    """Whether any instance of a model does one stage alone."""
    return any(one.instance.role is not Role.MIXED and model in one.instance.models for one in snapshot.views)


def row_of(request: Request, view: InstanceView) -> tuple[float, ...]:
    """Features of an instance that does all of a request."""
    cached = request.cached_tokens.get(view.instance.instance_id, 0)
    return feature_row(request, view.total, _tail_of(view), cached)


def decode_row(request: Request, view: InstanceView) -> tuple[float, ...]:
    """Features of an instance for a request whose prompt comes computed."""
    return feature_row(request, view.total, _tail_of(view), request.prompt_tokens)


def prompt_of(request: Request) -> Request:
    """A request as those see it who compute its prompt alone."""
    return replace(request, predicted_output_tokens=0.0)


def prefill_s(prompt: Request, view: InstanceView) -> float:
    """Seconds until an instance has computed a prompt (``prompt_of``), behind those that wait there."""
    return own_latency(row_of(prompt, view))


def spared_s(prompt: Request, view: InstanceView) -> float:
    """Seconds, of all who are on an instance, that it spares if a prompt (``prompt_of``) comes computed.

    Who decodes there waits behind the same prompts either way, and needs the same KV: neither counts.
    """
    row = row_of(prompt, view)
    return marginal_cost_row((*row[:QUEUED], 0.0, 0.0, *row[PROMPT:]), EVERYBODYS)


def uncached_tokens(request: Request, view: InstanceView) -> int:
    """Prompt tokens that an instance would have to compute."""
    return request.prompt_tokens - request.cached_tokens.get(view.instance.instance_id, 0)


def crossing_s(here: Instance, there: Instance, rules: StageRules) -> float:
    """What it costs to hand a prompt over between two instances; nothing where one does not say where it is."""
    is_known = here.locality and there.locality
    return rules.cross_locality_s if is_known and here.locality != there.locality else 0.0


class Prefills:
    """Instances that may compute a prompt, at least one, and in how many ``seconds`` each would have.

    Beyond a destination's own locality and those that do not say theirs, only the first of all can be the nearest.
    """

    def __init__(
        self, seconds: Sequence[float], views: Sequence[InstanceView], rules: StageRules, rng: random.Random
    ) -> None:
        self._rules = rules
        ranked = [(one, rng.random(), view) for one, view in zip(seconds, views, strict=True)]
        ranked.sort(key=lambda one: one[:2])
        self._first = ranked[0]
        self._best: dict[str, tuple[float, float, InstanceView]] = {}
        for found in ranked:
            self._best.setdefault(found[2].instance.locality, found)

    def nearest(self, destination: InstanceView) -> tuple[float, InstanceView]:
        """The one that has the prompt at a destination first, and after how many seconds; ties at random."""
        there = destination.instance
        reached = (
            (seconds + crossing_s(there, view.instance, self._rules), tie, view)
            for seconds, tie, view in (
                self._first,
                self._best.get(there.locality, self._first),
                self._best.get("", self._first),
            )
        )
        seconds, _, view = min(reached, key=lambda one: one[:2])
        return seconds, view


@dataclass(frozen=True, slots=True)
class _Plan:
    """Who could decode a request: those that compute its prompt too, and those that have it computed."""

    prompt: Request
    whole: list[InstanceView]
    staged: list[InstanceView]
    prefills: Prefills | None


class Staged:
    """A policy for pools of which some do one stage of a request: see the module's docstring.

    Where the model has none, it is ``policy``, and nothing else.

    Args:
        policy: orders instances for whole requests.
        rules: when prompts are handed over.
        decode: orders them for requests whose prompt is computed elsewhere; ``policy`` where it does both.
        weights: the marginal cost's, where the scores of both are such costs in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        rules: StageRules | None = None,
        *,
        decode: Policy | None = None,
        weights: ObjectiveWeights | None = None,
    ) -> None:
        self.name = policy.name
        self.room_of = policy.room_of
        self._table = Table(policy.room_of, _tail_of)
        self.names_only_roomy = isinstance(policy, RoomyPolicy)
        self._policy, self._decode = policy, decode or policy
        self._rules = rules or StageRules()
        self._prefill_weights: tuple[float, ...] | None = None
        if weights is not None:
            self._prefill_weights = (weights.wait, weights.decode, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, weights.reuse)
            self._second = weights.decode

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """One decision; candidates have a ``prefill`` where another instance computes the prompt."""
        if not has_stages(snapshot, request.model):
            return self._policy.decide(request, snapshot, rng)
        prefills, others = _sorted_out(request, snapshot.views)
        if not others:
            return NoCandidate(f"no ready instance decodes for model {request.model!r}")
        if not prefills:
            decision = self._policy.decide(request, replace(snapshot, views=tuple(others)), rng)
            return replace(decision, reason=f"{decision.reason}; no prefill instance is ready")
        plan = self._plan(request, prefills, others, rng)
        if not plan.whole and not plan.staged:
            return Hold(f"none of {len(prefills)} prefill instances has room")
        return self._decided(request, snapshot, plan, rng)

    def _plan(
        self, request: Request, prefills: Sequence[InstanceView], others: Sequence[InstanceView], rng: random.Random
    ) -> _Plan:
        prompt = prompt_of(request)
        seconds, roomy = self._ranked(prompt, prefills)
        plan = _Plan(prompt, [], [], Prefills(seconds, roomy, self._rules, rng) if roomy else None)
        for view in others:
            if self._is_whole(prompt, view, plan.prefills):
                plan.whole.append(view)
            elif plan.prefills is not None:
                plan.staged.append(view)
        return plan

    def _ranked(
        self, prompt: Request, prefills: Sequence[InstanceView]
    ) -> tuple[Sequence[float], Sequence[InstanceView]]:
        """``prefill_s`` of the instances that have room for a prompt, and those."""
        _, places = self._table.roomy(prefills, prompt)
        return self._table.scores(prompt, places, Rule.OWN_LATENCY), [prefills[place] for place in places]

    def _is_whole(self, prompt: Request, view: InstanceView, prefills: Prefills | None) -> bool:
        """Whether an instance computes the prompt itself."""
        if uncached_tokens(prompt, view) < self._rules.min_prefill_tokens:
            return True
        if view.instance.role is Role.DECODE:
            return False
        return prefills is None or spared_s(prompt, view) <= prefills.nearest(view)[0] + LEAST_GAIN_S

    def _decided(self, request: Request, snapshot: PoolSnapshot, plan: _Plan, rng: random.Random) -> Decision:
        computed = {one.instance.instance_id: request.prompt_tokens for one in plan.staged}
        shown = replace(request, cached_tokens={**request.cached_tokens, **computed}) if computed else request
        parts = [(self._policy, plan.whole), (self._decode, plan.staged)]
        if self._policy is self._decode:
            parts = [(self._policy, plan.whole + plan.staged)]
        placed: list[Candidate] = []
        waits: list[Decision] = []
        load_sensitive = True
        for policy, views in parts:
            if not views:
                continue
            decision = policy.decide(shown, replace(snapshot, views=tuple(views)), rng)
            if isinstance(decision, Placement):
                load_sensitive = decision.load_sensitive
                placed += self._with_prefills(decision, plan)
            else:
                waits.append(decision)
        if not placed:
            return _wait_of(waits)
        if self._prefill_weights is not None:
            placed.sort(key=lambda one: one.score)
        candidates = tuple(placed[:MAX_CANDIDATES])
        return Placement(candidates, self._reason(candidates[0], plan), load_sensitive=load_sensitive)

    def _with_prefills(self, decision: Placement, plan: _Plan) -> list[Candidate]:
        """The policy's candidates, each with the instance that computes the prompt, if that is another one."""
        named = {one.instance_id for one in decision.candidates}
        staged = {name: one for one in plan.staged if (name := one.instance.instance_id) in named}
        return [
            self._with_prefill(plan.prompt, one, view, plan.prefills)
            if (view := staged.get(one.instance_id)) is not None and plan.prefills is not None
            else one
            for one in decision.candidates
        ]

    def _with_prefill(self, prompt: Request, one: Candidate, view: InstanceView, prefills: Prefills) -> Candidate:
        seconds, at = prefills.nearest(view)
        score = one.score
        if self._prefill_weights is not None:
            score += marginal_cost_row(row_of(prompt, at), self._prefill_weights)
            score += self._second * crossing_s(view.instance, at.instance, self._rules)
        return replace(one, score=score, prefill=Candidate(at.instance.instance_id, seconds, at.load))

    def _reason(self, best: Candidate, plan: _Plan) -> str:
        among = len(plan.whole) + len(plan.staged)
        said = f"{self.name}: {best.instance_id} of {among} scored {best.score:.4g}"
        if best.prefill is not None:
            return f"{said}; the prompt is computed at {best.prefill.instance_id}, in {best.prefill.score:.3g} s"
        view = next(one for one in plan.whole if one.instance.instance_id == best.instance_id)
        return f"{said}; it computes the prompt itself: {self._why_whole(plan.prompt, view, plan.prefills)}"

    def _why_whole(self, prompt: Request, view: InstanceView, prefills: Prefills | None) -> str:
        tokens = uncached_tokens(prompt, view)
        if tokens < self._rules.min_prefill_tokens:
            return f"{tokens} tokens are not cached there, fewer than {self._rules.min_prefill_tokens}"
        if prefills is None:
            return "no prefill instance has room"
        return f"that costs {spared_s(prompt, view):.3g} s there, elsewhere {prefills.nearest(view)[0]:.3g} s"


def _sorted_out(request: Request, views: Sequence[InstanceView]) -> tuple[list[InstanceView], list[InstanceView]]:
    """Of the instances that may serve a request, those that compute prompts for others, and the others."""
    prefills: list[InstanceView] = []
    others: list[InstanceView] = []
    for view in views:
        instance = view.instance
        if request.model in instance.models and instance.instance_id not in request.excluded_instance_ids:
            (prefills if instance.role is Role.PREFILL else others).append(view)
    return prefills, others


def _wait_of(waits: Sequence[Decision]) -> Decision:
    """Of answers that are no placement, at least one, a hold at will, else any hold, else the first."""
    holds = [one for one in waits if isinstance(one, Hold)]
    at_will = [one for one in holds if one.until_s is not None]
    return (at_will or holds or waits)[0]
