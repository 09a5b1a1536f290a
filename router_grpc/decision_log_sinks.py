"""Where decision records go: standard output, files, an object store. The writer's thread alone calls; calls wait."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmrouter.errors import LLMRouterError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.decision_log_spec import DecisionLogSpec

FLUSH_S = 0.5
"""How often what waits is written."""

OBJECT_S, OBJECT_BYTES = 60.0, 1 << 20
"""An object is put when its first line is so old, or when it is so large."""

MAX_WAITING_BYTES = 8 << 20
"""Lines that wait for an object store at most; the oldest are dropped beyond."""

STORE_TIMEOUT = "10s"

_REASONS = {
    errno.ENOSPC: "DiskFull",
    errno.EDQUOT: "DiskFull",
    errno.EACCES: "NotWritable",
    errno.EROFS: "NotWritable",
}


class SinkError(LLMRouterError):
    """A sink does not take records. ``lost`` counts those that it dropped meanwhile."""

    def __init__(self, reason: str, message: str, *, lost: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.lost = lost


class Sink(Protocol):
    """Takes lines."""

    def write(self, lines: Sequence[bytes]) -> bool:
        """Takes all of them; returns whether they are in their place already. Raises SinkError."""
        ...

    def flush(self, now_s: float, *, final: bool) -> bool:
        """Brings to its place what is due, all of it where ``final``; returns whether it did. Raises SinkError."""
        ...

    def close(self) -> None:
        """Gives back what it holds; never raises."""
        ...


class StdoutSink:
    """Lines on standard output; logs are on standard error."""

    def write(self, lines: Sequence[bytes]) -> bool:
        """See ``Sink``."""
        try:
            sys.stdout.buffer.write(b"".join(lines))
            sys.stdout.buffer.flush()
        except OSError as error:
            raise _refusal(error, "standard output") from error
        return True

    def flush(self, now_s: float, *, final: bool) -> bool:
        """Nothing waits."""
        del now_s, final
        return False

    def close(self) -> None:
        """Standard output is not its own."""


class FileSink:
    """One file, and the one before it: a file that has half of ``max_bytes`` becomes ``….1``.

    A line that the disk did not take whole is taken back, so that every line in the file is one.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path, self._most = path, max_bytes // 2
        self._file: int | None = None
        self._size = 0

    def write(self, lines: Sequence[bytes]) -> bool:
        """See ``Sink``."""
        try:
            for chunk in _chunks(lines, self._most):
                self._append(chunk)
        except OSError as error:
            self.close()
            raise _refusal(error, str(self._path)) from error
        return True

    def _append(self, content: bytes) -> None:
        if self._file is not None and self._size + len(content) > self._most:
            self.close()
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, content)
            while written < len(content):
                written += os.write(self._file, content[written:])
        except OSError:
            with contextlib.suppress(OSError):  # what is no plain file: the first error is the one to be told
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(content)

    def flush(self, now_s: float, *, final: bool) -> bool:
        """Nothing waits."""
        del now_s, final
        return False

    def close(self) -> None:
        """See ``Sink``."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class ObjectStoreSink:
    """Objects of up to a minute's lines below a URL, named by day, router and time. No object is ever changed."""

    def __init__(self, put: Callable[[str, bytes], None], router_id: str, url: str) -> None:
        self._put, self._router_id, self._url = put, router_id, url
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._since_s: float | None = None
        self._number = 0

    def write(self, lines: Sequence[bytes]) -> bool:
        """See ``Sink``; raises where older lines had to go."""
        self._waiting += lines
        self._bytes += sum(map(len, lines))
        lost = 0
        while self._bytes > MAX_WAITING_BYTES:
            self._bytes -= len(self._waiting[lost])
            lost += 1
        del self._waiting[:lost]
        if lost:
            raise SinkError("StoreUnreachable", f"{self._url}: lines wait for it; the oldest went", lost=lost)
        return False

    def flush(self, now_s: float, *, final: bool) -> bool:
        """See ``Sink``."""
        if not self._waiting:
            return False
        self._since_s = now_s if self._since_s is None else self._since_s
        if not final and self._bytes < OBJECT_BYTES and now_s - self._since_s < OBJECT_S:
            return False
        content, at = b"".join(self._waiting), time.gmtime()
        name = f"{time.strftime('%Y-%m-%d', at)}/{self._router_id}-{time.strftime('%H%M%S', at)}-{self._number}.jsonl"
        self._since_s = now_s  # what failed is tried again when as much time has passed
        try:
            self._put(name, content)
        except Exception as error:  # obstore's errors have no root of their own; said by the writer
            lost = len(self._waiting) if final else 0
            raise SinkError("StoreUnreachable", f"{self._url}: {_first_line(error)}", lost=lost) from error
        self._number += 1
        self._waiting.clear()
        self._bytes, self._since_s = 0, None
        return True

    def close(self) -> None:
        """Nothing is held."""


def sink_of(spec: DecisionLogSpec, router_id: str, folder: Path | None) -> Sink:
    """The sink that is declared; raises SinkError where it cannot be made."""
    if spec.sink == "Stdout":
        return StdoutSink()
    if spec.sink == "File":
        if folder is None or not folder.is_dir():
            raise SinkError("NoFolder", f"{folder or 'no folder for decisions'}: no such folder")
        return FileSink(folder / f"{router_id}.jsonl", spec.max_bytes)
    url = spec.url or ""
    return ObjectStoreSink(_store(url), router_id, url)


def _store(url: str) -> Callable[[str, bytes], None]:
    """Puts objects below a URL; credentials are the environment's."""
    try:
        import obstore  # noqa: PLC0415 - one sink needs it
        from obstore.store import from_url  # noqa: PLC0415
    except ImportError as error:
        raise SinkError("NoObjectStore", "the package obstore is not installed") from error
    options: dict[str, Any] = {}
    if url.startswith("file://"):
        Path(url.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
    else:
        options = {
            "client_options": {"timeout": STORE_TIMEOUT, "connect_timeout": STORE_TIMEOUT, "allow_http": True},
            "retry_config": {"max_retries": 2},
        }
    try:
        store = from_url(url, **options)
    except Exception as error:  # obstore's errors have no root of their own; said by the writer
        raise SinkError("BadUrl", f"{url}: {_first_line(error)}") from error
    return lambda name, content: void(obstore.put(store, name, content))


def void(_answer: object) -> None:
    """Nothing of an answer."""


def _chunks(lines: Sequence[bytes], most: int) -> list[bytes]:
    """Lines joined to parts of at most so many bytes, where no line is longer."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for line in lines:
        if size + len(line) > most and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += len(line)
    return [b"".join(part) for part in parts if part]


def _refusal(error: OSError, where: str) -> SinkError:
    return SinkError(_REASONS.get(error.errno or 0, "WriteFailed"), f"{where}: {error.strerror or error}")


def _first_line(error: Exception) -> str:
    """What an error says, without the details of its causes, which may have more of a request than is to be logged."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no word'}"
