"""Whether a request whose first token is not there should be elsewhere.

It moves when its instance is not ready any more: what waits there waits for an engine that is going. It moves, once,
when it is late: ``redispatchAfterSeconds`` have passed, and ``LATE_RATIO`` times what was foretold of its first token,
and another instance is foretold to have that token within a ``BETTER_FRACTION`` of what is expected of this one: as
long again as it has taken, as what was foretold of it was wrong, or what is foretold of it now, if that is longer. The
second bound, the single move and the margin are what keeps requests from going to and fro.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrouter.domain import Request, Role
from router_grpc.costing import own_seconds
from router_grpc.openai.journey import Cause

if TYPE_CHECKING:
    from llmrouter.domain import Instance
    from router_grpc.calls import RouteAnswer
    from router_grpc.openai.journey import Journey
    from router_grpc.world import World

LOOK_S = 0.25
"""How often a request without a first token is looked at."""

UNREADY_LOOKS = 2
"""An instance that was not ready at so many looks, one after the other, is going."""

LATE_RATIO = 2.0
BETTER_FRACTION = 0.5
SAMPLED = 8
"""Other instances that one look compares with."""


@dataclass(slots=True)
class Watch:
    """Looks after one dispatch until its first token."""

    world: World
    journey: Journey
    model: str
    placed: RouteAnswer
    placed_at_s: float
    unready_looks: int = 0

    def look(self) -> Cause | None:
        """Why the request should move now; ``None`` where it stays."""
        world, instance_id = self.world, self.placed.instance_id
        if not self.journey.may_move:
            return None
        instance = world.instances.get(instance_id)
        if instance is None:
            self.unready_looks += 1
            return Cause.DRAINED if self.unready_looks >= UNREADY_LOOKS and self._others() else None
        self.unready_looks = 0
        waited_s = world.clock() - self.placed_at_s
        return Cause.LATE if self._is_late(waited_s) and self._is_better_elsewhere(instance, waited_s) else None

    def _others(self) -> list[Instance]:
        out = self.journey.excluded
        return [
            one
            for one in self.world.ready()
            if self.model in one.models
            and one.role is not Role.PREFILL
            and one.instance_id not in out
            and one.instance_id != self.placed.instance_id
        ]

    def _is_late(self, waited_s: float) -> bool:
        after_s = self.journey.rules.redispatch_after_seconds
        if not after_s or self.journey.has_been_late or self.placed.prefill_instance_id:
            return False  # a prompt that is computed elsewhere is late there
        entry = self.world.open_requests.get(self.placed.request_id)
        foretold_s = entry.cost.first_token_s if entry is not None and entry.cost is not None else 0.0
        return waited_s > max(after_s, LATE_RATIO * foretold_s)

    def _is_better_elsewhere(self, here: Instance, waited_s: float) -> bool:
        others = self._others()
        if len(others) > SAMPLED:
            others = self.world.rng.sample(others, SAMPLED)
        now_s = self.world.clock()
        request = Request(
            request_id=self.placed.request_id,
            model=self.model,
            prompt_tokens=self.placed.prompt_tokens,
            predicted_output_tokens=self.placed.predicted_output_tokens,
            arrived_at_s=now_s,
        )

        def first_token_s(instance: Instance) -> float:
            return own_seconds(request, self.world.replica.view(instance, now_s=now_s))[1]

        here_s = max(waited_s, first_token_s(here))
        return any(first_token_s(one) < BETTER_FRACTION * here_s for one in others)
