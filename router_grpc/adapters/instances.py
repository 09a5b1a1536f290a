"""Which instances exist and are ready: declared endpoints, and pods by a selector or an InferencePool."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from llmrouter.domain import Instance, Role
from router_grpc.adapters.inference_pools import active_ports, follow_inference_pool
from router_grpc.adapters.kube import Changed, Listed, follow
from router_grpc.unbroken import end_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kubernetes.aio import client

    from llmrouter.config import PoolConfig, RouterConfig
    from llmrouter.inference_pool import InferencePool

MAX_INSTANCES = 1024
"""Instances beyond this many are left out, and counted so."""

LOCALITY_LABEL = "llmrouter.dev/locality"
"""On a pod: the name of a group within which KV is handed on fast, such as a rack's; else its pool's, or its node's."""

ROLE_LABEL = "llm-d.ai/role"
"""On a pod: what its engine is made for, as llm-d writes it; without it, or with another word, what its pool is for."""

DRAINING_ANNOTATION = "llmrouter.dev/draining"
"""On a pod: it is to go, since that instant (RFC 3339). It gets no new request; those it has go on."""

ROLES = {"prefill": Role.PREFILL, "decode": Role.DECODE, "prefill-decode": Role.MIXED, "both": Role.MIXED}

_log = logging.getLogger(__name__)


def is_ready(pod: Any) -> bool:  # noqa: ANN401 - a pod of the client library
    """Ready, not terminating, and with an address."""
    if pod.metadata.deletion_timestamp is not None or not pod.status or not pod.status.pod_ip:
        return False
    return any(condition.type == "Ready" and condition.status == "True" for condition in pod.status.conditions or ())


def is_of_role(pod: Any, role: Role) -> bool:  # noqa: ANN401 - a pod of the client library
    """Whether a pod belongs to a pool of this role: one that says its own does to no other, unless a whole one may."""
    said = ROLES.get((pod.metadata.labels or {}).get(ROLE_LABEL, ""), role)
    return said is role or (role is Role.MIXED and said is Role.DECODE)


def endpoint_of(address: str, port: int) -> str:
    """``host:port``, with brackets for IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class InstanceDirectory:
    """All instances of the configured pools. ``on_change`` is called whenever the ready set changed."""

    def __init__(
        self,
        core: client.CoreV1Api | None,
        *,
        namespace: str,
        on_change: Callable[[], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._core = core
        self._namespace = namespace
        self._on_change = on_change
        self._on_error = on_error
        self._pools: dict[str, PoolConfig] = {}
        self._declared: dict[str, tuple[Instance, ...]] = {}
        self._pods: dict[str, dict[str, Any]] = {}
        self._ports: dict[str, tuple[int, ...]] = {}
        self._targets: dict[str, InferencePool] = {}
        self._pool_watches: dict[str, asyncio.Task[None]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._unreachable: frozenset[str] = frozenset()
        self._current: tuple[Instance, ...] = ()
        self._by_id: dict[str, Instance] = {}
        self._draining: frozenset[str] = frozenset()

    def current(self) -> tuple[Instance, ...]:
        """Ready instances of all pools, by instance id."""
        return self._current

    def get(self, instance_id: str) -> Instance | None:
        """A ready instance by its id."""
        return self._by_id.get(instance_id)

    @property
    def draining(self) -> frozenset[str]:
        """Ids of instances that are to go, ready or not: none of them gets a new request."""
        return self._draining

    @property
    def synced(self) -> bool:
        """Whether the pods of every pool that selects any have been listed; of an InferencePool there may be none."""
        return all(name in self._pods for name in (*self._watches, *self._pool_watches))

    @property
    def total(self) -> int:
        """All instances known, ready or not."""
        of_pods = sum(len(pods) * len(self._ports_of(self._pools[name])) for name, pods in self._pods.items())
        return sum(map(len, self._declared.values())) + of_pods

    def apply(self, config: RouterConfig) -> None:
        """Follows the pools of a configuration from now on; pools that did not change go on undisturbed.

        A pool whose selector changed keeps its instances until those of the new one are listed. The instances of an
        InferencePool go with it, and come back with it.
        """
        pools = {pool.name: pool for pool in config.pools}
        for name in set(self._pools) - set(pools):
            self._drop(name)
        for name, pool in pools.items():
            known = self._pools.get(name)
            self._pools[name] = pool
            if pool.endpoints is not None:
                self._stop_watch(name)
                self._pods.pop(name, None)
                self._declared[name] = _declared_instances(pool)
            elif known is None or _source(known) != _source(pool):
                self._stop_watch(name)
                self._start_watch(pool)
        self._refresh()

    def all_instances(self) -> tuple[Instance, ...]:
        """Ready ones and declared ones that do not answer, for whoever probes them."""
        declared = [instance for instances in self._declared.values() for instance in instances]
        return tuple({i.instance_id: i for i in (*self._pod_instances(), *declared)}.values())

    def set_unreachable(self, instance_ids: frozenset[str]) -> None:
        """Declared endpoints that do not answer; pods have their own readiness and are left alone."""
        if instance_ids != self._unreachable:
            self._unreachable = instance_ids
            self._refresh()

    async def close(self) -> None:
        """Stops following."""
        tasks = [*self._watches.values(), *self._pool_watches.values()]
        for name in list(self._pools):
            self._stop_watch(name)
        await end_tasks(tasks)

    def _drop(self, name: str) -> None:
        self._stop_watch(name)
        self._pools.pop(name, None)
        self._declared.pop(name, None)
        self._pods.pop(name, None)
        self._ports.pop(name, None)

    def _stop_watch(self, name: str) -> None:
        self._targets.pop(name, None)
        for watches in (self._watches, self._pool_watches):
            task = watches.pop(name, None)
            if task is not None:
                task.cancel()

    def _start_watch(self, pool: PoolConfig) -> None:
        if self._core is None:
            _log.error("a pool that selects pods needs Kubernetes", extra={"pool": pool.name})
        elif pool.inference_pool is None:
            self._watch_pods(pool.name, pool.match_labels or {}, None)
        else:
            following = follow_inference_pool(
                self._core,
                partial(self._retarget, pool.name),
                namespace=self._namespace,
                name=pool.inference_pool,
                on_error=self._on_error,
            )
            self._pool_watches[pool.name] = asyncio.create_task(following)

    def _retarget(self, name: str, found: InferencePool | None) -> None:
        """Follows the pods that the InferencePool names now; whatever of it changed, all come in force with a list."""
        known = self._targets.get(name)
        if found is None:
            _log.warning("there is no such InferencePool", extra={"pool": name})
            self._targets.pop(name, None)
            self._unwatch_pods(name)
            self._take(name, Listed(()))
        elif known is None or (known.match_labels, known.ports) != (found.match_labels, found.ports):
            self._targets[name] = found
            self._unwatch_pods(name)
            self._watch_pods(name, found.match_labels, found.ports)

    def _unwatch_pods(self, name: str) -> None:
        task = self._watches.pop(name, None)
        if task is not None:
            task.cancel()

    def _watch_pods(self, name: str, labels: Mapping[str, str], ports: tuple[int, ...] | None) -> None:
        self._watches[name] = asyncio.create_task(self._follow(name, labels, ports))

    async def _follow(self, name: str, labels: Mapping[str, str], ports: tuple[int, ...] | None) -> None:
        assert self._core is not None  # noqa: S101 - _start_watch saw to it
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        async for event in follow(
            self._core.list_namespaced_pod, self._on_error, namespace=self._namespace, label_selector=selector
        ):
            if isinstance(event, Listed):
                self._ports.pop(name, None)
                self._ports |= {name: ports} if ports else {}
            self._take(name, event)

    def _take(self, name: str, event: Listed | Changed) -> None:
        role = Role(self._pools[name].role)
        if isinstance(event, Listed):
            self._declared.pop(name, None)
            self._pods[name] = {pod.metadata.name: pod for pod in event.items if is_of_role(pod, role)}
        elif event.deleted or not is_of_role(event.item, role):
            self._pods.get(name, {}).pop(event.item.metadata.name, None)
        else:
            self._pods.setdefault(name, {})[event.item.metadata.name] = event.item
        self._refresh()

    def _pod_instances(self) -> list[Instance]:
        return [
            instance
            for name, pods in self._pods.items()
            for instance in _ready_instances(self._pools[name], pods, self._ports_of(self._pools[name]))
        ]

    def _ports_of(self, pool: PoolConfig) -> tuple[int, ...]:
        return self._ports.get(pool.name, (pool.target_port,))

    def _refresh(self) -> None:
        """Pods say themselves whether they are ready; declared endpoints are when they answer."""
        known = {instance.instance_id: instance for instance in reversed(self._pod_instances())}
        for instances in self._declared.values():
            known |= {i.instance_id: i for i in instances if i.instance_id not in self._unreachable}
        ready = tuple(known[instance_id] for instance_id in sorted(known)[:MAX_INSTANCES])
        if len(known) > MAX_INSTANCES:
            _log.error("too many instances", extra={"instances": len(known), "bound": MAX_INSTANCES})
        draining = frozenset(
            instance_id
            for name, pods in self._pods.items()
            for instance_id in _draining_ids(pods, self._ports_of(self._pools[name]))
        )
        if ready != self._current or draining != self._draining:
            self._current, self._draining = ready, draining
            self._by_id = {instance.instance_id: instance for instance in ready}
            self._on_change()


def _source(pool: PoolConfig) -> tuple[object, ...]:
    """What decides where a pool's pods come from."""
    return pool.match_labels, pool.inference_pool, pool.role


def _draining_ids(pods: Mapping[str, Any], ports: tuple[int, ...]) -> Iterator[str]:
    """Instances of pods that are told to go."""
    for name, pod in pods.items():
        if DRAINING_ANNOTATION in (pod.metadata.annotations or {}):
            yield from (_instance_id(name, port, ports) for port in ports)


def _instance_id(pod: str, port: int, ports: tuple[int, ...]) -> str:
    """The pod's name where it has one port; else both."""
    return pod if len(ports) == 1 else f"{pod}:{port}"


def _ready_instances(pool: PoolConfig, pods: Mapping[str, Any], ports: tuple[int, ...]) -> Iterator[Instance]:
    """Every port of every ready pod, named as the pod where it has one; an InferencePool's pods say which serve."""
    profile, models, role = pool.engine_profile(), frozenset(pool.models), Role(pool.role)
    for name, pod in pods.items():
        if not is_ready(pod):
            continue
        for port in active_ports(pod.metadata.annotations, ports) if pool.inference_pool else ports:
            yield Instance(
                instance_id=_instance_id(name, port, ports),
                endpoint=endpoint_of(pod.status.pod_ip, port),
                pool=pool.name,
                profile=profile,
                models=models,
                role=role,
                locality=(pod.metadata.labels or {}).get(LOCALITY_LABEL) or pool.locality or pod.spec.node_name or "",
            )


def _declared_instances(pool: PoolConfig) -> tuple[Instance, ...]:
    profile = pool.engine_profile()
    return tuple(
        Instance(
            instance_id=endpoint,
            endpoint=endpoint,
            pool=pool.name,
            profile=profile,
            models=frozenset(pool.models),
            role=Role(pool.role),
            locality=pool.locality or "",
        )
        for endpoint in pool.endpoints or ()
    )
