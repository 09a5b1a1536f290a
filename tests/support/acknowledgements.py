"""What a router says of itself to the operator, where all is well."""

from __future__ import annotations

from typing import Any

from llmrouter.acknowledgement import RouterAcknowledgement

WELL: dict[str, Any] = {
    "config_digest": "new",
    "generation": 1,
    "policy_name": "plain",
    "policy_type": "RoundRobin",
    "policy_digest": "d",
    "policy_ready": True,
    "policy_reason": "Active",
    "instances_ready": 8,
    "instances_total": 8,
    "in_flight": 0,
    "at_s": 0.0,
}


def said_by(router_id: str, **changes: Any) -> RouterAcknowledgement:  # noqa: ANN401 - any field
    """One that says so but for these fields; the policy it names decides, unless told."""
    said = WELL | changes
    return RouterAcknowledgement(router_id=router_id, **{"deciding": said["policy_name"], **said})
