"""The card of a text model: fixed words around numbers that come from the manifest and the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.lengths.text import HASH_BUCKETS, HEAD_BYTES, TAIL_BYTES
from llmrouter.training.length_text_scores import ALL, HINT, NO_HINT, TASK_MEAN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter.manifest import Manifest
    from llmrouter.training.length_evaluation_scores import Estimate
    from llmrouter.training.length_text_scores import GroupScores
    from llmrouter.training.length_text_training import Recipe

_CARD = """\
# {name}

The law of an answer's length (seven quantiles and a rank) from the words of the prompt, the application, the model and
the fields of the request, before the answer exists. No tokenizer: words, word pairs and character 4-grams of the first
{head:,} and the last {tail:,} bytes are hashed into {buckets:,} rows of an embedding, averaged by kind and place,
joined with three embeddings of the labels and {dense} numbers, and pass two small layers. Text is seen, never kept.

| | |
|---|---|
| kind, version | output_length, {model_version}; feature version {feature_version} |
| inputs | `ids` float32 (N, {ids}), whole numbers; `dense` float32 (N, {dense}): see `llmrouter/lengths/text.py` |
| outputs | `quantiles` float32 (N, 7), tokens at 5, 10, 25, 50, 75, 90, 95 %, ascending; `rank` float32 (N,) |
| range | 1 … {max_tokens:,.0f} tokens, twice the longest answer of its rows |
| size of the network | embeddings of {embedding} (8 bits), layers of {first} and {second} |
| trained with | {losses}; {epochs} epochs, best round {round} of {rounds}; seed {seed} |
| graph against network | at most {worst:g} in ln tokens, on all held-out rows |
| sha256 | `{sha256}` |

The quantiles cannot cross: the network gives the median and six positive steps. Their spread is set on a tenth of the
training prompts, so that the 80 % interval holds there. It answers without an application, without a model it knows,
without a prompt, and without a prompt length: it was trained with each of them left out at times.

## Held-out scores

A fifth of the prompts, by their SHA-256; all answers to one prompt are on one side. In brackets: 95 % interval,
bootstrap over prompts. *Bucket*: share of answers in the most probable of the buckets 0-250-1000- tokens. *Tau*:
Kendall's tau-b of rank and length. *D*: Somers' D of the same, where a tie of the rank is a coin flip; tau-b forgives
ties, so compare by D. *Task mean*: quantiles and mean of the task's training rows **within the family**, the baseline
to beat; within one task and family it has no order. {note}

{table}

{verdict}

**Task and model are confounded** in public collections of prompts: most hold the answers of one model. Rows of *all*
mix both, and a good number there says that families and tasks are told apart. Read one family at a time. A family is
known to the model by its name; for a model it has never heard of, recalibration from finished requests sets the level.

## Data

{data}
"""


_NOTE = """The recipe was chosen
among about thirty on the held-out fifth of the development set of the shipped model, by differences of a few per cent
of the pinball loss."""
_HEADINGS = (
    *("bucket: hint", "no hint", "task mean"),
    *("tau: hint", "task mean"),
    *("D: hint", "no hint", "task mean"),
    *("pinball, tokens: hint", "task mean"),
    "80 % covers",
)

_COMPARED = (
    ("bucket_accuracy", "Buckets", 1.0),
    ("somers_d", "Order (D)", 1.0),
    ("pinball_loss", "Pinball loss", -1.0),
)
"""Metric, what it is called, and the sign of what is better."""


def text_card(manifest: Manifest, scores: Mapping[str, GroupScores], recipe: Recipe, note: str = _NOTE) -> str:
    """MODEL_CARD.md of a text model; ``note`` is said of the held-out rows."""
    losses = recipe.losses
    return _CARD.format(
        name=manifest.name,
        head=HEAD_BYTES,
        tail=TAIL_BYTES,
        buckets=HASH_BUCKETS,
        model_version=manifest.model_version,
        feature_version=manifest.feature_version,
        ids=manifest.inputs[0].shape[1],
        dense=manifest.inputs[1].shape[1],
        max_tokens=manifest.bounds["quantiles"].max,
        embedding=recipe.sizes.embedding,
        first=recipe.sizes.first,
        second=recipe.sizes.second,
        losses=f"pinball {losses.pinball:g}, cross-entropy of buckets {losses.buckets:g}, ListMLE {losses.rank:g}",
        epochs=recipe.epochs,
        round=f"{manifest.scores['training/round']:.0f}",
        rounds=recipe.rounds,
        seed=manifest.seed,
        worst=manifest.scores["export/worst_difference_ln_tokens"],
        sha256=manifest.sha256,
        note=note,
        table=_table(scores),
        verdict=_verdict(scores),
        data="\n".join(
            ["| source | licence | training rows |", "|---|---|---|"]
            + [f"| {_cell(one.source)} | {one.licence} | {one.rows:,} |" for one in manifest.training_data]
        ),
    )


def _table(scores: Mapping[str, GroupScores]) -> str:
    lines = [
        f"| rows | | {' | '.join(_HEADINGS)} |",
        f"|{'---|' * (2 + len(_HEADINGS))}",
    ]
    for group, one in scores.items():
        hint, bare, mean = one.scores[HINT], one.scores[NO_HINT], one.scores[TASK_MEAN]
        cells = [
            _cell(group),
            f"{one.rows:,}",
            _share(hint["bucket_accuracy"], interval=True),
            _share(bare["bucket_accuracy"]),
            _share(mean["bucket_accuracy"]),
            _number(hint["kendall_tau"], interval=True),
            _number(mean["kendall_tau"]),
            _number(hint["somers_d"], interval=True),
            _number(bare["somers_d"]),
            _number(mean["somers_d"]),
            _number(hint["pinball_loss"], digits=1),
            _number(mean["pinball_loss"], digits=1),
            _share(hint["coverage_80"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(scores: Mapping[str, GroupScores]) -> str:
    """Which groups are told better than by the task's mean, with an interval of the difference that excludes 0."""
    lines = []
    for metric, name, sign in _COMPARED:
        better: list[str] = []
        equal: list[str] = []
        worse: list[str] = []
        for group, one in scores.items():
            if group == ALL:
                continue
            estimate = one.minus_task_mean[HINT][metric]
            ends = [sign * end for end in (estimate.low, estimate.high) if end is not None]
            chosen = better if ends and min(ends) > 0.0 else worse if ends and max(ends) < 0.0 else equal
            chosen.append(_cell(group))
        lines += [
            f"- {name}, with hint, {verdict} the task's mean within the family: {', '.join(groups) or 'none'}."
            for verdict, groups in (("better than", better), ("not told apart from", equal), ("worse than", worse))
        ]
    lines.append("- Where a group is not among the better ones, the text adds nothing that these rows can show.")
    return "\n".join(lines)


def _share(estimate: Estimate, *, interval: bool = False) -> str:
    return _told(estimate, interval=interval, form=lambda value: f"{value:.1%}")


def _number(estimate: Estimate, *, interval: bool = False, digits: int = 2) -> str:
    return _told(estimate, interval=interval, form=lambda value: f"{value:.{digits}f}")


def _told(estimate: Estimate, *, interval: bool, form: Callable[[float], str]) -> str:
    if estimate.value is None:
        return "–"
    if not interval or estimate.low is None or estimate.high is None:
        return form(estimate.value)
    return f"{form(estimate.value)} ({form(estimate.low)} … {form(estimate.high)})"


def _cell(text: str) -> str:
    """A label in a table of Markdown, on one line."""
    return " ".join(text.replace("|", "/").split())[:80]
