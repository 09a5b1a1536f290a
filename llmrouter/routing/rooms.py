"""Room rules: what bounds a dispatch on an instance. A policy has one; the reserve call holds to it as well."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeVar

from llmrouter.domain import DECODE_RESERVE_FRACTION, Room
from llmrouter.routing.inflight import gate_requests, has_free_kv

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain import EngineProfile, InstanceView

Known = TypeVar("Known")

MAX_KNOWN = 4_096
"""Profiles remembered at most; profiles come and go with configurations and pods."""


def per_profile(make: Callable[[EngineProfile], Known]) -> Callable[[InstanceView], Known]:
    """What ``make`` says of an instance's profile, remembered by the profile's identity: hashing one costs more."""
    known: dict[int, tuple[EngineProfile, Known]] = {}

    def of(view: InstanceView) -> Known:
        profile = view.instance.profile
        found = known.get(id(profile))
        if found is None:
            if len(known) >= MAX_KNOWN:
                known.clear()
            found = known[id(profile)] = (profile, make(profile))  # the profile is kept, so that its id stays its own
        return found[1]

    return of


def request_bound(max_requests: int) -> Callable[[InstanceView], Room]:
    """Room by requests in flight alone: engines queue by themselves up to ``max_requests``."""
    room = Room(max_requests=max_requests)
    return lambda _view: room


def kv_gate(
    kv_fraction: float, decode_reserve_fraction: float = DECODE_RESERVE_FRACTION
) -> Callable[[InstanceView], Room]:
    """Room by batch slots and KV: ``n < max sequences`` and ``C + p + r·(R + d) ≤ θ·K − block``.

    Prompts that wait do not count while KV is free: see ``inflight.has_free_kv`` and ``gate_requests``.
    """

    def room_for(profile: EngineProfile) -> Room:
        return Room(
            max_requests=profile.max_sequences,
            kv_limit_tokens=int(kv_fraction * profile.kv_tokens) - profile.block_tokens,
            decode_reserve_fraction=decode_reserve_fraction,
        )

    usual = per_profile(room_for)
    wider = functools.lru_cache(MAX_KNOWN)(Room)  # making one costs more than finding it

    known: dict[int, tuple[InstanceView, Room]] = {}

    def of(view: InstanceView) -> Room:
        found = known.get(id(view))
        if found is None:
            if len(known) >= MAX_KNOWN:
                known.clear()
            found = known[id(view)] = (view, seen(view))  # the view is kept, so that its id stays its own
        return found[1]

    def seen(view: InstanceView) -> Room:
        room, load = usual(view), view.total
        queued = load.queued_prefill_tokens
        if queued <= 0 or room.kv_limit_tokens is None:
            return room
        profile = view.instance.profile
        if not has_free_kv(profile.kv_tokens, load.context_tokens, queued):
            return room
        most = int(gate_requests(room.max_requests, queued * profile.prefill_s_per_token))
        return wider(most, max(0, room.kv_limit_tokens) + queued, decode_reserve_fraction)

    return of
