"""What the routing service needs of the world. Each protocol has at least two implementations and one suite."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from llmrouter.quick import quick

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from llmrouter.domain import Instance, Load, Reservation, Room
    from llmrouter.lengths.distribution import Lengths
    from llmrouter.lengths.predictor import LengthRequest
    from llmrouter.lengths.prompt_tokens import CountedPrompt, TokenReportRefusal
    from llmrouter.lengths.sketches import Counts
    from llmrouter.routing.claims import Claim

NO_CLAIMS: Mapping[str, Claim] = MappingProxyType({})


@quick
@dataclass(frozen=True, slots=True)
class Bid:
    """One candidate of a reserve call: the requests in flight that its score was made on, and its room.

    ``cached_tokens`` of the prompt are taken to be in its prefix cache. ``prefill`` bids for the other instance that is
    to compute the prompt: the two are committed together or not at all, and have gained as much as the one that gained
    more.
    """

    instance_id: str
    seen_requests: int
    room: Room
    cached_tokens: int = 0
    prefill: Bid | None = None


@quick
@dataclass(frozen=True, slots=True)
class ReserveAsk:
    """Candidates best first. ``moved_tolerance`` is how many requests a candidate may have gained since it was seen.

    The first candidate with room and within the tolerance is committed; with ``moved_tolerance=None`` the first with
    room. Where none is within it, ``final=True`` commits the one with room that gained least (ties: the better rank),
    so that the call never answers *moved*.

    ``claim`` is what the request may say against those that other routers hold for the same ``model``: it yields to one
    that goes before it. Where it is not committed, it is told the others; where it is, what was told before is taken
    back. ``None`` yields to nobody and says nothing.
    """

    request_id: str
    prompt_tokens: int
    predicted_output_tokens: float
    bids: tuple[Bid, ...]
    moved_tolerance: int | None = 1
    final: bool = False
    model: str = ""
    claim: Claim | None = None


class ReserveOutcome(StrEnum):
    """How a reserve call ended."""

    COMMITTED = "Committed"
    EXISTING = "Existing"  # the request id already has a reservation: the answer repeats it, nothing was added
    MOVED = "Moved"  # candidates with room had gained more than the tolerance
    FULL = "Full"  # no candidate has room
    YIELDED = "Yielded"  # another router holds a request that goes before this one


@quick
@dataclass(frozen=True, slots=True)
class ReserveResult:
    """``reservation`` is set for COMMITTED and EXISTING.

    ``loads`` are the fresh loads of all bids' instances, after the call.
    """

    outcome: ReserveOutcome
    reservation: Reservation | None
    loads: Mapping[str, Load]


class Ledger(Protocol):
    """The in-flight record. One object serves one router (``router_id``); every method is atomic.

    Raises:
        LedgerUnavailableError: from any method, where the backend did not answer in time.

    ``is_immediate`` says that no method ever waits, so that none can be broken off.
    """

    router_id: str
    is_immediate: bool

    async def reserve(self, ask: ReserveAsk) -> ReserveResult:
        """Commits at most one candidate."""
        ...

    async def progress(
        self,
        request_id: str,
        *,
        prefilled: bool,
        generated_tokens: int,
        predicted_output_tokens: float | None = None,
    ) -> Reservation | None:
        """Advances a reservation (never backwards) and makes this router its owner; ``None`` if unknown.

        ``predicted_output_tokens`` replaces the prediction, unless more tokens are known of already.
        """
        ...

    async def release(self, request_id: str) -> Reservation | None:
        """Takes the reservation out and returns it, exactly once; ``None`` if unknown or already released."""
        ...

    async def find(self, request_id: str) -> Reservation | None:
        """Looks a reservation up."""
        ...

    async def loads(self, claims: Mapping[str, Claim] = NO_CLAIMS) -> Mapping[str, Load]:
        """The load of every instance with at least one reservation.

        ``claims`` are, by model, those of whoever goes first in this router's lines: they replace what it told before,
        and count for ``CLAIM_LIFETIME_S``.
        """
        ...

    async def heartbeat(self, ttl_s: float) -> int:
        """Says that this router lives for ``ttl_s`` more; returns how many reservations the ledger holds for it."""
        ...

    async def expire(self) -> Mapping[str, int]:
        """Releases every reservation of routers whose heartbeat lapsed; router id → how many."""
        ...

    async def reconcile(self, own: Sequence[Reservation]) -> frozenset[str]:
        """Makes the ledger hold exactly ``own`` for this router: drops what is not in it, adds what is missing.

        Returns the request ids of ``own`` that another router took over or released meanwhile: they are left alone.
        """
        ...

    async def leave(self) -> int:
        """Releases all reservations of this router and forgets it; returns how many there were."""
        ...

    async def close(self) -> None:
        """Gives connections back."""
        ...


@dataclass(frozen=True, slots=True)
class HeardLengths:
    """What other routers learned of output lengths: counts of all requests, and of groups.

    ``snapshot`` comes before ``entries``. It may hold part of what is known here: only what it has beyond that is to be
    merged. ``missed`` entries were gone before they were read and are in no snapshot; ``refused`` could not be decoded.
    """

    snapshot: tuple[Counts, Counts] | None
    entries: tuple[tuple[Counts, Counts], ...]
    missed: int = 0
    refused: int = 0


class LengthExchange(Protocol):
    """Where routers tell each other what they learned of output lengths. One object serves one router.

    Raises:
        LedgerUnavailableError: from any method, where the backend did not answer in time.
    """

    async def receive(self) -> HeardLengths:
        """What others published since the last call, each entry once, a bounded number a call; never one's own.

        The first call, and one after an absence in which entries were lost, begin with the snapshot, where there is
        one; the entries it holds are then left out. To be called before the first ``publish``.
        """
        ...

    async def publish(self, delta: tuple[Counts, Counts]) -> None:
        """Tells the others; after LedgerUnavailableError, the same delta is to be given again before any other.

        However often it is given until then, others receive it once. Raises InvalidInputError where it is too large.
        """
        ...

    async def save(self, counts: tuple[Counts, Counts]) -> bool:
        """Keeps a snapshot for newcomers; True where this router is the one that does, by a short lease.

        ``counts`` hold all that ``receive`` gave so far, and nothing that is still to be published.
        Raises InvalidInputError where they are too large.
        """
        ...


class Scorer(Protocol):
    """A policy model: features of all instances in, one cost per instance out."""

    digest: str
    provider: str

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        """Costs in seconds, shape (I,), lower is better; raises ModelRejectedError on a wrong shape."""
        ...


class LengthModel(Protocol):
    """A model of output lengths. ``reads_prompts`` says that it is made for requests that carry their prompt."""

    name: str
    digest: str
    provider: str
    reads_prompts: bool

    def laws(self, requests: Sequence[LengthRequest]) -> Lengths:
        """One law for each request; raises NotFiniteLengthsError where the model answers NaN."""
        ...


class PromptTokenCounter(Protocol):
    """Says how many tokens a prompt has, and learns from what engines report of it, for which no text is kept."""

    def count(self, prompt: str, model: str, *, share: float = 1.0) -> CountedPrompt:
        """Tokens of a prompt for a model, its chat template included; any text, of any size, in bounded time.

        ``prompt`` may be an excerpt, which is ``share`` of the whole: within 0 (not included) and 1.
        """
        ...

    def learn_from(self, counted: CountedPrompt, prompt_tokens: float) -> TokenReportRefusal | None:
        """Takes note of what an engine counted; ``None`` where it was believed, else why not."""
        ...


class InstanceSource(Protocol):
    """Knows the instances that exist and are ready now."""

    def current(self) -> tuple[Instance, ...]:
        """Ready instances; of all pools."""
        ...

    def get(self, instance_id: str) -> Instance | None:
        """A ready instance."""
        ...

    @property
    def draining(self) -> frozenset[str]:
        """Ids of instances that are to go: they get no new request."""
        ...

    @property
    def total(self) -> int:
        """All instances known, ready or not."""
        ...
