"""Models in ConfigMaps: people's own, and those that travel with the configuration in force."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from llmrouter.config import digest_of
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.manifest import MAX_MODEL_BYTES, Rejection, check_manifest, parse_manifest
from llmrouter_operator.models import ModelFiles

if TYPE_CHECKING:
    from llmrouter.manifest import Manifest, ModelKind
    from llmrouter.resources import ConfigMapModelRef
    from llmrouter_operator.models import Object


def model_reference(part: Object | None) -> str | None:
    """Name of the ConfigMap that a part of a spec, as the API server spells it, takes its model from, if from one."""
    reference = ((part or {}).get("model") or {}).get("configMap") or {}
    return reference.get("name")


def read_model(
    reference: ConfigMapModelRef, config_map: Object | None, *, kind: ModelKind, expected_sha256: str
) -> tuple[ModelFiles, Manifest]:
    """The model that ``reference`` names, checked, and its manifest.

    Raises:
        InvalidConfigError: (``ModelNotFound``, ``ModelTooLarge``) there is none, or too much of it.
        ModelRejectedError: it must not run.
    """
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
    text = _read_manifest(reference, config_map)
    manifest = parse_manifest(text)
    check_manifest(manifest, expected_kind=kind, model_sha256=digest_of(content), expected_sha256=expected_sha256)
    return ModelFiles(encoded, text.decode()), manifest


def files_in_force(config_map: Object, *, model_key: str, manifest_key: str, sha256: str | None) -> ModelFiles:
    """A model out of the ConfigMap that routers read; raises ModelRejectedError where it is not that of ``sha256``."""
    encoded = (config_map.get("binaryData") or {}).get(model_key, "")
    manifest = (config_map.get("data") or {}).get(manifest_key, "")
    if digest_of(_decode(encoded)) != sha256:
        raise ModelRejectedError(Rejection.DIGEST_MISMATCH, "the model in force is not the one its configuration names")
    return ModelFiles(encoded, manifest)


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
