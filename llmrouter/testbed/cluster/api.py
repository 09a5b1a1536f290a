"""A small client of the Kubernetes API: what bringing a cluster up needs, without a client library."""

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrouter.testbed.cluster.errors import ClusterError


class ApiError(ClusterError):
    """The API server refused a request; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def kubeconfig(*, server: str, authority: Path, token: str, name: str = "llmrouter") -> dict[str, Any]:
    """A kubeconfig for one user of one cluster, the authority's certificate within."""
    trusted = base64.b64encode(authority.read_bytes()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": trusted}}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }


@dataclass(frozen=True)
class Api:
    """One user's way to one API server."""

    server: str
    authority: Path
    token: str

    def get(self, path: str) -> dict[str, Any]:
        """Reads an object or a list."""
        return self.call("GET", path)

    def exists(self, path: str) -> bool:
        """Whether an object is there; any refusal but "not found" is raised."""
        try:
            self.get(path)
        except ApiError as error:
            if error.status == http.HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    def ready(self) -> bool:
        """Whether the API server says that it is ready; False too while nobody answers."""
        try:
            self._send("GET", "/readyz", None, "application/json", timeout_s=5)
        except (OSError, http.client.HTTPException, ApiError):  # not up yet: asking again is what the caller does
            return False
        return True

    def apply(self, path: str, manifest: Mapping[str, Any], *, manager: str = "llmrouter-testbed") -> dict[str, Any]:
        """Server-side applies one object."""
        query = f"{path}?fieldManager={manager}&force=true"
        return self.call("PATCH", query, manifest, content_type="application/apply-patch+yaml")

    def call(
        self, verb: str, path: str, body: Mapping[str, Any] | None = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """One request; returns the decoded answer, raises `ApiError` with what the server said."""
        try:
            answer: dict[str, Any] = json.loads(self._send(verb, path, body, content_type) or b"{}")
        except OSError as error:
            raise ClusterError(f"{verb} {self.server}{path}: {error}") from error
        return answer

    def _send(
        self, verb: str, path: str, body: Mapping[str, Any] | None, content_type: str, *, timeout_s: float = 30
    ) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - always https, to the server that this run started
            self.server + path,
            method=verb,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.token}",
                "Content-Type": content_type,
                "Accept": "application/json",
            },
        )
        trusted = ssl.create_default_context(cafile=str(self.authority))
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )
        try:
            with direct.open(request, timeout=timeout_s) as answer:
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")
            raise ApiError(f"{verb} {path}: {error.code} {_message_of(said)}", error.code) from error


def _message_of(said: str) -> str:
    try:
        return str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):  # not a Status object: the plain text says it as well
        return said.strip()[:500]
