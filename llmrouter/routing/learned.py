"""Policies that a network is (``spec.type: Learned``): agents trained in simulation, behind the KV gate.

The gate shields whatever the network says: an instance without room is never chosen, and hold is allowed neither while
an eligible instance is idle nor for a head that has waited long (``sight.may_hold``). So a bad network places badly; it
neither overfills an engine nor starves a request.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmrouter.domain import Candidate, Hold, NoCandidate, Placement
from llmrouter.feature_set import PAPER_PER_INSTANCE, PAPER_QUEUE
from llmrouter.routing import paper_state
from llmrouter.routing.features import feature_row, profile_features
from llmrouter.routing.inflight import has_room
from llmrouter.routing.policies import MAX_CANDIDATES, MissingFeatureError, NonFiniteScoreError
from llmrouter.routing.rooms import per_profile
from llmrouter.routing.sight import HOLD_S, line_of, may_hold

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot, Preferences, Request, Reservation, Room

    Floats = NDArray[np.float32]


class SharedNetwork(Protocol):
    """A network for any number of instances: see ``llmrouter.routing.sight``."""

    def scores(self, instances_IF: Floats, line_H: Floats) -> Floats:
        """Scores (I + 1,), hold's last; the highest wins."""
        ...


class PaperNetwork(Protocol):
    """A network that sees the paper's state of ``instances`` instances: see ``llmrouter.routing.paper_state``."""

    instances: int

    def values(self, state_S: Floats) -> Floats:
        """Action values (I + 1,), hold's last; the highest wins."""
        ...


class Agent(Protocol):
    """Something that values placing a request on each instance, and holding it."""

    def values(
        self, request: Request, snapshot: PoolSnapshot, views: Sequence[InstanceView], roomy: Sequence[bool]
    ) -> list[float]:
        """One value for each view, then hold's; raises MissingFeatureError where it cannot see what it needs."""
        ...


class SharedAgent:
    """An agent of a ``SharedNetwork``, with what it is to care for."""

    def __init__(self, network: SharedNetwork, preferences: Preferences) -> None:
        self._network = network
        self._preferences = preferences
        self._tail_of = per_profile(profile_features)

    def values(
        self, request: Request, snapshot: PoolSnapshot, views: Sequence[InstanceView], roomy: Sequence[bool]
    ) -> list[float]:
        """See ``Agent``."""
        tail_of, cached = self._tail_of, request.cached_tokens
        rows = [
            (*feature_row(request, view.total, tail_of(view), cached.get(view.instance.instance_id, 0)), has)
            for view, has in zip(views, roomy, strict=True)
        ]
        line = line_of(snapshot.held, head_age_s(snapshot), self._preferences)
        scores: list[float] = self._network.scores(np.array(rows, np.float32), np.array(line, np.float32)).tolist()
        return scores


class PaperAgent:
    """An agent of a ``PaperNetwork``. It knows every request in flight, so its router must be the only one."""

    def __init__(self, network: PaperNetwork) -> None:
        self._network = network

    def values(
        self, request: Request, snapshot: PoolSnapshot, views: Sequence[InstanceView], roomy: Sequence[bool]
    ) -> list[float]:
        """See ``Agent``; instances stand in the state in the order of their ids."""
        del roomy
        if len(views) != self._network.instances:
            raise MissingFeatureError(f"the network is for {self._network.instances} instances, not {len(views)}")
        if snapshot.reservations is None:
            raise MissingFeatureError("the requests in flight are not known one by one")
        order = sorted(range(len(views)), key=lambda place: views[place].instance.instance_id)
        state = paper_state_of(request, snapshot.held, [views[place] for place in order], snapshot.reservations())
        valued = self._network.values(np.array(state, np.float32)).tolist()
        values = [0.0] * len(views) + [valued[-1]]
        for rank, place in enumerate(order):
            values[place] = valued[rank]
        return values


class Learned:
    """Chooses what its agent values most, behind the shield that the module describes."""

    name = "Learned"

    def __init__(self, room_rule: Callable[[InstanceView], Room], agent: Agent) -> None:
        self.room_of = room_rule
        self._agent = agent

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        """One decision; of equal values any.

        Raises:
            NonFiniteScoreError: a value is NaN or infinite.
            MissingFeatureError: the agent cannot see what it needs.
        """
        views = [
            view
            for view in snapshot.views
            if request.model in view.instance.models and view.instance.instance_id not in request.excluded_instance_ids
        ]
        if not views:
            return NoCandidate(f"no ready instance serves model {request.model!r}")
        roomy = [self._has_room(request, view) for view in views]
        if not any(roomy):
            return Hold(f"none of {len(views)} instances has room")
        values = self._agent.values(request, snapshot, views, roomy)
        wrong = len(values) - sum(map(isfinite, values))
        if wrong:
            raise NonFiniteScoreError(f"{wrong} of {len(values)} values are not finite")
        hold = values[-1]
        ranked = sorted((-value, rng.random(), place) for place, value in enumerate(values[:-1]) if roomy[place])[
            :MAX_CANDIDATES
        ]
        idle = sum(1 for view in views if view.total.requests <= 0)
        if hold > -ranked[0][0] and may_hold(idle, head_age_s(snapshot)):
            return Hold(f"{self.name}: to hold is valued {hold + ranked[0][0]:.3g} more", snapshot.taken_at_s + HOLD_S)
        candidates = tuple(
            Candidate(views[place].instance.instance_id, score, views[place].load) for score, _, place in ranked
        )
        best = candidates[0]
        reason = f"{self.name}: {best.instance_id} valued {-best.score:.4g}; {sum(roomy)} of {len(views)} have room"
        return Placement(candidates, reason)

    def _has_room(self, request: Request, view: InstanceView) -> bool:
        return has_room(
            view.total,
            self.room_of(view),
            prompt_tokens=request.prompt_tokens,
            predicted_output_tokens=request.predicted_output_tokens,
        )


def head_age_s(snapshot: PoolSnapshot) -> float:
    """For how long the request has been the head of its line; 0 where it has just come."""
    since_s = snapshot.head_since_s
    return 0.0 if since_s is None else max(0.0, snapshot.taken_at_s - since_s)


def paper_state_of(
    request: Request, held: int, views: Sequence[InstanceView], reservations: Sequence[Reservation]
) -> list[float]:
    """The state of ``llmrouter.routing.paper_state``, in the order of ``feature_set.paper_state_names``."""
    width = len(PAPER_PER_INSTANCE)
    state = [0.0] * (width * len(views) + len(PAPER_QUEUE))
    places = {view.instance.instance_id: place for place, view in enumerate(views)}
    least: dict[int, float] = {}
    for one in reservations:
        place = places.get(one.instance_id)
        if place is None:
            continue
        if one.generated_tokens == 0:
            state[width * place] += 1.0 / paper_state.PROMPTS
        else:
            bucket = paper_state.bucket_of(one.predicted_output_tokens)
            state[width * place + 1 + bucket] += 1.0 / paper_state.DECODES
        left = paper_state.tokens_left(one.predicted_output_tokens, one.generated_tokens)
        least[place] = min(left, least.get(place, left))
    for place, view in enumerate(views):
        profile, load, at = view.instance.profile, view.load, width * place
        state[at + 4] = paper_state.capacity(load.context_tokens, profile.kv_tokens)
        state[at + 5] = paper_state.completion(
            least.get(place, 0.0),
            profile.base_decode_s,
            profile.sequence_s * load.requests,
            profile.context_s_per_token * load.context_tokens,
        )
    state[-3] = paper_state.queue_length(held)
    state[-2] = request.prompt_tokens / paper_state.PROMPT_TOKENS
    state[-1] = paper_state.bucket_of(request.predicted_output_tokens) / 2.0
    return state
