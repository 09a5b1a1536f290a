"""Where the one-machine cluster keeps things: a cache that lasts, a state directory that `down` removes."""

import os
from collections.abc import Mapping
from pathlib import Path


def cache_directory(environment: Mapping[str, str] | None = None) -> Path:
    """What is worth keeping between runs: built programs, unpacked packages, image layers.

    `LLMROUTER_CACHE` names it, else it is `llmrouter` below `XDG_CACHE_HOME` or `~/.cache`.
    """
    environment = os.environ if environment is None else environment
    if named := environment.get("LLMROUTER_CACHE"):
        return Path(named).expanduser().absolute()
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser().absolute() / "llmrouter"


def state_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Everything of the running cluster: data, certificates, sockets, logs. `LLMROUTER_STATE` names it."""
    environment = os.environ if environment is None else environment
    return Path(environment.get("LLMROUTER_STATE") or "/var/tmp/llmrouter-cluster").expanduser().absolute()  # noqa: S108 - one fixed place, so that a stale run is found; made with mode 0700


def repository_root() -> Path:
    """The checkout this package is imported from; the Go modules and the Dockerfile lie there."""
    return Path(__file__).resolve().parents[3]
