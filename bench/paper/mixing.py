"""The impact of mixing on one engine: a lone request, the same one with others joining, and a step by its context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.paper import assumptions
from llmrouter.profiles import PROFILES
from llmrouter.sim.engine import Engine, EngineRequest

if TYPE_CHECKING:
    from llmrouter.domain import EngineProfile

FIRST = EngineRequest("first", 1_000, 1_000)
JOINING_TOKENS = 500
JOINS_EVERY = 50


@dataclass(frozen=True, slots=True)
class Mixing:
    """Seconds: the first request alone, the same with others, and step times by context tokens."""

    alone_s: float
    joined_s: float
    joins: int
    step_s: dict[int, float]


def lasts(profile: EngineProfile, *, joins_every: int | None) -> tuple[float, int]:
    """Seconds until the first request ends, and how many joined it; ``None`` lets nobody join."""
    engine = Engine(profile)
    engine.add(FIRST)
    now_s, steps, joined = 0.0, 0, 0
    while True:
        now_s += engine.begin_step().duration_s
        result = engine.finish_step()
        if FIRST.request_id in result.finished:
            return now_s, joined
        steps += int(result.decoded)  # iterations of the first request: steps for prompts alone are none of its own
        if joins_every is not None and result.decoded and steps % joins_every == 0:
            joined += 1
            engine.add(EngineRequest(f"joining-{joined}", JOINING_TOKENS, JOINING_TOKENS))


def step_s(profile: EngineProfile, sequences: int, context_tokens: int) -> float:
    """A decode step: ``b + g3·n + g2·C``."""
    return profile.base_decode_s + profile.sequence_s * sequences + profile.context_s_per_token * context_tokens


def measure() -> Mixing:
    """All of it on the V100 profile."""
    profile = PROFILES["paper-v100"]
    alone_s, _ = lasts(profile, joins_every=None)
    joined_s, joins = lasts(profile, joins_every=JOINS_EVERY)
    steps = {tokens: step_s(profile, assumptions.MIXING_SEQUENCES, tokens) for tokens in (0, 6_000)}
    return Mixing(alone_s, joined_s, joins, steps)
