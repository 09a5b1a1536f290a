"""What the product's network learns from: short runs of all kinds of pools, loads and preferences, each with its rule.

A task is drawn: a cell of the benchmark, 2 to 16 instances of it, which may be unequal (one twice as slow, each with a
speed of its own, or chunked beside prefill-first), a load of 0.5 to 1.2 of their capacity, arrivals that may come in
bursts, a predictor, and preferences. Its figures are told against the default rule, the marginal cost behind the KV
gate, on the same requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals import predictions
from llmrouter.arrivals.cells import cell
from llmrouter.domain import EngineMode, Preferences
from llmrouter.objectives import PREFERENCES
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup
from llmrouter.study.alone import alone_on_best_s
from llmrouter.study.contenders import DEFAULT, contender
from llmrouter.study.seeds import SELECTION
from llmrouter.training.agents import compiled
from llmrouter.training.agents.environment import GATE, agent_of, drive_agent

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    from llmrouter.sim.model import EngineModel
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.setup import CompiledPolicy
    from llmrouter.sim.workload import Workload
    from llmrouter.training.agents.environment import Decider

CELLS = ("paper-v100", "h100-mix", "h100-prod")
SIZES = (2, 3, 4, 4, 6, 8, 12, 16)
REQUESTS_PER_INSTANCE = {"paper-v100": 180, "h100-mix": 250, "h100-prod": 200}
MOST_REQUESTS = 1_500
VALIDATION_LOADS = (0.7, 0.95, 1.1)
WARM_FRACTION = 0.2
WORST = 0.05
"""Share of the requests whose mean stands for a tail."""

CUT_S = 3_600.0
NOISE = 0.4
"""σ of the noisier predictor: the truth times exp(N(0, σ))."""

FIGURES = ("ttft", "tpot", "e2e", "fairness")
SCALES = np.array([0.25, 0.5, 1.0, 1.0 / 3.0])
"""What a change of ln of each figure is worth: tails move several times as much as a mean."""


@dataclass(frozen=True, slots=True)
class Task:
    """A run: engines, requests, what matters, and a seed."""

    name: str
    engines: tuple[EngineModel, ...]
    workload: Workload
    preferences: Preferences
    seed: int

    @property
    def setup(self) -> Setup:
        """Its engines behind one router."""
        return Setup(engines=self.engines)


def draw(rng: Generator, seed: int) -> Task:
    """A task; ``seed`` chooses its requests, ``rng`` everything else."""
    name = CELLS[rng.integers(len(CELLS))]
    instances = int(SIZES[rng.integers(len(SIZES))])
    engines = unequal(cell(name).engine, instances, rng)
    load = float(rng.uniform(0.5, 1.2))
    cv = float(rng.choice((1.0, 1.0, 2.0, 4.0)))
    noisy = bool(rng.integers(2))
    return make(name, engines, load=load, seed=seed, cv=cv, preferences=preferred(rng), noisy=noisy)


def make(
    name: str,
    engines: tuple[EngineModel, ...],
    *,
    load: float,
    seed: int,
    preferences: Preferences,
    cv: float = 1.0,
    noisy: bool = False,
    requests: int | None = None,
) -> Task:
    """A task of a cell's traffic; ``load`` is a share of the cell's capacity, scaled by how fast the engines are."""
    source = cell(name)
    if source.capacity_rps is None:
        raise ValueError(f"cell {name} has no published capacity")
    base_s = source.engine.profile.prefill_s_per_token
    speed = sum(base_s / engine.profile.prefill_s_per_token for engine in engines)
    rate_rps = load * source.capacity_rps / source.instances * speed
    count = requests or min(MOST_REQUESTS, REQUESTS_PER_INSTANCE[name] * len(engines))
    made = source.workload(rate_rps, count, seed, cv=cv)
    if noisy:
        tokens_N = predictions.noisy(made, np.random.default_rng((seed, 78)), sigma=NOISE)
    else:
        tokens_N = predictions.task_mean(made, _history(name))
    return Task(name, engines, made.with_predictions(tokens_N), preferences, seed)


def unequal(engine: EngineModel, instances: int, rng: Generator) -> tuple[EngineModel, ...]:
    """Equal engines half of the time; else one twice as slow, speeds within a factor of 3, or two modes."""
    kind = rng.integers(6)
    if kind <= 2:  # noqa: PLR2004
        return (engine,) * instances
    if kind == 3:  # noqa: PLR2004
        return (slower(engine, 2.0), *(engine,) * (instances - 1))
    if kind == 4:  # noqa: PLR2004
        return tuple(slower(engine, float(factor)) for factor in np.exp(rng.uniform(-0.5, 0.6, instances)))
    return tuple(engine if rng.integers(2) else other_mode(engine) for _ in range(instances))


def slower(engine: EngineModel, factor: float) -> EngineModel:
    """The same engine, every step of it ``factor`` times as long."""
    return replace(engine, profile=replace(engine.profile.slower(factor), name=f"{engine.profile.name}×{factor:.2f}"))


def other_mode(engine: EngineModel) -> EngineModel:
    """A chunked engine where it is prefill-first, and the other way round."""
    profile = engine.profile
    mode = EngineMode.CHUNKED if profile.mode is EngineMode.PREFILL_FIRST else EngineMode.PREFILL_FIRST
    return replace(engine, profile=replace(profile, name=f"{profile.name}, {mode}", mode=mode))


def preferred(rng: Generator) -> Preferences:
    """A preset's preferences, one figure alone, or any."""
    kind = rng.random()
    if kind < 0.4:  # noqa: PLR2004
        return tuple(PREFERENCES.values())[rng.integers(len(PREFERENCES))]
    shares = np.eye(4)[rng.integers(4)] if kind < 0.6 else rng.dirichlet([0.7] * 4)  # noqa: PLR2004
    return Preferences(*(float(share) for share in shares))


def validation_tasks() -> list[Task]:
    """Cells × loads × presets on 4 and 8 instances, of which every third pool has one twice as slow: 54 tasks."""
    tasks: list[Task] = []
    for name in CELLS:
        engine = cell(name).engine
        for load in VALIDATION_LOADS:
            for preferences in PREFERENCES.values():
                for instances in (4, 8):
                    number = len(tasks)
                    first = engine if number % 3 else slower(engine, 2.0)
                    engines = (first, *(engine,) * (instances - 1))
                    seed = SELECTION.first + number % 8
                    tasks.append(make(name, engines, load=load, seed=seed, preferences=preferences, requests=1_200))
    return tasks


def play_rule(task: Task) -> Outcomes:
    """The default rule on a task."""
    return simulate(task.setup, task.workload, contender(DEFAULT).make(), seed=task.seed)


def play_network(task: Task, decider: Decider, gate: CompiledPolicy = GATE) -> Outcomes:
    """A network on a task, with the task's preferences; behind the gate that it learns behind, unless given."""
    return _driven(task, decider, gate, log=False)[0]


def met(task: Task, decider: Decider) -> NDArray[np.float32]:
    """What a network is told at each decision of a task, shape (T, 16·I + 6); see ``Steps.raw``."""
    return _driven(task, decider, GATE, log=True)[1]


def _driven(task: Task, decider: Decider, gate: CompiledPolicy, *, log: bool) -> tuple[Outcomes, NDArray[np.float32]]:
    world = lay_out(task.setup, task.workload, seed=task.seed)
    given = replace(decider, preferences=task.preferences)
    cut_at_s = task.workload.duration_s + CUT_S
    agent = agent_of(given, len(task.engines), task.seed, cut_at_s=cut_at_s, log=log)
    outcomes = drive_agent(world, task.setup, task.workload, agent, task.seed, compiled.rollout(), gate)
    return outcomes, agent.log_raw[: int(agent.it["steps"][0])].copy()


def figures_of(task: Task, outcomes: Outcomes) -> NDArray[np.float64]:
    """``FIGURES`` of a run, lower is better; the first fifth of the requests does not count.

    The mean of the worst 5 % of the times to the first token, of those between tokens, and of the slowdowns
    (E2E over the time alone on the fastest engine); E2E is the mean. All infinite where a request was not served.
    """
    if not outcomes.finished.all():
        return np.full(len(FIGURES), np.inf)
    first = int(WARM_FRACTION * len(outcomes.status))
    e2e_s, tpot_s = outcomes.e2e_s[first:], outcomes.tpot_s[first:]
    slowdown = outcomes.e2e_s / alone_on_best_s(task.engines, task.workload)
    return np.array(
        [
            _worst(outcomes.ttft_s[first:]),
            _worst(tpot_s[np.isfinite(tpot_s)]),
            float(e2e_s.mean()),
            _worst(slowdown[first:]),
        ]
    )


def worth(changes: NDArray[np.float64], preferences: Preferences) -> float:
    """One number for changes of ln of the figures: by preference, each in its scale; lower is better."""
    return float(np.array(preferences.shares) @ (SCALES * changes))


def _worst(values: NDArray[np.float64]) -> float:
    count = max(1, int(WORST * len(values)))
    return float(np.sort(values)[-count:].mean())


@lru_cache(maxsize=8)
def _history(name: str) -> Workload:
    return cell(name).history()
