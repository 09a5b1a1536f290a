"""The kernel compiled: the very functions of ``kernel/``, as machine code that is kept between runs.

Numba compiles ``advance`` and all it calls when first asked, about half a minute, and caches the result in the user's
cache under a digest of the sources, so that no change can meet stale code.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_MODULES = (
    "llmrouter.domain",  # a constant of it
    "llmrouter.routing.inflight",
    "llmrouter.routing.rules",
    "llmrouter.routing.batching",
    "llmrouter.routing.orders",
    "llmrouter.routing.batch",
    "llmrouter.routing.fairness",
    "llmrouter.routing.prefix_hits",
    "llmrouter.routing.stages",  # two constants of it
    "llmrouter.sim.kernel.records",
    "llmrouter.sim.kernel.lists",
    "llmrouter.sim.kernel.prefixes",
    "llmrouter.sim.kernel.admission",
    "llmrouter.sim.kernel.steps",
    "llmrouter.sim.kernel.events",
    "llmrouter.sim.kernel.ledger",
    "llmrouter.sim.kernel.known_prefixes",
    "llmrouter.sim.kernel.decisions",
    "llmrouter.sim.kernel.lines",
    "llmrouter.sim.kernel.routers",
    "llmrouter.sim.kernel.world",
)

_OPTIONS = {"error_model": "numpy", "_nrt": False}
"""Division without checks, and no reference counts: the kernel divides by what is never 0 and allocates nothing."""


@functools.cache
def advance() -> Callable[[Any], int]:
    """The compiled ``kernel.world.advance``, over structured arrays.

    Raises:
        InvalidInputError: numba is not installed.
    """
    try:
        numba: Any = importlib.import_module("numba")  # half a second, and only the simulator needs it
        extending: Any = importlib.import_module("numba.extending")
    except ImportError as error:
        raise InvalidInputError("the simulator needs numba: install the extra llmrouter[study]") from error
    modules = [importlib.import_module(name) for name in _MODULES]
    folder = _cache_folder(modules)
    if folder is not None:
        numba.config.CACHE_DIR = str(folder)
    world = modules[-1]
    for module in modules:
        for function in _functions(module):
            if function is not world.advance:
                extending.register_jitable(**_OPTIONS)(function)
    compiled: Callable[[Any], int] = numba.njit(cache=folder is not None, **_OPTIONS)(world.advance)
    return compiled


def _functions(module: ModuleType) -> list[Callable[..., Any]]:
    return [
        function
        for _, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
    ]


def _cache_folder(modules: list[ModuleType]) -> Path | None:
    """Where machine code is kept; ``None`` where nothing can be written there."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(Path(str(module.__file__)).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "llmrouter" / "compiled" / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # every process compiles for itself
    return folder if os.access(folder, os.W_OK) else None
