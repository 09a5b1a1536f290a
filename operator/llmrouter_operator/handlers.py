"""What the operator watches: every event only says which LLMRouter to look at again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kopf

from llmrouter_operator.models import (
    DEPLOYMENT,
    LLM_ROUTER,
    MANAGED_BY_LABEL,
    MANAGER,
    OWNED_KINDS,
    ROUTER_LABEL,
    ROUTING_POLICY,
    ObjectKey,
    key_of,
    metadata_of,
)
from llmrouter_operator.news import News

if TYPE_CHECKING:
    from llmrouter_operator.controller import Controller
    from llmrouter_operator.seen import SeenObjects


_KINDS = {kind.kind: kind for kind in OWNED_KINDS}
OWNED_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER},{ROUTER_LABEL}"
"""What the API server sends of the kinds that are owned: nothing of anyone else's."""


def register(registry: kopf.OperatorRegistry, controller: Controller, seen: SeenObjects) -> None:
    """Puts the handlers into ``registry``. They store nothing in objects and add no finalizer."""
    news = News()

    async def router_event(body: kopf.Body, event: kopf.RawEvent, **_: object) -> None:
        value = dict(body)
        if seen.event(LLM_ROUTER, value, deleted=event["type"] == "DELETED"):
            controller.nudge(key_of(value))

    async def policy_event(body: kopf.Body, event: kopf.RawEvent, **_: object) -> None:
        value = dict(body)
        if seen.event(ROUTING_POLICY, value, deleted=event["type"] == "DELETED"):
            controller.nudge_namespace(key_of(value).namespace)

    async def owned_event(body: kopf.Body, event: kopf.RawEvent, resource: kopf.Resource, **_: object) -> None:
        value, kind, deleted = dict(body), _KINDS[str(resource.kind)], event["type"] == "DELETED"
        metadata = metadata_of(value)
        owner = ObjectKey(metadata["namespace"], metadata["labels"][ROUTER_LABEL])
        if kind == DEPLOYMENT:
            seen.drop_pods(owner)
        is_new = seen.event(kind, value, deleted=deleted)
        if news.in_event(kind.kind, value, deleted=deleted) and is_new:
            controller.nudge(owner)

    kopf.on.event(LLM_ROUTER.group, LLM_ROUTER.version, LLM_ROUTER.plural, registry=registry)(router_event)
    kopf.on.event(ROUTING_POLICY.group, ROUTING_POLICY.version, ROUTING_POLICY.plural, registry=registry)(policy_event)
    for kind in OWNED_KINDS:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry)(owned_event)
