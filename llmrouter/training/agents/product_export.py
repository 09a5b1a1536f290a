"""The product's network as an artefact: graph, manifest, card; after holding the graph against the network."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.manifest import Manifest, ModelKind, TrainingData
from llmrouter.training.agents import product_network, product_tasks
from llmrouter.training.agents.export import COMPARED, compare_told, told_bounds, told_form
from llmrouter.training.agents.product_graph import product_model
from llmrouter.training.agents.told_graph import OPSET
from llmrouter.training.onnx_files import PRODUCER, Artefact, sha256_of, stable_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.training.agents.learning import Learned
    from llmrouter.training.agents.product_tasks import Task

NAME = "learned"
EVERY_TASK = 5
"""Of the validation tasks, one in so many gives decisions to compare."""

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

Against the default with the preset of the same name it is better in some places and is worse in others, among them
`h100-mix` with `SLO` and the mean E2E of prefill-first engines where the default holds batches: `docs/learned.md` has
the tables. The default stays the marginal cost.

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
    compared = [one[:: max(1, len(one) // COMPARED)] for one in told]
    wanted = [np.array([scores_of(learned.decider.weights, row) for row in one]) for one in compared]
    worst = max(compare_told(model, rows, scores) for rows, scores in zip(compared, wanted, strict=True))
    form = told_form()
    manifest = Manifest(
        name=NAME,
        kind=ModelKind.POLICY,
        model_version="1.0.0",
        feature_version=form.version,
        feature_names=form.names,
        inputs=form.inputs,
        outputs=form.outputs,
        bounds=told_bounds(told),
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
