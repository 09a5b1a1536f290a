"""``rollout`` as machine code, kept between runs beside the simulator's."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrouter.sim import compiled as simulator
from llmrouter.sim.kernel import world
from llmrouter.training.agents import rollout as module

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS = {"error_model": "numpy", "_nrt": False}


@functools.cache
def rollout() -> Callable[[Any, Any], int]:
    """The compiled ``rollout.rollout``, over structured arrays; the first call ever compiles for a minute.

    Raises:
        InvalidInputError: numba is not installed.
    """
    simulator.advance()  # makes the kernel's functions known to the compiler, and says where machine code is kept
    extending: Any = importlib.import_module("numba.extending")
    numba: Any = importlib.import_module("numba")
    extending.register_jitable(**_OPTIONS)(world.advance)
    for _, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and function is not module.rollout:
            extending.register_jitable(**_OPTIONS)(function)
    kept = bool(numba.config.CACHE_DIR)
    if kept:  # beside the kernel's, under a digest of what is compiled here
        digest = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]
        numba.config.CACHE_DIR = str(Path(numba.config.CACHE_DIR) / digest)
    compiled: Callable[[Any, Any], int] = numba.njit(cache=kept, **_OPTIONS)(module.rollout)
    return compiled
