"""Where a model may come from: the part of a spec that policies and predictors share."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from llmrouter.resource_types import ConfigMapKey, NameRef, ObjectName, RelativePath, Resource

ModelUrl = Annotated[
    str,
    StringConstraints(
        pattern=r'^https?://([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?/[!-"$-~]*$', max_length=2048
    ),
]
"""Without user, password and fragment."""
OciReference = Annotated[
    str,
    StringConstraints(
        pattern=r"^([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+"
        r"(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@sha256:[0-9a-f]{64})?$",
        max_length=512,
    ),
]
"""``registry[:port]/repository[:tag][@sha256:digest]``."""


class ConfigMapModelRef(Resource):
    """A model in a ConfigMap's binaryData (or data, for the manifest)."""

    name: ObjectName
    model_key: ConfigMapKey = "model.onnx"
    manifest_key: ConfigMapKey = "manifest.json"


class ClaimModelRef(Resource):
    """A folder with ``model.onnx`` and ``manifest.json`` on the volume that routers mount as ``router.models``."""

    claim_name: ObjectName
    path: RelativePath


class HttpModelRef(Resource):
    """A model behind a URL; without ``manifest_url``, the manifest is ``manifest.json`` beside it."""

    url: ModelUrl
    manifest_url: ModelUrl | None = None
    secret_ref: NameRef | None = None

    @property
    def host(self) -> str:
        """``host`` or ``host:port``, as the URL spells it: whom credentials are for."""
        return self.url.partition("://")[2].partition("/")[0]


class OciModelRef(Resource):
    """A model in an OCI artefact or image that holds ``model.onnx`` and ``manifest.json``."""

    reference: OciReference
    secret_ref: NameRef | None = None

    @property
    def host(self) -> str:
        """``host`` or ``host:port`` of the registry: whom credentials are for."""
        return self.reference.partition("/")[0]


class ModelSource(Resource):
    """Base of specs that name a model."""

    config_map: ConfigMapModelRef | None = None
    persistent_volume_claim: ClaimModelRef | None = None
    http: HttpModelRef | None = None
    oci: OciModelRef | None = None

    @property
    def remote(self) -> HttpModelRef | OciModelRef | None:
        """Where the operator fetches the model from, if it has to."""
        return self.http or self.oci

    @property
    def sources_given(self) -> int:
        """How many sources are named."""
        sources = (self.config_map, self.persistent_volume_claim, self.http, self.oci)
        return sum(one is not None for one in sources)
