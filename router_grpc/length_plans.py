"""How lengths are foretold under a configuration: its model loaded and checked, and whether that is as declared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidConfigError, ModelRejectedError
from router_grpc.adapters.length_models import load_lengths
from router_grpc.length_service import LengthPlan
from router_grpc.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter.config import PredictorConfig
    from router_grpc.adapters.length_models import OnnxLengths
    from router_grpc.adapters.tokenizers import TokenCounter

    Tokenizers = tuple[Mapping[str, TokenCounter], tuple[str, ...]]
    """Counters by model, and a line for each that could not be read."""

SHIPPED = {"Text": "text", "RandomForest": "random-forest"}
"""The shipped model of each type of predictor that has one."""


def length_plan(
    config: PredictorConfig,
    own_model: Callable[[], tuple[bytes, bytes]],
    find_model: Callable[[str, str], tuple[bytes, bytes]],
    *,
    tokenizers: Tokenizers = ({}, ()),
) -> tuple[LengthPlan, Readiness]:
    """The plan; where the declared model must not run, what is learned online answers alone, and the reason is told.

    ``own_model`` brings the declared model where it is one's own, or raises ModelRejectedError; ``find_model`` a
    shipped artefact by kind and name. Where a tokenizer could not be read, its prompts are
    estimated, and the message says so.
    """
    counters, problems = tokenizers
    plan = LengthPlan(
        counters=counters,
        learns=config.type != "Constant",
        constant_tokens=float(config.constant_tokens),
        deadline_s=config.deadline_milliseconds / 1000,
        exploration=config.exploration,
    )
    if config.type not in SHIPPED:
        return plan, Readiness(ready=True, reason=config.type, message="; ".join(problems))
    try:
        model = _model(config, own_model, find_model)
    except (InvalidConfigError, ModelRejectedError) as error:
        return plan, Readiness(ready=False, reason=error.reason, message="; ".join((str(error), *problems)))
    return replace(plan, model=model), Readiness(ready=True, reason="Loaded", message="; ".join(problems))


def _model(
    config: PredictorConfig,
    own_model: Callable[[], tuple[bytes, bytes]],
    find_model: Callable[[str, str], tuple[bytes, bytes]],
) -> OnnxLengths:
    content = find_model("output_length", SHIPPED[config.type]) if config.model_sha256 is None else own_model()
    model = load_lengths(*content, expected_sha256=config.model_sha256)
    if model.reads_prompts != (config.type == "Text"):
        raise ModelRejectedError("TypeMismatch", f"the model {model.name} is not of type {config.type}")
    return model
