"""Asks a child process to fetch a model, and believes nothing of it that was not checked here."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from typing import TYPE_CHECKING

from pydantic import ValidationError

from llmrouter.errors import FetchError
from llmrouter.fetching.transfer import AUTHORITIES
from llmrouter.fetching.wanted import Fetched, Told
from llmrouter.manifest import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.fetching.wanted import Wanted

GRACE_S = 5.0
"""How long after its own limit the child is ended."""
MAX_LINE_BYTES = 4096
PASSED_ON = ("PATH", "PYTHONPATH", "SSL_CERT_FILE", "SSL_CERT_DIR", AUTHORITIES)
"""Of the environment, for the child: no password, no token, no proxy."""


async def fetch(wanted: Wanted, environment: Mapping[str, str] | None = None) -> Fetched:
    """The model; raises FetchError, whose reason is also one of ``llmrouter.manifest.Rejection``."""
    given = os.environ if environment is None else environment
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llmrouter.fetching",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env={name: given[name] for name in PASSED_ON if name in given}, start_new_session=True,
        limit=MAX_LINE_BYTES,
    )  # fmt: skip
    try:
        async with asyncio.timeout(wanted.seconds + GRACE_S):
            return await _ask(child, wanted)
    except TimeoutError as error:
        raise FetchError("FetchTimeout", f"fetching took more than {wanted.seconds:g} s") from error
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def _ask(child: asyncio.subprocess.Process, wanted: Wanted) -> Fetched:
    if child.stdin is None or child.stdout is None:
        raise FetchError("FetchFailed", "the fetching process has no pipes")
    try:
        child.stdin.write(wanted.model_dump_json(by_alias=True, exclude_none=True).encode())
        await child.stdin.drain()
        child.stdin.close()
        told = Told.model_validate_json(await child.stdout.readline())
        if told.reason:
            raise FetchError(told.reason, told.message)
        if told.model_bytes > wanted.max_bytes or told.manifest_bytes > MAX_MANIFEST_BYTES:
            raise FetchError("ModelTooLarge", "the fetching process brings more than was asked for")
        model = await child.stdout.readexactly(told.model_bytes)
        manifest = await child.stdout.readexactly(told.manifest_bytes)
    except (ValidationError, ValueError, EOFError, OSError) as error:
        raise FetchError("FetchFailed", "the fetching process ended without an answer") from error
    if hashlib.sha256(model).hexdigest() != wanted.sha256:
        raise FetchError("DigestMismatch", "the fetching process brings other bytes than were asked for")
    return Fetched(model, manifest)
