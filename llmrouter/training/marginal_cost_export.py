"""Exports the marginal cost, after holding the graph against the formula on thousands of inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.domain import Instance, InstanceView, Load, Request
from llmrouter.feature_set import FEATURE_NAMES, FEATURE_VERSION, WEIGHT_NAMES
from llmrouter.manifest import Bounds, Manifest, ModelKind, Tensor
from llmrouter.profiles import PROFILES
from llmrouter.routing.features import features_of
from llmrouter.routing.marginal_cost import marginal_cost
from llmrouter.training.cards import marginal_cost_card
from llmrouter.training.marginal_cost_graph import OPSET, marginal_cost_model
from llmrouter.training.onnx_files import (
    PRODUCER,
    Artefact,
    ExportDisagreesError,
    run_on_cpu,
    sha256_of,
    stable_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from llmrouter.domain import EngineProfile

SEED = 20_261_121
RELATIVE_TOLERANCE = 1e-5
BATCHES = 400
MAX_INSTANCES = 64

BOUNDS = {
    "requests": (0, 4_096),
    "context_tokens": (0, 10_000_000),
    "queued_prefill_tokens": (0, 10_000_000),
    "remaining_decode_tokens": (0, 10_000_000),
    "prompt_tokens": (0, 1_000_000),
    "predicted_output_tokens": (0, 131_072),
    "kv_tokens": (1, 100_000_000),
    "max_sequences": (1, 4_096),
    "base_s": (0, 1),
    "prefill_s_per_token": (0, 0.01),
    "prefill_s_per_token_squared": (0, 1e-5),
    "context_s_per_token": (0, 1e-4),
    "sequence_s": (0, 0.1),
    "prefill_first": (0, 1),
    "cached_prompt_tokens": (0, 1_000_000),
}
"""The range of each feature that the model is meant for: wide around every engine class in ``llmrouter.profiles``."""


def export_marginal_cost() -> Artefact:
    """The model with its manifest and card; raises ExportDisagreesError where graph and formula differ."""
    model = stable_bytes(marginal_cost_model())
    rows, worst = compare(model)
    manifest = Manifest(
        name="marginal-cost",
        kind=ModelKind.POLICY,
        model_version="1.0.0",
        feature_version=FEATURE_VERSION,
        feature_names=FEATURE_NAMES,
        inputs=(
            Tensor(name="features", dtype="float32", shape=(None, len(FEATURE_NAMES))),
            Tensor(name="weights", dtype="float32", shape=(len(WEIGHT_NAMES),)),
        ),
        outputs=(Tensor(name="costs", dtype="float32", shape=(None,)),),
        bounds={name: Bounds(min=float(low), max=float(high)) for name, (low, high) in BOUNDS.items()},
        training_data=(),
        seed=SEED,
        scores={"export/compared_rows": float(rows), "export/worst_relative_difference": round(worst, 6)},
        sha256=sha256_of(model),
        opset={"ai.onnx": OPSET},
        producer=PRODUCER,
    )
    return Artefact(model, manifest, marginal_cost_card(manifest))


def compare(model: bytes) -> tuple[int, float]:
    """Rows compared and the worst relative difference between the graph and the formula."""
    rows, worst = 0, 0.0
    for features_IF, weights_W in probe_inputs(np.random.default_rng(SEED)):
        got_I = run_on_cpu(model, {"features": features_IF, "weights": weights_W})
        want_I = marginal_cost(features_IF, weights_W)
        if got_I.shape != want_I.shape or not np.allclose(got_I, want_I, rtol=RELATIVE_TOLERANCE, atol=0.0):
            raise ExportDisagreesError(f"graph and formula differ on {features_IF.tolist()}: {got_I} and {want_I}")
        rows += len(want_I)
        scale_I = np.maximum(np.abs(want_I), np.finfo(np.float32).tiny)
        worst = max(worst, float(np.max(np.abs(got_I - want_I) / scale_I, initial=0.0)))
    return rows, worst


def probe_inputs(rng: np.random.Generator) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Pools of every size and engine class, idle to overcommitted, and the corners of ``BOUNDS``."""
    no_weights_W, unit_weights_W = np.zeros(len(WEIGHT_NAMES), np.float32), np.ones(len(WEIGHT_NAMES), np.float32)
    yield np.zeros((0, len(FEATURE_NAMES)), np.float32), unit_weights_W
    corners_IF = np.array([[low, high] for low, high in (BOUNDS[name] for name in FEATURE_NAMES)], dtype=np.float32).T
    yield corners_IF, unit_weights_W
    for batch in range(BATCHES):
        features_IF = _pool(rng, instances=int(rng.integers(1, MAX_INSTANCES + 1)))
        weights_W = no_weights_W if batch % 10 == 0 else rng.exponential(2.0, len(WEIGHT_NAMES)).astype(np.float32)
        yield features_IF, weights_W


def _pool(rng: np.random.Generator, *, instances: int) -> NDArray[np.float32]:
    prompt = int(np.ceil(rng.lognormal(6.0, 2.0)))
    cached = {f"{place}": int(rng.integers(0, prompt + 1)) for place in range(instances) if rng.random() < 0.5}  # noqa: PLR2004
    request = Request(
        request_id="",
        model="",
        prompt_tokens=prompt,
        predicted_output_tokens=float(rng.lognormal(5.0, 1.5)),
        arrived_at_s=0.0,
        cached_tokens=cached,
    )
    profiles = list(PROFILES.values())
    drawn = [profiles[index] for index in rng.integers(0, len(profiles), instances)]
    return features_of(request, [_busy(rng, profile, f"{place}") for place, profile in enumerate(drawn)])


def _busy(rng: np.random.Generator, profile: EngineProfile, instance_id: str) -> InstanceView:
    requests = 0 if rng.random() < 0.2 else int(rng.integers(1, int(1.5 * profile.max_sequences)))  # noqa: PLR2004
    context = requests * int(np.ceil(rng.lognormal(6.0, 1.0)))
    queued = 0 if rng.random() < 0.5 else int(np.ceil(rng.random() * context))  # noqa: PLR2004
    remaining = requests * float(rng.lognormal(4.5, 1.0))
    instance = Instance(instance_id=instance_id, endpoint="", pool="", profile=profile, models=frozenset())
    return InstanceView(instance, Load(requests, context, queued, remaining))
