"""An agent as an artefact: graph, manifest, card; after holding the graph against the network on states it met.

The feature versions are those of agents, far from the policies': a router, whose version is another, refuses an agent
(``FeatureVersionMismatch``) before it runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.feature_set import PAPER_STATE_VERSION, paper_state_names
from llmrouter.manifest import Bounds, Manifest, ModelKind, Tensor, TrainingData
from llmrouter.training.agents import rollout
from llmrouter.training.agents.card import card_of
from llmrouter.training.agents.graph import OPSET, paper_model, shared_model
from llmrouter.training.agents.judged import Front
from llmrouter.training.agents.learning import VALIDATION_SEEDS
from llmrouter.training.agents.network import paper_values, shared_scores
from llmrouter.training.onnx_files import (
    PRODUCER,
    Artefact,
    ExportDisagreesError,
    run_on_cpu,
    sha256_of,
    stable_bytes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from llmrouter.training.agents.environment import Environment, Steps
    from llmrouter.training.agents.learning import Learned

SHARED_STATE_VERSION = 102
TOLERANCE = 1e-4
"""Largest difference of a value, relative to the larger of 1 and the value."""

_SHARED_INSTANCE = (
    *("requests_by_slots", "context_by_kv", "queued_prefill_s", "remaining_by_kv", "room", "step_s", "mean_left"),
    *("own_s", "imposed_s", "coalesce_s", "prefilling", "own_above_least", "imposed_above_least", "cost_above_least"),
    *("prompt_s", "predicted", "line_length", "head_age_s", "open_share", "prefilling_share"),
)
_SHARED_LINE = (
    *("line/length", "line/head_age_s", "line/open_share", "line/prefilling_share", "line/least_coalesce_s"),
    *("line/mean_room", "line/most_room", "line/mean_requests_by_slots", "line/predicted"),
)


@dataclass(frozen=True, slots=True)
class _Form:
    """How a kind of network is declared."""

    version: int
    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def export(learned: Learned, environment: Environment) -> Artefact:
    """The artefact of an agent.

    Raises:
        ExportDisagreesError: graph and network answer differently on the states of a validation episode.
    """
    shared = learned.decider.kind == rollout.SHARED
    steps = environment.steps(learned.decider, VALIDATION_SEEDS[0])
    graph = (
        shared_model(learned.decider.weights) if shared else paper_model(learned.decider.weights, environment.instances)
    )
    model = stable_bytes(graph)
    worst = _compare_shared(model, learned, steps) if shared else _compare_paper(model, learned, steps)
    form = _shared_form() if shared else _paper_form(environment.instances)
    judged = learned.best.judged
    if isinstance(judged, Front):
        raise TypeError("the product's network has an export of its own")
    manifest = Manifest(
        name=f"{learned.learner}-{learned.seed}",
        kind=ModelKind.POLICY,
        model_version="1.0.0",
        feature_version=form.version,
        feature_names=form.names,
        inputs=form.inputs,
        outputs=form.outputs,
        bounds=_bounds(form.names, steps, shared=shared),
        training_data=(
            TrainingData(
                source=f"simulated: {environment.source.name}, {environment.instances} instances, "
                f"{environment.rate_rps:g} requests/s",
                licence="Apache-2.0",
                rows=learned.episodes * environment.requests,
            ),
        ),
        seed=learned.seed,
        scores={
            "validation/makespan_pct": judged.makespan_pct,
            "validation/e2e_pct": judged.e2e_pct,
            "validation/preemptions": judged.preemptions,
            "validation/unfinished": judged.unfinished,
            "export/compared_decisions": float(len(steps)),
            "export/worst_relative_difference": worst,
        },
        sha256=sha256_of(model),
        opset={"ai.onnx": OPSET},
        producer=PRODUCER,
    )
    return Artefact(model, manifest, card_of(learned, manifest))


def _paper_form(instances: int) -> _Form:
    names = paper_state_names(instances)
    return _Form(
        version=PAPER_STATE_VERSION,
        names=names,
        inputs=(Tensor(name="state", dtype="float32", shape=(None, len(names))),),
        outputs=(Tensor(name="values", dtype="float32", shape=(None, instances + 1)),),
    )


def _shared_form() -> _Form:
    return _Form(
        version=SHARED_STATE_VERSION,
        names=(*(f"instance/{name}" for name in _SHARED_INSTANCE), *_SHARED_LINE),
        inputs=(
            Tensor(name="instances", dtype="float32", shape=(None, rollout.SHARED_PER_INSTANCE)),
            Tensor(name="line", dtype="float32", shape=(1, rollout.SHARED_HOLD)),
        ),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None,)),),
    )


def _compare_paper(model: bytes, learned: Learned, steps: Steps) -> float:
    got_TA = run_on_cpu(model, {"state": steps.state})
    want_TA = paper_values(learned.decider.weights, steps.state.astype(np.float64), steps.own_s.shape[1])
    return worst_difference(got_TA, want_TA)


def _compare_shared(model: bytes, learned: Learned, steps: Steps) -> float:
    instances = steps.own_s.shape[1]
    want_TA = shared_scores(learned.decider.weights, steps.shared.astype(np.float64), instances)
    cut = rollout.SHARED_PER_INSTANCE * instances
    got_TA = np.array(
        [
            run_on_cpu(model, {"instances": row[:cut].reshape(instances, -1), "line": row[None, cut:]})
            for row in steps.shared[:: max(1, len(steps) // 100)]
        ]
    )
    return worst_difference(got_TA, want_TA[:: max(1, len(steps) // 100)])


def worst_difference(got_TA: NDArray[np.float32], want_TA: NDArray[np.float64]) -> float:
    """Largest difference, relative to the larger of 1 and the value; raises an error above ``TOLERANCE``."""
    worst = float(np.max(np.abs(got_TA - want_TA) / np.maximum(1.0, np.abs(want_TA)), initial=0.0))
    if not worst <= TOLERANCE:
        raise ExportDisagreesError(f"graph and network differ by {worst:g}, more than {TOLERANCE:g}")
    return round(worst, 8)


def _bounds(names: tuple[str, ...], steps: Steps, *, shared: bool) -> dict[str, Bounds]:
    """What the states of an episode span, and half as much again on either side: the agent knows nothing else."""
    if shared:
        cut = rollout.SHARED_PER_INSTANCE * steps.own_s.shape[1]
        rows = steps.shared[:, :cut].reshape(-1, rollout.SHARED_PER_INSTANCE)
        low = np.concatenate([rows.min(axis=0), steps.shared[:, cut:].min(axis=0)])
        high = np.concatenate([rows.max(axis=0), steps.shared[:, cut:].max(axis=0)])
    else:
        low, high = steps.state.min(axis=0), steps.state.max(axis=0)
    apart = 0.5 * (high - low)
    return {
        name: Bounds(min=float(f"{a:.9g}"), max=float(f"{b:.9g}"))
        for name, a, b in zip(names, low - apart, high + apart, strict=True)
    }
