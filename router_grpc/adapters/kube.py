"""The Kubernetes API as a router needs it: follow objects, and say one thing of itself."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kubernetes.aio import client, config, watch

from llmrouter.config import (
    CANDIDATE_MANIFEST_KEY,
    CANDIDATE_MODEL_KEY,
    CONFIG_KEY,
    DIGEST_ANNOTATION,
    MANIFEST_KEY,
    MODEL_KEY,
    PREDICTOR_MANIFEST_KEY,
    PREDICTOR_MODEL_KEY,
)
from llmrouter.errors import InvalidConfigError
from router_grpc.runtime import ConfigBundle
from router_grpc.telling import SHORTEST_TURN_S, turn_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from llmrouter.acknowledgement import RouterAcknowledgement
    from router_grpc.telling import Turn

WATCH_TIMEOUT_S = 60
"""The server ends a watch after this long and it is begun anew: a watch that went silent lasts no longer."""

WATCH_CLIENT_TIMEOUT_S = 75
CALL_TIMEOUT_S = 5
LEARNED = 0.3
"""Weight of the last write among those before it."""
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
GONE = 410

_log = logging.getLogger(__name__)


async def connect(kubeconfig: str | None = None) -> client.ApiClient:
    """A client: in the cluster by the pod's service account, else by ``kubeconfig`` (or its default place).

    Raises:
        InvalidConfigError: there is neither.
    """
    if kubeconfig is None:
        try:
            config.load_incluster_config()
            return client.ApiClient()
        except config.ConfigException:
            _log.debug("not in a cluster: a kubeconfig is used")
    try:
        await config.load_kube_config(config_file=kubeconfig)
    except config.ConfigException as error:
        raise InvalidConfigError(f"neither in a cluster nor with a kubeconfig: {error}") from error
    return client.ApiClient()


@dataclass(frozen=True, slots=True)
class Listed:
    """All objects, after a list call; whatever was known before is replaced."""

    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """One object was added, modified or deleted."""

    deleted: bool
    item: Any


class BrokenEventError(Exception):
    """A watch event was cut short, or longer than the client reads in one line (a ConfigMap with a model in it)."""


async def follow(
    list_call: Callable[..., Awaitable[Any]], on_error: Callable[[Exception], None], **arguments: str
) -> AsyncIterator[Listed | Changed]:
    """Lists, then watches, for ever; errors are told to ``on_error`` and retried with growing pauses."""
    failures = 0
    while True:
        try:
            listing = await list_call(**arguments, _request_timeout=CALL_TIMEOUT_S)
            failures = 0
            items, version = _contents(listing)
            yield Listed(items)
            async for change in _watched(list_call, version, arguments):
                yield change
        except BrokenEventError:
            _log.debug("a watch event could not be read: listing instead")
        except Exception as error:  # noqa: BLE001 - following never ends; told, and tried again
            on_error(error)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1


async def _watched(
    list_call: Callable[..., Awaitable[Any]], version: str, arguments: dict[str, str]
) -> AsyncIterator[Changed]:
    """Watches from ``version`` until the server ends it, then goes on from there; returns where it has to be listed."""
    while True:
        try:
            stream = watch.Watch().stream(
                list_call,
                **arguments,
                resource_version=version,
                timeout_seconds=WATCH_TIMEOUT_S,
                _request_timeout=WATCH_CLIENT_TIMEOUT_S,
            )
            async for event in stream:
                if not isinstance(event, dict):  # the client library gives back what is no JSON as it is
                    raise BrokenEventError
                version = _version(event["object"])
                yield Changed(deleted=event["type"] == "DELETED", item=event["object"])
        except client.ApiException as error:
            if error.status == GONE:
                return
            raise
        except ValueError as error:
            raise BrokenEventError from error


def _contents(listing: Any) -> tuple[tuple[Any, ...], str]:  # noqa: ANN401 - values of the client library
    """What a list call gave, and of which version; kinds that the client library has no model of are mappings."""
    return tuple(listing["items"] if isinstance(listing, dict) else listing.items), _version(listing)


def _version(value: Any) -> str:  # noqa: ANN401 - a value of the client library
    version = value["metadata"]["resourceVersion"] if isinstance(value, dict) else value.metadata.resource_version
    return str(version)


def bundle_of(config_map: client.V1ConfigMap) -> ConfigBundle | None:
    """The configuration in a ConfigMap as it was read; ``None`` where the ConfigMap carries none."""
    data, binary = config_map.data or {}, config_map.binary_data or {}
    if CONFIG_KEY not in data:
        return None
    annotations = (config_map.metadata.annotations if config_map.metadata else None) or {}
    texts = {key: text.encode() for key, text in data.items()}
    models = {key: base64.b64decode(encoded) for key, encoded in binary.items()}
    return ConfigBundle(
        content=texts[CONFIG_KEY],
        declared_digest=annotations.get(DIGEST_ANNOTATION),
        model=models.get(MODEL_KEY),
        manifest=texts.get(MANIFEST_KEY),
        candidate_model=models.get(CANDIDATE_MODEL_KEY),
        candidate_manifest=texts.get(CANDIDATE_MANIFEST_KEY),
        predictor_model=models.get(PREDICTOR_MODEL_KEY),
        predictor_manifest=texts.get(PREDICTOR_MANIFEST_KEY),
    )


class ConfigMapSource:
    """Follows the one ConfigMap that the operator compiles for this router."""

    def __init__(
        self, core: client.CoreV1Api, *, namespace: str, name: str, on_error: Callable[[Exception], None]
    ) -> None:
        self._core = core
        self._namespace = namespace
        self._name = name
        self._on_error = on_error

    async def bundles(self, on_refused: Callable[[InvalidConfigError], None]) -> AsyncGenerator[ConfigBundle, None]:
        """Every configuration that appears; a deleted ConfigMap changes nothing: the last one stays in force."""
        async for event in follow(
            self._core.list_namespaced_config_map,
            self._on_error,
            namespace=self._namespace,
            field_selector=f"metadata.name={self._name}",
        ):
            items = event.items if isinstance(event, Listed) else () if event.deleted else (event.item,)
            for item in items:
                bundle = bundle_of(item)
                if bundle is None:
                    on_refused(InvalidConfigError(f"ConfigMap {self._name}: {CONFIG_KEY} must be set"))
                else:
                    yield bundle


class AcknowledgementWriter:
    """Writes this router's key, and only it, of the ConfigMap that the operator reads."""

    def __init__(self, core: client.CoreV1Api, *, namespace: str, name: str, key: str) -> None:
        self._core = core
        self._namespace = namespace
        self._name = name
        self._key = key
        self._takes_s = SHORTEST_TURN_S

    async def write(self, acknowledgement: RouterAcknowledgement) -> Turn:
        """Writes it; returns when it is this router's turn again.

        Raises the client's ApiException or a connection error where it could not be written.
        """
        content = json.dumps(acknowledgement.model_dump(mode="json", by_alias=True, exclude_none=True))
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        written = await self._core.patch_namespaced_config_map(
            self._name,
            self._namespace,
            {"data": {self._key: content}},
            _content_type="application/merge-patch+json",
            _request_timeout=CALL_TIMEOUT_S,
        )
        self._takes_s += LEARNED * (loop.time() - began_s - self._takes_s)
        return turn_of(self._key, written.data or {}, write_s=self._takes_s)
