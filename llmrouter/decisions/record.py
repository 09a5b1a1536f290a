"""The record of one decision: one JSON line, version 1. It has no text of prompts or answers and no hash of any.

``docs/decision-log.md`` explains the fields. Unknown is left out. Lines of other programs may stand between records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from llmrouter.domain import EngineMode, EngineProfile
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KIND = "llmrouter.dev/decision/v1"
"""What every record begins with."""

MAX_LINE_BYTES = 131_072
MAX_CANDIDATES = 64
MAX_WORDS = 512
"""Characters of a reason."""

Short = Annotated[str, StringConstraints(max_length=64)]
Name = Annotated[str, StringConstraints(max_length=259)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Amount
Fraction = Annotated[float, Field(ge=0, le=1)]

OutcomeKind = Literal["Finished", "Failed", "Cancelled", "Lost", "Refused"]
"""How a request ended. ``Lost``: nobody reported it any more. ``Refused``: it was never dispatched."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)  # a later router may say more


class Profile(_Part):
    """Step-time coefficients (s) and limits of an engine as the decision took them: ``domain.EngineProfile``."""

    name: Name
    base_decode_s: Amount
    base_prefill_s: Amount
    prefill_s_per_token: Amount
    context_s_per_token: Amount
    sequence_s: Amount
    kv_tokens: Count
    max_sequences: Count
    token_budget: Count
    mode: EngineMode
    prefill_s_per_token_squared: Amount = 0.0
    prefill_floor_s: Amount = 0.0
    block_tokens: Annotated[int, Field(ge=1)] = 16

    def engine_profile(self) -> EngineProfile:
        """The same as policies take it."""
        return EngineProfile(**dict(self))


class PolicyInForce(_Part):
    """The RoutingPolicy that the router was told to run, and who decided: itself, or what stood in for it."""

    name: Name
    type: Short
    digest: Short
    exploration_fraction: Fraction = 0.0
    decided_by: Short
    fallback_reason: Short | None = None
    actions: tuple[Short, ...] = Field(default=(), max_length=8)


class ConsideredInstance(_Part):
    """An eligible instance as the decision saw it: its load in flight, what its engine said last, and its score.

    ``score`` is lower where better, in the policy's own unit; absent where the policy named others only. ``propensity``
    is the probability of being the policy's first, given all that the record says; absent where that is not known.
    """

    id: Name
    pool: Short
    profile: Name
    requests: Count
    context_tokens: Count
    queued_prefill_tokens: Count
    remaining_decode_tokens: Amount
    cached_tokens: Count = 0
    has_room: bool
    running: Count | None = None
    waiting: Count | None = None
    kv_usage_fraction: Amount | None = None
    score: Number | None = None
    propensity: Fraction | None = None
    prefill: Name | None = None
    """The other instance that would compute the prompt for it."""


class Foretold(_Part):
    """What was expected of the chosen instance, from dispatch on (s)."""

    ttft_s: Seconds
    e2e_s: Seconds


class Outcome(_Part):
    """What came of a request. Seconds count from its arrival at the router."""

    kind: OutcomeKind
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None
    output_tokens: Count | None = None
    prompt_tokens: Count | None = None
    cached_tokens: Count | None = None
    reason: Short = ""
    part: bool = False
    """Whether the answer has more parts, of other reservations."""


class DecisionRecord(_Part):
    """One decision. ``chosen`` is ``None`` where a request was refused; times are seconds since the epoch.

    ``eligible`` instances served the model, ``roomy`` of them had room; ``candidates`` describes as many as the log's
    ``maxCandidates`` allows, first those that the policy named.
    """

    record: Literal["llmrouter.dev/decision/v1"] = "llmrouter.dev/decision/v1"
    request_id: Name
    router_id: Name
    model: Name
    arrived_at_s: Amount
    decided_at_s: Amount
    arm: Short = "current"
    application: Short = ""
    tenant: Short = ""
    """A keyed digest of the tenant's name, not the name."""
    batch: bool = False
    priority: int = 0
    sample_fraction: Fraction = 1.0
    """Share of all requests that the log had."""
    prompt_tokens: Count
    predicted_output_tokens: Amount
    max_output_tokens: Count | None = None
    policy: PolicyInForce
    reason: Annotated[str, StringConstraints(max_length=MAX_WORDS)]
    explored: bool = False
    degraded: bool = False
    load_age_s: Seconds = 0.0
    eligible: Count
    roomy: Count
    profiles: dict[Name, Profile] = Field(default_factory=dict, max_length=MAX_CANDIDATES)
    candidates: tuple[ConsideredInstance, ...] = Field(default=(), max_length=MAX_CANDIDATES)
    chosen: Name | None = None
    prefill: Name | None = None
    served: Name | None = None
    """Where the gateway said it went, if it said."""
    foretold: Foretold | None = None
    outcome: Outcome | None = None
    """``None`` while the request is open."""

    @property
    def is_complete(self) -> bool:
        """Whether every instance that had room is described: else another policy cannot decide on it again."""
        return sum(one.has_room for one in self.candidates) == self.roomy

    @property
    def held_s(self) -> float:
        """Seconds from arrival to decision."""
        return max(0.0, self.decided_at_s - self.arrived_at_s)

    def candidate(self, instance_id: str | None) -> ConsideredInstance | None:
        """What is said of an instance."""
        return next((one for one in self.candidates if one.id == instance_id), None)


def to_line(record: DecisionRecord) -> bytes:
    """A record as one line, its end included."""
    return record.model_dump_json(exclude_none=True).encode() + b"\n"


def parse_line(line: bytes | str) -> DecisionRecord:
    """Reads ``to_line`` back; raises InvalidInputError naming the field."""
    if len(line) > MAX_LINE_BYTES:
        raise InvalidInputError(f"{len(line)} bytes, more than {MAX_LINE_BYTES}")
    try:
        return DecisionRecord.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(f"{where or 'record'}: {first['msg']}") from error


def read_log(path: Path, *, stop_at: int | None = None) -> Iterator[DecisionRecord]:
    """The records of a file, in its order, at most ``stop_at``; lines without the mark of a record are passed over.

    Raises:
        InvalidInputError: the file cannot be read, or a record in it is none; the message names the line.
    """
    found = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if KIND.encode() not in line[: 2 * len(KIND)]:
                    continue
                try:
                    yield parse_line(line)
                except InvalidInputError as error:
                    raise InvalidInputError(f"{path}: line {number}: {error}") from error
                found += 1
                if found == stop_at:
                    return
    except OSError as error:
        raise InvalidInputError(f"{path}: {error.strerror or error}") from error
