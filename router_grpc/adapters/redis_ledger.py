"""The ledger that routers share: one Lua script per operation, exact integers, heartbeats by the server's own clock."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from llmrouter.domain import Load, Reservation, Room
from llmrouter.errors import InvalidConfigError, LedgerUnavailableError
from router_grpc.adapters.ledger_values import MILLI, check_bids, milli_tokens, whole_tokens
from router_grpc.adapters.redis_pipe import RedisPipe
from router_grpc.ports import NO_CLAIMS, Bid, ReserveOutcome, ReserveResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmrouter.routing.claims import Claim
    from router_grpc.ports import ReserveAsk

OPERATIONS = (
    "reserve",
    "progress",
    "release",
    "find",
    "loads",
    "heartbeat",
    "expire",
    "leave",
    "owned",
    "restore",
    "drop",
)
CHUNK = 256
"""The most reservations that one script call works on, so that no call holds the server for long."""

_NOBODY = Bid("", 0, Room(max_requests=0))
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,252}")


def redis_client(url: str, *, password: str | None = None, timeout_s: float = 0.25, max_connections: int = 32) -> Redis:
    """A client that gives up rather than stalls: a bounded pool, bounded waits for connections, and no retries.

    An answer is bounded by the ledger's own timeout around each call. The client's would be ``asyncio.wait_for`` around
    each write, which on Python 3.11 can swallow the cancellation of its caller.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``; nothing is connected yet.
        password: used where the URL has none.
        timeout_s: for a connection, and for a free connection of the pool, each.
        max_connections: the bound of the pool.

    Raises:
        InvalidConfigError: where the URL is none of those; the message does not repeat it, since it may hold a secret.
    """
    secret = {} if password is None else {"password": password}
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            **secret,
        )
        pool.connection_class(**pool.connection_kwargs)  # connects nothing, refuses unknown options
    except (ValueError, TypeError):
        raise InvalidConfigError("not a valid redis://, rediss:// or unix:// URL, or an unknown option in it") from None
    return Redis.from_pool(pool)


@dataclass(frozen=True, slots=True)
class _Script:
    source: str
    sha: str


def _scripts() -> dict[str, _Script]:
    folder = resources.files("router_grpc") / "lua"
    prelude = (folder / "prelude.lua").read_text(encoding="utf-8")
    scripts = {}
    for name in OPERATIONS:
        source = prelude + (folder / f"{name}.lua").read_text(encoding="utf-8")
        scripts[name] = _Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
    return scripts


class RedisLedger:
    """A ``Ledger`` in Redis. All keys carry the hash tag ``{llmrouter:<namespace>}``: one slot of a Redis Cluster.

    Everything but ``expire``, ``reconcile`` and ``leave`` is one script call; those work in chunks, each atomic, that
    other calls may come between. The server must not evict keys (``maxmemory-policy noeviction``).

    Args:
        router_id: whose reservations this object makes.
        client: authenticated as its maker pleases; ``close`` closes it.
        namespace: routers with the same one share a ledger.
        timeout_s: how long an answer may take.
    """

    is_immediate = False

    def __init__(self, router_id: str, client: Redis, namespace: str, timeout_s: float) -> None:
        if _NAMESPACE.fullmatch(namespace) is None:
            raise InvalidConfigError(f"ledger namespace {namespace!r} must match {_NAMESPACE.pattern}")
        self.router_id = router_id
        self._client = client
        self._pipe = RedisPipe(client)
        self._timeout_s = timeout_s
        self._prefix = f"{{llmrouter:{namespace}}}:"
        self._scripts = _scripts()
        self._claimed: set[str] = set()

    async def reserve(self, ask: ReserveAsk) -> ReserveResult:
        """See ``Ledger``; raises InvalidRequestError where token counts are out of bounds."""
        check_bids(ask.bids)
        outcome, row, packed = await self._call(
            "reserve",
            ask.request_id,
            whole_tokens(ask.prompt_tokens),
            milli_tokens(ask.predicted_output_tokens),
            "" if ask.moved_tolerance is None else ask.moved_tolerance,
            int(ask.final),
            _bids_json(ask.bids),
            *_claim_args(ask.model, ask.claim),
            _prefills_json(ask.bids),
        )
        bids = ask.bids if len(packed) == len(ask.bids) else (*ask.bids, *_prefills(ask.bids))
        loads = {bid.instance_id: _load(text) for bid, text in zip(bids, packed, strict=True) if bid.instance_id}
        return ReserveResult(outcome=ReserveOutcome(_text(outcome)), reservation=_reservation(row), loads=loads)

    async def progress(
        self,
        request_id: str,
        *,
        prefilled: bool,
        generated_tokens: int,
        predicted_output_tokens: float | None = None,
    ) -> Reservation | None:
        """See ``Ledger``."""
        told = "" if predicted_output_tokens is None else milli_tokens(predicted_output_tokens)
        row = await self._call("progress", request_id, int(prefilled), whole_tokens(generated_tokens), told)
        return _reservation(row)

    async def release(self, request_id: str) -> Reservation | None:
        """See ``Ledger``."""
        return _reservation(await self._call("release", request_id))

    async def find(self, request_id: str) -> Reservation | None:
        """See ``Ledger``."""
        return _reservation(await self._call("find", request_id))

    async def loads(self, claims: Mapping[str, Claim] = NO_CLAIMS) -> Mapping[str, Load]:
        """See ``Ledger``."""
        told, self._claimed = self._claimed | claims.keys(), set(claims)
        flat = await self._call("loads", *(arg for model in told for arg in _claim_args(model, claims.get(model))))
        return {_text(flat[i]): _load(flat[i + 1]) for i in range(0, len(flat), 2)}

    async def heartbeat(self, ttl_s: float) -> int:
        """See ``Ledger``."""
        return int(await self._call("heartbeat", round(ttl_s * 1000)))

    async def expire(self) -> Mapping[str, int]:
        """See ``Ledger``; this router is alive, whatever its heartbeat."""
        released: dict[str, int] = {}
        more = True
        while more:
            flag, *flat = await self._call("expire", CHUNK)
            for i in range(0, len(flat), 2):
                router_id = _text(flat[i])
                released[router_id] = released.get(router_id, 0) + int(flat[i + 1])
            more = int(flag) == 1
        return released

    async def reconcile(self, own: Sequence[Reservation]) -> frozenset[str]:
        """See ``Ledger``. Not to be called while a ``reserve`` of the same router is on its way."""
        kept = frozenset(reservation.request_id for reservation in own)
        held, taken = await self._call("owned")
        surplus = [request_id for request_id in map(_text, held) if request_id not in kept]
        learned = [request_id for request_id in map(_text, taken) if request_id not in kept]
        lost: set[str] = set()
        for i in range(0, len(own), CHUNK):
            args = [arg for reservation in own[i : i + CHUNK] for arg in _reservation_args(reservation)]
            lost.update(map(_text, await self._call("restore", *args)))
        for i in range(0, max(len(surplus), len(learned)), CHUNK):
            extra = surplus[i : i + CHUNK]
            await self._call("drop", len(extra), *extra, *learned[i : i + CHUNK])
        return frozenset(lost)

    async def leave(self) -> int:
        """See ``Ledger``."""
        total = 0
        more = True
        while more:
            flag, released = await self._call("leave", CHUNK)
            total += int(released)
            more = int(flag) == 1
        return total

    async def close(self) -> None:
        """See ``Ledger``."""
        await self._pipe.close()
        await self._client.aclose()

    async def _call(self, operation: str, *args: str | int) -> Any:  # noqa: ANN401 - Redis answers in any shape
        script = self._scripts[operation]
        keys = (f"{self._prefix}loads", f"{self._prefix}routers")
        tail = (*keys, self._prefix, self.router_id, *args)
        try:
            try:
                return await self._pipe.execute("EVALSHA", script.sha, len(keys), *tail, within_s=self._timeout_s)
            except NoScriptError:  # the server is new or has forgotten: EVAL runs the script and keeps it
                return await self._pipe.execute("EVAL", script.source, len(keys), *tail, within_s=self._timeout_s)
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self._pipe.reset()
            raise LedgerUnavailableError(f"{operation}: {type(error).__name__}: {error}") from error


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _bids_json(bids: Sequence[Bid]) -> str:
    """One argument, a list per field: hundreds of arguments take longer to write than the script takes to run."""
    return json.dumps(
        (
            [bid.instance_id for bid in bids],
            [bid.seen_requests for bid in bids],
            [bid.room.max_requests for bid in bids],
            [False if bid.room.kv_limit_tokens is None else bid.room.kv_limit_tokens for bid in bids],
            [float(bid.room.decode_reserve_fraction) for bid in bids],
            [bid.cached_tokens for bid in bids],
        )
    )


def _prefills(bids: Sequence[Bid]) -> list[Bid]:
    """For each bid, that of the instance which is to compute its prompt; one for nobody where it does so itself."""
    return [bid.prefill or _NOBODY for bid in bids]


def _prefills_json(bids: Sequence[Bid]) -> str:
    """The same as JSON; nothing where all compute their prompts."""
    return _bids_json(_prefills(bids)) if any(bid.prefill is not None for bid in bids) else ""


def _reservation_args(reservation: Reservation) -> tuple[str | int, ...]:
    return (
        reservation.request_id,
        reservation.instance_id,
        whole_tokens(reservation.prompt_tokens),
        milli_tokens(reservation.predicted_output_tokens),
        int(reservation.prefilled),
        whole_tokens(reservation.generated_tokens),
        whole_tokens(reservation.cached_tokens),
        reservation.prefill_instance_id,
        whole_tokens(reservation.prefill_cached_tokens),
    )


def _claim_args(model: str, claim: Claim | None) -> tuple[str | int, ...]:
    """As the scripts take it; no standing where nothing is claimed."""
    if claim is None:
        return (model, "", "", "")
    return (model, claim.standing, repr(float(claim.key)), repr(float(claim.patient_key)))


def _load(packed: str | bytes) -> Load:
    requests, context, queued, remaining = _text(packed).split(" ")
    return Load(
        requests=int(requests),
        context_tokens=int(context),
        queued_prefill_tokens=int(queued),
        remaining_decode_tokens=int(remaining) / MILLI,
    )


def _reservation(row: Sequence[str | bytes]) -> Reservation | None:
    if not row:
        return None
    request_id, router_id, instance_id, prompt, predicted, prefilled, generated, cached, *staged = map(_text, row)
    return Reservation(
        request_id=request_id,
        router_id=router_id,
        instance_id=instance_id,
        prompt_tokens=int(prompt),
        predicted_output_tokens=int(predicted) / MILLI,
        prefilled=prefilled == "1",
        generated_tokens=int(generated),
        cached_tokens=int(cached),
        prefill_instance_id=staged[0] if staged else "",
        prefill_cached_tokens=int(staged[1]) if staged else 0,
    )
