"""The model card of a learned agent: fixed words around numbers of its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrouter.manifest import Manifest
    from llmrouter.training.agents.learning import Learned

_CARD = """\
# {name}

A routing agent learned in simulation, in the setting of arXiv 2408.13510. Learner `{learner}`, reward `{reward}`, seed
{seed}, {episodes} episodes; the checkpoint of episode {best} is kept, which was best on requests of its own.

| | |
|---|---|
| kind, feature version | policy, {version}; `spec.type: Learned` |
| inputs | {inputs} |
| outputs | {outputs} |
| decides | {decides} |
| sha256 | `{sha256}` |

On the validation requests, against round-robin: makespan {makespan:+.1f} %, mean E2E {e2e:+.1f} %, {preemptions:.0f}
preemptions an episode, {unfinished:g} requests unfinished. Checked at export on {compared:.0f} decisions: worst
relative difference from the network {worst:g}.

**Not for**: any other engines, rates, prompts or numbers of instances than those it was trained in, unless measured
there. A KV gate with a placement at random has most of the gain; `docs/agents.md` has the comparison.
"""


def card_of(learned: Learned, manifest: Manifest) -> str:
    """MODEL_CARD.md."""
    scores = manifest.scores
    return _CARD.format(
        name=manifest.name,
        learner=learned.learner,
        reward=learned.reward,
        seed=learned.seed,
        episodes=learned.episodes,
        best=learned.best.episodes,
        version=manifest.feature_version,
        inputs="; ".join(f"`{one.name}` {_shape(one.shape)}" for one in manifest.inputs),
        outputs="; ".join(f"`{one.name}` {_shape(one.shape)}" for one in manifest.outputs) + ", the last one hold's",
        decides=f"every {learned.tick_s:g} s" if learned.tick_s else "whenever the head of the line may try again",
        sha256=manifest.sha256,
        makespan=scores["validation/makespan_pct"],
        e2e=scores["validation/e2e_pct"],
        preemptions=scores["validation/preemptions"],
        unfinished=scores["validation/unfinished"],
        compared=scores["export/compared_decisions"],
        worst=scores["export/worst_relative_difference"],
    )


def _shape(shape: tuple[int | None, ...]) -> str:
    return "float32 (" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
