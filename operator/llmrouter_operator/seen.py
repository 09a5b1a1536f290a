"""Objects as the watches last told of them, so that a reconcile at rest asks the API server for next to nothing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from llmrouter_operator.models import (
    LLM_ROUTER,
    MANAGED_BY_LABEL,
    MANAGER,
    POD,
    ROUTER_LABEL,
    ROUTING_POLICY,
    metadata_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter_operator.cluster import Cluster
    from llmrouter_operator.models import Kind, Object, ObjectKey

READ_AGAIN_S = 600.0
"""After so long without news an object is read from the API server: a watch that was begun anew tells of everything
that is there, but not of what went away meanwhile."""

PODS_AGAIN_S = 120.0
"""After so long the pods of routers are listed again. A Deployment's news comes with every change of them."""

LARGE_CHARACTERS = 100_000
"""ConfigMaps with more than this in models are not kept, but read each time."""


class _Entry(NamedTuple):
    """What was last told of an object; without a value where it is gone, or has to be read."""

    value: Object | None
    version: int | None
    at_s: float


class _Pods(NamedTuple):
    values: tuple[Object, ...]
    at_s: float


class SeenObjects:
    """Reads for reconciles, and what writes came to. Nobody changes the values.

    Absence is never remembered, nor what no watch tells of: that is asked for each time. ``clock_s`` gives seconds that
    never go back.
    """

    def __init__(self, cluster: Cluster, clock_s: Callable[[], float]) -> None:
        self._cluster = cluster
        self._clock_s = clock_s
        self._entries: dict[tuple[Kind, str, str], _Entry] = {}
        self._pods: dict[ObjectKey, _Pods] = {}
        self._pods_changes: Counter[ObjectKey] = Counter()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """An object that is watched, as last seen; raises ClusterError where it has to be read and cannot be."""
        entry = self._entries.get((kind, namespace, name))
        if entry is not None and entry.value is not None and self._clock_s() - entry.at_s < READ_AGAIN_S:
            return entry.value
        value = await self._cluster.get(kind, namespace, name)
        if value is None or not _is_watched(kind, value):
            self.drop(kind, namespace, name)
        else:
            self.take(kind, value)
        return value

    async def pods(
        self, key: ObjectKey, labels: Mapping[str, str], *, known_by: Callable[[tuple[Object, ...]], bool]
    ) -> tuple[Object, ...]:
        """Pods of an LLMRouter's routers; raises ClusterError as ``get`` does.

        They are listed anew where ``known_by`` says that some of the kept ones must be missing.
        """
        known = self._pods.get(key)
        if known is not None and self._clock_s() - known.at_s < PODS_AGAIN_S and known_by(known.values):
            return known.values
        changes, began_s = self._pods_changes[key], self._clock_s()
        values = tuple(await self._cluster.find(POD, key.namespace, labels=labels))
        if changes == self._pods_changes[key]:  # else this list may be older than what was told meanwhile
            self._pods[key] = _Pods(values, began_s)
        return values

    def take(self, kind: Kind, value: Object) -> bool:
        """Keeps what an event, a read or a write brought; whether that is anything new."""
        metadata = metadata_of(value)
        place, version = (kind, metadata["namespace"], metadata["name"]), _version(value)
        entry = self._entries.get(place)
        if entry is not None and entry.version is not None and version is not None and version <= entry.version:
            if version == entry.version and entry.value is not None:
                self._entries[place] = entry._replace(at_s=self._clock_s())
            return False
        self._entries[place] = _Entry(None if _is_large(value) else value, version, self._clock_s())
        return True

    def event(self, kind: Kind, value: Object, *, deleted: bool) -> bool:
        """What a watch told; whether a reconcile does not know it yet, as it does what it wrote itself."""
        if not deleted:
            return self.take(kind, value)
        metadata = metadata_of(value)
        self._entries[kind, metadata["namespace"], metadata["name"]] = _Entry(None, _version(value), self._clock_s())
        return True

    def drop(self, kind: Kind, namespace: str, name: str) -> None:
        """An object was changed without telling what came of it, or is not there: it is read when it is asked for."""
        entry = self._entries.get((kind, namespace, name))
        if entry is not None:
            self._entries[kind, namespace, name] = entry._replace(value=None)

    def drop_pods(self, key: ObjectKey) -> None:
        """The pods of an LLMRouter's routers may have changed."""
        self._pods.pop(key, None)
        self._pods_changes[key] += 1

    def forget(self, key: ObjectKey) -> None:
        """An LLMRouter is gone; what it owned goes by itself. Marks of what is long gone go too."""
        self._pods.pop(key, None)
        del self._pods_changes[key]
        long_ago_s = self._clock_s() - READ_AGAIN_S
        gone = [place for place, entry in self._entries.items() if entry.value is None and entry.at_s < long_ago_s]
        for place in gone:
            del self._entries[place]


def _version(value: Object) -> int | None:
    """A resource version; they grow with every change of an object. ``None`` where it is no number."""
    text = str(metadata_of(value).get("resourceVersion") or "")
    return int(text) if text.isdecimal() else None


def _is_watched(kind: Kind, value: Object) -> bool:
    """Whether a watch tells of changes: of what is owned it does for what has the labels alone."""
    if kind in {LLM_ROUTER, ROUTING_POLICY}:
        return True
    labels = metadata_of(value).get("labels") or {}
    return labels.get(MANAGED_BY_LABEL) == MANAGER and ROUTER_LABEL in labels


def _is_large(value: Object) -> bool:
    return sum(map(len, (value.get("binaryData") or {}).values())) > LARGE_CHARACTERS
