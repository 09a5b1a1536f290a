"""What the child process is asked, and what it answers."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from llmrouter.manifest import MAX_MODEL_BYTES, ModelKind
from llmrouter.model_sources import HttpModelRef, OciModelRef  # noqa: TC001 - read when fields are checked
from llmrouter.resource_types import Resource, Sha256


class Credentials(Resource):
    """User and password, for one host (``host`` or ``host:port``) and no other."""

    host: str
    username: str = Field(max_length=1024)
    password: str = Field(max_length=65_536, repr=False)


class Wanted(Resource):
    """One model, where it is, and what may be done to get it."""

    http: HttpModelRef | None = None
    oci: OciModelRef | None = None
    kind: ModelKind
    sha256: Sha256
    max_bytes: Annotated[int, Field(ge=1, le=MAX_MODEL_BYTES)]
    allowed_hosts: tuple[str, ...] = ()
    """Entries of ``llmrouter.fetching.hosts.HostRule``."""
    credentials: Credentials | None = None
    seconds: Annotated[float, Field(gt=0, le=600)] = 60.0
    """For everything together."""


class Fetched(NamedTuple):
    """The bytes of ``model.onnx``, which have the digest, and of its manifest, which fits them."""

    model: bytes
    manifest: bytes


class Told(Resource):
    """The first line of the child's answer: sizes of what follows, or why there is nothing."""

    model_bytes: int = Field(default=0, ge=0, le=MAX_MODEL_BYTES)
    manifest_bytes: int = Field(default=0, ge=0, le=MAX_MODEL_BYTES)
    reason: Annotated[str, Field(max_length=64)] = ""
    message: Annotated[str, Field(max_length=1024)] = ""
