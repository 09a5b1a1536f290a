"""What an InferencePool selects, followed while it lives: pods by label, and which of their ports serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes.aio import client

from llmrouter.errors import InvalidConfigError
from llmrouter.inference_pool import GROUP, PLURAL, VERSION, read_inference_pool
from router_grpc.adapters.kube import Listed, follow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llmrouter.inference_pool import InferencePool

ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""Annotations of a pod, of which the first that is there counts: target ports that serve now, as ``8000,8001``."""

NOT_FOUND = 404


async def follow_inference_pool(
    core: client.CoreV1Api,
    tell: Callable[[InferencePool | None], None],
    *,
    namespace: str,
    name: str,
    on_error: Callable[[Exception], None],
) -> None:
    """Tells what the InferencePool says whenever that may have changed, ``None`` while there is none; never returns.

    One that cannot be read is told to ``on_error``, and what was told before stays. Where the API server does not know
    the kind there is none; if it did before, it is starting and will know it again.
    """
    was_told = False

    def failed(error: Exception) -> None:
        if not was_told and isinstance(error, client.ApiException) and error.status == NOT_FOUND:
            tell(None)
        on_error(error)

    async for event in follow(
        client.CustomObjectsApi(core.api_client).list_namespaced_custom_object,
        failed,
        group=GROUP,
        version=VERSION,
        namespace=namespace,
        plural=PLURAL,
        field_selector=f"metadata.name={name}",
    ):
        items = event.items if isinstance(event, Listed) else () if event.deleted else (event.item,)
        try:
            found = read_inference_pool(items[0], name) if items else None
        except InvalidConfigError as error:
            on_error(error)
            continue
        was_told = True
        tell(found)


def active_ports(annotations: Mapping[str, str] | None, ports: Sequence[int]) -> tuple[int, ...]:
    """Those of ``ports`` that a pod says serve now; all where it says nothing, none where it names none of them."""
    said = [annotations[name] for name in ACTIVE_PORTS if name in annotations] if annotations else []
    if not said:
        return tuple(ports)
    named = {part.strip() for part in said[0].split(",")}
    return tuple(port for port in ports if str(port) in named)
