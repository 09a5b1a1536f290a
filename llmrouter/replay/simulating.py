"""A log's requests through the simulator: the same arrivals and lengths on the same engines, under any policy.

Here a policy makes every decision, and meets the loads that its own decisions bring about. What the simulator leaves
out (``docs/simulator.md``) is left out of both policies alike.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.config import RouterConfig
from llmrouter.resources import LimitsSpec
from llmrouter.sim.model import EngineModel
from llmrouter.sim.outcomes import Status
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup
from llmrouter.sim.workload import Workload
from llmrouter.study.configured import policy_of, router_side_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.config import PolicyConfig
    from llmrouter.decisions.record import DecisionRecord
    from llmrouter.sim.outcomes import Outcomes

WHOLE = 0.999
"""A log that has less than this share of the requests has too few to load the engines as they were."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a log says of its pool and traffic."""

    setup: Setup
    workload: Workload
    notes: tuple[str, ...]


def scene_of(records: Sequence[DecisionRecord]) -> Scene | str:
    """The engines and requests of a log, or why they cannot be had of it."""
    if any(record.sample_fraction < WHOLE for record in records):
        return "the log has a sample of the requests: a simulation needs all of them (decisionLog.fraction: 1)"
    if any(record.prefill or any(one.prefill for one in record.candidates) for record in records):
        return "prompts were computed elsewhere than they were decoded, which is not replayed by simulation"
    engines, serves = _engines(records)
    if not engines:
        return "no record describes an instance"
    notes = []
    known = [record for record in records if _length(record) is not None]
    if len(known) < len(records):
        notes.append(f"{len(records) - len(known)} requests ended without a length: they are taken to be as predicted.")
    return Scene(Setup(engines=engines, serves=serves), _workload(records), tuple(notes))


def _engines(records: Sequence[DecisionRecord]) -> tuple[tuple[EngineModel, ...], tuple[frozenset[str], ...]]:
    """One for each instance that was ever considered, with the profile it had most often and the models it served."""
    seen: dict[str, Counter[str]] = {}
    profiles = {}
    models: dict[str, set[str]] = {}
    for record in records:
        for one in record.candidates:
            profile = record.profiles[one.profile]
            key = profile.model_dump_json()
            profiles[key] = profile
            seen.setdefault(one.id, Counter())[key] += 1
            models.setdefault(one.id, set()).add(record.model)
    names = sorted(seen)
    engines = tuple(EngineModel(profiles[seen[name].most_common(1)[0][0]].engine_profile()) for name in names)
    return engines, tuple(frozenset(models[name]) for name in names)


def _length(record: DecisionRecord) -> int | None:
    return None if record.outcome is None else record.outcome.output_tokens


def _workload(records: Sequence[DecisionRecord]) -> Workload:
    """All requests of a log in order of arrival, the first at 0."""
    ordered = sorted(records, key=lambda record: (record.arrived_at_s, record.request_id))
    began_s = ordered[0].arrived_at_s
    models = list(dict.fromkeys(one.model for one in ordered))
    applications = list(dict.fromkeys(one.application for one in ordered))
    return Workload.of(
        [one.arrived_at_s - began_s for one in ordered],
        [max(1, one.prompt_tokens) for one in ordered],
        [max(1, _length(one) or round(one.predicted_output_tokens)) for one in ordered],
        predicted_output_tokens=np.array([one.predicted_output_tokens for one in ordered]),
        model=np.array([models.index(one.model) for one in ordered]),
        application=np.array([applications.index(one.application) for one in ordered]),
        models=tuple(models),
        applications=tuple(applications),
    )


def simulated(scene: Scene, policy: PolicyConfig, *, max_requests: int | None, seed: int) -> Mapping[str, float | None]:
    """Mean TTFT, TPOT and E2E (s) of the finished requests under a policy, and the share that finished.

    Raises:
        InvalidConfigError: the policy cannot be simulated.
    """
    limits = LimitsSpec() if max_requests is None else LimitsSpec(max_in_flight_per_instance=max_requests)
    rule = policy_of(RouterConfig(name="", namespace="", pools=(), policy=policy, limits=limits))
    setup = Setup(engines=scene.setup.engines, serves=scene.setup.serves, routers=router_side_of(policy, 1))
    return means_of(simulate(setup, scene.workload, rule, seed=seed))


def means_of(outcomes: Outcomes) -> Mapping[str, float | None]:
    """See ``simulated``."""
    finished_N = outcomes.status == Status.FINISHED
    arrived_N = outcomes.arrived_at_s
    columns = {
        "ttft_s": outcomes.first_token_at_s - arrived_N,
        "tpot_s": outcomes.tpot_s,
        "e2e_s": outcomes.finished_at_s - arrived_N,
    }
    means: dict[str, float | None] = {}
    for name, column_N in columns.items():
        known_N = column_N[finished_N & np.isfinite(column_N)]
        means[name] = float(known_N.mean()) if len(known_N) else None
    means["finished_fraction"] = float(finished_N.mean())
    return means
