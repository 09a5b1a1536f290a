"""Makes records of decisions: from what the decision saw, kept as it was, and from what came of it."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llmrouter.decisions.record import (
    MAX_WORDS,
    ConsideredInstance,
    DecisionRecord,
    Foretold,
    Outcome,
    PolicyInForce,
    Profile,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.domain import Candidate, EngineProfile, InstanceView, Request

SAMPLE_BITS = 64
MAX_PROFILES = 256
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(slots=True, kw_only=True)
class Decided:
    """A decision with all that it saw, before it is spelt out; nothing in it changes but ``served``.

    Attributes:
        views: the instances to be described.
        roomy_ids: those of all eligible ones that had room.
        candidates: as the policy named them, best first.
        propensities: of being the policy's first, by instance id; ``None`` where they are not known.
        foretold: seconds to the first token and to the end.
    """

    request: Request
    router_id: str
    arrived_at_s: float
    decided_at_s: float
    arm: str
    policy: PolicyInForce
    reason: str
    explored: bool
    degraded: bool
    load_age_s: float
    eligible: int
    roomy_ids: frozenset[str]
    views: Sequence[InstanceView]
    candidates: Sequence[Candidate]
    propensities: Mapping[str, float] | None
    chosen: str | None
    prefill: str | None = None
    served: str | None = None
    foretold: tuple[float, float] | None = None
    sample_fraction: float = 1.0


def is_sampled(request_id: str, fraction: float) -> bool:
    """Whether a share of all requests has this one: by a hash of its id, so that every router says the same."""
    if fraction >= 1.0:
        return True
    if fraction <= 0.0:
        return False
    drawn = int.from_bytes(hashlib.sha256(b"decision:" + request_id.encode()).digest()[: SAMPLE_BITS // 8])
    return drawn < fraction * 2.0**SAMPLE_BITS


def described(
    views: Sequence[InstanceView], candidates: Sequence[Candidate], roomy_ids: frozenset[str], most: int
) -> Sequence[InstanceView]:
    """At most so many of the views: those that the policy named, then those with room, then the others."""
    if len(views) <= most:
        return views
    named = {one.instance_id: place for place, one in enumerate(candidates)}
    last = len(named)

    def place(view: InstanceView) -> int:
        name = view.instance.instance_id
        return named.get(name, last if name in roomy_ids else last + 1)

    return sorted(views, key=place)[:most]


def record_of(decided: Decided, outcome: Outcome | None, *, tenant_key: str = "") -> DecisionRecord:
    """The record of a decision; ``tenant_key`` goes into the digest of the tenant's name."""
    request = decided.request
    profiles: dict[str, EngineProfile] = {}
    foretold = decided.foretold
    return DecisionRecord(
        request_id=request.request_id,
        router_id=decided.router_id,
        model=request.model,
        arrived_at_s=round(decided.arrived_at_s, 6),
        decided_at_s=round(decided.decided_at_s, 6),
        arm=decided.arm,
        application=request.application[:64],
        tenant=tenant_digest(request.tenant, tenant_key),
        batch=request.batch,
        priority=request.priority,
        sample_fraction=decided.sample_fraction,
        prompt_tokens=request.prompt_tokens,
        predicted_output_tokens=request.predicted_output_tokens,
        max_output_tokens=request.max_output_tokens,
        policy=decided.policy,
        reason=decided.reason[:MAX_WORDS],
        explored=decided.explored,
        degraded=decided.degraded,
        load_age_s=round(decided.load_age_s, 6),
        eligible=decided.eligible,
        roomy=len(decided.roomy_ids),
        candidates=_considered(decided, profiles),
        profiles={name: _profile(profile) for name, profile in profiles.items()},
        chosen=decided.chosen,
        prefill=decided.prefill or None,
        served=decided.served,
        foretold=None if foretold is None else Foretold(ttft_s=max(0.0, foretold[0]), e2e_s=max(0.0, foretold[1])),
        outcome=outcome,
    )


def _considered(decided: Decided, profiles: dict[str, EngineProfile]) -> tuple[ConsideredInstance, ...]:
    """The candidates, best first; fills ``profiles`` with those that they refer to."""
    named = {one.instance_id: (place, one) for place, one in enumerate(decided.candidates)}
    found = []
    for view in decided.views:
        name, load, signal = view.instance.instance_id, view.total, view.signal
        place, candidate = named.get(name, (len(named), None))
        prefill = None if candidate is None or candidate.prefill is None else candidate.prefill.instance_id
        one = ConsideredInstance(
            id=name,
            pool=view.instance.pool,
            profile=_profile_key(view.instance.profile, profiles),
            requests=max(0, load.requests),
            context_tokens=max(0, load.context_tokens),
            queued_prefill_tokens=max(0, load.queued_prefill_tokens),
            remaining_decode_tokens=max(0.0, load.remaining_decode_tokens),
            cached_tokens=decided.request.cached_tokens.get(name, 0),
            has_room=name in decided.roomy_ids,
            running=None if signal is None else signal.running,
            waiting=None if signal is None else signal.waiting,
            kv_usage_fraction=None if signal is None else signal.kv_usage_fraction,
            score=None if candidate is None else candidate.score,
            propensity=None if decided.propensities is None else decided.propensities.get(name, 0.0),
            prefill=prefill,
        )
        found.append((place, one))
    found.sort(key=lambda pair: pair[0])
    return tuple(one for _, one in found)


@functools.lru_cache(MAX_PROFILES)
def _profile(profile: EngineProfile) -> Profile:
    return Profile(**asdict(profile))


def _profile_key(profile: EngineProfile, profiles: dict[str, EngineProfile]) -> str:
    """The name that a record gives a profile: its own, numbered where others of that name differ."""
    key, number = profile.name, 1
    while (known := profiles.setdefault(key, profile)) is not profile and known != profile:
        number += 1
        key = f"{profile.name}#{number}"
    return key


def tenant_digest(tenant: str, key: str) -> str:
    """What a record says of a tenant: 12 hex digits of a keyed digest; empty for nobody.

    It tells tenants apart and hides their names from readers; it is no secret from whoever can guess a name.
    """
    if not tenant:
        return ""
    return hashlib.blake2b(tenant.encode(), key=key.encode()[:64], digest_size=6).hexdigest()


def outcome_reason(text: str) -> str:
    """A reason that is one word; free text might quote a prompt and is left out."""
    return text if _WORD.fullmatch(text) else ""
