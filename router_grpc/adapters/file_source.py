"""A configuration from one file of the same resources: one LLMRouter and its RoutingPolicy, as YAML documents."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from llmrouter.config import canonical_json, compile_policy, compile_router, explain
from llmrouter.errors import InvalidConfigError
from llmrouter.resources import API_VERSION, LLMRouterSpec, Resource, RoutingPolicySpec
from router_grpc.runtime import ConfigBundle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from llmrouter.config import RouterConfig

MAX_FILE_BYTES = 1_000_000
POLL_S = 0.25

Spec = TypeVar("Spec", bound=Resource)


def compile_file(text: str) -> RouterConfig:
    """The configuration of a file's resources; raises InvalidConfigError naming the document and field."""
    documents = _documents(text)
    routers = [document for document in documents if document["kind"] == "LLMRouter"]
    if len(routers) != 1:
        raise InvalidConfigError(f"the file must hold exactly one LLMRouter, it holds {len(routers)}")
    name = _name(routers[0])
    spec = _spec(routers[0], LLMRouterSpec)
    for pool in spec.pools:
        if pool.selector is not None:
            raise InvalidConfigError(
                f"LLMRouter {name}: pools[{pool.name}].selector needs Kubernetes: standalone pools have endpoints"
            )
    wanted = spec.policy_ref.name
    policies = [document for document in documents if document["kind"] == "RoutingPolicy" and _name(document) == wanted]
    if len(policies) != 1:
        raise InvalidConfigError(f"the file must hold exactly one RoutingPolicy {wanted!r}, it holds {len(policies)}")
    policy = _spec(policies[0], RoutingPolicySpec)
    if policy.model is not None and policy.model.config_map is not None:
        raise InvalidConfigError(f"RoutingPolicy {wanted}: model.configMap needs Kubernetes: standalone has builtin")
    section = compile_policy(wanted, policy, model_sha256=policy.model.sha256 if policy.model else None)
    return compile_router(spec, name=name, namespace="", generation=0, policy=section)


class FileSource:
    """Follows one file. A version that cannot be used changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> RouterConfig:
        """The file as it is now; raises InvalidConfigError."""
        return compile_file(self._text())

    async def bundles(self, on_refused: Callable[[InvalidConfigError], None]) -> AsyncIterator[ConfigBundle]:
        """Every usable version of the file, the present one first; each other one is told once to ``on_refused``."""
        seen: str | None = None
        complaint = ""
        while True:
            try:
                text = await asyncio.to_thread(self._text)
                bundle = None if text == seen else _bundle(text)
            except InvalidConfigError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    on_refused(error)
                seen = None
            else:
                if bundle is not None:
                    yield bundle
                seen, complaint = text, ""
            await asyncio.sleep(POLL_S)

    def _text(self) -> str:
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise InvalidConfigError(f"{self._path}: more than {MAX_FILE_BYTES} bytes")
            return self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidConfigError(f"{self._path}: {error}") from error


def _bundle(text: str) -> ConfigBundle:
    return ConfigBundle(content=canonical_json(compile_file(text)))


def _documents(text: str) -> list[dict[str, Any]]:
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidConfigError(f"not YAML: {str(error).splitlines()[0]}") from error
    for place, document in enumerate(documents):
        if not isinstance(document, dict) or document.get("apiVersion") != API_VERSION or "kind" not in document:
            raise InvalidConfigError(f"document {place + 1}: must be a resource of apiVersion {API_VERSION}")
    return documents


def _name(document: dict[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidConfigError(f"{document['kind']}: metadata.name must be set")
    return name


def _spec(document: dict[str, Any], kind: type[Spec]) -> Spec:
    try:
        return kind.model_validate(document.get("spec"))
    except ValidationError as error:
        raise InvalidConfigError(f"{document['kind']} {_name(document)}: {explain(error)}") from error
