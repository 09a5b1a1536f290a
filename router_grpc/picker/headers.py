"""Header names of the protocol, and headers as a gateway sends them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router_grpc.v1 import ext_proc_pb2 as pb

DESTINATION = "x-gateway-destination-endpoint"
"""Where the request goes: set by the picker, never believed of a client."""

DESTINATION_NAMESPACE = "envoy.lb"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
DROPPED_REASON = "x-llm-d-request-dropped-reason"
PREFILLER = "x-prefiller-host-port"

FORGEABLE = (SERVED, SUBSET, DROPPED_REASON, PREFILLER)
"""Headers of the gateway and the picker alone: taken from what a client sends."""

REQUEST_ID = "x-request-id"
TENANT = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
APPLICATION = "x-llmrouter-application"
PRIORITY = "x-llmrouter-priority"
DEADLINE_MS = "x-llmrouter-deadline-ms"
BATCH = "x-llmrouter-batch"

READ = {
    name.encode(): name
    for name in (
        ":path",
        ":method",
        ":status",
        "status",
        "content-type",
        REQUEST_ID,
        *TENANT,
        APPLICATION,
        PRIORITY,
        DEADLINE_MS,
        BATCH,
    )
}
"""Headers that say something here, by their names as they come."""

_STATUS = re.compile(r"[1-9][0-9]{2}")
_WHOLE = re.compile(r"-?[0-9]{1,12}")


def subset_of(metadata: pb.Metadata) -> frozenset[str] | None:
    """Endpoints that the gateway allows, or bare hosts for all of their ports; ``None`` where it is silent.

    Takes a list, a text with commas, and a list of such texts.
    """
    if SUBSET_NAMESPACE not in metadata.filter_metadata:
        return None
    fields = metadata.filter_metadata[SUBSET_NAMESPACE].fields
    if SUBSET not in fields:
        return None
    value = fields[SUBSET]
    texts = [one.string_value for one in value.list_value.values] if value.HasField("list_value") else []
    if value.HasField("string_value"):
        texts = [value.string_value]
    return frozenset(part for text in texts for one in text.split(",") if (part := one.strip()))


def served_endpoint(metadata: pb.Metadata) -> str:
    """The endpoint that really answered, as the gateway says; empty where it does not."""
    if DESTINATION_NAMESPACE not in metadata.filter_metadata:
        return ""
    fields = metadata.filter_metadata[DESTINATION_NAMESPACE].fields
    return str(fields[SERVED].string_value) if SERVED in fields else ""


def status_code(headers: Mapping[str, str]) -> int | None:
    """The status of an answer; ``None`` where it is not said."""
    text = headers.get(":status", headers.get("status", ""))
    return int(text) if _STATUS.fullmatch(text) else None


def whole_number(headers: Mapping[str, str], name: str) -> int:
    """A header's number; 0 where it is none: a hint that cannot be read is no hint."""
    if name not in headers:
        return 0
    text = headers[name].strip()
    return int(text) if _WHOLE.fullmatch(text) else 0
