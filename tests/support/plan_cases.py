"""Demands and pools that tests of planning share."""

from __future__ import annotations

import numpy as np

from llmrouter.domain import Role
from llmrouter.planning.demand import ModelDemand, demand_of
from llmrouter.planning.inputs import PlanInputs, PoolOption, Slo
from llmrouter.profiles import PROFILES

H100, A100 = PROFILES["llama-3-8b-h100"], PROFILES["llama-3-8b-a100"]
SLO = Slo(ttft_s=1.0, tpot_s=0.03)


def lengths(prompt_tokens: float, output_tokens: float, count: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal prompts and answers of these means, independent."""
    rng = np.random.default_rng(7)
    spread = 0.7
    prompt_N, output_N = (
        np.maximum(1, np.round(mean * np.exp(spread * rng.normal(size=count) - spread**2 / 2)))
        for mean in (prompt_tokens, output_tokens)
    )
    return prompt_N, output_N


def demand(
    rate_rps: float, prompt_tokens: float = 1_200.0, output_tokens: float = 200.0, model: str = "m"
) -> ModelDemand:
    """Requests of these mean lengths."""
    prompt_N, output_N = lengths(prompt_tokens, output_tokens)
    return demand_of(model, prompt_N, output_N, requests_per_s=rate_rps)


def staged(prefill: int, decode: int, most: int = 8) -> tuple[PoolOption, PoolOption]:
    """A pool for each stage, with what it has."""
    return (
        PoolOption(name="p", profile=H100, role=Role.PREFILL, min_replicas=1, max_replicas=most, current=prefill),
        PoolOption(name="d", profile=H100, role=Role.DECODE, min_replicas=1, max_replicas=most, current=decode),
    )


def inputs(*demands: ModelDemand, pools: tuple[PoolOption, ...], gpus: int | None = 8) -> PlanInputs:
    """With the usual times."""
    return PlanInputs(demands=demands, pools=pools, slo=SLO, gpu_budget=gpus)
