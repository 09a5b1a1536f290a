"""The setting of arXiv 2408.13510 in the project's own simulator: its cell, states, actions and moments of decision.

**Cell.** Four V100 instances (profile ``paper-v100``, prompts in steps of their own), 2,000 requests that arrive at 20
a second, from empty, with output lengths told by the paper's bucket classifier. Other cells are other ``Environment``s.

**State of the paper**, 6·m + 3 numbers, 27 for m = 4. Its prose names the parts, not the layout. Per instance: requests
in the prompt phase, in the decode phase by predicted bucket (3), capacity, earliest completion; then the queue: its
length up to 512, prompt tokens of the head, predicted bucket of the head. Inferred:

- a request without a first token is in the prompt phase, also while the engine still queues it;
- buckets are the predictor's (250 and 1,000 tokens): with the 256 and 2,048 that the paper gives its agent no output of
  this cell would lie in the third;
- capacity is 1 − context tokens in flight ÷ KV tokens, to 2 decimals: queued prompts count as used;
- earliest completion is min over requests of max(1, predicted − generated) steps, each as long as the step model says
  of what is in flight; 0 where nothing is;
- inputs are divided by constants (10 prompts, 50 decodes, 10 s, 100 held, 500 tokens, 2 buckets).

**State of the shared network**: 20 numbers per instance and 9 for hold, made of the features that routers have of every
instance (``feature_set.FEATURE_NAMES``), the length of the line, and how long its head has been the head.

**Actions**: one of m instances, or hold (the last).

**Moments.** ``PerTick`` is the paper's: every 20 ms, if anything is held, one action for the head; hold lasts a tick.
``Epochs``: an action only when the head may try again (it is new, or something finished) and the shield allows an
instance, at once and as often as there is a head; hold is an option that lasts 100 ms. The shield allows instances
that pass the KV gate (an idle one always does), and no hold while one is idle or once a head is 5 s old.

**Cut.** An episode ends ``cut_s`` after its last arrival at the latest: an agent that always holds would never end it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.arrivals import predictions
from llmrouter.arrivals.cells import Cell, cell
from llmrouter.domain import Preferences
from llmrouter.feature_set import LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES
from llmrouter.routing.rules import Rule
from llmrouter.routing.sight import HOLD_S, LONGEST_HOLD_S
from llmrouter.sim.arrays import lay_out, structured
from llmrouter.sim.kernel.records import NONE
from llmrouter.sim.run import play
from llmrouter.sim.setup import CompiledPolicy, RouterSide, Setup
from llmrouter.training.agents import compiled, product_network, rollout, shared_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from llmrouter.sim.kernel.records import World
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.workload import Workload

PREDICTOR_STREAM = 77
"""Purpose number of the bucket predictor's random stream."""

TICK_S = 0.02
MOST_STEPS = 60_000
"""Decisions of an episode that are logged at most."""

RESERVE_FRACTION = 0.15
"""r of the agents' gate: the share of the tokens to come that counts against KV."""

GATE = CompiledPolicy(rule=Rule.RANDOM, max_requests=None, kv_fraction=1.0, decode_reserve_fraction=RESERVE_FRACTION)
"""Lends the agents its room rule; the rule itself never decides."""


@dataclass(frozen=True, slots=True)
class Decider:
    """Who decides: a kind of ``rollout`` and what it needs."""

    kind: int
    weights: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    epsilon: float = 0.0
    hold_s: float = HOLD_S
    longest_hold_s: float = LONGEST_HOLD_S
    batch: int = 6
    batch_wait_s: float = 1.0
    window: int = 1
    preferences: Preferences = field(default_factory=Preferences)


@dataclass(frozen=True, slots=True)
class Steps:
    """The decisions of an episode, T of them, in order; times in seconds.

    Attributes:
        state: (T, 6·I + 3), the paper's, scaled.
        shared: (T, 20·I + 9), the shared network's.
        raw: (T, 16·I + 6), what ``llmrouter.routing.sight`` tells of the instances and then of the line.
        allowed: (T, I + 1), what the shield let the agent do.
        action: (T,).
        own_s, imposed_s, coalesce_s, mixing_s: (T, I), what the head would have cost on each instance.
        at_s: (T,).
        held: (T,), requests in the line, the head included.
        unfinished: (T,), Σ(1 − generated/predicted) over all requests in the system.
        ended: (T,), requests that had ended.
        end_s, ended_at_end: of the episode.
    """

    state: NDArray[np.float32]
    shared: NDArray[np.float32]
    raw: NDArray[np.float32]
    allowed: NDArray[np.bool_]
    action: NDArray[np.int64]
    own_s: NDArray[np.float64]
    imposed_s: NDArray[np.float64]
    coalesce_s: NDArray[np.float64]
    mixing_s: NDArray[np.float64]
    at_s: NDArray[np.float64]
    held: NDArray[np.float64]
    unfinished: NDArray[np.float64]
    ended: NDArray[np.float64]
    end_s: float
    ended_at_end: int

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True, slots=True)
class Episode:
    """What came of an episode, and how many decisions it took."""

    outcomes: Outcomes
    decisions: int


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A cell and the moments at which its agents decide.

    Attributes:
        source: cell of the benchmark with the engine and the law of requests.
        instances, requests, rate_rps: of an episode.
        tick_s: seconds between two actions, or 0 for decision epochs.
        cut_s: seconds after the last arrival after which an episode is cut.
    """

    source: Cell = field(default_factory=lambda: cell("paper-v100"))
    instances: int = 4
    requests: int = 2_000
    rate_rps: float = 20.0
    tick_s: float = 0.0
    cut_s: float = 300.0

    @property
    def setup(self) -> Setup:
        """Its engines behind one router."""
        return Setup(engines=(self.source.engine,) * self.instances, routers=RouterSide(decision_every_s=self.tick_s))

    def workload(self, seed: int) -> Workload:
        """The requests of an episode with what the bucket classifier says of their outputs."""
        return _workload(self.source.name, self.requests, self.rate_rps, seed)

    def steps(self, decider: Decider, seed: int) -> Steps:
        """The decisions of an episode."""
        setup, requests = self.setup, self.workload(seed)
        world = lay_out(setup, requests, seed=seed)
        agent = agent_of(decider, self.instances, seed, cut_at_s=requests.duration_s + self.cut_s, log=True)
        drive_agent(world, setup, requests, agent, seed, compiled.rollout())
        return _steps(agent, world, self.instances)

    def play(
        self,
        decider: Decider,
        seed: int,
        *,
        workload: Workload | None = None,
        drive: Callable[[Any, Any], int] | None = None,
    ) -> Episode:
        """One episode. Equal arguments give equal bytes.

        Args:
            decider: who decides.
            seed: of the requests, and of what the decider draws.
            workload: other requests than those of the seed.
            drive: ``rollout.rollout``, compiled unless given.
        """
        requests = self.workload(seed) if workload is None else workload
        setup = self.setup
        world = lay_out(setup, requests, seed=seed)
        agent = agent_of(decider, self.instances, seed, cut_at_s=requests.duration_s + self.cut_s, log=False)
        outcomes = drive_agent(world, setup, requests, agent, seed, compiled.rollout() if drive is None else drive)
        return Episode(outcomes, int(agent.it["decisions"][0]))


def drive_agent(  # noqa: PLR0917 - called here and for the product's network
    world: World,
    setup: Setup,
    requests: Workload,
    agent: rollout.Agent,
    seed: int,
    drive: Callable[[Any, Any], int],
    gate: CompiledPolicy = GATE,
) -> Outcomes:
    """Runs a laid out world with an agent's answers, behind a gate."""

    def advance(world: World) -> int:
        world.run["rule"] = NONE
        return drive(world, agent)

    return play(world, setup, requests, gate, advance=advance, seed=seed)


def agent_of(decider: Decider, instances: int, seed: int, *, cut_at_s: float, log: bool) -> rollout.Agent:
    """The arrays of a decider among so many instances."""
    it = structured(rollout.SETTINGS, 1)
    for name in ("kind", "epsilon", "hold_s", "longest_hold_s", "batch", "batch_wait_s", "window"):
        it[name] = getattr(decider, name)
    it["random"] = (seed * 0x9E37_79B9_7F4A_7C15 >> 21) % 2_147_483_646 + 1
    it["cut_at_s"], it["head"], it["hold_until"], it["recording"] = cut_at_s, NONE, -1.0, int(log)
    size = rollout.PAPER_PER_INSTANCE * instances + rollout.PAPER_QUEUE
    shared = shared_network.PER_INSTANCE * instances + shared_network.HOLD
    steps = MOST_STEPS if log else 0
    raw = np.zeros(len(LEARNED_INSTANCE_NAMES) * instances + len(LEARNED_LINE_NAMES))
    raw[-len(decider.preferences.shares) :] = decider.preferences.shares
    return rollout.Agent(
        it=it,
        weights=np.ascontiguousarray(decider.weights, dtype=np.float64),
        state=np.zeros(size),
        shared=np.zeros(shared),
        first=np.zeros(rollout.HIDDEN),
        second=np.zeros(rollout.HIDDEN),
        costs=np.zeros(rollout.COSTS * instances),
        scores=np.zeros(instances + 1),
        allowed=np.zeros(instances + 1, np.int64),
        raw=raw,
        terms=np.zeros(product_network.TERMS * instances),
        log_state=np.zeros((steps, size), np.float32),
        log_shared=np.zeros((steps, shared), np.float32),
        log_raw=np.zeros((steps, len(raw)), np.float32),
        log_costs=np.zeros((steps, rollout.COSTS * instances)),
        log_allowed=np.zeros((steps, instances + 1), np.int64),
        log_action=np.zeros(steps, np.int64),
        log_numbers=np.zeros((steps, 4)),
    )


def _steps(agent: rollout.Agent, world: World, instances: int) -> Steps:
    count = int(agent.it["steps"][0])
    costs_TIC = agent.log_costs[:count].reshape(count, instances, rollout.COSTS).copy()
    numbers_TN = agent.log_numbers[:count].copy()
    return Steps(
        state=agent.log_state[:count].copy(),
        shared=agent.log_shared[:count].copy(),
        raw=agent.log_raw[:count].copy(),
        allowed=agent.log_allowed[:count].astype(bool),
        action=agent.log_action[:count].copy(),
        own_s=costs_TIC[..., 0],
        imposed_s=costs_TIC[..., 1],
        coalesce_s=costs_TIC[..., 2],
        mixing_s=costs_TIC[..., 3],
        at_s=numbers_TN[:, 0],
        held=numbers_TN[:, 1],
        unfinished=numbers_TN[:, 2],
        ended=numbers_TN[:, 3],
        end_s=float(world.run["now"][0]),
        ended_at_end=int(world.run["ended"][0]),
    )


@lru_cache(maxsize=1_024)
def _workload(source_name: str, requests: int, rate_rps: float, seed: int) -> Workload:
    source = cell(source_name)
    made = source.workload(rate_rps, requests, seed)
    rng = np.random.default_rng((seed, PREDICTOR_STREAM))
    return made.with_predictions(predictions.paper_bucket(made, rng, _classifier(source_name)))


@lru_cache(maxsize=8)
def _classifier(source_name: str) -> predictions.BucketClassifier:
    """The paper's classifier as its printed accuracies describe it; a bucket stands for its mean length."""
    source = cell(source_name)
    accuracy = {one.name: one.bucket_accuracy for one in source.classes if one.bucket_accuracy is not None}
    return predictions.BucketClassifier(accuracy=accuracy, values=predictions.bucket_values(source.history()))
