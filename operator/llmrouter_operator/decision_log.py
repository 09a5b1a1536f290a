"""What router pods need for their decision log: a volume of files, or the credentials of an object store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.decision_log_spec import DECISIONS_FOLDER

if TYPE_CHECKING:
    from llmrouter.resources import LLMRouterSpec
    from llmrouter_operator.models import Object

VOLUME = "decisions"
SPARE_BYTES = 16 << 20
"""Beyond what the files may have: a pod whose volume is too small is evicted."""


def decision_volumes(spec: LLMRouterSpec) -> list[Object]:
    """The volume that files go to; none for other sinks."""
    log = spec.decision_log
    if log.sink != "File":
        return []
    if log.claim_name is not None:
        return [{"name": VOLUME, "persistentVolumeClaim": {"claimName": log.claim_name}}]
    limit = log.max_bytes * spec.router.processes + SPARE_BYTES
    return [{"name": VOLUME, "emptyDir": {"sizeLimit": str(limit)}}]


def decision_mounts(spec: LLMRouterSpec) -> list[Object]:
    """Where the router finds it."""
    return [{"name": VOLUME, "mountPath": DECISIONS_FOLDER}] if spec.decision_log.sink == "File" else []


def store_credentials(spec: LLMRouterSpec) -> list[Object]:
    """The Secret whose keys are environment variables of the object store; routers run without it as well."""
    secret = spec.decision_log.secret_ref
    return [] if secret is None else [{"secretRef": {"name": secret.name, "optional": True}}]
