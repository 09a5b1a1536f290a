"""A simulated run: engines, routers and a workload, driven by the policies that serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.feature_set import WEIGHT_NAMES
from llmrouter.routing.rules import OWN_ALONE, Rule
from llmrouter.sim import compiled
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.asking import Asking
from llmrouter.sim.kernel.records import (
    CONTROL,
    DECIDE,
    DONE,
    NONE,
    OUTSIDE,
    REFRESH,
    REPORT,
    SAMPLE,
)
from llmrouter.sim.outcomes import Outcomes, Timeline
from llmrouter.sim.setup import CompiledPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.routing.policies import Policy
    from llmrouter.sim.kernel.records import World
    from llmrouter.sim.replicas import Replicas
    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload

REPORT_EVERY = 20_000
"""Requests between two calls of ``on_progress``."""

_COUNT_RULES = frozenset(
    {
        *(Rule.ROUND_ROBIN, Rule.RANDOM, Rule.POWER_OF_TWO, Rule.LEAST_IN_FLIGHT, Rule.LEAST_KV_TOKENS, Rule.LMETRIC),
        *(Rule.TOKEN_LOAD, Rule.PREFILL_LOAD),
    }
)
"""Rules that never look at the tokens still to come, which cost the most to count."""

_BY_OWN_SECONDS = frozenset({Rule.OWN_LATENCY, Rule.MIN_MIN})
_OF_PROMPTS = frozenset({"wait", "decode", "reuse"})
"""Terms of the marginal cost that a prompt has where it is computed for another instance."""


def simulate(
    setup: Setup,
    workload: Workload,
    policy: Policy | CompiledPolicy,
    *,
    seed: int = 0,
    sample_every_s: float | None = None,
    replicas: Replicas | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Outcomes:
    """Runs until every request has ended. Equal arguments give equal bytes.

    Args:
        setup: engines and routers.
        workload: the requests.
        policy: one of ``routing/policies.py``, asked for every decision, or a rule compiled into the simulator.
        seed: of the routers' randomness: ties and draws.
        sample_every_s: seconds between samples of ``Outcomes.timeline``; ``None`` takes none.
        replicas: who has instances come and go, and made the setup; ``None`` where they stay.
        on_progress: called with the number of requests that have ended, every ``REPORT_EVERY``.

    Raises:
        InvalidInputError: setup and workload do not fit each other.
    """
    world = lay_out(setup, workload, seed=seed)
    return play(
        world,
        setup,
        workload,
        policy,
        advance=compiled.advance(),
        seed=seed,
        sample_every_s=sample_every_s,
        replicas=replicas,
        on_progress=on_progress,
    )


def play(
    world: World,
    setup: Setup,
    workload: Workload,
    policy: Policy | CompiledPolicy,
    *,
    advance: Callable[[Any], int],
    seed: int = 0,
    sample_every_s: float | None = None,
    replicas: Replicas | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Outcomes:
    """Runs a laid out world with an ``advance``, compiled or interpreted; see ``simulate``."""
    run = world.run
    _configure(world, setup, policy)
    if sample_every_s is not None:
        if not sample_every_s > 0:
            raise InvalidInputError(f"sample_every_s must be above 0, not {sample_every_s}")
        run["sample_every_s"] = sample_every_s
    run["report_every"] = run["next_report"] = REPORT_EVERY
    asked = None if isinstance(policy, CompiledPolicy) else Asking(world, setup, workload, policy, seed)
    samples = _Samples(world)
    if replicas is not None:
        replicas.begin(world)
    while (code := advance(world)) != DONE:
        if code == DECIDE and asked is not None:
            asked.answer()
        elif code == SAMPLE:
            samples.take()
        elif code == CONTROL and replicas is not None:
            replicas.control(world)
            if asked is not None:
                asked.look_around()
        elif code == REPORT and on_progress is not None:
            on_progress(int(run["ended"][0]))
    return _outcomes(world, workload, samples.timeline() if sample_every_s is not None else None)


def _configure(world: World, setup: Setup, policy: Policy | CompiledPolicy) -> None:
    run = world.run
    if isinstance(policy, CompiledPolicy):
        run["rule"] = int(policy.rule)
        run["needs_remaining"] = int(
            policy.kv_fraction is not None or policy.rule not in _COUNT_RULES or bool(run["batches"][0])
        )
        run["max_requests"] = NONE if policy.max_requests is None else policy.max_requests
        run["kv_fraction"] = -1.0 if policy.kv_fraction is None else policy.kv_fraction
        run["decode_reserve_fraction"] = policy.decode_reserve_fraction
        run["batch_hold_size"], run["batch_hold_wait_s"] = policy.batch_hold.size, policy.batch_hold.wait_s
        world.weights[:] = policy.weights
        _weigh_stages(world, policy)
    else:
        run["rule"] = NONE
        run["needs_remaining"] = 1
    side = setup.routers
    if side.refresh_s > 0:
        count = side.routers
        for router in range(count):  # spread over the period, in the order of a heap
            world.event_at[router] = side.refresh_s * router / count
            world.event_kind[router] = REFRESH
            world.event_subject[router] = router
            world.event_order[router] = router
        run["events"], run["event_order"] = count, count


def _weigh_stages(world: World, policy: CompiledPolicy) -> None:
    """What a prompt costs elsewhere, and its answer then, under rules whose scores are seconds: as routers weigh it."""
    weights = dict(zip(WEIGHT_NAMES, policy.weights, strict=True))
    if policy.rule in _BY_OWN_SECONDS:
        weights = dict(zip(WEIGHT_NAMES, OWN_ALONE, strict=True))
    elif policy.rule is not Rule.MARGINAL_COST:
        return
    world.run["stage_costs"] = 1
    world.stage_weights[:] = [value if name != "reuse" else 0.0 for name, value in weights.items()]
    world.prompt_weights[:] = [value if name in _OF_PROMPTS else 0.0 for name, value in weights.items()]


class _Samples:
    """The timeline as it grows."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rows: list[tuple[float, list[int], list[int], list[float], int]] = []

    def take(self) -> None:
        run, pool = self._world.run[0], self._world.pool
        instances = int(run["instances"])
        kv = pool.engines["blocks_used"] / pool.engines["blocks_total"]
        sizes = pool.sizes[: 2 * instances]
        held = int(self._world.routers["held"].sum())
        self._rows.append((float(run["next_sample_at"]), sizes[1::2].tolist(), sizes[0::2].tolist(), kv.tolist(), held))
        run["next_sample_at"] = len(self._rows) * float(run["sample_every_s"])

    def timeline(self) -> Timeline:
        instances = len(self._world.pool.engines)
        at_s, running, waiting, kv, held = zip(*self._rows, strict=True) if self._rows else ((), (), (), (), ())
        return Timeline(
            at_s=np.array(at_s, np.float64),
            running=np.array(running, np.int64).reshape(-1, instances),
            waiting=np.array(waiting, np.int64).reshape(-1, instances),
            kv_usage_fraction=np.array(kv, np.float64).reshape(-1, instances),
            held=np.array(held, np.int64),
        )


def _outcomes(world: World, workload: Workload, timeline: Timeline | None) -> Outcomes:
    rows = world.pool.sequences
    came = rows["arrived_at"].copy()
    came[(workload.after >= 0) & (rows["status"] == 0) & (rows["phase"] == OUTSIDE)] = np.nan
    return Outcomes(
        workload=workload,
        status=rows["status"].astype(np.int64),
        instance=rows["instance"].astype(np.int64),
        decode_instance=rows["decode_instance"].astype(np.int64),
        arrived_at_s=came,
        dispatched_at_s=rows["dispatched_at"].copy(),
        first_token_at_s=rows["first_token_at"].copy(),
        finished_at_s=rows["finished_at"].copy(),
        preemptions=rows["preemptions"].astype(np.int64),
        recomputed_tokens=rows["recomputed"].astype(np.int64),
        cached_tokens=rows["cached"].astype(np.int64),
        engine_busy_s=world.pool.engines["busy_s"].copy(),
        timeline=timeline,
    )
