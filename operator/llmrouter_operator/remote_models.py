"""Models from servers and registries: fetched beside the reconciles, kept while they are asked for."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import ValidationError

from llmrouter.config import MAX_CONFIG_BYTES
from llmrouter.errors import FetchError
from llmrouter.fetching.hosts import HostRule
from llmrouter.fetching.wanted import Credentials, Wanted
from llmrouter.manifest import ModelKind
from llmrouter.model_sources import HttpModelRef, OciModelRef
from llmrouter.resources import MODEL_TYPES
from llmrouter_operator.cluster import ClusterError
from llmrouter_operator.model_files import files_of_digest
from llmrouter_operator.models import SECRET, Delivery, ModelFiles, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llmrouter.fetching.wanted import Fetched
    from llmrouter_operator.cluster import Cluster
    from llmrouter_operator.models import Object, ObjectKey

logger = logging.getLogger(__name__)
AT_ONCE = 2
"""Child processes that fetch at the same time."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
FORGOTTEN_AFTER_S = 120.0
"""What nobody asked for so long is not kept: routers have it, or nobody wants it."""
DOCKER_CONFIG = "kubernetes.io/dockerconfigjson"
DOCKER_CONFIG_KEY = ".dockerconfigjson"
DOCKER_HUB = {"docker.io": "https://index.docker.io/v1/"}
"""How docker's configuration spells its own registry."""
FETCHING = Delivery(problem=Problem("Fetching", "the model is being fetched"))


@dataclass(slots=True)
class _Entry:
    """One model of one source: under way, here, or not to be had until ``again_at_s``."""

    asked_at_s: float
    askers: set[ObjectKey] = field(default_factory=set)
    task: asyncio.Task[None] | None = None
    delivery: Delivery = FETCHING
    failures: int = 0
    again_at_s: float = 0.0


class RemoteModels:
    """Belongs to one event loop.

    Args:
        cluster: where Secrets are read.
        allowed_hosts: entries of ``llmrouter.fetching.hosts.HostRule``.
        fetch: brings a model, or raises FetchError; see ``llmrouter.fetching.child.fetch``.
        clock_s: seconds, never going back.
    """

    def __init__(
        self,
        cluster: Cluster,
        allowed_hosts: Sequence[str],
        *,
        fetch: Callable[[Wanted], Awaitable[Fetched]],
        clock_s: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._allowed_hosts = tuple(allowed_hosts)
        self._fetch = fetch
        self._clock_s = clock_s
        self._nudge: Callable[[ObjectKey], None] = lambda _: None
        self._entries: dict[str, _Entry] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def listen(self, nudge: Callable[[ObjectKey], None]) -> None:
        """``nudge`` is told whose model has come, or will not."""
        self._nudge = nudge

    async def stop(self) -> None:
        """Ends all fetching."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self, asker: ObjectKey, part: Object | None, in_force: Object | None) -> Delivery | None:
        """What has come of the model that a part of a spec names, as the API server spells it; begins to fetch it.

        Args:
            asker: the LLMRouter that is to be nudged.
            part: what has ``type`` and ``model``.
            in_force: the ConfigMap that its routers read: a model that is there need not come again.

        Returns:
            ``None`` where the model is from nowhere else, or its spec is invalid, which others say.
        """
        model = (part or {}).get("model") or {}
        try:
            http = HttpModelRef.model_validate(model["http"]) if "http" in model else None
            oci = OciModelRef.model_validate(model["oci"]) if "oci" in model else None
        except ValidationError:
            return None
        source = http or oci
        if source is None:
            return None
        here = files_of_digest(in_force, model.get("sha256"))
        if here is not None:
            return Delivery(files=here)
        kind = ModelKind.POLICY if (part or {}).get("type") in MODEL_TYPES else ModelKind.OUTPUT_LENGTH
        try:
            secret = None if source.secret_ref is None else source.secret_ref.name
            credentials = await self._credentials(asker.namespace, secret, source.host)
            wanted = Wanted(
                http=http,
                oci=oci,
                kind=kind,
                sha256=model.get("sha256", ""),
                max_bytes=MAX_CONFIG_BYTES,
                allowed_hosts=self._allowed_hosts,
                credentials=credentials,
            )
        except ValidationError:
            return None
        except FetchError as error:
            return Delivery(problem=Problem(error.reason, str(error)))
        return self._delivery(asker, wanted)

    def _delivery(self, asker: ObjectKey, wanted: Wanted) -> Delivery:
        now_s = self._clock_s()
        self._forget(now_s)
        key = json.dumps([asker.namespace, wanted.model_dump(mode="json")], sort_keys=True)
        entry = self._entries.setdefault(key, _Entry(now_s))
        entry.asked_at_s = now_s
        entry.askers.add(asker)
        if entry.task is None and entry.delivery.files is None and now_s >= entry.again_at_s:
            entry.task = asyncio.create_task(self._bring(entry, wanted), name="fetch a model")
        return entry.delivery

    def _forget(self, now_s: float) -> None:
        old = [
            key
            for key, entry in self._entries.items()
            if entry.task is None and now_s - entry.asked_at_s > FORGOTTEN_AFTER_S and now_s >= entry.again_at_s
        ]
        for key in old:
            del self._entries[key]

    async def _bring(self, entry: _Entry, wanted: Wanted) -> None:
        try:
            async with self._slots:
                fetched = await self._fetch(wanted)
        except FetchError as error:
            entry.failures += 1
            entry.again_at_s = self._clock_s() + min(FIRST_PAUSE_S * 2 ** (entry.failures - 1), LONGEST_PAUSE_S)
            entry.delivery = Delivery(problem=Problem(error.reason, str(error)))
            logger.warning("a model could not be fetched: %s: %s", error.reason, error)
        else:
            encoded = base64.b64encode(fetched.model).decode()
            entry.delivery = Delivery(files=ModelFiles(encoded, fetched.manifest.decode(errors="replace")))
        finally:
            entry.task = None
        for asker in entry.askers:
            self._nudge(asker)

    async def _credentials(self, namespace: str, secret: str | None, host: str) -> Credentials | None:
        if secret is None:
            return None
        try:
            value = await self._cluster.get(SECRET, namespace, secret)
        except ClusterError as error:
            if error.reason != "Forbidden":
                raise
            raise FetchError("CredentialsInvalid", f"the operator may not read Secret {secret!r}") from error
        return credentials_of(value, secret, host)


def check_hosts(entries: Sequence[str]) -> tuple[str, ...]:
    """The entries themselves; raises InvalidConfigError naming the first that is none."""
    for entry in entries:
        HostRule.parse(entry)
    return tuple(entries)


def credentials_of(secret: Object | None, name: str, host: str) -> Credentials:
    """User and password for a host out of a Secret; raises FetchError (``CredentialsInvalid``).

    Only Secrets that say themselves whom they are for are read: whoever may write a RoutingPolicy must not be able to
    send any other anywhere.
    """
    if secret is None:
        raise FetchError("CredentialsInvalid", f"Secret {name!r} does not exist")
    if secret.get("type") != DOCKER_CONFIG:
        raise FetchError("CredentialsInvalid", f"Secret {name!r} must be of type {DOCKER_CONFIG}")
    try:
        hosts = json.loads(base64.b64decode((secret.get("data") or {})[DOCKER_CONFIG_KEY]))["auths"]
        entry = hosts.get(DOCKER_HUB.get(host, host)) or hosts.get(f"https://{host}") or hosts[host]
        if "auth" in entry:
            username, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
        else:
            username, password = entry["username"], entry["password"]
        return Credentials(host=host, username=username, password=password)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise FetchError("CredentialsInvalid", f"Secret {name!r} has no user and password for {host}") from error
