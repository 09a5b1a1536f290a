"""The product's network as an artefact: graph, manifest, card; after holding the graph against the network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.feature_set import LEARNED_FEATURE_VERSION, LEARNED_INSTANCE_NAMES, LEARNED_LINE_NAMES
from llmrouter.manifest import Bounds, Manifest, ModelKind, Tensor, TrainingData
from llmrouter.training.agents import product_network, product_tasks
from llmrouter.training.agents.export import worst_difference
from llmrouter.training.agents.graph import OPSET
from llmrouter.training.agents.product_graph import product_model
from llmrouter.training.onnx_files import PRODUCER, Artefact, runner_on_cpu, sha256_of, stable_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.training.agents.learning import Learned
    from llmrouter.training.agents.product_tasks import Task

NAME = "learned"
EVERY_TASK = 5
"""Of the validation tasks, one in so many gives decisions to compare."""

COMPARED_PER_TASK = 100
BEYOND = 3.0
"""How far beyond what it met the network may be asked: bounds reach from 0 to so many times the most it met."""

_CARD = """\
# {name}

One network for any number of instances, equal or not, and any preferences. At every decision it gives the terms of the
marginal cost new weights, from how full the pool is, how large the request is and what matters (TTFT, TPOT, E2E,
fairness), and says whether a prefill-first pool should hold. Learned by evolution strategies in simulation, seed
{seed}, {episodes} runs; that of run {best} is kept. `llmrouter train --learner learned --seed {seed}` made it.

| | |
|---|---|
| kind, feature version | policy, {version}; `spec.type: Learned` |
| inputs | `instances` (any, 16): the features of cost models, and whether there is room; `line` (6): requests held, \
age of the head, four shares of preference |
| output | `scores` (any + 1): one for each instance, then hold's; the highest wins |
| trained on | simulated runs of 2 to 16 instances of the cells `paper-v100`, `h100-mix` and `h100-prod`, also unequal \
and of two modes, at 0.5 to 1.2 of capacity, Poisson and bursty |
| shielded by | the KV gate; it holds neither while an instance is idle nor a head older than 5 s |
| sha256 | `{sha256}` |

On the validation tasks, against the default (`WorkloadImpact`, `Balanced`), mean change in percent: worst 5 % of TTFT
{ttft:+.1f}, worst 5 % of TPOT {tpot:+.1f}, mean E2E {e2e:+.1f}, worst 5 % of slowdowns {fairness:+.1f}; by the tasks'
own preferences {worth:+.2f}. Checked at export on {compared:.0f} decisions: worst relative difference from the network
{worst:g}.

`docs/learned.md` says where it beats the default with the preset of the same name, and where it does not.

**Not for**: engines far from those above, prefix caches, sessions, several routers with stale views, unless measured
there: it was trained on none of them.
"""


def export_product(learned: Learned, tasks: Sequence[Task] | None = None) -> Artefact:
    """The artefact of a network; ``tasks`` stand in for those of validation whose decisions are compared.

    Raises:
        ExportDisagreesError: graph and network answer differently.
    """
    tasks = tasks or product_tasks.validation_tasks()[::EVERY_TASK]
    told = [product_tasks.met(task, learned.decider) for task in tasks]
    model = stable_bytes(product_model(learned.decider.weights))
    compared = [one[:: max(1, len(one) // COMPARED_PER_TASK)] for one in told]
    worst = _compare(model, learned.decider.weights, compared)
    manifest = Manifest(
        name=NAME,
        kind=ModelKind.POLICY,
        model_version="1.0.0",
        feature_version=LEARNED_FEATURE_VERSION,
        feature_names=(*LEARNED_INSTANCE_NAMES, *LEARNED_LINE_NAMES),
        inputs=(
            Tensor(name="instances", dtype="float32", shape=(None, len(LEARNED_INSTANCE_NAMES))),
            Tensor(name="line", dtype="float32", shape=(len(LEARNED_LINE_NAMES),)),
        ),
        outputs=(Tensor(name="scores", dtype="float32", shape=(None,)),),
        bounds=_bounds(told),
        training_data=(
            TrainingData(
                source=f"simulated: {', '.join(product_tasks.CELLS)}; rows are runs",
                licence="Apache-2.0",
                rows=learned.episodes,
            ),
        ),
        seed=learned.seed,
        scores={
            **{f"validation/{name}": value for name, value in asdict(learned.best.judged).items()},
            "export/compared_decisions": float(sum(len(one) for one in compared)),
            "export/worst_relative_difference": worst,
        },
        sha256=sha256_of(model),
        opset={"ai.onnx": OPSET},
        producer=PRODUCER,
    )
    return Artefact(model, manifest, _card(learned, manifest))


def _card(learned: Learned, manifest: Manifest) -> str:
    scores = manifest.scores
    return _CARD.format(
        name=manifest.name,
        seed=learned.seed,
        episodes=learned.episodes,
        best=learned.best.episodes,
        version=manifest.feature_version,
        sha256=manifest.sha256,
        compared=scores["export/compared_decisions"],
        worst=scores["export/worst_relative_difference"],
        **{name: scores[f"validation/{name}_pct"] for name in (*product_tasks.FIGURES, "worth")},
    )


def scores_of(weights_W: NDArray[np.float64], told: NDArray[np.float32]) -> NDArray[np.float64]:
    """The network's scores (I + 1,) for what it is told, shape (16·I + 6,)."""
    instances = (len(told) - product_network.LINE) // product_network.ROW
    scores = np.zeros(instances + 1)
    terms = np.zeros(product_network.TERMS * instances)
    seen = np.zeros(product_network.PICTURE + product_network.HOLD_INPUTS)
    product_network.score_product(told.astype(np.float64), weights_W, terms, seen, scores, instances)
    return scores


def _compare(model: bytes, weights_W: NDArray[np.float64], compared: Sequence[NDArray[np.float32]]) -> float:
    """The worst relative difference over decisions; raises ExportDisagreesError above the tolerance."""
    run = runner_on_cpu(model)
    worst = 0.0
    for told_TR in compared:
        cut = told_TR.shape[1] - product_network.LINE
        for told in told_TR:
            got = run({"instances": told[:cut].reshape(-1, product_network.ROW), "line": told[cut:]})
            worst = max(worst, worst_difference(got, scores_of(weights_W, told)))
    return worst


def _bounds(told: Sequence[NDArray[np.float32]]) -> dict[str, Bounds]:
    """From 0 to ``BEYOND`` times the most that was met; shares end at 1."""
    names = (*LEARNED_INSTANCE_NAMES, *LEARNED_LINE_NAMES)
    shares = {"prefill_first", "has_room", *(name for name in LEARNED_LINE_NAMES if "prefer" in name)}
    met = []
    for one in told:
        cut = one.shape[1] - product_network.LINE
        met.append([*one[:, :cut].reshape(-1, product_network.ROW).max(axis=0), *one[:, cut:].max(axis=0)])
    most = np.max(met, axis=0).tolist()
    return {
        name: Bounds(min=0.0, max=1.0 if name in shares else float(f"{BEYOND * value:.4g}"))
        for name, value in zip(names, most, strict=True)
    }
