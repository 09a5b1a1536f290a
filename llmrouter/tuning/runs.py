"""Runs of policies on windows, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.config import RouterConfig
from llmrouter.resources import LimitsSpec
from llmrouter.sim.run import simulate
from llmrouter.study.alone import alone_on_best_s
from llmrouter.study.configured import policy_of, router_side_of
from llmrouter.study.figures import Slo, figures, measured
from llmrouter.tuning.judgement import kept
from llmrouter.tuning.parameters import compiled_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmrouter.resources import RoutingPolicySpec
    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload
    from llmrouter.tuning.judgement import Figures
    from llmrouter.tuning.windows import Scene

POLICIES_A_CALL = 4
"""A window is drawn once for so many policies; more share it badly among processes."""


def run_one(scene: Scene, window: Workload, policy: RoutingPolicySpec, *, seed: int) -> Figures:
    """The figures of one run of a policy on a window."""
    section = compiled_policy(policy)
    limits = LimitsSpec(max_in_flight_per_instance=scene.max_in_flight)
    rule = policy_of(RouterConfig(name="tune", namespace="", pools=(), policy=section, limits=limits))
    setup: Setup = replace(scene.setup, routers=router_side_of(section, scene.replicas))
    outcomes = simulate(setup, window, rule, seed=seed)
    found = figures(
        outcomes,
        lone_s=alone_on_best_s(setup.engines, window),
        warm_up_fraction=scene.warm_up_fraction,
        slo=Slo(),
    )
    return kept(found, int(measured(outcomes, scene.warm_up_fraction).sum()))


class Runs:
    """Policies on windows of a scene. Made by ``runs``, which ends its processes."""

    def __init__(self, scene: Scene, workers: ProcessPoolExecutor | None) -> None:
        self._scene = scene
        self._workers = workers

    def figures(
        self,
        policies: Sequence[RoutingPolicySpec],
        seeds: Sequence[int],
        *,
        held_out: bool = False,
        on_done: Callable[[int], None] = lambda _: None,
    ) -> list[list[Figures]]:
        """Figures of each policy on each window, the same whatever the number of processes; ``on_done`` counts runs."""
        starts = range(0, len(policies), POLICIES_A_CALL)
        calls = [(seed, start) for seed in seeds for start in starts]
        found: dict[tuple[int, int], list[Figures]] = {}
        if self._workers is None:
            for seed, start in calls:
                found[seed, start] = _run(
                    self._scene, policies[start : start + POLICIES_A_CALL], seed, held_out=held_out
                )
                on_done(len(found[seed, start]))
        else:
            futures = {
                self._workers.submit(
                    _run_in_worker, policies[start : start + POLICIES_A_CALL], seed, held_out=held_out
                ): (
                    seed,
                    start,
                )
                for seed, start in calls
            }
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                on_done(len(found[futures[future]]))
        return [
            [found[seed, place - place % POLICIES_A_CALL][place % POLICIES_A_CALL] for seed in seeds]
            for place in range(len(policies))
        ]


@contextmanager
def runs(scene: Scene, jobs: int) -> Iterator[Runs]:
    """``Runs`` by so many processes."""
    if jobs == 1:
        yield Runs(scene, None)
        return
    # A fresh interpreter each: threads of the parent, of a progress bar for one, do not survive a fork.
    workers = ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin, initargs=(scene,)
    )
    try:
        yield Runs(scene, workers)
    finally:
        workers.shutdown(wait=True, cancel_futures=True)


def _run(scene: Scene, policies: Sequence[RoutingPolicySpec], seed: int, *, held_out: bool) -> list[Figures]:
    window = scene.window(scene.held_out if held_out else scene.training, seed)
    return [run_one(scene, window, policy, seed=seed) for policy in policies]


_SCENES: list[Scene] = []
"""What a worker process was begun with: one scene."""


def _begin(scene: Scene) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a stopped tuning is ended by its parent
    _SCENES[:] = [scene]


def _run_in_worker(policies: Sequence[RoutingPolicySpec], seed: int, *, held_out: bool) -> list[Figures]:
    return _run(_SCENES[0], policies, seed, held_out=held_out)
