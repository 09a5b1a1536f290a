"""Models that a file names by URL or reference: fetched through the same child process as an operator's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmrouter.errors import FetchError, InvalidConfigError
from llmrouter.fetching.child import fetch
from llmrouter.fetching.wanted import Wanted
from llmrouter.manifest import MAX_MODEL_BYTES
from llmrouter.model_sources import HttpModelRef
from router_grpc.adapters.own_models import Files

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.manifest import ModelKind
    from llmrouter.model_sources import ModelSource

AGAIN_AFTER_S = 10.0
"""How long a source that failed is left alone."""


class FetchedModels:
    """Keeps what was fetched for as long as the process lives; blocks while it fetches: ask it in a thread."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._files: dict[Wanted, Files] = {}
        self._failed: dict[Wanted, tuple[float, InvalidConfigError]] = {}

    def get(self, where: str, source: ModelSource, *, kind: ModelKind, sha256: str) -> Files:
        """The model that a part of the file names; raises InvalidConfigError that begins with ``where``."""
        remote = source.remote
        if remote is not None and remote.secret_ref is not None:
            raise InvalidConfigError(f"{where}: secretRef needs Kubernetes")
        wanted = Wanted(
            http=source.http,
            oci=source.oci,
            kind=kind,
            sha256=sha256,
            max_bytes=MAX_MODEL_BYTES,
            allowed_hosts=_hosts(source),
        )
        if wanted not in self._files:
            self._files[wanted] = self._fetch(where, wanted)
        return self._files[wanted]

    def _fetch(self, where: str, wanted: Wanted) -> Files:
        failed_at_s, error = self._failed.get(wanted, (0.0, None))
        if error is not None and self._clock_s() - failed_at_s < AGAIN_AFTER_S:
            raise error
        try:
            return Files(*asyncio.run(fetch(wanted)))
        except FetchError as failure:
            refused = InvalidConfigError(f"{where}: {failure}", reason=failure.reason)
            self._failed[wanted] = (self._clock_s(), refused)
            raise refused from failure


def _hosts(source: ModelSource) -> tuple[str, ...]:
    """Whoever wrote the file started this process: its own host may be asked, as may any that is public."""
    if isinstance(source.remote, HttpModelRef):
        plain = "http://" if source.remote.url.startswith("http://") else ""
        return f"{plain}{source.remote.host}", "*"
    return () if source.remote is None else (source.remote.host, "*")
