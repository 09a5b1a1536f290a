"""What an operator remembers of each LLMRouter's traffic, to say what is to come; it begins anew with the operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrouter.planning.forecast import RateHistory, growth_of
from llmrouter.planning.mix import added
from llmrouter_operator.mix import mixes_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.planning.forecast import Band
    from llmrouter.planning.mix import TrafficMix
    from llmrouter.resources import LLMRouterSpec
    from llmrouter_operator.models import ObjectKey
    from llmrouter_operator.status import Facts

START_UP_S = 180.0
"""How long a new replica takes, as a rule, until it serves: its image and weights."""

STABILIZATION_S = 120.0
"""How long a wish has to last, where nothing is said."""


@dataclass(frozen=True, slots=True)
class MixForecast:
    """Requests, prefill tokens and decode tokens per second, after the horizon."""

    horizon_s: float
    bands: tuple[Band, Band, Band]

    @property
    def growth(self) -> float:
        """Times by which what arrives may grow until then, the most that a plan allows for."""
        return growth_of(self.bands)


class MixMemory:
    """One operator's, by LLMRouter."""

    def __init__(self) -> None:
        self._histories: dict[ObjectKey, RateHistory] = {}

    def observe(
        self, key: ObjectKey, mixes: Mapping[str, TrafficMix], *, at_s: float, horizon_s: float
    ) -> MixForecast | None:
        """Notes what arrives now and says what will; ``None`` until there is past enough, or where nothing is known."""
        if not mixes:
            return None
        whole = added(mixes.values())
        history = self._histories.setdefault(key, RateHistory())
        history.note((whole.requests_per_s, whole.prefill_tokens_per_s, whole.decode_tokens_per_s), at_s=at_s)
        bands = history.bands(horizon_s)
        return None if bands is None else MixForecast(horizon_s, (bands[0], bands[1], bands[2]))

    def forget(self, key: ObjectKey) -> None:
        """An LLMRouter is gone."""
        self._histories.pop(key, None)


def with_mix(facts: Facts, memory: MixMemory, *, at_s: float) -> Facts:
    """The facts with what arrives for declared models, as routers said lately, and what will."""
    spec, said = facts.plan.spec, mixes_of(facts.said.by_router.values(), at_s)
    mixes = said if spec is None else {one.name: said[one.name] for one in spec.models if one.name in said}
    forecast = memory.observe(facts.plan.key, mixes, at_s=at_s, horizon_s=horizon_s_of(spec))
    return replace(facts, mixes=mixes, forecast=forecast)


def horizon_s_of(spec: LLMRouterSpec | None) -> float:
    """From when more is wanted until it serves."""
    rebalance = None if spec is None else spec.rebalance
    return START_UP_S + (STABILIZATION_S if rebalance is None else rebalance.stabilization_seconds)
