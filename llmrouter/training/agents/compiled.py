"""``rollout`` as machine code, kept between runs beside the simulator's."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrouter.routing import paper_state
from llmrouter.sim import compiled as simulator
from llmrouter.sim.kernel import world
from llmrouter.training.agents import product_network, shared_network, window
from llmrouter.training.agents import rollout as module

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS = {"error_model": "numpy", "_nrt": False}
_MODULES = (paper_state, product_network, shared_network, window, module)
"""What is compiled here beside the kernel: the functions that each defines."""


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
    for one in _MODULES:
        for _, function in inspect.getmembers(one, inspect.isfunction):
            if function.__module__ == one.__name__ and function is not module.rollout:
                extending.register_jitable(**_OPTIONS)(function)
    kept = bool(numba.config.CACHE_DIR)
    if kept:  # beside the kernel's, under a digest of what is compiled here
        sources = b"".join(Path(str(one.__file__)).read_bytes() for one in _MODULES)
        digest = hashlib.sha256(sources).hexdigest()[:16]
        numba.config.CACHE_DIR = str(Path(numba.config.CACHE_DIR) / digest)
    compiled: Callable[[Any, Any], int] = numba.njit(cache=kept, **_OPTIONS)(module.rollout)
    return compiled
