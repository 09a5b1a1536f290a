"""People's own models: from ConfigMaps, fetched from elsewhere, or in force already."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from llmrouter.config import digest_of
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.manifest import MAX_MODEL_BYTES, Rejection, check_manifest, parse_manifest
from llmrouter_operator.models import Delivery, ModelFiles

if TYPE_CHECKING:
    from llmrouter.manifest import Manifest, ModelKind
    from llmrouter.model_sources import ConfigMapModelRef, ModelSource
    from llmrouter_operator.models import Object, Seen


def model_reference(part: Object | None) -> str | None:
    """Name of the ConfigMap that a part of a spec, as the API server spells it, takes its model from, if from one."""
    reference = ((part or {}).get("model") or {}).get("configMap") or {}
    return reference.get("name")


def is_remote(part: Object | None) -> bool:
    """Whether a part of a spec, as the API server spells it, takes its model from a server or a registry."""
    return not {"http", "oci"}.isdisjoint((part or {}).get("model") or {})


def read_model(
    source: ModelSource, seen: Seen, *, kind: ModelKind, expected_sha256: str
) -> tuple[ModelFiles, Manifest]:
    """The model of a ConfigMap, a server or a registry, checked, and its manifest.

    Args:
        source: where the spec says that it is.
        seen: the ConfigMap, or what was fetched.
        kind: what it is to be used for.
        expected_sha256: digest of the ONNX bytes.

    Raises:
        InvalidConfigError: (``ModelNotFound``, ``ModelTooLarge``, or why it was not fetched) it is not here.
        ModelRejectedError: it must not run.
    """
    if source.config_map is not None:
        files = _from_config_map(source.config_map, None if isinstance(seen, Delivery) else seen)
    else:
        files = _delivered(seen)
    manifest = parse_manifest(files.manifest.encode())
    sha256 = digest_of(_decode(files.onnx_base64))
    check_manifest(manifest, expected_kind=kind, model_sha256=sha256, expected_sha256=expected_sha256)
    return files, manifest


def _delivered(seen: Seen) -> ModelFiles:
    if isinstance(seen, Delivery) and seen.files is not None:
        return seen.files
    if isinstance(seen, Delivery) and seen.problem is not None:
        raise InvalidConfigError(seen.problem.message, reason=seen.problem.reason)
    raise InvalidConfigError("the model is not here", reason="ModelNotFound")


def check_claim(source: ModelSource, mounted: str | None) -> None:
    """Raises InvalidConfigError (``ClaimNotMounted``) unless routers mount the claim that a model is on."""
    claim = source.persistent_volume_claim
    if claim is not None and claim.claim_name != mounted:
        message = f"the model is on claim {claim.claim_name!r}, which spec.router.models of the LLMRouter must name"
        raise InvalidConfigError(message, reason="ClaimNotMounted")


def _from_config_map(reference: ConfigMapModelRef, config_map: Object | None) -> ModelFiles:
    if config_map is None:
        raise InvalidConfigError(f"ConfigMap {reference.name!r} does not exist", reason="ModelNotFound")
    encoded = (config_map.get("binaryData") or {}).get(reference.model_key)
    if encoded is None:
        raise InvalidConfigError(
            f"ConfigMap {reference.name!r} has no binaryData key {reference.model_key!r}", reason="ModelNotFound"
        )
    content = _decode(encoded)
    if len(content) > MAX_MODEL_BYTES:
        raise InvalidConfigError(
            f"the model has {len(content)} bytes, more than {MAX_MODEL_BYTES}", reason="ModelTooLarge"
        )
    return ModelFiles(encoded, _read_manifest(reference, config_map).decode(errors="replace"))


def files_in_force(config_map: Object, *, model_key: str, manifest_key: str, sha256: str | None) -> ModelFiles:
    """A model out of the ConfigMap that routers read; raises ModelRejectedError where it is not that of ``sha256``."""
    encoded = (config_map.get("binaryData") or {}).get(model_key, "")
    manifest = (config_map.get("data") or {}).get(manifest_key, "")
    if digest_of(_decode(encoded)) != sha256:
        raise ModelRejectedError(Rejection.DIGEST_MISMATCH, "the model in force is not the one its configuration names")
    return ModelFiles(encoded, manifest)


def files_of_digest(config_map: Object | None, sha256: str | None) -> ModelFiles | None:
    """The model of that digest among those that routers read, whatever it is in force as."""
    content = config_map or {}
    manifests = content.get("data") or {}
    for key, encoded in (content.get("binaryData") or {}).items():
        manifest = manifests.get(key.removesuffix(".onnx") + ".manifest.json")
        try:
            if manifest is not None and digest_of(_decode(encoded)) == sha256:
                return ModelFiles(encoded, manifest)
        except ModelRejectedError:
            continue  # changed by another hand, and about to be put right
    return None


def _read_manifest(reference: ConfigMapModelRef, config_map: Object) -> bytes:
    text = (config_map.get("data") or {}).get(reference.manifest_key)
    if text is not None:
        return str(text).encode()
    encoded = (config_map.get("binaryData") or {}).get(reference.manifest_key)
    if encoded is None:
        raise InvalidConfigError(
            f"ConfigMap {reference.name!r} has no key {reference.manifest_key!r}", reason="ModelNotFound"
        )
    return _decode(encoded)


def _decode(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ModelRejectedError(Rejection.MODEL_CORRUPT, f"not base64: {error}") from error
