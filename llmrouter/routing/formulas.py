"""Policies that are one formula of ``rules.py``: baselines from papers and peers, and the product's marginal cost.

Each docstring gives the formula in the letters of ``rules.py``, its source, and where it is known to fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain import BatchHold, ObjectiveWeights
from llmrouter.routing.policies import Ruled
from llmrouter.routing.rules import Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain import InstanceView, Room


class LeastKvTokens(Ruled):
    """The instance with the fewest context tokens in flight: ``C``.

    The free-KV rule of many schedulers, from exact counts instead of scraped usage. Fails where short contexts hide
    many requests (the batch, not KV, is what slows), or a prefill that has still to run; does not know that engines
    are unequal.
    """

    name = "LeastKvTokens"
    rule = Rule.LEAST_KV_TOKENS


class LMetric(Ruled):
    """Uncached prefill times batch size: ``(Q + p − c)·(n + 1)``.

    LMetric (arXiv 2603.15202), which multiplies the new prefill tokens of an instance by its batch size and so needs no
    weights. Fails where nothing is queued: then only the batch counts, whatever its contexts; and for a long prompt,
    which it rather sends behind another long prompt than into a batch. Seconds appear nowhere: engines count as equal.
    """

    name = "LMetric"
    rule = Rule.LMETRIC


class PrefillLoad(Ruled):
    """The fewest uncached prompt tokens without a first token: ``min(1, (Q + p − c)/T)``, T = 4,194,304.

    llm-d's token-load-scorer with its defaults. Fails where decoding is the bottleneck, which it does not see: with no
    prefill queued it chooses at random.
    """

    name = "PrefillLoad"
    rule = Rule.PREFILL_LOAD


class TokenLoad(Ruled):
    """Prefix hits, token load and KV usage, 3 : 2 : 2: ``3·(1 − c/p) + 2·min(1, (Q + p − c)/T) + 2·min(1, C/K)``.

    llm-d's weights. Where no prefix is known the first term is the same for all, and two are left.
    T is larger than K, so that a context token weighs T/K times a queued one (10 on an H100, 200 on the paper's V100):
    it fails where LeastKvTokens does.
    """

    name = "TokenLoad"
    rule = Rule.TOKEN_LOAD


class LeastTokensLeft(Ruled):
    """The fewest prompt and decode tokens left: ``Q + R``.

    The JSQ of arXiv 2408.13510. A prompt token counts like an output token, though each of those takes a step: fails
    where some requests are mostly prompt and others mostly output.
    """

    name = "LeastTokensLeft"
    rule = Rule.PAPER_JSQ


class MinMin(Ruled):
    """The earliest completion, output as long as its bucket allows; see ``rules.min_min``.

    The min-min of arXiv 2408.13510, buckets to 250, 1000 and 4000 tokens. Fails within a bucket, where all requests
    look alike, and at its edge, where one token more is four times the work; imposes on others at no charge.
    """

    name = "MinMin"
    rule = Rule.MIN_MIN


class MixingPenalty(Ruled):
    """The least penalty of mixing: ``α·[T > ε]·T + (1 − α)·g2·n·(p + d)``, ``T = g1·p + g2·(C + R)``.

    arXiv 2408.13510, greedily and with its constants of a V100 (g1 3.2e-4 s, g2 3.3e-5 s, α 0.5; ε, not printed, is
    0.5 s, its heavy prompt). Fails on other engines, whose costs differ, and below ε, where only n counts.
    """

    name = "MixingPenalty"
    rule = Rule.MIXING_PENALTY


class MixingPenaltyScaled(Ruled):
    """``MixingPenalty`` with g1 of each engine's profile, and g2 in the paper's proportion to it.

    Fails where an engine's context cost is in another proportion to its prefill cost than on the paper's V100.
    """

    name = "MixingPenaltyScaled"
    rule = Rule.MIXING_PENALTY_SCALED


class OwnLatency(Ruled):
    """The least predicted latency of the request itself: ``own`` of ``rules.marginal_cost_row``.

    What predicted-latency routers do (llm-d's latency scorer, with a formula in place of a learned model). Fails where
    a request costs others more than itself: a long prompt stalls every decode of the batch that it joins.
    """

    name = "OwnLatency"
    rule = Rule.OWN_LATENCY


class DecodeBalancer(Ruled):
    """The fewest predicted tokens still to decode: ``R``.

    The decode balancer of arXiv 2408.13510, which knows true lengths; with predicted ones it is as good as they are.
    Fails where prefill is the bottleneck, which it does not see.
    """

    name = "DecodeBalancer"
    rule = Rule.DECODE_BALANCER


class WorkloadImpact(Ruled):
    """The least marginal cost: own seconds, and those imposed on others; see ``rules.marginal_cost_row``.

    The formula that the shipped ONNX model ``marginal-cost`` computes, without the model. Fails where the profile is
    not the engine's: costs are as right as the coefficients and the predicted lengths.
    """

    name = "WorkloadImpact"
    rule = Rule.MARGINAL_COST

    def __init__(
        self,
        room_rule: Callable[[InstanceView], Room],
        weights: ObjectiveWeights | None = None,
        batch_hold: BatchHold | None = None,
    ) -> None:
        super().__init__(room_rule)
        self.batch_hold = batch_hold or BatchHold()
        self._weights = (weights or ObjectiveWeights()).in_order
