"""Files out of an image's layer, with bounds: nothing is written, links are not followed."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from llmrouter.errors import FetchError

if TYPE_CHECKING:
    from collections.abc import Mapping

GZIP = b"\x1f\x8b"
GROWTH = 8
"""What an archive may hold for each byte that all wanted files may have together."""


def files_of(blob: bytes, media: str, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Regular files of the wanted names, from any folder of the archive; the first of each name.

    Args:
        blob: a tar archive, as it is or with gzip.
        media: its type, to name one that cannot be read.
        limits: bytes that each wanted file may have, by its name.

    Raises:
        FetchError: (``ModelTooLarge``, ``FetchFailed``) too much, or not readable.
    """
    raw = io.BytesIO(blob)
    most = GROWTH * sum(limits.values())
    content = _Bounded(gzip.GzipFile(fileobj=raw) if blob.startswith(GZIP) else raw, most)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=content, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name not in limits or name in found or not member.isreg():
                    continue
                if member.size > limits[name]:
                    raise FetchError("ModelTooLarge", f"{name} has {member.size} bytes, more than {limits[name]}")
                opened = archive.extractfile(member)
                if opened is not None:
                    found[name] = opened.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise FetchError("FetchFailed", f"a layer of type {media[:128]} cannot be read") from error
    return found


class _Bounded(io.RawIOBase):
    """Reads no more than ``most`` bytes."""

    def __init__(self, content: io.BytesIO | gzip.GzipFile, most: int) -> None:
        super().__init__()
        self._content = content
        self._left = most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        part = self._content.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(part)
        if self._left < 0:
            raise FetchError("ModelTooLarge", "a layer holds more than a model and its manifest could")
        return part
