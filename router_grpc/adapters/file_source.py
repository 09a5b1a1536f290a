"""A configuration from one file of the same resources: one LLMRouter and its RoutingPolicy, as YAML documents."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.config import canonical_json, compile_policy, compile_router, digest_of, predictor_type_of
from llmrouter.config_file import parse, read_text
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.manifest import (
    MAX_MANIFEST_BYTES,
    MAX_MODEL_BYTES,
    ModelKind,
    check_manifest,
    check_type,
    parse_manifest,
)
from llmrouter.resources import MODEL_TYPES
from router_grpc.adapters.fetched_models import FetchedModels
from router_grpc.runtime import ConfigBundle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from llmrouter.config import PolicyConfig, RouterConfig
    from llmrouter.config_file import Declared
    from llmrouter.manifest import Manifest
    from llmrouter.resources import RoutingPolicySpec
    from router_grpc.adapters.own_models import Files

POLL_S = 0.25


def compile_file(text: str) -> RouterConfig:
    """The configuration of a file's resources; raises InvalidConfigError naming the document and field."""
    declared = parse(text)
    where = f"LLMRouter {declared.name}"
    for pool in declared.router.pools:
        if pool.endpoints is None:
            field = "selector" if pool.selector is not None else "inferencePoolRef"
            raise InvalidConfigError(
                f"{where}: pools[{pool.name}].{field} needs Kubernetes: standalone pools have endpoints"
            )
    picker = declared.router.listeners.ext_proc
    if picker is not None and picker.certificate_secret_ref is not None:
        raise InvalidConfigError(
            f"{where}: listeners.extProc.certificateSecretRef needs Kubernetes: standalone has --certificate DIR"
        )
    if declared.router.predictor.model is not None and declared.router.predictor.model.config_map is not None:
        raise InvalidConfigError(f"{where}: predictor.model.configMap needs Kubernetes: standalone has --predictor DIR")
    section, candidate = _section(declared.policy_name, declared.policy), None
    if declared.router.candidate is not None and declared.candidate is not None:
        candidate = _section(declared.router.candidate.policy_ref.name, declared.candidate)
        if candidate.model_copy(update={"name": section.name}) == section:
            raise InvalidConfigError(f"{where}: candidate.policyRef refers to a policy that is the same as policyRef's")
    return compile_router(
        declared.router, name=declared.name, namespace="", generation=0, policy=section, candidate=candidate
    )


def _section(name: str, spec: RoutingPolicySpec) -> PolicyConfig:
    model = spec.model
    if model is not None and model.config_map is not None:
        raise InvalidConfigError(
            f"RoutingPolicy {name}: model.configMap needs Kubernetes: standalone has builtin, and --policy-model DIR "
            "in its place"
        )
    return compile_policy(name, spec, model_sha256=model.sha256 if model else None)


class FileSource:
    """Follows one file. A version that cannot be used changes nothing.

    ``predictor`` is the folder of an output-length model of one's own, ``policy_model`` that of a policy model in place
    of the file's ``model.builtin``; they are read again with every version of the file. ``models`` is the folder that
    stands for the volume of ``router.models``; ``clock_s`` gives seconds that never go back.
    """

    def __init__(
        self,
        path: Path,
        *,
        predictor: Path | None = None,
        policy_model: Path | None = None,
        models: Path | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._models = models
        self._fetched = FetchedModels(clock_s)
        self._predictor = predictor
        self._policy_model = policy_model

    def read(self) -> RouterConfig:
        """The file as it is now; raises InvalidConfigError."""
        return self._compile(read_text(self._path))[0]

    async def bundles(self, on_refused: Callable[[InvalidConfigError], None]) -> AsyncIterator[ConfigBundle]:
        """Every usable version of the file, the present one first; each other one is told once to ``on_refused``."""
        seen: str | None = None
        complaint = ""
        while True:
            try:
                text = await asyncio.to_thread(read_text, self._path)
                bundle = None if text == seen else await asyncio.to_thread(self._bundle, text)
            except InvalidConfigError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    on_refused(error)
                seen = None
            else:
                if bundle is not None:
                    yield bundle
                seen, complaint = text, ""
            await asyncio.sleep(POLL_S)

    def _bundle(self, text: str) -> ConfigBundle:
        return self._compile(text)[1]

    def _compile(self, text: str) -> tuple[RouterConfig, ConfigBundle]:
        config = compile_file(text)
        bundle = self._named(config, parse(text))
        if self._predictor is not None:
            model, manifest = _read_predictor(self._predictor, config.predictor.type)
            predictor = config.predictor.model_copy(update={"model_sha256": digest_of(model), "model_path": None})
            config = config.model_copy(update={"predictor": predictor})
            bundle = replace(bundle, predictor_model=model, predictor_manifest=manifest)
        forced = config.policy.guard.force_fallback
        if self._policy_model is not None and config.policy.type in MODEL_TYPES and not forced:
            model, manifest = _read_policy_model(self._policy_model, config.policy.type)
            given = {"model_builtin": None, "model_path": None, "model_sha256": digest_of(model)}
            policy = config.policy.model_copy(update=given)
            config = config.model_copy(update={"policy": policy})
            bundle = replace(bundle, model=model, manifest=manifest)
        return config, replace(bundle, content=canonical_json(config))

    def _named(self, config: RouterConfig, declared: Declared) -> ConfigBundle:
        """Without its content: the models that the file names by URL or reference; raises InvalidConfigError."""
        bundle = ConfigBundle(content=b"")
        paths = [
            None if self._policy_model is not None else config.policy.model_path,
            None if self._predictor is not None else config.predictor.model_path,
            None if config.candidate is None else config.candidate.policy.model_path,
        ]
        if any(path is not None for path in paths) and self._models is None:
            raise InvalidConfigError("a model on a persistentVolumeClaim: standalone has --models DIR in its place")
        policy = None if self._policy_model is not None else self._policy(declared.policy, "RoutingPolicy")
        if policy is not None:
            bundle = replace(bundle, model=policy.model, manifest=policy.manifest)
        candidate = self._policy(declared.candidate, "RoutingPolicy of candidate")
        if candidate is not None:
            bundle = replace(bundle, candidate_model=candidate.model, candidate_manifest=candidate.manifest)
        model = declared.router.predictor.model
        if model is not None and model.remote is not None and self._predictor is None:
            where = "predictor.model"
            files = self._fetched.get(where, model, kind=ModelKind.OUTPUT_LENGTH, sha256=model.sha256)
            bundle = replace(bundle, predictor_model=files.model, predictor_manifest=files.manifest)
        return bundle

    def _policy(self, spec: RoutingPolicySpec | None, who: str) -> Files | None:
        if spec is None or spec.model is None or spec.model.remote is None or spec.guard.force_fallback:
            return None
        sha256 = spec.model.sha256 or ""
        return self._fetched.get(f"{who}: model", spec.model, kind=ModelKind.POLICY, sha256=sha256)


def _read_policy_model(folder: Path, policy_type: str) -> tuple[bytes, bytes]:
    """Model and manifest of a folder that ``llmrouter train`` wrote; raises InvalidConfigError."""
    model, raw, manifest = _read_model(folder, ModelKind.POLICY, "--policy-model")
    try:
        check_type(manifest, policy_type)
    except ModelRejectedError as error:
        raise InvalidConfigError(f"--policy-model {folder}: {error}") from error
    return model, raw


def _read_predictor(folder: Path, wanted: str) -> tuple[bytes, bytes]:
    """Model and manifest of a folder that ``llmrouter predictor fit`` wrote; raises InvalidConfigError."""
    model, raw, manifest = _read_model(folder, ModelKind.OUTPUT_LENGTH, "--predictor")
    made_for = predictor_type_of(manifest)
    if made_for != wanted:
        raise InvalidConfigError(f"--predictor {folder}: a model of predictor.type {made_for}, the file says {wanted}")
    return model, raw


def _read_model(folder: Path, kind: ModelKind, option: str) -> tuple[bytes, bytes, Manifest]:
    model = _read_bytes(folder / "model.onnx", MAX_MODEL_BYTES)
    raw = _read_bytes(folder / "manifest.json", MAX_MANIFEST_BYTES)
    try:
        manifest = parse_manifest(raw)
        check_manifest(manifest, expected_kind=kind, model_sha256=digest_of(model), expected_sha256=None)
    except ModelRejectedError as error:
        raise InvalidConfigError(f"{option} {folder}: {error}") from error
    return model, raw, manifest


def _read_bytes(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise InvalidConfigError(f"{path}: more than {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise InvalidConfigError(f"{path}: {error.strerror}") from error
