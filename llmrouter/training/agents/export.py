"""An agent as an artefact: graph, manifest, card; after holding the graph against the network on states it met."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.feature_set import (
    LEARNED_FEATURE_VERSION,
    LEARNED_INSTANCE_NAMES,
    LEARNED_LINE_NAMES,
    PAPER_STATE_VERSION,
    paper_state_names,
)
from llmrouter.manifest import Bounds, Manifest, ModelKind, Tensor, TrainingData
from llmrouter.training.agents import rollout
from llmrouter.training.agents.card import card_of
from llmrouter.training.agents.graph import paper_model
from llmrouter.training.agents.judged import Front
from llmrouter.training.agents.learning import VALIDATION_SEEDS
from llmrouter.training.agents.network import paper_values, shared_scores
from llmrouter.training.agents.shared_graph import shared_model
from llmrouter.training.agents.told_graph import OPSET
from llmrouter.training.onnx_files import (
    PRODUCER,
    Artefact,
    ExportDisagreesError,
    run_on_cpu,
    runner_on_cpu,
    sha256_of,
    stable_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.training.agents.environment import Environment, Steps
    from llmrouter.training.agents.learning import Learned

TOLERANCE = 1e-4
"""Largest difference of a value, relative to the larger of 1 and the value."""

COMPARED = 100
"""Decisions that a network for any number of instances is compared on, from each episode."""

ENGINE_NAMES = frozenset(
    ("kv_tokens", "max_sequences", "base_s", "prefill_s_per_token", "context_s_per_token", "sequence_s")
)
"""What no engine has none of."""

BEYOND = 3.0
"""How far beyond what it met such a network may be asked: bounds reach from 0 to so many times the most it met."""


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
    form = told_form() if shared else _paper_form(environment.instances)
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
        bounds=told_bounds([steps.raw]) if shared else _bounds(form.names, steps),
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


def told_form() -> _Form:
    """Of networks that see what ``llmrouter.routing.sight`` tells."""
    return _Form(
        version=LEARNED_FEATURE_VERSION,
        names=(*LEARNED_INSTANCE_NAMES, *LEARNED_LINE_NAMES),
        inputs=(
            Tensor(name="instances", dtype="float32", shape=(None, len(LEARNED_INSTANCE_NAMES))),
            Tensor(name="line", dtype="float32", shape=(len(LEARNED_LINE_NAMES),)),
        ),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None,)),),
    )


def _compare_paper(model: bytes, learned: Learned, steps: Steps) -> float:
    got_TA = run_on_cpu(model, {"state": steps.state})
    want_TA = paper_values(learned.decider.weights, steps.state.astype(np.float64), steps.own_s.shape[1])
    return worst_difference(got_TA, want_TA)


def _compare_shared(model: bytes, learned: Learned, steps: Steps) -> float:
    every = max(1, len(steps) // COMPARED)
    want_TA = shared_scores(learned.decider.weights, steps.shared.astype(np.float64), steps.own_s.shape[1])
    return compare_told(model, steps.raw[::every], want_TA[::every])


def compare_told(model: bytes, raw_TR: NDArray[np.float32], want_TA: NDArray[np.float64]) -> float:
    """The worst relative difference of a graph over what it was told, each 16·I + 6 numbers.

    Raises:
        ExportDisagreesError: it is above the tolerance.
    """
    run = runner_on_cpu(model)
    cut = raw_TR.shape[1] - len(LEARNED_LINE_NAMES)
    got_TA = np.array(
        [run({"instances": row[:cut].reshape(-1, len(LEARNED_INSTANCE_NAMES)), "line": row[cut:]}) for row in raw_TR]
    )
    return worst_difference(got_TA, want_TA)


def worst_difference(got_TA: NDArray[np.float32], want_TA: NDArray[np.float64]) -> float:
    """Largest difference, relative to the larger of 1 and the value; raises an error above ``TOLERANCE``."""
    worst = float(np.max(np.abs(got_TA - want_TA) / np.maximum(1.0, np.abs(want_TA)), initial=0.0))
    if not worst <= TOLERANCE:
        raise ExportDisagreesError(f"graph and network differ by {worst:g}, more than {TOLERANCE:g}")
    return round(worst, 8)


def _bounds(names: tuple[str, ...], steps: Steps) -> dict[str, Bounds]:
    """What the states of an episode span, and half as much again on either side: the agent knows nothing else."""
    low, high = steps.state.min(axis=0), steps.state.max(axis=0)
    apart = 0.5 * (high - low)
    return {
        name: Bounds(min=round(float(a), 6), max=round(float(b), 6))
        for name, a, b in zip(names, low - apart, high + apart, strict=True)
    }


ANY = {
    "line/held": Bounds(min=0.0, max=100_000.0),
    "line/head_age_s": Bounds(min=0.0, max=600.0),
    "prefill_s_per_token_squared": Bounds(min=0.0, max=1e-7),
}
"""What networks take in squashed, or as a term of the cost's formula: no range that was met need bound it."""


def told_bounds(told: Sequence[NDArray[np.float32]]) -> dict[str, Bounds]:
    """Of what was told, each (T, 16·I + 6): up to ``BEYOND`` times the most that was met, shares up to 1.

    From 0; what an engine has, from the least that was met over ``BEYOND``. Cached tokens may be as many as prompt
    tokens, also where nothing was cached. ``ANY`` goes by what there can be.
    """
    names = (*LEARNED_INSTANCE_NAMES, *LEARNED_LINE_NAMES)
    shares = {"prefill_first", "has_room", *(name for name in LEARNED_LINE_NAMES if "prefer" in name)}
    least, most = np.full(len(names), np.inf), np.zeros(len(names))
    for one in told:
        cut = one.shape[1] - len(LEARNED_LINE_NAMES)
        rows = one[:, :cut].reshape(-1, len(LEARNED_INSTANCE_NAMES))
        least = np.minimum(least, [*rows.min(axis=0), *one[:, cut:].min(axis=0)])
        most = np.maximum(most, [*rows.max(axis=0), *one[:, cut:].max(axis=0)])
    found = {}
    for name, low, high in zip(names, least.tolist(), most.tolist(), strict=True):
        first = float(f"{low / BEYOND:.4g}") if name in ENGINE_NAMES else 0.0
        found[name] = Bounds(min=first, max=1.0 if name in shares else float(f"{BEYOND * high:.4g}"))
    return {**found, "cached_prompt_tokens": found["prompt_tokens"], **ANY}
