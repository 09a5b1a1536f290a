"""One level-triggered reconcile: observe, decide, apply, and say what holds."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.config import DIGEST_ANNOTATION
from llmrouter_operator.builders import Names
from llmrouter_operator.candidate_status import candidate_notes, candidate_status
from llmrouter_operator.choice import read_last_good
from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.decide import changed_by_hand, decide, needs_apply
from llmrouter_operator.instants import instant_of
from llmrouter_operator.mix_memory import MixMemory, with_mix
from llmrouter_operator.model_files import is_remote, model_reference
from llmrouter_operator.models import (
    COMPONENT,
    COMPONENT_LABEL,
    CONFIG_MAP,
    DEPLOYMENT,
    INFERENCE_POOL,
    LLM_ROUTER,
    MANAGER,
    OWNED_KINDS,
    ROUTER_LABEL,
    ROUTING_POLICY,
    SERVICE,
    Note,
    Observed,
    Plan,
    Problem,
    Ref,
    key_of,
    metadata_of,
)
from llmrouter_operator.pickers import picker_services, referenced_pools
from llmrouter_operator.rebalance import Rebalancer
from llmrouter_operator.rebalance_status import with_rebalance
from llmrouter_operator.status import (
    build_status,
    gather_facts,
    live_pods,
    pod_of,
    read_acknowledgements,
    transitions,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from llmrouter_operator.cluster import Cluster
    from llmrouter_operator.metrics import OperatorMetrics
    from llmrouter_operator.models import Kind, Object, ObjectKey, RouterDefaults, Seen
    from llmrouter_operator.remote_models import RemoteModels
    from llmrouter_operator.seen import SeenObjects

logger = logging.getLogger(__name__)
AGAIN_SOON_S = 2.0
"""When something is awaited that no watch tells of: a model, or an object of the same name going away."""
REFERRED_AGAIN_S = 5.0
"""How often what is somebody else's is read again. A model's ConfigMap is not watched, there may be thousands; nor are
InferencePools, whose kind the API server may not know: routers watch theirs."""
TRIAL_AGAIN_S = 5.0
"""How often the arms of a trial are looked at."""
_KINDS = {kind.kind: kind for kind in OWNED_KINDS}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reconcile ended: the LLMRouter is ``gone``, or is to be looked at again if nothing happens for a while."""

    gone: bool = False
    again_after_s: float | None = None


class Reconciler:
    """Brings what one LLMRouter owns, and its status, to what it declares."""

    def __init__(
        self,
        cluster: Cluster,
        defaults: RouterDefaults,
        metrics: OperatorMetrics,
        *,
        now: Callable[[], datetime],
        remote: RemoteModels,
        seen: SeenObjects,
    ) -> None:
        self._cluster = cluster
        self._seen = seen
        self._remote = remote
        self._defaults = defaults
        self._metrics = metrics
        self._now = now
        self._memory = MixMemory()
        self._rebalancer = Rebalancer(cluster, metrics.rebalance)

    async def reconcile(self, key: ObjectKey) -> Outcome:
        """Raises ClusterError where the API server refused or did not answer; then it is to be tried again."""
        observed = await self._observe(key)
        if observed is None:
            self._metrics.show_conditions(key, ())
            self._metrics.demand.forget(key)
            self._memory.forget(key)
            self._seen.forget(key)
            self._rebalancer.forget(key)
            return Outcome(gone=True)
        plan = decide(observed, self._defaults)
        observed = await self._latch(observed, plan)
        try:
            owned = await self._apply(observed, plan)
        except ClusterError as error:
            await self._report(observed, _failed(plan, observed, error), observed.owned)
            raise
        rebalance_again_s = await self._report(observed, _in_force(plan, owned), owned)
        waits_s = [again_s for again_s in (_again_s(observed, plan), rebalance_again_s) if again_s is not None]
        return Outcome(again_after_s=min(waits_s, default=None))

    async def _observe(self, key: ObjectKey) -> Observed | None:
        router = await self._seen.get(LLM_ROUTER, *key)
        if router is None or "deletionTimestamp" in metadata_of(router):
            return None
        refs = Names(key).refs()
        labels = {ROUTER_LABEL: key.name, COMPONENT_LABEL: COMPONENT}
        spec = router.get("spec") or {}
        policy, candidate_policy, pools, owned = await asyncio.gather(
            self._get_policy(key.namespace, spec),
            self._get_policy(key.namespace, spec.get("candidate")),
            self._get_all(INFERENCE_POOL, key.namespace, referenced_pools(spec)),
            asyncio.gather(*(self._seen.get(ref.kind, key.namespace, ref.name) for ref in refs)),
        )
        owned_by_ref = dict(zip(refs, owned, strict=True))
        in_force = owned_by_ref[Ref(CONFIG_MAP, Names(key).config)]
        said = owned_by_ref[Ref(CONFIG_MAP, Names(key).acknowledgements)]
        pods, model, candidate_model, predictor_model, services = await asyncio.gather(
            self._seen.pods(key, labels, known_by=lambda pods: not _unknown(said, pods)),
            self._get_model(key, (policy or {}).get("spec"), in_force),
            self._get_model(key, (candidate_policy or {}).get("spec"), in_force),
            self._get_model(key, spec.get("predictor"), in_force),
            self._get_services(key.namespace, pools),
        )
        return Observed(
            router=router,
            policy=policy,
            model=model,
            predictor_model=predictor_model,
            owned=services | owned_by_ref,
            pods=tuple(pods),
            inference_pools=pools,
            candidate_policy=candidate_policy,
            candidate_model=candidate_model,
            at=instant_of(self._now().timestamp()),
        )

    async def _latch(self, observed: Observed, plan: Plan) -> Observed:
        """Writes how a trial ended before routers are told: whatever fails after that, it has ended."""
        if plan.candidate is None or not plan.candidate.has_just_ended:
            return observed
        router = observed.router
        old = router["status"]
        new = {**old, "candidate": candidate_status(old["candidate"], plan.candidate, observed.at)}
        await self._write_status(router, new)
        for note in candidate_notes(old, new):
            await self._post(router, note)
        return replace(observed, router={**router, "status": new})

    async def _get_all(self, kind: Kind, namespace: str, names: Sequence[str]) -> dict[str, Object | None]:
        found = await asyncio.gather(*(self._cluster.get(kind, namespace, name) for name in names))
        return dict(zip(names, found, strict=True))

    async def _get_services(self, namespace: str, pools: Mapping[str, Object | None]) -> dict[Ref, Object | None]:
        """The Services that InferencePools name as endpoint pickers."""
        found = await self._get_all(SERVICE, namespace, picker_services(pools.values()))
        return {Ref(SERVICE, name): value for name, value in found.items()}

    async def _get_policy(self, namespace: str, part: Object | None) -> Object | None:
        """The RoutingPolicy that a part of a spec refers to."""
        name = ((part or {}).get("policyRef") or {}).get("name", "")
        return await self._seen.get(ROUTING_POLICY, namespace, name) if name else None

    async def _get_model(self, key: ObjectKey, part: Object | None, in_force: Object | None) -> Seen:
        """What is there of the model that a part of a spec names; one that is in force is not fetched again."""
        reference = model_reference(part)
        if reference is not None:
            return await self._cluster.get(CONFIG_MAP, key.namespace, reference)
        if not is_remote(part):
            return None
        return await self._remote.look(key, part, in_force)

    async def _apply(self, observed: Observed, plan: Plan) -> Mapping[Ref, Object | None]:
        owned = dict(observed.owned)
        for desired in plan.objects:
            kind = _KINDS[desired["kind"]]
            ref = Ref(kind, metadata_of(desired)["name"])
            before = owned[ref]
            if not needs_apply(desired, before):
                continue
            after = await self._cluster.apply(kind, desired)
            self._seen.take(kind, after)
            owned[ref] = after
            logger.info("applied %s %s/%s", kind.kind, plan.key.namespace, ref.name)
            note = _restored(observed, desired, before, after)
            if note is not None:
                await self._post(observed.router, note)
        if plan.objects:  # else nothing here is known to be ours
            await self._prune(observed, plan, owned)
        return owned

    async def _prune(self, observed: Observed, plan: Plan, owned: Mapping[Ref, Object | None]) -> None:
        """Removes what routers said whose pods are gone."""
        name = Names(plan.key).acknowledgements
        gone = _unknown(owned.get(Ref(CONFIG_MAP, name)), observed.pods)
        if gone:
            await self._cluster.remove_keys(CONFIG_MAP, plan.key.namespace, name, gone)
            self._seen.drop(CONFIG_MAP, plan.key.namespace, name)

    async def _report(self, observed: Observed, plan: Plan, owned: Mapping[Ref, Object | None]) -> float | None:
        """Says what holds, looks after replicas, and returns when to look at those again."""
        names, router = Names(plan.key), observed.router
        said = read_acknowledgements(owned.get(Ref(CONFIG_MAP, names.acknowledgements)), live_pods(observed.pods))
        self._metrics.malformed_acknowledgements.inc(said.malformed)
        facts = gather_facts(router, plan, owned.get(Ref(DEPLOYMENT, names.workload)), said)
        facts = with_mix(facts, self._memory, at_s=self._now().timestamp())
        self._metrics.demand.show_demand(plan.key, facts.mixes, facts.forecast)
        in_force = read_last_good(owned.get(Ref(CONFIG_MAP, names.config)))
        old = router.get("status") or {}
        new = build_status(
            old,
            facts,
            in_force=in_force.config if in_force else None,
            now=observed.at,
        )
        notes = transitions(old, new)
        report = await self._rebalancer.look(router, facts, observed.inference_pools, self._now().timestamp())
        new = with_rebalance(new, report, generation=facts.generation, old=old, now=observed.at)
        self._metrics.show_conditions(plan.key, new["conditions"])
        if new != old:
            await self._write_status(router, new)
        for note in (*notes, *report.notes):
            await self._post(router, note)
        return report.again_after_s

    async def _write_status(self, router: Object, status: Object) -> None:
        metadata = metadata_of(router)
        identity = {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
        base = {"apiVersion": LLM_ROUTER.api_version, "kind": LLM_ROUTER.kind, "metadata": identity}
        self._seen.take(LLM_ROUTER, await self._cluster.apply_status(LLM_ROUTER, {**base, "status": status}))

    async def _post(self, router: Object, note: Note) -> None:
        """Posts an Event; one that cannot be posted is logged and not retried, because the status says the same."""
        metadata, at = metadata_of(router), instant_of(self._now().timestamp())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": LLM_ROUTER.api_version,
                "kind": LLM_ROUTER.kind,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": "Warning" if note.warning else "Normal",
            "reason": note.reason,
            "message": note.message[:1024],
            "source": {"component": MANAGER},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        try:
            await self._cluster.post_event(metadata["namespace"], event)
        except ClusterError as error:
            logger.warning("event %s for %s: %s", note.reason, metadata["name"], error)


def _unknown(said: Object | None, pods: Sequence[Object]) -> tuple[str, ...]:
    """Keys of acknowledgements whose routers are in none of the pods."""
    names = {metadata_of(pod)["name"] for pod in pods}
    return tuple(sorted(key for key in (said or {}).get("data") or {} if pod_of(key, names) is None))


def _restored(observed: Observed, desired: Object, before: Object | None, after: Object) -> Note | None:
    """The Event for something that another hand changed or deleted, or ``None`` where this is a wish of ours."""
    what = f"{desired['kind']} {metadata_of(desired)['name']}"
    own = {ref.name for ref in Names(key_of(observed.router)).refs()}
    if before is None and metadata_of(desired)["name"] not in own:
        return Note("PickerServiceMade", f"{what} is made: an InferencePool names it as its endpoint picker")
    if before is None:
        known = (observed.router.get("status") or {}).get("observedGeneration") is not None
        return Note("Recreated", f"{what} was gone and is made anew", warning=True) if known else None
    moved = metadata_of(before).get("resourceVersion") != metadata_of(after).get("resourceVersion")
    if moved and changed_by_hand(desired, before):
        return Note("Restored", f"{what} was changed by another hand and is restored", warning=True)
    return None


def _again_s(observed: Observed, plan: Plan) -> float | None:
    """When to look again for what no watch tells of; ``None`` where there is nothing of the kind."""
    if plan.troubled:
        return AGAIN_SOON_S
    if plan.candidate is not None and plan.candidate.life.is_on_trial:
        return TRIAL_AGAIN_S
    refers = observed.inference_pools or any(isinstance(one, dict) for one in observed.models)
    return REFERRED_AGAIN_S if refers else None


def _failed(plan: Plan, observed: Observed, error: ClusterError) -> Plan:
    reason = "Forbidden" if error.reason == "Forbidden" else "ApplyFailed"
    return _in_force(
        replace(plan, problem=Problem(reason, str(error)), choice=None, predictor=None, config_digest=None),
        observed.owned,
    )


def _in_force(plan: Plan, owned: Mapping[Ref, Object | None]) -> Plan:
    """Names the configuration in force where nothing new was decided."""
    if plan.config_digest is not None:
        return plan
    config_map = owned.get(Ref(CONFIG_MAP, Names(plan.key).config))
    annotations = metadata_of(config_map).get("annotations") or {} if config_map else {}
    return replace(plan, config_digest=annotations.get(DIGEST_ANNOTATION))
