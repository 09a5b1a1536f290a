"""The router's local replica of the ledger, joined with what the engines report: the source of every snapshot.

Freshness: the loads are replaced every ``refresh`` (about 100 ms) and updated by every reserve call of this router at
once; engine reports are as old as the scrape interval and only add what no router dispatched.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from llmrouter.domain import InstanceView, Load, PoolSnapshot
from llmrouter.routing.inflight import foreign_load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llmrouter.domain import EngineSignal, Instance, Reservation

FOREIGN_WINDOW = 3
"""Only what the last so many scrapes all saw is believed foreign: ledger and engine never agree to the instant."""

SIGNAL_LIFETIME_S = 10.0
"""An engine report older than this is unknown, not the truth."""

_NOTHING = Load()


class LoadReplica:
    """Loads and signals by instance id."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._refreshed_at_s: float | None = None
        self._signals: dict[str, EngineSignal] = {}
        self._foreign: dict[str, deque[Load]] = {}
        self._views: dict[str, tuple[Instance, InstanceView]] = {}
        """Views by instance id; dropped where a part of them changes."""
        self._believed: dict[str, tuple[Instance, Instance]] = {}
        self._listed: Sequence[Instance] = ()
        """What the last snapshot was of; below, where each of them is, and their views as they were then."""
        self._places: dict[str, int] = {}
        self._shown: tuple[InstanceView, ...] = ()
        self._changed: set[str] = set()
        """Ids of instances whose view was dropped since."""

    def believe(self, believed: Mapping[str, tuple[Instance, Instance]]) -> None:
        """Instances that policies see with another profile than the declared one: by id, as declared and as seen."""
        before, self._believed = self._believed, dict(believed)
        for instance_id in before.keys() | believed.keys():
            if before.get(instance_id) != believed.get(instance_id):
                self._drop(instance_id)

    def replace(self, loads: Mapping[str, Load], *, now_s: float) -> bool:
        """Takes the whole ledger's loads; returns whether anything changed."""
        changed = loads != self._loads
        self._loads = dict(loads)
        self._refreshed_at_s = now_s
        for instance_id in [name for name, (_, view) in self._views.items() if not self._stands(name, view, now_s)]:
            self._drop(instance_id)
        return changed

    def _stands(self, instance_id: str, view: InstanceView, now_s: float) -> bool:
        """Whether a view has the load as it is, and no report that is too old."""
        signal, load = view.signal, self.load_of(instance_id)
        if signal is not None and now_s - signal.scraped_at_s > SIGNAL_LIFETIME_S:
            return False
        return load is view.load or load == view.load

    def _drop(self, instance_id: str) -> None:
        self._views.pop(instance_id, None)
        self._changed.add(instance_id)

    def absorb(self, loads: Mapping[str, Load]) -> None:
        """Takes the fresh loads of some instances; a load of nothing is one that the ledger does not list."""
        for instance_id, load in loads.items():
            if load != self._loads.get(instance_id):
                self._put(instance_id, load)

    def subtract(self, instance_id: str, part: Load) -> None:
        """Takes what was just released out at once, ahead of the next refresh, which may already have seen it."""
        before = self._loads.get(instance_id, _NOTHING)
        requests = before.requests - part.requests
        context = before.context_tokens - part.context_tokens
        queued = before.queued_prefill_tokens - part.queued_prefill_tokens
        left = before.remaining_decode_tokens - part.remaining_decode_tokens
        load = Load(requests, max(0, context), max(0, queued), max(0.0, left))
        self._put(instance_id, load)

    def _put(self, instance_id: str, load: Load) -> None:
        self._drop(instance_id)
        if load.requests > 0:
            self._loads[instance_id] = load
        else:
            self._loads.pop(instance_id, None)

    def oldest_signal_age_s(self, now_s: float) -> float | None:
        """Age of the oldest engine report; ``None`` where there is none."""
        ages = [now_s - signal.scraped_at_s for signal in self._signals.values()]
        return max(ages) if ages else None

    def load_of(self, instance_id: str) -> Load:
        """What is in flight on an instance, as last known."""
        return self._loads.get(instance_id, _NOTHING)

    def note_signal(self, instance: Instance, signal: EngineSignal) -> None:
        """Takes an engine's report, and estimates the foreign load from it."""
        self._signals[instance.instance_id] = signal
        self._drop(instance.instance_id)
        window = self._foreign.setdefault(instance.instance_id, deque(maxlen=FOREIGN_WINDOW))
        window.append(foreign_load(signal, self.load_of(instance.instance_id), instance.profile))

    def forget_except(self, instance_ids: Iterable[str]) -> None:
        """Drops the reports of instances that are gone."""
        kept = set(instance_ids)
        for gone in (self._signals.keys() | self._views.keys()) - kept:
            self._signals.pop(gone, None)
            self._drop(gone)
            self._foreign.pop(gone, None)

    def age_s(self, now_s: float) -> float:
        """Seconds since the last whole refresh; 0 before the first."""
        return 0.0 if self._refreshed_at_s is None else max(0.0, now_s - self._refreshed_at_s)

    def snapshot(
        self,
        instances: Sequence[Instance],
        *,
        now_s: float,
        reservations: Callable[[], Sequence[Reservation]] | None = None,
    ) -> PoolSnapshot:
        """The instances as policies see them; ``reservations`` as ``PoolSnapshot`` has them.

        Of the same tuple of instances as the last time, those are looked at whose view was dropped.
        """
        if instances is not self._listed or not isinstance(instances, tuple):
            self._list(instances, now_s)
        elif self._changed:
            self._look_again(instances, now_s)
        return PoolSnapshot(self._shown, now_s, self.age_s(now_s), reservations=reservations)

    def find(self, snapshot: PoolSnapshot, instance_id: str) -> InstanceView | None:
        """An instance as a snapshot has it, first looked for where the last one had it; ``None`` where it has none."""
        views, place = snapshot.views, self._places.get(instance_id)
        if place is not None and place < len(views) and views[place].instance.instance_id == instance_id:
            return views[place]
        return next((one for one in views if one.instance.instance_id == instance_id), None)

    def _list(self, instances: Sequence[Instance], now_s: float) -> None:
        self._listed = instances
        self._places = {one.instance_id: place for place, one in enumerate(instances)}
        self._shown = tuple([self.view(one, now_s=now_s) for one in instances])
        self._changed.clear()

    def _look_again(self, instances: tuple[Instance, ...], now_s: float) -> None:
        views, places = list(self._shown), self._places
        for instance_id in self._changed:
            place = places.get(instance_id)
            if place is not None:
                views[place] = self.view(instances[place], now_s=now_s)
        self._shown = tuple(views)
        self._changed.clear()

    def view(self, instance: Instance, *, now_s: float) -> InstanceView:
        """One instance as policies see it."""
        known = self._views.get(instance.instance_id)
        if known is None or known[0] is not instance:
            known = self._views[instance.instance_id] = instance, self._view(instance, now_s)
        return known[1]

    def _seen(self, instance: Instance) -> Instance:
        """The instance with the profile that policies are to see; its own where it is declared anew."""
        believed = self._believed.get(instance.instance_id)
        return instance if believed is None or believed[0] != instance else believed[1]

    def _view(self, declared: Instance, now_s: float) -> InstanceView:
        instance_id, instance = declared.instance_id, self._seen(declared) if self._believed else declared
        load, signal = self._loads.get(instance_id, _NOTHING), self._signals.get(instance_id)
        if signal is None or now_s - signal.scraped_at_s > SIGNAL_LIFETIME_S:
            return InstanceView(instance, load, _NOTHING)
        return InstanceView(instance, load, self._believed_foreign(instance_id), signal)

    def _believed_foreign(self, instance_id: str) -> Load:
        window = self._foreign[instance_id]
        if len(window) < FOREIGN_WINDOW:
            return _NOTHING
        return min(window, key=lambda load: load.requests)
