"""What makes a pool's pods, as values: replicas, who keeps their number, and why they are left alone. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter_operator.instants import instant_s
from llmrouter_operator.models import MANAGER, Kind, Problem, metadata_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from llmrouter.rebalance_specs import ScaleTargetRef
    from llmrouter_operator.models import Object

SCALED_KINDS = {
    "Deployment": Kind("apps", "v1", "deployments", "Deployment"),
    "StatefulSet": Kind("apps", "v1", "statefulsets", "StatefulSet"),
    "LeaderWorkerSet": Kind("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", "LeaderWorkerSet"),
}
"""Where the API serves the kinds whose scale may be changed."""

AUTOSCALER = Kind("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler")

DRAINING_ANNOTATION = "llmrouter.dev/draining"
"""On a pod that is to go: since when (RFC 3339). Routers give it no new request."""

DELETION_COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
"""Of the ready pods of a Deployment, those with the lowest cost end first."""

DELETION_COST = "-1000"

_GROUP_INDEX = "leaderworkerset.sigs.k8s.io/group-index"
_WORKER_INDEX = "leaderworkerset.sigs.k8s.io/worker-index"
_SET_NAME = "leaderworkerset.sigs.k8s.io/name"
_GRACE_S = 2.0
"""A replica is taken to have nothing in flight this long after it was told to drain: decisions may be under way."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica: a pod, or a group of them. ``instance`` is the pod that serves; ``trouble`` why it does not."""

    instance: str
    pods: tuple[str, ...]
    ordinal: int | None
    is_ready: bool
    is_terminating: bool
    created_at_s: float
    changed_at_s: float
    """When it last became ready, or stopped being so."""
    draining_since_s: float | None
    trouble: str

    @property
    def is_draining(self) -> bool:
        """Whether it was told to take no new requests."""
        return self.draining_since_s is not None


@dataclass(frozen=True, slots=True)
class TargetView:
    """A pool's scale target. ``declared`` is ``spec.replicas``; ``replicas`` are there, ending ones included.

    ``keepers`` are the field managers that own ``spec.replicas``, the last writer last. ``problem`` is why the pool is
    to be left alone.
    """

    pool: str
    target: ScaleTargetRef
    declared: int = 0
    resource_version: str = ""
    replicas: tuple[Replica, ...] = ()
    keepers: tuple[str, ...] = ()
    problem: Problem | None = None
    refusal: str = ""
    """What its controller says of pods that it cannot make."""
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Requests in flight by instance, of those that routers told of: the quietest."""

    @property
    def live(self) -> tuple[Replica, ...]:
        """Replicas that are not ending."""
        return tuple(one for one in self.replicas if not one.is_terminating)

    @property
    def ready(self) -> int:
        """Replicas that serve."""
        return sum(one.is_ready for one in self.live)

    @property
    def terminating(self) -> int:
        """Replicas that are ending."""
        return sum(one.is_terminating for one in self.replicas)

    @property
    def is_kept_by_us(self) -> bool:
        """Whether the operator was the last to set the replicas."""
        return MANAGER in self.keepers

    def going(self) -> tuple[Replica, ...]:
        """Live replicas in the order in which they are to go.

        By ordinal, the highest first, where the controller takes those; else those first that do not serve, then those
        that drain already, then those with the fewest requests in flight, then the newest: its caches are least warm.
        """
        if self.target.kind != "Deployment":
            return tuple(sorted(self.live, key=lambda one: -(one.ordinal or 0)))
        return tuple(
            sorted(
                self.live,
                key=lambda one: (
                    one.is_ready,
                    one.draining_since_s or math.inf,
                    self.in_flight.get(one.instance, math.inf),
                    -one.created_at_s,
                    one.instance,
                ),
            )
        )


def selector_of(target: ScaleTargetRef, value: Object) -> dict[str, str] | None:
    """Labels that find the pods of a scale target; ``None`` where labels alone do not."""
    if target.kind == "LeaderWorkerSet":
        return {_SET_NAME: target.name}
    selector = (value.get("spec") or {}).get("selector") or {}
    return None if selector.get("matchExpressions") else selector.get("matchLabels")


def view_of(
    pool: str,
    target: ScaleTargetRef,
    value: Object | None,
    *,
    pods: Sequence[Object],
    pool_labels: Mapping[str, str] | None,
    autoscalers: Iterable[Object],
) -> TargetView:
    """Reads a scale target: ``value`` is ``None`` where there is none, ``pool_labels`` where nothing selects pods."""
    if value is None:
        return TargetView(pool, target, problem=Problem("TargetNotFound", f"there is no {target} in the namespace"))
    problem = _problem(target, value, pool_labels, autoscalers)
    return TargetView(
        pool=pool,
        target=target,
        declared=_replicas_of(value),
        resource_version=metadata_of(value).get("resourceVersion", ""),
        replicas=tuple(_replicas(target, value, pods)),
        keepers=keepers_of(value),
        problem=problem,
        refusal=_refusal(value),
    )


def keepers_of(value: Object) -> tuple[str, ...]:
    """Field managers that own ``spec.replicas``, the last writer last."""
    entries = metadata_of(value).get("managedFields") or []
    owning = [one for one in entries if "f:replicas" in ((one.get("fieldsV1") or {}).get("f:spec") or {})]
    return tuple(one.get("manager", "") for one in sorted(owning, key=lambda one: one.get("time") or ""))


def drained(
    view: TargetView,
    said: Collection[Mapping[str, int]],
    *,
    drain_s: float,
    now_s: float,
) -> int:
    """Of the replicas that would go first, how many may go now.

    ``said`` is what each router says of draining instances. A replica may go that does not serve; that every router
    gives no new requests, with none left in flight; or that has drained for ``drain_s``.
    """
    count = 0
    for replica in view.going():
        if not _may_go(replica, said, drain_s=drain_s, now_s=now_s):
            break
        count += 1
    return count


def _may_go(replica: Replica, said: Collection[Mapping[str, int]], *, drain_s: float, now_s: float) -> bool:
    if not replica.is_ready:
        return True
    if replica.draining_since_s is None:
        return False
    age_s = now_s - replica.draining_since_s
    if age_s >= drain_s:
        return True
    return age_s >= _GRACE_S and bool(said) and all(_is_empty(replica.instance, one) for one in said)


def _is_empty(instance: str, in_flight: Mapping[str, int]) -> bool:
    own = [count for name, count in in_flight.items() if name == instance or name.startswith(f"{instance}:")]
    return bool(own) and not any(own)


def _replicas_of(value: Object) -> int:
    replicas = (value.get("spec") or {}).get("replicas")
    return 1 if replicas is None else int(replicas)


def _problem(
    target: ScaleTargetRef, value: Object, pool_labels: Mapping[str, str] | None, autoscalers: Iterable[Object]
) -> Problem | None:
    if "deletionTimestamp" in metadata_of(value):
        return Problem("TargetNotFound", f"{target} is being deleted")
    if (value.get("spec") or {}).get("paused"):
        return Problem("TargetPaused", f"{target} is paused: resume it to have its replicas changed")
    owner = _autoscaler(target, autoscalers)
    if owner is not None:
        return Problem("OwnedByOther", f"{owner} keeps the replicas of {target}")
    if _is_rolling_out(value):
        return Problem("TargetRollingOut", f"{target} replaces its pods by those of a new template")
    return _mismatch(target, value, pool_labels)


def _mismatch(target: ScaleTargetRef, value: Object, pool_labels: Mapping[str, str] | None) -> Problem | None:
    labels = _template_labels(target, value)
    if pool_labels is not None and any(labels.get(name) != text for name, text in pool_labels.items()):
        return Problem("SelectorMismatch", f"the pool does not select the pods of {target}")
    if selector_of(target, value) is None:
        return Problem("SelectorMismatch", f"the selector of {target} is more than labels")
    return None


def _autoscaler(target: ScaleTargetRef, autoscalers: Iterable[Object]) -> str | None:
    for one in autoscalers:
        named = (one.get("spec") or {}).get("scaleTargetRef") or {}
        if (named.get("kind"), named.get("name")) != (target.kind, target.name):
            continue
        name = f"HorizontalPodAutoscaler {metadata_of(one)['name']}"
        makers = [owner for owner in metadata_of(one).get("ownerReferences") or [] if owner.get("controller")]
        return f"{makers[0]['kind']} {makers[0]['name']} ({name})" if makers else name
    return None


def _template_labels(target: ScaleTargetRef, value: Object) -> Mapping[str, str]:
    spec = value.get("spec") or {}
    template = spec.get("template") or {}
    if target.kind == "LeaderWorkerSet":
        group = spec.get("leaderWorkerTemplate") or {}
        template = group.get("leaderTemplate") or group.get("workerTemplate") or {}
        made = {_SET_NAME: target.name, _WORKER_INDEX: "0"}
        return {**((template.get("metadata") or {}).get("labels") or {}), **made}
    labels: Mapping[str, str] = (template.get("metadata") or {}).get("labels") or {}
    return labels


def _is_rolling_out(value: Object) -> bool:
    """Whether pods of an older template are there, or its controller has not seen a change of it yet."""
    status = value.get("status") or {}
    updated = status.get("updatedReplicas")
    return updated is not None and status.get("replicas", 0) > updated


def _refusal(value: Object) -> str:
    for condition in (value.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return str(condition.get("message", ""))
    return ""


def _replicas(target: ScaleTargetRef, value: Object, pods: Sequence[Object]) -> list[Replica]:
    """Pods that hold GPUs, as replicas; pods that have ended hold none."""
    alive = [pod for pod in pods if (pod.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}]
    if target.kind != "LeaderWorkerSet":
        return [_replica([pod], size=1) for pod in alive]
    size = int(((value.get("spec") or {}).get("leaderWorkerTemplate") or {}).get("size") or 1)
    groups: dict[str, list[Object]] = {}
    for pod in sorted(alive, key=lambda one: str(_labels(one).get(_WORKER_INDEX, ""))):
        groups.setdefault(_labels(pod).get(_GROUP_INDEX, ""), []).append(pod)
    return [_replica(group, size=size) for group in groups.values()]


def _replica(pods: Sequence[Object], *, size: int) -> Replica:
    first = pods[0]
    metadata = metadata_of(first)
    since = (metadata.get("annotations") or {}).get(DRAINING_ANNOTATION)
    return Replica(
        instance=metadata["name"],
        pods=tuple(metadata_of(pod)["name"] for pod in pods),
        ordinal=_ordinal(first),
        is_ready=len(pods) >= size and all(is_ready(pod) for pod in pods),
        is_terminating=any("deletionTimestamp" in metadata_of(pod) for pod in pods),
        created_at_s=instant_s(metadata.get("creationTimestamp")) or 0.0,
        changed_at_s=max(_changed_at_s(pod) for pod in pods),
        draining_since_s=None if since is None else instant_s(since) or 0.0,
        trouble=next((why for pod in pods if (why := trouble_of(pod))), ""),
    )


def _ordinal(pod: Object) -> int | None:
    text = _labels(pod).get(_GROUP_INDEX) or metadata_of(pod)["name"].rpartition("-")[2]
    return int(text) if text.isdecimal() else None


def _labels(pod: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = metadata_of(pod).get("labels") or {}
    return labels


def is_ready(pod: Object) -> bool:
    """Whether a pod serves."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _changed_at_s(pod: Object) -> float:
    conditions = (pod.get("status") or {}).get("conditions") or []
    told = [instant_s(one.get("lastTransitionTime")) for one in conditions if one.get("type") == "Ready"]
    made_s = instant_s(metadata_of(pod).get("creationTimestamp")) or 0.0
    return max([made_s, *(one for one in told if one is not None)])


def trouble_of(pod: Object) -> str:
    """Why a pod does not serve, in a word or two; empty where nothing is known against it."""
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in {None, "ContainerCreating", "PodInitializing"}:
            return f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}".rstrip(": ")
    return ""
