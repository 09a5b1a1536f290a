"""Multi-turn sessions made by a law: a turn waits for the answer before it, thinks, and asks with all the history."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals import generators
from llmrouter.errors import InvalidInputError
from llmrouter.sim.workload import MAX_TOKENS, Workload

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_MAX_TURNS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLaw:
    """How sessions of tenants run. Medians and σ are of log-normal laws.

    Attributes:
        tenants: how many; a session belongs to any alike.
        system_prompt_tokens: the prompt that all sessions of a tenant begin with; each tenant has its own.
        mean_turns: mean of the geometric number of turns, at least 1.
        think_median_s, think_sigma: from an answer's end to the next turn.
        question_median_tokens, question_sigma: what a turn adds to the prompt.
        output_median_tokens, output_sigma: the answer's length.
        max_prompt_tokens: a session ends before a turn whose prompt would be longer.
        block_tokens: of a prefix block.
    """

    tenants: int = 4
    system_prompt_tokens: int = 1_000
    mean_turns: float = 5.0
    think_median_s: float = 10.0
    think_sigma: float = 1.0
    question_median_tokens: float = 100.0
    question_sigma: float = 1.0
    output_median_tokens: float = 200.0
    output_sigma: float = 0.8
    max_prompt_tokens: int = 32_768
    block_tokens: int = 16

    def __post_init__(self) -> None:
        bounds = {
            "tenants": (1, 1_000_000),
            "system_prompt_tokens": (0, MAX_TOKENS),
            "mean_turns": (1, _MAX_TURNS),
            "think_median_s": (0, 1e9),
            "think_sigma": (0, 5),
            "question_median_tokens": (1, MAX_TOKENS),
            "question_sigma": (0, 5),
            "output_median_tokens": (1, MAX_TOKENS),
            "output_sigma": (0, 5),
            "max_prompt_tokens": (self.system_prompt_tokens + 1, MAX_TOKENS),
            "block_tokens": (1, 65_536),
        }
        for name, (low, high) in bounds.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise InvalidInputError(f"{name} must be {low:g} to {high:g}, not {value}")


def sessions(law: SessionLaw, rate_rps: float, count: int, rng: Generator) -> Workload:
    """``count`` sessions that start as a Poisson process of ``rate_rps`` sessions a second.

    Rows are in order of the sessions' starts, a session's turns one after the other. A turn's prompt is the tenant's
    system prompt, the questions and answers so far and its own question; its leading whole blocks are those of the turn
    before it, and, within the system prompt, of all sessions of the tenant.

    Raises:
        InvalidInputError: the rate or the count is out of its bounds.
    """
    starts = generators.poisson(rate_rps, count, rng)
    tenant = rng.integers(law.tenants, size=count)
    turns = np.minimum(rng.geometric(1 / law.mean_turns, size=count), _MAX_TURNS)
    rows = int(turns.sum())
    session = np.repeat(np.arange(count), turns)
    first = np.cumsum(turns) - turns
    questions = _lengths(law.question_median_tokens, law.question_sigma, rows, rng)
    outputs = _lengths(law.output_median_tokens, law.output_sigma, rows, rng)
    think_s = law.think_median_s * np.exp(law.think_sigma * rng.standard_normal(rows))
    before = np.cumsum(questions + outputs) - (questions + outputs)
    history = before - before[first][session]
    prompts = law.system_prompt_tokens + history + questions
    kept = prompts <= law.max_prompt_tokens
    kept[first] = True
    prompts[first] = np.minimum(prompts[first], law.max_prompt_tokens)
    session, prompts, outputs, think_s = (column[kept] for column in (session, prompts, outputs, think_s))
    is_first = np.diff(session, prepend=-1) > 0
    prefix_start, prefix_blocks = _blocks(law, prompts // law.block_tokens, session, tenant[session])
    return Workload.of(
        starts[session],
        prompts,
        outputs,
        application=np.zeros(len(session), np.int64),
        applications=("chat",),
        tenant=tenant[session],
        tenants=tuple(f"tenant-{number}" for number in range(law.tenants)),
        after=np.where(is_first, -1, np.arange(len(session)) - 1),
        think_s=np.where(is_first, 0.0, think_s),
        prefix_start=prefix_start,
        prefix_blocks=prefix_blocks,
        prefix_block_tokens=law.block_tokens,
        name="sessions",
    )


def _lengths(median: float, sigma: float, rows: int, rng: Generator) -> NDArray[np.int64]:
    drawn = np.exp(math.log(median) + sigma * rng.standard_normal(rows))
    return np.clip(np.rint(drawn), 1, MAX_TOKENS).astype(np.int64)


def _blocks(
    law: SessionLaw, blocks: NDArray[np.int64], session: NDArray[np.int64], tenant: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of each row's blocks: the tenant's for the system prompt, which every prompt fills, then the session's."""
    prefix_start = np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks)])
    row = np.repeat(np.arange(len(blocks)), blocks)
    place = np.arange(len(row)) - prefix_start[:-1][row]
    shared = law.system_prompt_tokens // law.block_tokens
    used, group = np.unique(tenant, return_inverse=True)
    longest = np.zeros(int(session[-1]) + 1, np.int64)
    np.maximum.at(longest, session, blocks - shared)
    own_base = len(used) * shared + np.cumsum(longest) - longest
    ids = np.where(place < shared, group[row] * shared + place, own_base[session[row]] + place - shared)
    return prefix_start, ids.astype(np.int64)
