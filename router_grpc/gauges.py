"""Gauges of a router's state, set from time to time and not on the hot path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.metrics import MAX_INSTANCE_LABELS
from llmrouter.rollout.arms import CANDIDATE, CURRENT

if TYPE_CHECKING:
    from router_grpc.runtime import Runtime
    from router_grpc.service import RouterService
    from router_grpc.world import World

UNKNOWN = float("nan")


class Gauges:
    """Shows held requests, ages, instances and their loads; series of instances that are gone are dropped."""

    def __init__(self, world: World, service: RouterService) -> None:
        self._world = world
        self._service = service
        self._shown: set[tuple[str, str]] = set()

    def show(self) -> None:
        """Sets all gauges to what is so now."""
        world, metrics = self._world, self._world.metrics
        now_s = world.clock()
        scrape_age_s = world.replica.oldest_signal_age_s(now_s)
        metrics.held_requests.set(self._service.held)
        metrics.load_age_seconds.set(world.replica.age_s(now_s))
        metrics.scrape_age_seconds.set(UNKNOWN if scrape_age_s is None else scrape_age_s)
        metrics.lengths.groups.set(world.lengths.groups)
        self._show_mix(now_s)
        metrics.instances.labels("ready").set(len(world.instances.current()))
        metrics.instances.labels("total").set(world.instances.total)
        metrics.ejected.set(world.outliers.ejected)
        metrics.presumed_requests.set(len(world.presuming))
        metrics.life_ratio.set(world.presuming.life_ratio)
        self._show_loads()
        shadow = world.trial.shadow.counts
        if shadow.placements:
            metrics.arms.shadow_disagreement_ratio.set(1 - shadow.agreements / shadow.placements)

    def show_policy(self, runtime: Runtime) -> None:
        """Names the policy in force, and the one that decides; the candidate beside it as well, if there is one."""
        info, candidate = self._world.metrics.policy_info, runtime.candidate
        info.clear()
        provider = runtime.provider or "none"
        info.labels(runtime.config.policy.name, runtime.policy_digest[:12], provider, runtime.deciding, CURRENT).set(1)
        if candidate is not None:
            name, provider = candidate.config.policy.name, candidate.provider or "none"
            info.labels(name, candidate.digest[:12], provider, candidate.deciding, CANDIDATE).set(1)

    def _show_mix(self, now_s: float) -> None:
        metrics, mix = self._world.metrics, self._world.mix.whole(now_s)
        fraction = None if mix is None else mix.prefill_time_fraction
        metrics.mix_prefill_tokens_per_second.set(UNKNOWN if mix is None else mix.prefill_tokens_per_s)
        metrics.mix_decode_tokens_per_second.set(UNKNOWN if mix is None else mix.decode_tokens_per_s)
        metrics.mix_prefill_time_fraction.set(UNKNOWN if fraction is None else fraction)

    def _show_loads(self) -> None:
        metrics = self._world.metrics
        shown = set()
        for instance in self._world.instances.current()[:MAX_INSTANCE_LABELS]:
            labels = (instance.pool, instance.instance_id)
            load = self._world.replica.load_of(instance.instance_id)
            metrics.in_flight_requests.labels(*labels).set(load.requests)
            metrics.in_flight_tokens.labels(*labels).set(load.context_tokens)
            shown.add(labels)
        for labels in self._shown - shown:
            metrics.in_flight_requests.remove(*labels)
            metrics.in_flight_tokens.remove(*labels)
        self._shown = shown
