"""A model out of an OCI registry: an artefact whose layers are files, or an image whose layers are archives.

The distribution API, https://github.com/opencontainers/distribution-spec/blob/main/spec.md: a manifest by tag or
digest, then blobs by digest, with the token flow of https://distribution.github.io/distribution/spec/auth/token/.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from llmrouter.errors import FetchError
from llmrouter.fetching.archive import files_of
from llmrouter.fetching.transfer import UNAUTHORIZED
from llmrouter.fetching.wanted import Fetched
from llmrouter.manifest import MAX_MANIFEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.fetching.transfer import Answer, Client
    from llmrouter.fetching.wanted import Credentials

MODEL, MANIFEST = "model.onnx", "manifest.json"
TITLE = "org.opencontainers.image.title"
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
MAX_DOCUMENT_BYTES = 1_000_000
MAX_LAYERS = 64
REGISTRIES = {"docker.io": "registry-1.docker.io"}
"""Registries whose API is served elsewhere."""
_CHALLENGE = re.compile(r'(realm|service|scope)="([^"]*)"')
_REFERENCE = re.compile(r"^([^/]+)/([^:@]+)(?::([^@]+))?(?:@(sha256:[0-9a-f]{64}))?$")


class Reference(NamedTuple):
    """A parsed OCI reference."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises FetchError where it is none."""
        found = _REFERENCE.match(text)
        if found is None:
            raise FetchError("FetchFailed", "not a reference")
        return cls(*found.groups())

    @property
    def version(self) -> str:
        """What the registry is asked for."""
        return self.digest or self.tag or "latest"


class Registry:
    """One repository of one registry."""

    def __init__(self, client: Client, reference: Reference, credentials: Credentials | None) -> None:
        self._client = client
        self._reference = reference
        self._credentials = credentials
        self._authorization: str | None = None
        host, _, port = reference.registry.partition(":")
        scheme = "http" if client.hosts.is_plain(host.lower(), int(port) if port else None) else "https"
        self._base = f"{scheme}://{REGISTRIES.get(reference.registry, reference.registry)}/v2/{reference.repository}"

    def fetch(self, max_bytes: int) -> Fetched:
        """Model and manifest; raises FetchError."""
        layers = self._layers(self._document(self._reference.version))
        found: dict[str, bytes] = {}
        for layer in reversed(layers):  # what a later layer holds is on top
            for name, content in self._files(layer, max_bytes, {MODEL, MANIFEST} - found.keys()):
                found.setdefault(name, content)
            if len(found) == len((MODEL, MANIFEST)):
                return Fetched(found[MODEL], found[MANIFEST])
        missing = sorted({MODEL, MANIFEST} - found.keys())
        raise FetchError("ModelNotFound", f"no layer holds {missing[0]}")

    def _layers(self, document: dict[str, Any]) -> list[dict[str, Any]]:
        kind = document.get("mediaType")
        if kind in INDEXES or "manifests" in document:
            entries = [one for one in document.get("manifests", []) if one.get("mediaType") in MANIFESTS]
            if not entries:
                raise FetchError("ModelNotFound", "the index names no image")
            document = self._document(str(entries[0].get("digest")))
        layers = document.get("layers")
        if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
            raise FetchError("FetchFailed", f"the image's manifest must list at most {MAX_LAYERS} layers")
        return layers

    def _files(self, layer: dict[str, Any], max_bytes: int, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        title = (layer.get("annotations") or {}).get(TITLE)
        media = str(layer.get("mediaType", ""))
        limits = {MODEL: max_bytes, MANIFEST: MAX_MANIFEST_BYTES}
        if title in wanted:
            yield title, self._blob(layer, limits[title])
        elif title is None and "tar" in media:
            blob = self._blob(layer, 2 * max_bytes)
            yield from files_of(blob, media, {name: limits[name] for name in wanted}).items()

    def _document(self, version: str) -> dict[str, Any]:
        accept = ", ".join((*MANIFESTS, *INDEXES))
        body = self._get(f"manifests/{quote(version, safe=':')}", MAX_DOCUMENT_BYTES, accept)
        if version.startswith("sha256:"):
            _check(body, version, "the image's manifest")
        try:
            document = json.loads(body)
        except ValueError as error:
            raise FetchError("FetchFailed", "the image's manifest is no JSON") from error
        if not isinstance(document, dict):
            raise FetchError("FetchFailed", "the image's manifest is no JSON object")
        return document

    def _blob(self, layer: dict[str, Any], limit: int) -> bytes:
        size, digest = layer.get("size"), str(layer.get("digest"))
        if not isinstance(size, int) or not digest.startswith("sha256:"):
            raise FetchError("FetchFailed", "a layer without size and sha256")
        if size > limit:
            raise FetchError("ModelTooLarge", f"a layer has {size} bytes, more than {limit}")
        body = self._get(f"blobs/{quote(digest, safe=':')}", limit, "*/*")
        _check(body, digest, "a layer")
        return body

    def _get(self, path: str, limit: int, accept: str) -> bytes:
        answer = self._ask(path, limit, accept)
        if answer.status == UNAUTHORIZED and self._authorization is None:
            self._authorization = self._authorize(answer)
            answer = self._ask(path, limit, accept)
        return answer.ok(f"{self._reference.registry}/{self._reference.repository}")

    def _ask(self, path: str, limit: int, accept: str) -> Answer:
        headers = {"Accept": accept}
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        # Registries hand blobs over to storage elsewhere; what comes from there is checked by digest.
        return self._client.get(f"{self._base}/{path}", limit=limit, headers=headers, may_leave_host=True)

    def _authorize(self, refused: Answer) -> str:
        """The header that the registry asks for: a token from where it says, or user and password themselves."""
        challenge = refused.headers.get("WWW-Authenticate", "")
        basic = None if self._credentials is None else basic_of(self._credentials)
        if not challenge.lower().startswith("bearer "):
            if basic is None:
                raise FetchError("CredentialsRefused", f"{self._reference.registry} wants credentials: set secretRef")
            return basic
        asked = dict(_CHALLENGE.findall(challenge))
        query = {name: asked[name] for name in ("service", "scope") if name in asked}
        url = f"{asked.get('realm', '')}?{urlencode(query)}"
        headers = {} if basic is None else {"Authorization": basic}
        body = self._client.get(url, limit=MAX_DOCUMENT_BYTES, headers=headers).ok("the registry's tokens")
        try:
            told = json.loads(body)
            token = told.get("token") or told["access_token"]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FetchError("FetchFailed", "the registry's token cannot be read") from error
        return f"Bearer {token}"


def basic_of(credentials: Credentials) -> str:
    """The ``Authorization`` of user and password."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _check(body: bytes, digest: str, what: str) -> None:
    if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
        raise FetchError("DigestMismatch", f"{what} is not what its digest says")
