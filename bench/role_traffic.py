"""Traffic and engines of the benchmarks that set prefill and decode instances against mixed ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.laws import LengthClass, stream
from llmrouter.domain import ObjectiveWeights, Role
from llmrouter.profiles import PROFILES
from llmrouter.routing.rules import Rule
from llmrouter.routing.stages import StageRules
from llmrouter.sim.model import EngineModel
from llmrouter.sim.setup import CompiledPolicy, RouterSide
from llmrouter.sim.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.sim.outcomes import Outcomes

PROFILE = PROFILES["llama-3-8b-a100"]
CHAT = LengthClass(
    name="chat", weight=1.0, prompt_mu=np.log(400.0), prompt_sigma=0.9, output_mu=np.log(220.0), output_sigma=0.7
)
SUMMARY = LengthClass(
    name="summary", weight=1.0, prompt_mu=np.log(5_000.0), prompt_sigma=0.5, output_mu=np.log(150.0), output_sigma=0.5
)
REASONING = LengthClass(
    name="reasoning", weight=1.0, prompt_mu=np.log(400.0), prompt_sigma=0.9, output_mu=np.log(1_500.0), output_sigma=0.6
)
MOST_PROMPT, MOST_OUTPUT = 32_000, 8_000
PREDICTION_SIGMA = 0.5
"""Predicted lengths are off by a log-normal factor of this σ, without bias."""

LONGEST_HOLD_S = 10.0
_GAPS, _KINDS, _PROMPTS, _OUTPUTS, _PREDICTIONS = range(40, 45)


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request has to meet to count."""

    ttft_s: float
    tpot_s: float

    def met(self, outcomes: Outcomes) -> NDArray[np.bool_]:
        """Which requests (N) were answered in full and in time; one token has no TPOT and needs none."""
        tpot_s = np.nan_to_num(outcomes.tpot_s, nan=0.0)
        in_time = np.nan_to_num(outcomes.ttft_s, nan=np.inf) <= self.ttft_s
        return np.asarray(outcomes.finished & in_time & (tpot_s <= self.tpot_s))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Poisson arrivals of one class at a rate for a while."""

    kind: LengthClass
    rate_rps: float
    duration_s: float


def traffic(stretches: Sequence[Stretch], seed: int) -> Workload:
    """Stretches, one after the other, as one workload; a class is an application."""
    gaps, lengths = stream(seed, _GAPS), {one: stream(seed, one) for one in (_PROMPTS, _OUTPUTS, _PREDICTIONS)}
    kinds = list(dict.fromkeys(one.kind for one in stretches))
    at_s, prompts, outputs, which = [], [], [], []
    begins_s = 0.0
    for one in stretches:
        count = int(gaps.poisson(one.rate_rps * one.duration_s))
        at_s.append(np.sort(gaps.uniform(begins_s, begins_s + one.duration_s, count)))
        prompts.append(_tokens(lengths[_PROMPTS], one.kind.prompt_mu, one.kind.prompt_sigma, count, MOST_PROMPT))
        outputs.append(_tokens(lengths[_OUTPUTS], one.kind.output_mu, one.kind.output_sigma, count, MOST_OUTPUT))
        which.append(np.full(count, kinds.index(one.kind)))
        begins_s += one.duration_s
    output_N = np.concatenate(outputs)
    off_N = lengths[_PREDICTIONS].normal(-0.5 * PREDICTION_SIGMA**2, PREDICTION_SIGMA, len(output_N))
    return Workload.of(
        np.concatenate(at_s),
        np.concatenate(prompts),
        output_N,
        predicted_output_tokens=output_N * np.exp(off_N),
        application=np.concatenate(which),
        applications=tuple(one.name for one in kinds),
    )


def _tokens(rng: np.random.Generator, mu: float, sigma: float, count: int, most: int) -> NDArray[np.int64]:
    return rng.lognormal(mu, sigma, count).round().clip(1, most).astype(np.int64)


def engine(role: Role, *, transfer_bytes_per_s: float = 25e9) -> EngineModel:
    """An 8B model on an A100; KV goes over a link of 200 Gbit/s unless said, and the decode instance answers (vLLM)."""
    return EngineModel(
        PROFILE, role=role, transfer_bytes_per_s=transfer_bytes_per_s, transfer_s=0.005, hands_first_token=False
    )


def routers(rules: StageRules | None = None) -> RouterSide:
    """One router that knows all, and holds for a while."""
    return RouterSide(stages=rules or StageRules(), max_wait_s=LONGEST_HOLD_S)


def policy(weights: ObjectiveWeights | None = None) -> CompiledPolicy:
    """The default policy, compiled: marginal cost under the KV gate."""
    return CompiledPolicy(
        rule=Rule.MARGINAL_COST,
        weights=(weights or ObjectiveWeights()).in_order,
        max_requests=None,
        kv_fraction=0.9,
    )
