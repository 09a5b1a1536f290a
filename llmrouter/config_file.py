"""A file of the product's own resources: one LLMRouter and its RoutingPolicy, as YAML documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import ValidationError

from llmrouter.config import explain
from llmrouter.errors import InvalidConfigError
from llmrouter.resource_types import Resource
from llmrouter.resources import API_VERSION, LLMRouterSpec, RoutingPolicySpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MAX_FILE_BYTES = 1_000_000

Spec = TypeVar("Spec", bound=Resource)


@dataclass(frozen=True, slots=True)
class Declared:
    """What a file declares: an LLMRouter, and the RoutingPolicies that it refers to."""

    name: str
    router: LLMRouterSpec
    policy_name: str
    policy: RoutingPolicySpec
    candidate: RoutingPolicySpec | None = None
    """The RoutingPolicy of ``spec.candidate``."""


def read_text(path: Path) -> str:
    """The file's text; raises InvalidConfigError naming it where it cannot be read or is too long."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidConfigError(f"{path}: more than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfigError(f"{path}: {error}") from error


def parse(text: str) -> Declared:
    """The file's resources, checked; raises InvalidConfigError naming the document and field."""
    documents = _documents(text)
    routers = [document for document in documents if document["kind"] == "LLMRouter"]
    if len(routers) != 1:
        raise InvalidConfigError(f"the file must hold exactly one LLMRouter, it holds {len(routers)}")
    router = _spec(routers[0], LLMRouterSpec)
    wanted, policy = router.policy_ref.name, _policy(documents, router.policy_ref.name)
    candidate = None if router.candidate is None else _policy(documents, router.candidate.policy_ref.name)
    return Declared(_name(routers[0]), router, wanted, policy, candidate)


def _policy(documents: Sequence[Mapping[str, Any]], wanted: str) -> RoutingPolicySpec:
    """The one RoutingPolicy of a name."""
    policies = [document for document in documents if document["kind"] == "RoutingPolicy" and _name(document) == wanted]
    if len(policies) != 1:
        raise InvalidConfigError(f"the file must hold exactly one RoutingPolicy {wanted!r}, it holds {len(policies)}")
    return _spec(policies[0], RoutingPolicySpec)


def parse_policy(text: str) -> tuple[str, RoutingPolicySpec]:
    """Name and spec of the only RoutingPolicy of a text; raises InvalidConfigError naming the document and field."""
    policies = [document for document in _documents(text) if document["kind"] == "RoutingPolicy"]
    if len(policies) != 1:
        raise InvalidConfigError(f"the file must hold exactly one RoutingPolicy, it holds {len(policies)}")
    return _name(policies[0]), _spec(policies[0], RoutingPolicySpec)


def _documents(text: str) -> list[dict[str, Any]]:
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidConfigError(f"not YAML: {str(error).splitlines()[0]}") from error
    for place, document in enumerate(documents, start=1):
        if not isinstance(document, dict) or document.get("apiVersion") != API_VERSION or "kind" not in document:
            raise InvalidConfigError(f"document {place}: must be a resource of apiVersion {API_VERSION}")
    return documents


def _name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidConfigError(f"{document['kind']}: metadata.name must be set")
    return name


def _spec(document: Mapping[str, Any], kind: type[Spec]) -> Spec:
    try:
        return kind.model_validate(document.get("spec"))
    except ValidationError as error:
        raise InvalidConfigError(f"{document['kind']} {_name(document)}: {explain(error)}") from error
