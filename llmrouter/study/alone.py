"""How long a request takes on an engine that serves nothing else: the denominator of slowdown, in closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.sim.model import Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.sim.model import EngineModel
    from llmrouter.sim.workload import Workload


def alone_s(engine: EngineModel, workload: Workload) -> NDArray[np.float64]:
    """Seconds from dispatch to last token of every request, shape (N,), each on an idle engine without cached prefixes.

    For p prompt and d output tokens, c = ⌈p / budget⌉ prefill steps (1 where whole prompts are prefilled) and d − 1
    decode steps over a context that grows by one token from p; the floor of a step is counted once:

        front + max(c·base_p + g1·p + g1b·p², floor) + c·sequence_p
              + (d − 1)·(base_d + g3) + g2·((d − 1)·p + (d − 1)·(d − 2)/2)
    """
    profile = engine.profile
    p = workload.prompt_tokens.astype(np.float64)
    steps = workload.output_tokens.astype(np.float64) - 1.0
    whole = engine.steps_as in (Schedule.PREFILL_FIRST, Schedule.INTERVAL)
    chunks = np.ones_like(p) if whole else np.ceil(p / profile.token_budget)
    computed_s = (
        chunks * profile.base_prefill_s + profile.prefill_s_per_token * p + profile.prefill_s_per_token_squared * p * p
    )
    prefill_s = np.maximum(computed_s, profile.prefill_floor_s) + chunks * engine.prefill_sequence_s
    context = steps * p + steps * (steps - 1.0) / 2.0
    decode_s = steps * (profile.base_decode_s + profile.sequence_s) + profile.context_s_per_token * context
    front_s = engine.front_s + engine.front_s_per_token * p
    total_s: NDArray[np.float64] = front_s + prefill_s + decode_s
    return total_s


def alone_on_best_s(engines: Sequence[EngineModel], workload: Workload) -> NDArray[np.float64]:
    """``alone_s`` on the engine that is fastest for each request, shape (N,)."""
    different = tuple(dict.fromkeys(engines))
    best_s: NDArray[np.float64] = np.min([alone_s(engine, workload) for engine in different], axis=0)
    return best_s
