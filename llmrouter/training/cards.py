"""The model cards: fixed words around numbers that come from the manifest, so that the two never differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.feature_set import WEIGHT_NAMES
from llmrouter.training.length_forest import MAX_LEAVES, TREES, UNLABELLED_ROWS_PER_APPLICATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.manifest import Manifest
    from llmrouter.training.length_scores import LengthScore

SAME_WITHIN = 0.03
"""Mean absolute errors that differ by less than this share are called equal."""

_POLICY = """\
# marginal-cost

The calibrated marginal cost of placing one request on one instance, in seconds, as an ONNX graph: the seconds the
request itself would take there, plus weighted seconds it would cost the requests already in flight. It is the formula
of `llmrouter/routing/marginal_cost.py`, operator by operator, in double precision inside; nothing in it is learned.

| | |
|---|---|
| kind, version | policy, {model_version} |
| input `features` | float32 (I, {width}), a row per instance, ordered as `manifest.json` says |
| feature version | {feature_version} |
| input `weights` | float32 ({weights}): {weight_names} |
| output `costs` | float32 (I,), seconds, lower is better; any I, also 0 |
| sha256 | `{sha256}` |

**For**: ranking the instances of one pool for one request, whatever their number; unlike engine classes side by side,
because each row carries its own step-time coefficients. **Not for**: predicting a latency. The cost is a ranking
number; its overflow term in particular is a price, not a forecast.

**Needs**: a step-time profile per engine class (a factor of 2 or 3 in one coefficient changes few decisions, a wrong
ratio between two engine classes changes many), and a prediction of the request's output tokens.

**Checked at export**: {rows:.0f} rows of random pools over every shipped engine profile, idle, overcommitted and at the
corners of the declared bounds; worst relative difference from the formula {worst:g} (rounded to 1e-6; limit 1e-5).

**Weights**: `wait` and `decode` price the request's own seconds, to its first token and from there; `stall` and
`slowdown` what others lose by its prompt and by its part of every step; `coalesce` the stall of a running batch by a
prompt, on engines that run prefill-only steps; `overflow` a request beyond the KV cache or the batch slots; `spread`
long steps. A `RoutingPolicy` sets them in `spec.objective`.
"""

_LENGTH = """\
# random-forest

How many tokens an answer is expected to have, from the length of the prompt and the name of the application that sent
it; the text is never seen. {trees} trees of at most {leaves} leaves. The prediction estimates a **mean**, because what
a policy adds up is work: a median would have a smaller absolute error and would understate the load.

| | |
|---|---|
| kind, version | output_length, {model_version} |
| input `features` | float32 (N, {width}): ln(1 + prompt tokens), then one column per application of `manifest.json` |
| output `output_tokens` | float32 (N,), clipped to 1 … the p99 of the application's training rows |
| sha256 | `{sha256}` |

## What the labels mean

`code` and `conversation` are the two services of the Azure LLM inference trace of 2023 (CC-BY-4.0), rows of its first
15 minutes. The other names are tasks of public collections of prompts with published answers, each made by whoever
published it. **Task and model are confounded there**: most sources hold the answers of one model, so that a difference
between two labels is as much one of two models as one of two tasks. Read a label as *traffic that looks like this set*,
not as a law about the task. Lengths were counted with the Llama-2 tokenizer (the trace: as it was published). Caps of
the sources apply.

An application that is not listed gets no label: all columns are zero, and the forest answers from the prompt length
alone. It has learned that from up to {unlabelled} rows of each application shown once more without their label, so
*unknown* means *any of these, each as likely*. Name your applications as these only where your traffic resembles them.

## Held-out scores

Split by a hash of the prompt (all answers to one prompt on one side); the trace by time (its last quarter held out).
MAE in tokens, Kendall's tau, and the share of answers put in the right bucket of arXiv 2408.13510 (0-250, 250-1000,
1000-4000 tokens). *Mean*: one number for everything. *App mean*: the mean of the application's training rows, which has
no order inside one application, so no tau.

{table}

Without labels (every row as an unknown application): MAE {unlabelled_mae:.1f}, tau {unlabelled_tau:.2f}, buckets
{unlabelled_buckets:.1%}.

{verdict}

Where the rows do not say more than the application's name, nothing can be read from the prompt's length, and the
label's mean is as good a predictor. A model for your own traffic needs your own rows: see `docs/models.md`.

## Data

{data}

`training.csv.gz` holds the rows: lengths and labels, no text. `LICENSES.md` names each source and its terms.
"""


def marginal_cost_card(manifest: Manifest) -> str:
    """MODEL_CARD.md of the policy."""
    return _POLICY.format(
        model_version=manifest.model_version,
        width=len(manifest.feature_names),
        weights=manifest.inputs[1].shape[0],
        weight_names=", ".join(WEIGHT_NAMES),
        feature_version=manifest.feature_version,
        sha256=manifest.sha256,
        rows=manifest.scores["export/compared_rows"],
        worst=manifest.scores["export/worst_relative_difference"],
    )


def length_card(
    manifest: Manifest, scores: Mapping[str, Mapping[str, LengthScore]], held_out_rows: Mapping[str, int]
) -> str:
    """MODEL_CARD.md of the output-length model."""
    forest, by_mean = scores["forest"], scores["application-mean"]
    unlabelled = forest["unlabelled"]
    return _LENGTH.format(
        trees=TREES,
        leaves=MAX_LEAVES,
        model_version=manifest.model_version,
        width=len(manifest.feature_names),
        sha256=manifest.sha256,
        unlabelled=UNLABELLED_ROWS_PER_APPLICATION,
        table=_table(scores, held_out_rows),
        unlabelled_mae=unlabelled.mae_tokens,
        unlabelled_tau=unlabelled.tau or 0.0,
        unlabelled_buckets=unlabelled.bucket_accuracy,
        verdict=_verdict(forest, by_mean, list(manifest.applications)),
        data="\n".join(
            ["| source | licence | training rows |", "|---|---|---|"]
            + [f"| {one.source} | {one.licence} | {one.rows:,} |" for one in manifest.training_data]
        ),
    )


def _table(scores: Mapping[str, Mapping[str, LengthScore]], held_out_rows: Mapping[str, int]) -> str:
    lines = [
        "| application | rows | MAE forest | app mean | mean | tau forest | buckets forest | app mean | mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ["all", *sorted(held_out_rows)]:
        forest, by_mean, mean = (scores[key][name] for key in ("forest", "application-mean", "mean"))
        rows = held_out_rows[name] if name != "all" else sum(held_out_rows.values())
        tau = "–" if forest.tau is None else f"{forest.tau:.2f}"
        if name == "all" and by_mean.tau is not None:
            tau += f" (app mean {by_mean.tau:.2f})"
        lines.append(
            f"| {name} | {rows:,} | {forest.mae_tokens:.1f} | {by_mean.mae_tokens:.1f} | {mean.mae_tokens:.1f} | {tau} "
            f"| {forest.bucket_accuracy:.1%} | {by_mean.bucket_accuracy:.1%} | {mean.bucket_accuracy:.1%} |"
        )
    return "\n".join(lines)


def _verdict(forest: Mapping[str, LengthScore], by_mean: Mapping[str, LengthScore], applications: list[str]) -> str:
    better: list[str] = []
    equal: list[str] = []
    worse: list[str] = []
    for name in applications:
        ratio = forest[name].mae_tokens / by_mean[name].mae_tokens
        group = better if ratio < 1 - SAME_WITHIN else worse if ratio > 1 + SAME_WITHIN else equal
        group.append(f"{name} ({ratio - 1:+.0%})")
    return "\n".join(
        f"- MAE {verdict} than the application's mean: {', '.join(names) or 'none'}."
        for verdict, names in (
            ("smaller", better),
            (f"neither smaller nor larger (within {SAME_WITHIN:.0%})", equal),
            ("larger", worse),
        )
    )
