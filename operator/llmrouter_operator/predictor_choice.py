"""Chooses the length predictor that routers are told to run: the declared one, else the one in force, else no model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmrouter.config import (
    PREDICTOR_MANIFEST_KEY,
    PREDICTOR_MODEL_KEY,
    PredictorConfig,
    compile_predictor,
    predictor_type_of,
)
from llmrouter.errors import InvalidConfigError, ModelRejectedError
from llmrouter.manifest import ModelKind
from llmrouter_operator.model_files import check_claim, files_in_force, read_model
from llmrouter_operator.models import ModelFiles, PredictorChoice, Problem

if TYPE_CHECKING:
    from llmrouter.config import RouterConfig
    from llmrouter.manifest import Manifest
    from llmrouter.resources import PredictorSpec
    from llmrouter_operator.models import Object, Seen


class LastPredictor(NamedTuple):
    """The predictor in force, as the configuration that routers read has it."""

    config: PredictorConfig
    files: ModelFiles | None


def choose_predictor(
    spec: PredictorSpec, model: Seen, last: LastPredictor | None, *, claim: str | None = None
) -> PredictorChoice:
    """The declared predictor if it can be run; else the one in force, with the reason.

    Args:
        spec: what is declared.
        model: the ConfigMap that it names, as it is now, or what was fetched.
        last: the predictor in force.
        claim: the one that routers mount for models.
    """
    if spec.model is None:
        return PredictorChoice(compile_predictor(spec))
    sha256 = spec.model.sha256
    try:
        check_claim(spec.model, claim)
        if spec.model.persistent_volume_claim is not None:  # only routers see the volume: they check what is on it
            return PredictorChoice(compile_predictor(spec))
        files, manifest = read_model(spec.model, model, kind=ModelKind.OUTPUT_LENGTH, expected_sha256=sha256)
        _check_type(spec, manifest)
    except (InvalidConfigError, ModelRejectedError) as error:
        return keep_last(Problem(str(error.reason), str(error)), spec, last)
    return PredictorChoice(compile_predictor(spec), files=files)


def keep_last(problem: Problem, spec: PredictorSpec, last: LastPredictor | None) -> PredictorChoice:
    """The predictor in force, or quantiles per application, because of ``problem``; with the declared numbers."""
    in_force, files = (PredictorConfig(type="Applications"), None) if last is None else last
    same = in_force.model_dump(include={"type", "model_sha256", "model_path"})
    return PredictorChoice(compile_predictor(spec).model_copy(update=same), files=files, problem=problem)


def last_predictor(config: RouterConfig | None, config_map: Object | None) -> LastPredictor | None:
    """The predictor of the configuration in force; ``None`` where there is none, or its model is not beside it."""
    if config is None or config_map is None:
        return None
    if config.predictor.model_sha256 is None or config.predictor.model_path is not None:
        return LastPredictor(config.predictor, None)
    try:
        files = files_in_force(
            config_map,
            model_key=PREDICTOR_MODEL_KEY,
            manifest_key=PREDICTOR_MANIFEST_KEY,
            sha256=config.predictor.model_sha256,
        )
    except ModelRejectedError:
        return None  # another hand changed it: what is declared is decided anew
    return LastPredictor(config.predictor, files)


def _check_type(spec: PredictorSpec, manifest: Manifest) -> None:
    made_for = predictor_type_of(manifest)
    if spec.type != made_for:
        raise ModelRejectedError("TypeMismatch", f"the model is one of type {made_for}, predictor.type is {spec.type}")
