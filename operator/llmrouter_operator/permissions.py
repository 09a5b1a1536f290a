"""What the operator must be allowed to do: one table, which the chart's roles are checked against."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter_operator.cluster import Cluster

_READ = ("get", "list", "watch")
_OWN = (*_READ, "create", "patch")


class Rule(NamedTuple):
    """Verbs on one resource (``plural/subresource``) of an API group."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    name: str = ""
    """The one object that the rule is about, or empty for all."""


RULES = (
    Rule("llmrouter.dev", "llmrouters", _READ),
    Rule("llmrouter.dev", "llmrouters/status", ("patch",)),
    Rule("llmrouter.dev", "routingpolicies", _READ),
    Rule("inference.networking.k8s.io", "inferencepools", _READ),
    Rule("", "configmaps", _OWN),
    Rule("", "services", _OWN),
    Rule("", "serviceaccounts", _OWN),
    Rule("", "pods", ("list", "watch")),
    Rule("", "events", ("create",)),
    Rule("apps", "deployments", _OWN),
    Rule("policy", "poddisruptionbudgets", _OWN),
    Rule("rbac.authorization.k8s.io", "roles", _OWN),
    Rule("rbac.authorization.k8s.io", "rolebindings", _OWN),
)
"""In every namespace that is looked after. Pods and InferencePools are watched by routers: nobody can give away what
they lack. That the API server does not know a kind denies nothing."""


REBALANCE_RULES = (
    Rule("apps", "deployments", ("get",)),
    Rule("apps", "deployments/scale", ("update",)),
    Rule("apps", "statefulsets", ("get",)),
    Rule("apps", "statefulsets/scale", ("update",)),
    Rule("leaderworkerset.x-k8s.io", "leaderworkersets", ("get",)),
    Rule("leaderworkerset.x-k8s.io", "leaderworkersets/scale", ("update",)),
    Rule("autoscaling", "horizontalpodautoscalers", ("list",)),
    Rule("", "pods", ("list", "patch")),
)
"""What rebalancing needs besides, where it is used: nothing of it is asked for at the start."""


def lease_rules(lease_name: str) -> tuple[Rule, ...]:
    """In the operator's own namespace."""
    return (
        Rule("coordination.k8s.io", "leases", ("create",)),
        Rule("coordination.k8s.io", "leases", ("get", "update"), lease_name),
    )


async def missing_permissions(
    cluster: Cluster, namespaces: Sequence[str | None], *, lease_namespace: str, lease_name: str
) -> list[str]:
    """Asks the API server about everything in the tables; returns what it denies: ``verb resource.group (where)``."""
    asked = [(rule, verb, namespace) for namespace in namespaces for rule in RULES for verb in rule.verbs]
    asked += [(rule, verb, lease_namespace) for rule in lease_rules(lease_name) for verb in rule.verbs]
    return await _denied(cluster, asked)


async def missing_rebalance_permissions(cluster: Cluster, namespace: str) -> list[str]:
    """What of ``REBALANCE_RULES`` the API server denies in a namespace."""
    return await _denied(cluster, [(rule, verb, namespace) for rule in REBALANCE_RULES for verb in rule.verbs])


async def _denied(cluster: Cluster, asked: Sequence[tuple[Rule, str, str | None]]) -> list[str]:
    answers = await asyncio.gather(
        *(
            cluster.may(verb=verb, group=rule.group, resource=rule.resource, namespace=namespace, name=rule.name)
            for rule, verb, namespace in asked
        )
    )
    return [
        f"{verb} {rule.resource}{'.' + rule.group if rule.group else ''} ({_where(namespace)})"
        for (rule, verb, namespace), allowed in zip(asked, answers, strict=True)
        if not allowed
    ]


def _where(namespace: str | None) -> str:
    return f"namespace {namespace}" if namespace else "all namespaces"
