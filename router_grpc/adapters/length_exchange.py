"""Where routers tell each other what they learned of output lengths: in Redis, or in the memory of one process.

Entries stand in one capped stream, numbered without gaps, so that a reader sees what it missed. A snapshot names the
last entry it holds, and the last one of its author's own, which is later: newcomers read on from there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from redis.client import NEVER_DECODE
from redis.exceptions import NoScriptError, RedisError

from llmrouter.errors import InvalidInputError, LedgerUnavailableError
from llmrouter.lengths.wire import decode, encode
from router_grpc.ports import HeardLengths

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from llmrouter.lengths.sketches import Counts

MAX_ENTRIES = 1_024
"""Of the stream: eight routers that publish once a second fill it in two minutes; a snapshot is kept every 30 s."""

PAGE = 64
MAX_KEYS_A_CALL = 16_384
"""Entries of this many keys end a call of ``receive``: 15 MB of counts."""

LEASE_S = 45.0
STREAM_TTL_S = 3_600.0
AUTHOR_TTL_S = 24 * 3_600.0
SNAPSHOT_TTL_S = 7 * 24 * 3_600.0


class Position(NamedTuple):
    """Place of an entry: which stream it stands in, and its number there, from 1."""

    birth: int = 0
    number: int = 0

    def is_at_or_before(self, other: Position) -> bool:
        """Whether both stand in one stream, and this one no later."""
        return self.birth == other.birth and self.number <= other.number


@dataclass(frozen=True, slots=True)
class Entry:
    """What one router published."""

    position: Position
    author: str
    raw: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that ``author`` knew: every entry up to ``covers``, and its own up to ``own``."""

    covers: Position
    author: str
    own: Position
    raw: bytes


class LengthStore(Protocol):
    """Keeps entries and a snapshot; every method is atomic and raises LedgerUnavailableError."""

    async def append(self, author: str, number: int, raw: bytes) -> Position:
        """Adds the author's entry of this number, once; returns its place."""
        ...

    async def after(self, position: Position, count: int) -> Sequence[Entry]:
        """The entries that follow, as far as they are still there; of a stream made anew, its first."""
        ...

    async def lease(self, author: str) -> bool:
        """Whether the author may keep a snapshot now."""
        ...

    async def keep(self, snapshot: Snapshot) -> bool:
        """Keeps it where its author still has the lease."""
        ...

    async def snapshot(self) -> Snapshot | None:
        """The last one kept."""
        ...


class StoredLengthExchange:
    """A ``LengthExchange`` over a store.

    Args:
        store: what routers have in common.
        author: this router, in this life of its process: never used before, nor by another (a name and a random word).
    """

    def __init__(self, store: LengthStore, author: str) -> None:
        self._store = store
        self._author = author
        self._number = 0
        self._unconfirmed: bytes | None = None
        self._own = Position()
        self._cursor: Position | None = None
        self._held: Snapshot | None = None

    async def publish(self, delta: tuple[Counts, Counts]) -> None:
        """See ``LengthExchange``."""
        raw = await asyncio.to_thread(encode, delta)
        if raw != self._unconfirmed:
            self._number += 1
            self._unconfirmed = raw
        self._own = await self._store.append(self._author, self._number, raw)
        self._unconfirmed = None

    async def receive(self) -> HeardLengths:
        """See ``LengthExchange``; at most ``PAGE`` entries a call."""
        cursor, held, snapshot, refused = self._cursor or Position(), self._held, None, 0
        page = await self._store.after(cursor, PAGE)
        if self._cursor is None or _missed(cursor, page):
            found = await self._store.snapshot()
            if found is not None and self._is_ahead(found, page):
                snapshot = await asyncio.to_thread(_decoded, found.raw)
                refused += snapshot is None
            if found is not None and snapshot is not None:
                cursor, held = found.covers, found
                page = await self._store.after(cursor, PAGE)
        entries: list[tuple[Counts, Counts]] = []
        missed = keys = 0
        for entry in page:
            missed += _missed(cursor, [entry])
            cursor = entry.position
            if entry.author == self._author or _holds(held, entry):
                continue
            counts = await asyncio.to_thread(_decoded, entry.raw)
            if counts is None:
                refused += 1
                continue
            entries.append(counts)
            keys += sum(len(one.keys) for one in counts)
            if keys >= MAX_KEYS_A_CALL:
                break
        self._cursor, self._held = cursor, held
        return HeardLengths(snapshot, tuple(entries), missed=missed, refused=refused)

    async def save(self, counts: tuple[Counts, Counts]) -> bool:
        """See ``LengthExchange``."""
        if not await self._store.lease(self._author):
            return False
        raw = await asyncio.to_thread(encode, counts)
        return await self._store.keep(Snapshot(self._cursor or Position(), self._author, self._own, raw))

    def _is_ahead(self, snapshot: Snapshot, page: Sequence[Entry]) -> bool:
        """Whether reading on from the snapshot repeats nothing that was received."""
        if self._cursor is None:
            return True
        return snapshot.covers.birth == page[0].position.birth and not snapshot.covers.is_at_or_before(self._cursor)


def _missed(cursor: Position, page: Sequence[Entry]) -> int:
    """How many entries are gone between the cursor and the page."""
    if not page:
        return 0
    first = page[0].position
    return max(first.number - 1 - (cursor.number if first.birth == cursor.birth else 0), 0)


def _holds(snapshot: Snapshot | None, entry: Entry) -> bool:
    return snapshot is not None and entry.author == snapshot.author and entry.position.is_at_or_before(snapshot.own)


def _decoded(raw: bytes) -> tuple[Counts, Counts] | None:
    try:
        return decode(raw)
    except InvalidInputError:  # the caller counts it
        return None


@dataclass(slots=True)
class LengthBoard:
    """A ``LengthStore`` in memory, for routers of one process; ``clock`` in seconds, never going back."""

    clock: Callable[[], float]
    max_entries: int = MAX_ENTRIES
    _entries: deque[Entry] = field(default_factory=deque)
    _last: Position = field(default_factory=lambda: Position(birth=1))
    _appended: dict[str, tuple[int, Position]] = field(default_factory=dict)
    _holder: tuple[str, float] | None = None
    _snapshot: Snapshot | None = None

    async def append(self, author: str, number: int, raw: bytes) -> Position:
        """See ``LengthStore``."""
        known = self._appended.get(author)
        if known is not None and known[0] >= number:
            return known[1]
        self._last = Position(self._last.birth, self._last.number + 1)
        self._appended[author] = number, self._last
        self._entries.append(Entry(self._last, author, raw))
        if len(self._entries) > self.max_entries:
            self._entries.popleft()
        return self._last

    async def after(self, position: Position, count: int) -> Sequence[Entry]:
        """See ``LengthStore``."""
        return [entry for entry in self._entries if not entry.position.is_at_or_before(position)][:count]

    async def lease(self, author: str) -> bool:
        """See ``LengthStore``."""
        now_s = self.clock()
        if self._holder is not None and self._holder[0] != author and now_s < self._holder[1]:
            return False
        self._holder = author, now_s + LEASE_S
        return True

    async def keep(self, snapshot: Snapshot) -> bool:
        """See ``LengthStore``."""
        if self._holder is None or self._holder[0] != snapshot.author:
            return False
        self._snapshot = snapshot
        return True

    async def snapshot(self) -> Snapshot | None:
        """See ``LengthStore``."""
        return self._snapshot


class RedisLengthStore:
    """A ``LengthStore`` in Redis 6.2 or later. Keys carry the hash tag of the ledger and all have a time to live.

    Args:
        client: authenticated as its maker pleases, who also closes it; the ledger's own will do.
        namespace: the ledger's: routers with the same one share what they learn.
        timeout_s: how long any one call may take, waiting for a connection included.
        max_entries: the cap of the stream.
        lease_s: how long a lease holds.
    """

    def __init__(
        self,
        client: Redis,
        namespace: str,
        *,
        timeout_s: float,
        max_entries: int = MAX_ENTRIES,
        lease_s: float = LEASE_S,
    ) -> None:
        self._execute: Callable[..., Awaitable[Any]] = client.execute_command
        self._prefix = f"{{llmrouter:{namespace}}}:lengths"
        self._timeout_s = timeout_s
        self._max_entries = max_entries
        self._lease_s = lease_s
        folder = resources.files("router_grpc") / "lua"
        self._scripts = {
            name: (folder / f"lengths_{name}.lua").read_text(encoding="utf-8")
            for name in ("append", "after", "lease", "keep")
        }

    async def append(self, author: str, number: int, raw: bytes) -> Position:
        """See ``LengthStore``."""
        keys = self._prefix, f"{self._prefix}:author:{author}"
        lives = _ms(STREAM_TTL_S), _ms(AUTHOR_TTL_S)
        return _position(await self._run("append", keys, (author, number, raw, self._max_entries, *lives)))

    async def after(self, position: Position, count: int) -> Sequence[Entry]:
        """See ``LengthStore``."""
        rows = await self._run("after", (self._prefix,), (position.birth, position.number, count))
        return [_entry(place, fields) for place, fields in rows]

    async def lease(self, author: str) -> bool:
        """See ``LengthStore``."""
        return int(await self._run("lease", (f"{self._prefix}:lease",), (author, _ms(self._lease_s)))) == 1

    async def keep(self, snapshot: Snapshot) -> bool:
        """See ``LengthStore``."""
        keys = f"{self._prefix}:lease", f"{self._prefix}:snapshot"
        covers, own = (f"{place.birth}-{place.number}" for place in (snapshot.covers, snapshot.own))
        args = snapshot.author, covers, own, snapshot.raw, _ms(SNAPSHOT_TTL_S)
        return int(await self._run("keep", keys, args)) == 1

    async def snapshot(self) -> Snapshot | None:
        """See ``LengthStore``; one with fields that are missing or no ids holds bytes that nobody can decode."""
        fields = ("covers", "author", "own", "counts")
        covers, author, own, raw = await self._ask("HMGET", f"{self._prefix}:snapshot", *fields)
        if covers is None:
            return None
        try:
            return Snapshot(_position(covers), _text(author or b""), _position(own or b""), raw or b"")
        except ValueError:  # its bytes are refused, and so counted, by whoever decodes them
            return Snapshot(Position(), "", Position(), b"")

    async def _run(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:  # noqa: ANN401
        source = self._scripts[name]
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        tail = (len(keys), *keys, *args)
        try:
            return await self._ask("EVALSHA", sha, *tail)
        except NoScriptError:  # the server is new or has forgotten: EVAL runs the script and keeps it
            return await self._ask("EVAL", source, *tail)

    async def _ask(self, command: str, *args: str | bytes | int) -> Any:  # noqa: ANN401 - Redis answers in any shape
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._execute(command, *args, **{NEVER_DECODE: True})
        except NoScriptError:
            raise
        except (RedisError, OSError, TimeoutError) as error:
            raise LedgerUnavailableError(f"lengths: {command}: {type(error).__name__}: {error}") from error


def _ms(seconds: float) -> int:
    return round(seconds * 1_000)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _position(raw: bytes) -> Position:
    birth, number = raw.split(b"-")
    return Position(int(birth), int(number))


def _entry(place: bytes, fields: Sequence[bytes]) -> Entry:
    """An entry that somebody else wrote may have any fields: bytes that are missing are refused when decoded."""
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    return Entry(_position(place), _text(values.get(b"author", b"")), values.get(b"counts", b""))
