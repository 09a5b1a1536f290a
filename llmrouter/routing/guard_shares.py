"""The cap on what one instance may take: a policy that sends everything to one place is sent on to the next."""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING

from llmrouter.domain import Role
from llmrouter.routing.features import profile_features
from llmrouter.routing.rooms import per_profile, request_bound
from llmrouter.routing.table import Table

if TYPE_CHECKING:
    from collections.abc import Collection

    from llmrouter.domain import InstanceView, PoolSnapshot, Request

WINDOW_S = 30.0
"""Mean age of what is counted; a placement's weight falls by e in so many seconds."""

ENOUGH_PLACEMENTS = 20
"""With fewer in the window nobody has more than a share."""

CAPS_LIVE_S = 1.0
"""For how long the caps of a pool are used before its instances are looked at again."""

_REBASE_AT = 20.0
_LEAST_TOKENS = 1e-3


def is_eligible(view: InstanceView, request: Request) -> bool:
    """Whether a request may go to an instance, room or not: one that computes prompts alone is no destination."""
    instance = view.instance
    if instance.role is Role.PREFILL:
        return False
    return request.model in instance.models and instance.instance_id not in request.excluded_instance_ids


class Shares:
    """Tokens placed lately, by model and instance: prompt tokens that are not cached, and expected output tokens.

    An instance with the share f of the KV of all that serve the model may take up to ``factor·f / (factor·f + 1 - f)``
    of the tokens: what would be its share if it were ``factor`` times as large. Of 4 equal instances and a factor of 4
    that is 57 %, of 64 6 %. Beyond that it is passed over for as long as another one is less full.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._windows: dict[str, _Window] = {}
        self._table = Table(request_bound(0), per_profile(profile_features))

    def over(self, instance_id: str, request: Request, snapshot: PoolSnapshot) -> str:
        """How far an instance is beyond its cap, in words; empty where it is not."""
        window = self._windows.get(request.model)
        if window is None or window.placements(snapshot.taken_at_s) < ENOUGH_PLACEMENTS:
            return ""
        share, cap = window.share(instance_id), self._cap(window, instance_id, request.model, snapshot)
        return f"{instance_id} took {share:.0%} of the tokens of the last {WINDOW_S:g} s" if share > cap else ""

    def spared(
        self, instance_id: str, request: Request, snapshot: PoolSnapshot, among: Collection[str] | None = None
    ) -> list[InstanceView]:
        """Eligible instances that are within their caps and less full than this one; ``among`` some, by id."""
        window, views = self._windows[request.model], snapshot.views
        return [
            view
            for place in self._table.emptier(views, request, instance_id)
            if (among is None or views[place].instance.instance_id in among)
            and is_eligible(view := views[place], request)
            and window.share(name := view.instance.instance_id) <= self._cap(window, name, request.model, snapshot)
        ]

    def placed(self, instance_id: str, request: Request, snapshot: PoolSnapshot) -> None:
        """Counts a placement."""
        window = self._windows.get(request.model)
        if window is None:
            window = self._windows[request.model] = _Window(snapshot.taken_at_s)
        new_prompt = request.prompt_tokens - request.cached_tokens.get(instance_id, 0)
        window.add(instance_id, max(1.0, new_prompt + request.predicted_output_tokens), snapshot.taken_at_s)

    def _cap(self, window: _Window, instance_id: str, model: str, snapshot: PoolSnapshot) -> float:
        """The largest share of an instance; 1 for one that has just come."""
        if not 0.0 <= snapshot.taken_at_s - window.caps_at_s < CAPS_LIVE_S:
            window.caps_at_s = snapshot.taken_at_s
            window.caps = self._caps(model, snapshot)
        return window.caps.get(instance_id, 1.0)

    def _caps(self, model: str, snapshot: PoolSnapshot) -> dict[str, float]:
        every = [one.instance for one in snapshot.views]
        serving = [one for one in every if model in one.models and one.role is not Role.PREFILL]
        total = sum(one.profile.kv_tokens for one in serving)
        larger = [(one.instance_id, one.profile.kv_tokens, self._factor * one.profile.kv_tokens) for one in serving]
        return {name: grown / (grown + total - kv) for name, kv, grown in larger}


class _Window:
    """Sums whose parts lose weight with age.

    Every part is multiplied by e^(age of the window / ``WINDOW_S``) as it comes, so that none has to be touched again
    until the factor grows too large. A clock that goes back makes nothing older, one that leaps ahead ends the window.
    """

    __slots__ = ("_base_s", "_count", "_grown", "_tokens", "_total", "caps", "caps_at_s")

    def __init__(self, now_s: float) -> None:
        self._base_s = now_s
        self._grown = 1.0
        self._tokens: dict[str, float] = {}
        self._total = 0.0
        self._count = 0.0
        self.caps: dict[str, float] = {}
        self.caps_at_s = float("-inf")

    def add(self, instance_id: str, tokens: float, now_s: float) -> None:
        grown = self._grow(now_s)
        self._tokens[instance_id] = self._tokens.get(instance_id, 0.0) + grown * tokens
        self._total += grown * tokens
        self._count += grown

    def placements(self, now_s: float) -> float:
        return self._count / self._grow(now_s)

    def share(self, instance_id: str) -> float:
        return self._tokens.get(instance_id, 0.0) / self._total

    def _grow(self, now_s: float) -> float:
        age = (now_s - self._base_s) / WINDOW_S
        if 0.0 <= age <= _REBASE_AT:
            self._grown = exp(age)
        else:
            self._rebase(now_s, self._grown if age < 0.0 else exp(min(age, 700.0)))
        return self._grown

    def _rebase(self, now_s: float, by: float) -> None:
        self._tokens = {name: left for name, some in self._tokens.items() if (left := some / by) > _LEAST_TOKENS}
        self._total = max(sum(self._tokens.values()), _LEAST_TOKENS)
        self._count /= by
        self._base_s, self._grown = now_s, 1.0
