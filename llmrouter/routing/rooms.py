"""Room rules: what bounds a dispatch on an instance. A policy has one; the reserve call holds to it as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from llmrouter.domain import DECODE_RESERVE_FRACTION, Room

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
    """Room by batch slots and KV: ``n < max sequences`` and ``C + p + r·(R + d) ≤ θ·K − block``."""

    def room_for(profile: EngineProfile) -> Room:
        return Room(
            max_requests=profile.max_sequences,
            kv_limit_tokens=int(kv_fraction * profile.kv_tokens) - profile.block_tokens,
            decode_reserve_fraction=decode_reserve_fraction,
        )

    return per_profile(room_for)
