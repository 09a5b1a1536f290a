"""The manifest beside every ONNX file: what the model is, what it takes and gives, and what it was made from.

Checking one needs neither ONNX nor a model runtime, so that an operator can refuse a model before a router sees it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from llmrouter.errors import ModelRejectedError
from llmrouter.feature_set import (
    FEATURE_NAMES,
    FEATURE_VERSION,
    LEARNED_FEATURE_VERSION,
    LEARNED_INSTANCE_NAMES,
    LEARNED_LINE_NAMES,
    LENGTH_FEATURE_VERSION,
    PAPER_PER_INSTANCE,
    PAPER_QUEUE,
    PAPER_STATE_VERSION,
    WEIGHT_NAMES,
    length_feature_names,
    paper_state_names,
)

MAX_MANIFEST_BYTES = 256 * 1024
MAX_MODEL_BYTES = 16 * 1024 * 1024
MAX_FEATURES = 512


class Rejection(StrEnum):
    """Why a model is refused: the ``reason`` of ModelRejectedError."""

    DIGEST_MISMATCH = "DigestMismatch"  # the bytes are not those that were asked for
    MANIFEST_INVALID = "ManifestInvalid"
    FEATURE_VERSION_MISMATCH = "FeatureVersionMismatch"
    SHAPE_MISMATCH = "ShapeMismatch"
    MODEL_CORRUPT = "ModelCorrupt"  # the bytes are not those the manifest describes, or no runtime can read them
    SINGLE_ROUTER_ONLY = "SingleRouterOnly"  # the model must know every request in flight one by one
    NOT_FINITE = "NotFinite"  # the model answered a probe with NaN or infinity
    PROBE_FAILED = "ProbeFailed"  # the process that tried the model out did not live to say how it was


class PolicyForm(StrEnum):
    """What a policy model answers: costs of instances, or values of placing and holding, an agent's."""

    COSTS = "Costs"
    PAPER_AGENT = "PaperAgent"  # sees the state of arXiv 2408.13510, of a fixed number of instances
    SHARED_AGENT = "SharedAgent"  # sees any number of instances: ``llmrouter.routing.sight``


class ModelKind(StrEnum):
    """What a model is for."""

    POLICY = "policy"
    OUTPUT_LENGTH = "output_length"


Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._=/-]*$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dimension = Annotated[int, Field(ge=1, le=1_000_000)] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel, populate_by_name=True)


class Tensor(_Strict):
    """One input or output. ``None`` in the shape is a dimension that may be of any size."""

    name: Name
    dtype: Literal["float32"]
    shape: Annotated[tuple[Dimension, ...], Field(max_length=4, strict=False)]


class Bounds(_Strict):
    """The range, ends included, that a feature or an output is meant to lie in."""

    min: Finite
    max: Finite

    @model_validator(mode="after")
    def _ordered(self) -> Bounds:
        if self.min > self.max:
            raise ValueError(f"min {self.min} exceeds max {self.max}")
        return self


class TrainingData(_Strict):
    """One source of the rows a model was made from."""

    source: Annotated[str, Field(min_length=1, max_length=256)]
    licence: Annotated[str, Field(min_length=1, max_length=64)]
    rows: Annotated[int, Field(ge=0)]


class Manifest(_Strict):
    """``manifest.json``. Field names in the file are camelCase."""

    name: Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    kind: Annotated[ModelKind, Field(strict=False)]
    model_version: Annotated[str, Field(max_length=32, pattern=r"^\d+\.\d+\.\d+$")]
    feature_version: Annotated[int, Field(ge=1, le=10_000)]
    feature_names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MAX_FEATURES, strict=False)]
    applications: Annotated[tuple[Name, ...], Field(max_length=MAX_FEATURES - 1, strict=False)] = ()
    inputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=8, strict=False)]
    outputs: Annotated[tuple[Tensor, ...], Field(min_length=1, max_length=8, strict=False)]
    bounds: Annotated[dict[Name, Bounds], Field(max_length=MAX_FEATURES + 8)]
    training_data: Annotated[tuple[TrainingData, ...], Field(max_length=64, strict=False)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)]
    scores: Annotated[dict[Name, Finite], Field(max_length=512)]
    sha256: Sha256
    opset: Annotated[dict[Name, Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=8)]
    producer: Annotated[str, Field(min_length=1, max_length=128)]

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if len(set(self.feature_names)) != len(self.feature_names):
            raise ValueError("featureNames repeats a name")
        if len(set(self.applications)) != len(self.applications):
            raise ValueError("applications repeats a name")
        known = {*self.feature_names, *(tensor.name for tensor in self.outputs)}
        if unknown := sorted(set(self.bounds) - known):
            raise ValueError(f"bounds names {unknown[0]!r}, which is neither a feature nor an output")
        if missing := [name for name in self.feature_names if name not in self.bounds]:
            raise ValueError(f"bounds lacks the feature {missing[0]!r}")
        return self

    def to_json(self) -> bytes:
        """The file's bytes: two spaces of indent, fields in the order of the class."""
        return self.model_dump_json(by_alias=True, indent=2).encode() + b"\n"


def parse_manifest(raw: bytes) -> Manifest:
    """Reads ``manifest.json``; raises ModelRejectedError (``ManifestInvalid``) that names the first wrong field."""
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ModelRejectedError(
            Rejection.MANIFEST_INVALID, f"manifest has {len(raw)} bytes, more than {MAX_MANIFEST_BYTES}"
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ModelRejectedError(Rejection.MANIFEST_INVALID, f"{where}: {first['msg']}") from error


def check_manifest(
    manifest: Manifest, *, expected_kind: ModelKind | str, model_sha256: str, expected_sha256: str | None
) -> None:
    """Raises ModelRejectedError unless the manifest fits this program and the model's bytes.

    Args:
        manifest: what ``parse_manifest`` read.
        expected_kind: what the model is to be used for.
        model_sha256: hex digest of the ONNX bytes at hand.
        expected_sha256: the digest that whoever configured the model asked for; ``None`` where they asked for none.
    """
    if expected_sha256 is not None and expected_sha256.lower() != model_sha256:
        raise ModelRejectedError(
            Rejection.DIGEST_MISMATCH, f"the model's sha256 is {model_sha256}, asked for was {expected_sha256}"
        )
    if manifest.kind != expected_kind:
        raise ModelRejectedError(
            Rejection.MANIFEST_INVALID, f"kind: the model is a {manifest.kind} model, not {expected_kind}"
        )
    if manifest.kind is ModelKind.POLICY:
        _check_policy(manifest)
    elif manifest.feature_version > LENGTH_FEATURE_VERSION:
        _check_text(manifest)
    else:
        names = length_feature_names(manifest.applications)
        _check_features(manifest, LENGTH_FEATURE_VERSION, names)
        _check_tensors(manifest, inputs={"features": (None, len(names))})
    if manifest.sha256 != model_sha256:
        raise ModelRejectedError(
            Rejection.MODEL_CORRUPT, f"the model's sha256 is {model_sha256}, its manifest says {manifest.sha256}"
        )


def form_of(manifest: Manifest) -> PolicyForm:
    """What a policy model answers, by its feature version; that of a cost model where the version is none we know."""
    versions = {PAPER_STATE_VERSION: PolicyForm.PAPER_AGENT, LEARNED_FEATURE_VERSION: PolicyForm.SHARED_AGENT}
    return versions.get(manifest.feature_version, PolicyForm.COSTS)


def check_type(manifest: Manifest, policy_type: str) -> None:
    """Raises ModelRejectedError (``FeatureVersionMismatch``) unless a policy of this type runs such a model."""
    if (form_of(manifest) is PolicyForm.COSTS) != (policy_type == "Onnx"):
        other = "Learned" if policy_type == "Onnx" else "Onnx"
        raise ModelRejectedError(
            Rejection.FEATURE_VERSION_MISMATCH,
            f"a model of feature version {manifest.feature_version} is for a policy of type {other}, not {policy_type}",
        )


def _check_policy(manifest: Manifest) -> None:
    form = form_of(manifest)
    if form is PolicyForm.PAPER_AGENT:
        instances = max(1, (len(manifest.feature_names) - len(PAPER_QUEUE)) // len(PAPER_PER_INSTANCE))
        names = paper_state_names(instances)
        _check_features(manifest, PAPER_STATE_VERSION, names)
        _check_tensors(manifest, inputs={"state": (None, len(names))}, outputs={"values": (None, instances + 1)})
    elif form is PolicyForm.SHARED_AGENT:
        _check_features(manifest, LEARNED_FEATURE_VERSION, (*LEARNED_INSTANCE_NAMES, *LEARNED_LINE_NAMES))
        inputs = {"instances": (None, len(LEARNED_INSTANCE_NAMES)), "line": (len(LEARNED_LINE_NAMES),)}
        _check_tensors(manifest, inputs=inputs, outputs={"scores": (None,)})
    else:
        _check_features(manifest, FEATURE_VERSION, FEATURE_NAMES)
        _check_tensors(manifest, inputs={"features": (None, len(FEATURE_NAMES)), "weights": (len(WEIGHT_NAMES),)})


def _check_text(manifest: Manifest) -> None:
    """Two inputs, ``ids`` and ``dense``, and two outputs, ``quantiles`` and ``rank``."""
    # What the features are stands beside the code that computes them, which needs numpy; nothing else here does.
    from llmrouter.lengths.distribution import LEVELS  # noqa: PLC0415
    from llmrouter.lengths.text import DENSE, IDS, TEXT_FEATURE_NAMES, TEXT_FEATURE_VERSION  # noqa: PLC0415

    _check_features(manifest, TEXT_FEATURE_VERSION, TEXT_FEATURE_NAMES)
    _check_tensors(
        manifest,
        inputs={"ids": (None, IDS), "dense": (None, DENSE)},
        outputs={"quantiles": (None, len(LEVELS)), "rank": (None,)},
    )


def output_name(kind: ModelKind) -> str:
    """Name of the one output, shape (rows,), that models of a kind have; text models and agents have others."""
    return "costs" if kind is ModelKind.POLICY else "output_tokens"


def _check_features(manifest: Manifest, version: int, names: tuple[str, ...]) -> None:
    if manifest.feature_version != version:
        raise ModelRejectedError(
            Rejection.FEATURE_VERSION_MISMATCH,
            f"the model is made for feature version {manifest.feature_version}, this program has {version}",
        )
    if len(manifest.feature_names) != len(names):
        raise ModelRejectedError(
            Rejection.SHAPE_MISMATCH,
            f"the model takes {len(manifest.feature_names)} features, feature version {version} has {len(names)}",
        )
    for index, (got, want) in enumerate(zip(manifest.feature_names, names, strict=True)):
        if got != want:
            raise ModelRejectedError(
                Rejection.FEATURE_VERSION_MISMATCH, f"feature {index} is {got!r}, this program has {want!r} there"
            )


def _check_tensors(
    manifest: Manifest,
    *,
    inputs: dict[str, tuple[int | None, ...]],
    outputs: dict[str, tuple[int | None, ...]] | None = None,
) -> None:
    declared = {tensor.name: tensor.shape for tensor in manifest.inputs}
    if declared != inputs:
        raise ModelRejectedError(Rejection.SHAPE_MISMATCH, f"inputs are {declared}, not {inputs}")
    given = {tensor.name: tensor.shape for tensor in manifest.outputs}
    wanted = outputs or {output_name(manifest.kind): (None,)}
    if given != wanted:
        raise ModelRejectedError(Rejection.SHAPE_MISMATCH, f"outputs are {given}, not {wanted}")
