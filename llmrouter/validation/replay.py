"""A measured run replayed on a modelled engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import beta

from llmrouter.errors import InvalidInputError
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, Setup
from llmrouter.sim.workload import Workload
from llmrouter.validation.engines import Reuse, Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.validation.engines import MeasuredEngine
    from llmrouter.validation.measured import MeasuredRun

_STRAIGHT_ON = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1_000_000_000)
"""All requests to the one engine at once: nothing waits before it."""

_WARM_UP_S = 100.0
"""Seconds for each request that fills the prefix cache before the run."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Simulated times of a run, shape (S, N): one row for every draw of what the record leaves open."""

    ttft_s: NDArray[np.float64]
    e2e_s: NDArray[np.float64]


def draws_needed(engine: MeasuredEngine) -> bool:
    """Whether anything is left to chance: which replica, or how much of a prompt is cached."""
    drawn_cache = engine.reuse is Reuse.SHARE or (engine.reuse is Reuse.SESSIONS and engine.warm_fraction < 1)
    return drawn_cache or (engine.replicas > 1 and engine.split is not Split.ROUND_ROBIN)


def replay(engine: MeasuredEngine, run: MeasuredRun, *, draws: int) -> Replay:
    """Replays the run's arrivals and lengths; draw k is the same on every call.

    Raises:
        InvalidInputError: the engine can never hold one of the requests.
    """
    count = draws if draws_needed(engine) else 1
    rows = [_one(engine, run, np.random.default_rng(draw)) for draw in range(count)]
    return Replay(np.stack([ttft_s for ttft_s, _ in rows]), np.stack([e2e_s for _, e2e_s in rows]))


def _one(
    engine: MeasuredEngine, run: MeasuredRun, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    count = len(run)
    replica = _replica(engine, run, rng)
    cached_blocks = _cached_blocks(engine, run, rng)
    warm = rng.random(count) < engine.warm_fraction
    ttft_s, e2e_s = np.empty(count), np.empty(count)
    setup = Setup(engines=engine.instances())
    for number in range(engine.replicas):
        rows = np.flatnonzero(replica == number)
        if len(rows) == 0:
            continue
        warm_up, workload = _workload(engine, run, rows, cached_blocks, warm=warm)
        outcomes = simulate(setup, workload, _STRAIGHT_ON, seed=0)
        if not outcomes.finished.all():
            row = int(rows[max(int(np.argmin(outcomes.finished)) - warm_up, 0)])
            raise InvalidInputError(
                f"{run.set_name}: run {run.name}: request {row} of {run.prompt_tokens[row]} + {run.output_tokens[row]} "
                f"tokens never fits engine {engine.name}, kv_tokens {int(engine.coefficients.kv_tokens)}"
            )
        ttft_s[rows] = outcomes.ttft_s[warm_up:]
        e2e_s[rows] = outcomes.e2e_s[warm_up:]
    return ttft_s, e2e_s


def _replica(engine: MeasuredEngine, run: MeasuredRun, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which replica serves each request, shape (N,)."""
    if engine.split is Split.ROUND_ROBIN or engine.replicas == 1:
        return np.arange(len(run)) % engine.replicas
    if engine.split is Split.RANDOM:
        return rng.integers(0, engine.replicas, len(run))
    users, user_of = np.unique(run.session, return_inverse=True)
    home = rng.permutation(np.arange(len(users)) % engine.replicas)
    return np.asarray(home[user_of])


def _cached_blocks(engine: MeasuredEngine, run: MeasuredRun, rng: np.random.Generator) -> NDArray[np.int64]:
    """Leading blocks of each prompt that are shared with earlier ones, shape (N,)."""
    block = engine.block_tokens
    if engine.reuse is Reuse.NONE:
        return np.zeros(len(run), np.int64)
    if engine.reuse is Reuse.SESSIONS:
        return (run.prompt_tokens - 1) // block
    values = engine.coefficients
    grid = (np.arange(len(run)) + 0.5) / len(run)
    mean, total = values.uncached_fraction, values.uncached_concentration
    uncached = beta.ppf(grid, mean * total, (1 - mean) * total) if mean < 1 else np.ones(len(run))
    rng.shuffle(uncached)
    longest = int(values.kv_tokens) // 2
    tokens = np.minimum(run.prompt_tokens * (1 - uncached), np.minimum(run.prompt_tokens - 1, longest))
    return (tokens // block).astype(np.int64)


def _workload(
    engine: MeasuredEngine,
    run: MeasuredRun,
    rows: NDArray[np.int64],
    cached_blocks: NDArray[np.int64],
    *,
    warm: NDArray[np.bool_],
) -> tuple[int, Workload]:
    """The requests of one replica, after as many warm-up requests as the first item says."""
    arrived_at_s = run.arrived_at_s[rows]
    prompt, output = run.prompt_tokens[rows], run.output_tokens[rows]
    if engine.reuse is Reuse.NONE:
        return 0, Workload.of(arrived_at_s, prompt, output)
    block = engine.block_tokens
    blocks = cached_blocks[rows]
    users = run.session if engine.reuse is Reuse.SESSIONS else np.zeros(len(run), np.int64)
    _, user_of = np.unique(users, return_inverse=True)
    stride = int(cached_blocks.max()) + 1
    warm_users, warm_blocks = _warm_up(engine, user_of, rows, cached_blocks, warm=warm)
    start_s = _WARM_UP_S * (len(warm_users) + 1)
    counts = np.concatenate([warm_blocks, blocks])
    first = np.concatenate([warm_users, user_of[rows]]) * stride
    ids = [np.arange(at, at + count) for at, count in zip(first.tolist(), counts.tolist(), strict=True)]
    return len(warm_users), Workload.of(
        np.concatenate([np.arange(len(warm_users)) * _WARM_UP_S, start_s + arrived_at_s]),
        np.concatenate([warm_blocks * block + 1, prompt]),
        np.concatenate([np.ones(len(warm_users), np.int64), output]),
        prefix_start=np.concatenate([[0], np.cumsum(counts)]),
        prefix_blocks=np.concatenate(ids) if ids else np.zeros(0, np.int64),
        prefix_block_tokens=block,
    )


def _warm_up(
    engine: MeasuredEngine,
    user_of: NDArray[np.int64],
    rows: NDArray[np.int64],
    cached_blocks: NDArray[np.int64],
    *,
    warm: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Users and block counts of the prompts seen before the run: the last user first, so that he is forgotten first."""
    if engine.reuse is Reuse.SHARE:
        return np.zeros(1, np.int64), np.array([int(cached_blocks.max())])
    users, first = np.unique(user_of[rows], return_index=True)
    first_row = rows[first]
    order = np.argsort(first_row)[::-1]
    order = order[warm[first_row[order]]]
    return users[order].astype(np.int64), cached_blocks[first_row[order]]
