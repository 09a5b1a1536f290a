"""``llmrouter tune``: from a command line to a RoutingPolicy that is better on traffic it has not seen, or to none."""

from __future__ import annotations

import json
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmrouter.errors import InvalidInputError
from llmrouter.study.predictors import Predictor, unknown_applications
from llmrouter.study.progress import make_ready, progress
from llmrouter.tuning.judgement import Verdict, check_says_something, judge
from llmrouter.tuning.options import parse
from llmrouter.tuning.parameters import numbers, parameters
from llmrouter.tuning.runs import runs
from llmrouter.tuning.search import runs_of, search
from llmrouter.tuning.table import print_verdict
from llmrouter.tuning.windows import held_out_seeds, training_seeds
from llmrouter.tuning.written import manifest, values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.tuning.judgement import Figures
    from llmrouter.tuning.options import Options
    from llmrouter.tuning.parameters import Parameter
    from llmrouter.tuning.search import Found

KEPT = 1
"""Exit status where the current policy is kept."""

_MOST_SHED = 0.5
_LONGEST_TTFT_S = 60.0


def main(rest: Sequence[str]) -> int:
    """Tunes, judges, and writes what is accepted; returns the exit status: 0 accepted, 1 kept the current policy.

    Raises:
        InvalidInputError: the command line, or a file that it names, is wrong.
    """
    options = parse(rest)
    make_ready()
    searched = parameters(options.start, options.scene.setup.engines)
    found, verdict = tuned(options, searched, clock=time.monotonic)
    result = {
        "command": shlex.join(["llmrouter", "tune", *rest]),
        "objective": options.plan.objective,
        "name": options.name,
        **values(options.scene, verdict),
        "held_out_windows": options.held_out_windows,
        "current": numbers(options.current),
        "tuned": numbers(found.policy),
        "searched": [one.path for one in searched],
        "search": {
            "found": found.origin,
            "training_value": found.value,
            "generations": len(found.curve),
            "curve": list(found.curve),
            "runs": found.runs,
            "cut_by_budget": found.is_cut,
        },
        "notes": _notes(options, found),
    }
    if verdict.accepted:
        _write(options, found, verdict, searched, result)
    if options.as_json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    else:
        print_verdict(result, verdict, current=options.current, tuned=found.policy, console=Console())
    return 0 if verdict.accepted else KEPT


def tuned(options: Options, searched: Sequence[Parameter], *, clock: Callable[[], float]) -> tuple[Found, Verdict]:
    """What the search found, and whether it is better than the current policy on the held-out windows.

    Raises:
        InvalidInputError: the engines cannot hold the traffic, or it says nothing of the objective.
    """
    plan = options.plan
    total = runs_of(plan, len(options.others), len(searched)) + 2 * options.held_out_windows
    seeds = training_seeds(plan.seed)
    with runs(options.scene, options.jobs) as run, progress("tuning", total) as advance:
        (first,) = run.figures([options.current], seeds[-2:])
        _check_current(options, first)
        found = search(
            run,
            plan,
            current=options.current,
            start=options.start,
            searched=searched,
            others=options.others,
            seeds=seeds,
            clock=clock,
            on_done=advance,
        )
        held_out = held_out_seeds(plan.seed, options.held_out_windows)
        base, value = run.figures([options.current, found.policy], held_out, held_out=True, on_done=advance)
    verdict = judge(plan.objective, value, base, window_share=options.scene.held_out.window_share)
    if verdict.accepted and found.value >= 0:
        return found, Verdict(False, "the search found nothing better on its own windows", verdict.rows)  # noqa: FBT003 - said by the class
    return found, verdict


def _check_current(options: Options, figures: Sequence[Figures]) -> None:
    check_says_something(options.plan.objective, figures)
    shed = max(one["shed_rate"] or 0.0 for one in figures)
    ttft_s = max(one["ttft_mean_s"] or 0.0 for one in figures)
    if shed > _MOST_SHED or ttft_s > _LONGEST_TTFT_S:
        said = (
            f"sheds or refuses {shed:.0%} of the requests"
            if shed > _MOST_SHED
            else f"has a mean TTFT of {ttft_s:.0f} s"
        )
        raise InvalidInputError(
            f"these engines cannot hold this traffic: the current policy {said} at "
            f"{options.scene.training.rate_rps:.3g} requests a second; lower --load or --rate, or name more engines"
        )


def _notes(options: Options, found: Found) -> list[str]:
    scene, notes = options.scene, []
    if found.is_cut:
        notes.append(
            f"The budget ended the search after {len(found.curve)} of {options.plan.generations} generations: on "
            "another machine it may end elsewhere."
        )
    if scene.held_out.window_share > 0:
        notes.append(
            "Windows are resampled from the recording. The objective's interval is widened by what a recording of this "
            "length does not say of the traffic to come; the others are of this recording alone."
        )
    if scene.constant_tokens is not None:
        notes.append(f"Every answer is expected to have {scene.constant_tokens:g} tokens, as the file says.")
    elif scene.predictor is Predictor.FOREST and (unknown := unknown_applications(scene.history)):
        names = ", ".join(name or "(none)" for name in unknown)
        notes.append(f"The forest does not know the applications {names} and reads their prompt length alone.")
    return notes


def _write(
    options: Options,
    found: Found,
    verdict: Verdict,
    searched: Sequence[Parameter],
    result: dict[str, Any],
) -> None:
    training, held_out = result["training"], result["held_out"]
    about = [
        result["command"],
        f"Tuned for {options.plan.objective} on {training['name']}, {training['rate_rps']:.4g} requests a second.",
        f"Judged on {options.held_out_windows} windows of {held_out['requests_of_a_window']:,} requests,",
        f"of {held_out['name']}, {held_out['rate_rps']:.4g} a second,",
        "against the current policy on the same requests (mean change with its 95 % interval):",
    ]
    text = manifest(options.name, found.policy, searched, about=about, rows=verdict.rows)
    try:
        options.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"--out {options.out}: {error}") from error
