"""The words of the product as values. Tokens and seconds; unknown is ``None``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING

from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


class EngineMode(StrEnum):
    """How an engine mixes prefill into its steps."""

    CHUNKED = "Chunked"
    PREFILL_FIRST = "PrefillFirst"


STEP_TIME_FIELDS = (
    "base_decode_s",
    "base_prefill_s",
    "prefill_s_per_token",
    "prefill_s_per_token_squared",
    "context_s_per_token",
    "sequence_s",
    "prefill_floor_s",
)
"""The coefficients of an ``EngineProfile``: every step is in proportion to them all."""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Step-time coefficients (seconds) and limits of one engine class.

    A decode-only step takes ``base_decode_s + context_s_per_token·C + sequence_s·B``; a prefill-only step takes
    ``base_prefill_s + prefill_s_per_token·P + prefill_s_per_token_squared·Q``, at least ``prefill_floor_s``, where C is
    the context tokens of the B decoding sequences, P the prompt tokens of the step and Q = Σ((s+c)² − s²) over its
    prompt chunks.
    """

    name: str
    base_decode_s: float
    base_prefill_s: float
    prefill_s_per_token: float
    context_s_per_token: float
    sequence_s: float
    kv_tokens: int
    max_sequences: int
    token_budget: int
    mode: EngineMode
    prefill_s_per_token_squared: float = 0.0
    prefill_floor_s: float = 0.0
    block_tokens: int = 16

    def slower(self, factor: float) -> EngineProfile:
        """The same engine, every step of it ``factor`` times as long."""
        return replace(self, **{name: getattr(self, name) * factor for name in STEP_TIME_FIELDS})


@quick
@dataclass(frozen=True, slots=True)
class Request:
    """One LLM call to be placed. ``predicted_output_tokens`` is what the predictor said, never the truth.

    A lower ``predicted_rank`` is expected to be done sooner; ``None`` where nobody said. A higher ``priority`` leaves
    the hold queue first. ``deadline_at_s`` is when the answer should be whole. ``cached_tokens`` says how many
    of its prompt tokens an instance probably has in its prefix cache, by instance id; none where it is not listed.
    ``prefix_hashes`` name the beginnings of its prompt, shortest first, each ``prefix_block_tokens`` longer than the
    one before it; empty where the prompt is not known. A ``batch`` request waits for gaps that others leave.
    """

    request_id: str
    model: str
    prompt_tokens: int
    predicted_output_tokens: float
    arrived_at_s: float
    application: str = ""
    max_output_tokens: int | None = None
    excluded_instance_ids: frozenset[str] = frozenset()
    predicted_rank: float | None = None
    priority: int = 0
    tenant: str = ""
    deadline_at_s: float | None = None
    cached_tokens: Mapping[str, int] = field(default_factory=dict, hash=False)
    prefix_hashes: tuple[int, ...] = ()
    prefix_block_tokens: float = 0.0
    batch: bool = False


@quick
@dataclass(frozen=True, slots=True)
class Load:
    """In-flight work of one instance, as the ledger counts it: exact at once, never scraped."""

    requests: int = 0
    context_tokens: int = 0
    queued_prefill_tokens: int = 0
    remaining_decode_tokens: float = 0.0

    def plus(self, other: Load) -> Load:
        """Adds two loads, field by field."""
        return Load(
            requests=self.requests + other.requests,
            context_tokens=self.context_tokens + other.context_tokens,
            queued_prefill_tokens=self.queued_prefill_tokens + other.queued_prefill_tokens,
            remaining_decode_tokens=self.remaining_decode_tokens + other.remaining_decode_tokens,
        )

    def minus(self, other: Load) -> Load:
        """Subtracts ``other``, field by field; the result may be negative, as a difference is."""
        return Load(
            requests=self.requests - other.requests,
            context_tokens=self.context_tokens - other.context_tokens,
            queued_prefill_tokens=self.queued_prefill_tokens - other.queued_prefill_tokens,
            remaining_decode_tokens=self.remaining_decode_tokens - other.remaining_decode_tokens,
        )


class Role(StrEnum):
    """What an instance does of a request: all of it, or one stage."""

    MIXED = "Mixed"
    PREFILL = "Prefill"
    DECODE = "Decode"


@dataclass(frozen=True, slots=True)
class Instance:
    """One engine server that the router may choose. ``endpoint`` is ``host:port``.

    Instances of one ``locality`` hand KV to each other fast; empty where nobody said.
    """

    instance_id: str
    endpoint: str
    pool: str
    profile: EngineProfile
    models: frozenset[str]
    role: Role = Role.MIXED
    locality: str = ""


@dataclass(frozen=True, slots=True)
class EngineSignal:
    """What an engine's own metrics said at ``scraped_at_s``: stale by nature. ``None`` where it did not say."""

    scraped_at_s: float
    running: int | None = None
    waiting: int | None = None
    kv_usage_fraction: float | None = None
    preemptions_total: int | None = None


@quick
@dataclass(frozen=True, slots=True)
class InstanceView:
    """An instance as a policy sees it: its exact in-flight load, and what else it seems to carry.

    A ``foreign`` load without requests counts as none.
    """

    instance: Instance
    load: Load
    foreign: Load = field(default_factory=Load)
    signal: EngineSignal | None = None

    total: Load = field(init=False, repr=False, compare=False)
    """Load in the ledger plus the estimate of what reached the engine past the routers."""

    def __post_init__(self) -> None:
        total = self.load.plus(self.foreign) if self.foreign.requests else self.load
        object.__setattr__(self, "total", total)  # read several times by every decision


@quick
@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """All instances at one moment of one router; ``load_age_s`` is how old its replica of the ledger is.

    ``held`` counts the requests that wait in the request's line, itself included; ``head_since_s`` is since when the
    request, or one that it overtook there, has been the first of them, ``None`` where it has just come.
    ``reservations`` lists all requests in flight, where this router alone knows them.
    """

    views: tuple[InstanceView, ...]
    taken_at_s: float
    load_age_s: float = 0.0
    held: int = 1
    head_since_s: float | None = None
    reservations: Callable[[], Sequence[Reservation]] | None = None


@quick
@dataclass(frozen=True, slots=True)
class Candidate:
    """An eligible instance with its score in seconds of cost (lower is better) and the load the score was made on.

    ``prefill`` is the other instance that computes the prompt for it; ``None`` where it does so itself.
    """

    instance_id: str
    score: float
    seen: Load
    prefill: Candidate | None = None


@quick
@dataclass(frozen=True, slots=True)
class Placement:
    """The answer *dispatch*: candidates best first, why, and whether the order depends on the load that was seen.

    ``explored`` says that the first was drawn among all that have room.
    """

    candidates: tuple[Candidate, ...]
    reason: str
    load_sensitive: bool = True
    explored: bool = False


SHORTEST_HOLD_S = 0.001
"""A hold *until* an instant that is nearer than this lasts this long."""


@dataclass(frozen=True, slots=True)
class Hold:
    """The answer *wait at the router*, and why.

    Whoever goes first tries again when the state changes; with ``until_s`` also at that instant, if it is to come, and
    with ``until_held`` once so many are in the line.
    """

    reason: str
    until_s: float | None = None
    until_held: int | None = None


@dataclass(frozen=True, slots=True)
class BatchHold:
    """How long the head of a line waits at will, so that prompts go to an engine together: see ``routing.batching``.

    Attributes:
        size: for so many requests in its line, itself with them; 1 for none.
        wait_s: from when it became the first, at most (s).
        stale_after_s: not on loads older than this (s).
        longest_wait_s: how long a request may be held at all (s).
    """

    size: int = 1
    wait_s: float = 0.0
    stale_after_s: float = 1.0
    longest_wait_s: float = inf


@dataclass(frozen=True, slots=True)
class NoCandidate:
    """The answer *there is nothing to choose from*, and why."""

    reason: str


Decision = Placement | Hold | NoCandidate


DECODE_RESERVE_FRACTION = 0.3
"""r: the share of the predicted tokens to come that is counted against KV now; most of it is freed before it fills."""


@quick
@dataclass(frozen=True, slots=True)
class Room:
    """The bound a dispatch must respect on one instance; checked again where the reservation is committed.

    An idle instance always has room. ``kv_limit_tokens`` is ``None`` where KV is not bounded.
    """

    max_requests: int
    kv_limit_tokens: int | None = None
    decode_reserve_fraction: float = DECODE_RESERVE_FRACTION


@quick
@dataclass(frozen=True, slots=True)
class Reservation:
    """The entry that a dispatch creates in the ledger: findable by request id, owned by one router.

    ``cached_tokens`` of the prompt were taken to be in the instance's prefix cache: they are not waited for. Where
    ``prefill_instance_id`` is set, that instance computes the prompt; it has ``prefill_cached_tokens`` of it cached.
    """

    request_id: str
    router_id: str
    instance_id: str
    prompt_tokens: int
    predicted_output_tokens: float
    prefilled: bool = False
    generated_tokens: int = 0
    cached_tokens: int = 0
    prefill_instance_id: str = ""
    prefill_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Preferences:
    """What matters, as a learned policy is told: parts of any size, each at least 0; only their proportions count."""

    ttft: float = 1.0
    tpot: float = 1.0
    e2e: float = 1.0
    fairness: float = 1.0

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """The parts in the order of the fields, scaled to a sum of 1; all alike where every one is 0."""
        parts = self.ttft, self.tpot, self.e2e, self.fairness
        whole = sum(parts)
        if whole <= 0.0:
            return (0.25, 0.25, 0.25, 0.25)
        return parts[0] / whole, parts[1] / whole, parts[2] / whole, parts[3] / whole


@dataclass(frozen=True, slots=True)
class ObjectiveWeights:
    """Weights of the marginal cost, whose terms are all seconds: see ``routing.rules.marginal_cost_row``.

    ``pressure`` is no term's: by so much ``stall`` weighs more for each second of prefill that waits (1/s).
    """

    wait: float = 18.0
    decode: float = 1.0
    stall: float = 0.5
    slowdown: float = 0.4
    coalesce: float = 4.0
    overflow: float = 1.0
    spread: float = 0.8
    pressure: float = 2.5
    reuse: float = 18.0

    def as_mapping(self) -> Mapping[str, float]:
        """Names to values, in the order models take them."""
        return asdict(self)

    @property
    def in_order(self) -> tuple[float, ...]:
        """The values, in the order models take them."""
        return tuple(self.as_mapping().values())
