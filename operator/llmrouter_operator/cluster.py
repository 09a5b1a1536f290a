"""The API server as the operator needs it: reads, server-side apply, Events and leases, over the official client."""

from __future__ import annotations

import json
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
from kubernetes.aio import client, config

from llmrouter.errors import LLMRouterError
from llmrouter_operator.models import ACCESS_REVIEW, EVENT, MANAGER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter_operator.models import Kind, Object

REQUEST_TIMEOUT_S = 15.0
_MESSAGE_BYTES = 1024


class ClusterError(LLMRouterError):
    """The API server refused a call or did not answer. ``status`` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.reason = {403: "Forbidden", 409: "Conflict", 422: "Refused"}.get(status, "ApiServerError")


class Cluster:
    """Calls the API server as the pod's service account, or as the kubeconfig says. Close it when done."""

    def __init__(self, api: Any) -> None:  # noqa: ANN401 - the client has no types
        self._api = api

    @classmethod
    async def connect(cls) -> Cluster:
        """Uses the mounted service account, else the kubeconfig; raises ClusterError where there is neither."""
        configuration = client.Configuration()
        try:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                await config.load_kube_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise ClusterError(f"no service account and no kubeconfig: {error}", 0) from error
        return cls(client.ApiClient(configuration=configuration))

    async def close(self) -> None:
        """Gives connections back."""
        await self._api.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One object, or ``None`` where there is none."""
        try:
            return await self._call("GET", _path(kind, namespace, name))
        except ClusterError as error:
            if error.status == 404:  # noqa: PLR2004
                return None
            raise

    async def find(self, kind: Kind, namespace: str, *, labels: Mapping[str, str] | None = None) -> list[Object]:
        """All objects of a kind in a namespace, filtered by labels."""
        selector = ",".join(f"{name}={value}" for name, value in (labels or {}).items())
        query = {"labelSelector": selector} if selector else {}
        answer = await self._call("GET", _path(kind, namespace), query=query)
        items: list[Object] = answer.get("items") or []
        return items

    async def apply(self, kind: Kind, value: Object) -> Object:
        """Server-side apply: takes the fields of ``value`` over, leaves all others; returns what came of it."""
        return await self._apply(kind, value, "")

    async def apply_status(self, kind: Kind, value: Object) -> Object:
        """Server-side apply of the status subresource."""
        return await self._apply(kind, value, "/status")

    async def remove_keys(self, kind: Kind, namespace: str, name: str, keys: tuple[str, ...]) -> None:
        """Removes keys of a ConfigMap's data and touches nothing else."""
        body = {"data": dict.fromkeys(keys)}
        await self._call("PATCH", _path(kind, namespace, name), body=body, content_type="application/merge-patch+json")

    async def create(self, kind: Kind, namespace: str, value: Object) -> Object:
        """Creates an object; raises ClusterError 409 where it exists."""
        return await self._call("POST", _path(kind, namespace), body=value)

    async def replace(self, kind: Kind, namespace: str, value: Object) -> Object:
        """Replaces an object as it was read; raises ClusterError 409 where another writer came first."""
        return await self._call("PUT", _path(kind, namespace, value["metadata"]["name"]), body=value)

    async def merge(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        """Merges ``body`` into an object (JSON merge patch): what is ``None`` in it is removed."""
        path, query = _path(kind, namespace, name), {"fieldManager": MANAGER}
        return await self._call("PATCH", path, query=query, body=body, content_type="application/merge-patch+json")

    async def replace_scale(self, kind: Kind, namespace: str, scale: Object) -> Object:
        """Sets replicas; raises ClusterError 409 where the object is no longer of the scale's resource version."""
        path = f"{_path(kind, namespace, scale['metadata']['name'])}/scale"
        return await self._call("PUT", path, query={"fieldManager": MANAGER}, body=scale)

    async def post_event(self, namespace: str, event: Object) -> None:
        """Posts an Event."""
        await self._call("POST", _path(EVENT, namespace), body=event)

    async def may(self, *, verb: str, group: str, resource: str, namespace: str | None, name: str = "") -> bool:
        """Asks whether this caller may ``verb`` a resource (``plural/subresource``), in all namespaces for ``None``."""
        plural, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": plural, "subresource": subresource, "name": name}
        spec = {"resourceAttributes": {**attributes, **({"namespace": namespace} if namespace else {})}}
        body = {"apiVersion": ACCESS_REVIEW.api_version, "kind": ACCESS_REVIEW.kind, "spec": spec}
        answer = await self._call("POST", _path(ACCESS_REVIEW, ""), body=body)
        return bool(answer["status"]["allowed"])

    async def serves(self, kind: Kind) -> bool:
        """Whether the API server knows a kind."""
        try:
            answer = await self._call("GET", f"/apis/{kind.group}/{kind.version}")
        except ClusterError as error:
            if error.status == 404:  # noqa: PLR2004
                return False
            raise
        return any(resource["name"] == kind.plural for resource in answer["resources"])

    async def _apply(self, kind: Kind, value: Object, subresource: str) -> Object:
        metadata = value["metadata"]
        path = _path(kind, metadata["namespace"], metadata["name"]) + subresource
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._call("PATCH", path, query=query, body=value, content_type="application/apply-patch+yaml")

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        request = await self._api.param_serialize(
            method, path, query_params=list((query or {}).items()), header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            answer = await self._api.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S))
            content: bytes = await answer.read()
        except (TimeoutError, aiohttp.ClientError, ssl.SSLError, OSError) as error:
            raise ClusterError(f"{method} {path}: {type(error).__name__}: {error}", 0) from error
        if not 200 <= answer.status <= 299:  # noqa: PLR2004
            raise ClusterError(_message(content) or f"{method} {path}: HTTP {answer.status}", answer.status)
        result: Object = json.loads(content)
        return result


def _path(kind: Kind, namespace: str, name: str = "") -> str:
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{kind.plural}" + (f"/{name}" if name else "")


def _message(content: bytes) -> str:
    """What the API server says of a refusal, in one line."""
    try:
        return str(json.loads(content)["message"])[:_MESSAGE_BYTES]
    except (ValueError, KeyError, TypeError):
        return content[:_MESSAGE_BYTES].decode(errors="replace")
