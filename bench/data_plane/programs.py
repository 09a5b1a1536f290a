"""The programs of the benchmark: built, unpacked or installed into the cache; a peer that is not there is left out."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from llmrouter.testbed.cluster.binaries import Binaries
from llmrouter.testbed.cluster.debian import provide_root
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.places import cache_directory, repository_root
from llmrouter.testbed.cluster.processes import run
from llmrouter.testbed.cluster.redis import library_path

PEER_VARIABLE = "LLMROUTER_PEER_EPP"
WHEELS = ("vllm-router==0.1.17", "sglang-router==0.3.2")
_TRAFFIC = Path(__file__).parent / "traffic"


@dataclass(frozen=True, slots=True)
class Programs:
    """Paths; ``None`` for a peer that is not there."""

    traffic: Path
    wrk: Path
    peer: Path | None
    proxies: Path | None
    """The folder of the HTTP proxies' commands."""


def provide(*, proxies: bool) -> tuple[Programs, list[str]]:
    """All programs, and a note on each peer that is left out.

    Raises:
        ClusterError: one that cannot be left out can be neither found nor made.
    """
    notes: list[str] = []
    found = Programs(_traffic(), _wrk(), _peer(notes), _proxies(notes) if proxies else None)
    return found, notes


def _traffic() -> Path:
    digest = hashlib.sha256()
    for file in sorted(_TRAFFIC.glob("*")):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    target = cache_directory() / "bin" / f"traffic-{digest.hexdigest()[:16]}" / "traffic"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly", "GOWORK": "off"}
        run([Binaries().go(), "build", "-trimpath", "-o", target, "."], env=environment, cwd=_TRAFFIC)
    return target


def _wrk() -> Path:
    on_path = shutil.which("wrk")
    return Path(on_path) if on_path else provide_root("wrk", ("wrk",), alone=True) / "usr" / "bin" / "wrk"


def library_environment(program: Path) -> dict[str, str]:
    """The environment in which a program finds the libraries that were unpacked with it."""
    return {**os.environ, "LD_LIBRARY_PATH": library_path(program)} if "debian" in program.parts else dict(os.environ)


def _peer(notes: list[str]) -> Path | None:
    named = os.environ.get(PEER_VARIABLE)
    if named and os.access(named, os.X_OK):
        return Path(named)
    reason = f"{PEER_VARIABLE}={named} is no program" if named else f"{PEER_VARIABLE} does not name its binary"
    notes.append(f"llm-d's picker is left out: {reason}")
    return None


def _proxies(notes: list[str]) -> Path | None:
    home = cache_directory() / "peers" / hashlib.sha256(" ".join(WHEELS).encode()).hexdigest()[:12]
    commands = home / "bin"
    try:
        if not (home / ".whole").is_file():
            uv = run([repository_root() / "tools" / "ensure-uv"]).strip()
            run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, home])
            run([uv, "pip", "install", "--quiet", "--python", commands / "python", *WHEELS])
            (home / ".whole").touch()
    except ClusterError as error:
        notes.append(f"{' and '.join(WHEELS)} are left out: {error}")
        return None
    return commands
