"""The two arms of a trial, and which of them decides for a request."""

from __future__ import annotations

import hashlib

CURRENT = "current"
CANDIDATE = "candidate"
ARMS = (CURRENT, CANDIDATE)

_PLACES = 1 << 64


def arm_of(request_id: str, *, salt: str, percent: float) -> str:
    """The arm that decides for a request: the candidate's for ``percent`` (0 to 100) of all request ids.

    ``salt`` is the digest of the candidate's policy: the same id has the same arm in every router and at every retry,
    another candidate gets other requests, and who was in at one percent stays in at a larger one. The place of an id is
    the first eight bytes of SHA-256, which no client can choose without knowing the salt.
    """
    place = int.from_bytes(hashlib.sha256(f"{salt}/{request_id}".encode()).digest()[:8], "big")
    return CANDIDATE if place * 100.0 < percent * _PLACES else CURRENT
