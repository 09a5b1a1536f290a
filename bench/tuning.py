"""What ``llmrouter tune`` wins on windows it has not seen, and how often it accepts what is no better.

``--part gains``: one tuning of each case, and the three presets on the same held-out windows, all against the current
policy. ``--part updates``: many short updates of a tuned policy, each judged again on windows that neither search nor
verdict saw: how many were accepted, and how many of those are no better there. ``--part null``: the verdict where
nothing can be better: both sides are the same policy, on different windows, drawn again and again from a few hundred.

Times are CPU seconds of this process: the tunings run in one.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rich.console import Console
from rich.progress import track

from llmrouter.objectives import PRESETS
from llmrouter.resources import API_VERSION, RoutingPolicySpec
from llmrouter.study.progress import make_ready
from llmrouter.study.seeds import SELECTION
from llmrouter.tuning import options as tune_options
from llmrouter.tuning.command import tuned
from llmrouter.tuning.judgement import judge
from llmrouter.tuning.parameters import numbers, parameters
from llmrouter.tuning.runs import runs
from llmrouter.tuning.windows import held_out_seeds

if TYPE_CHECKING:
    from llmrouter.tuning.judgement import Verdict
    from llmrouter.tuning.options import Options

CASES = (
    "--cell h100-mix --rate 42.3 --objective Balanced",
    "--cell h100-mix --rate 42.3 --objective SLO",
    "--cell h100-prod --rate 21.1 --objective E2E",
    "--cell paper-v100 --rate 14.6 --objective E2E",
    "--cell azure --rate 65.5 --objective Balanced",
)
"""Rates are 0.95 of C of docs/evidence.md, for paper-v100 1.1."""

UPDATES = "--cell h100-mix --rate 42.3 --objective Balanced --requests 1000"
NULLS = ("--cell h100-mix --rate 42.3 --requests 1000", "--cell azure --rate 65.5 --requests 1000")
NULL_WINDOWS = 200

FRESH_WINDOWS = 60
"""On which a verdict is checked: the last of the selection block, which the verdicts of 46 updates do not reach."""

FRESH = range(SELECTION.last - FRESH_WINDOWS + 1, SELECTION.last + 1)
MAX_UPDATES = 46

Row = dict[str, Any]


def options_of(words: str, *more: str, out: Path) -> Options:
    return tune_options.parse([*words.split(), *more, "--jobs", "1", "--out", str(out)])


def run(options: Options) -> tuple[RoutingPolicySpec, Verdict, float]:
    """The policy found, the verdict and the CPU seconds."""
    begun_s = time.process_time()
    searched = parameters(options.start, options.scene.setup.engines)
    found, verdict = tuned(options, searched, clock=time.process_time)
    return found.policy, verdict, time.process_time() - begun_s


def shown(verdict: Verdict) -> Row:
    return {row.name: [round(100 * row.change, 3), round(100 * row.half_width, 3)] for row in verdict.rows}


def gains(words: str, generations: int, out: Path) -> Row:
    options = options_of(words, "--generations", str(generations), out=out)
    policy, verdict, cpu_s = run(options)
    held_out = held_out_seeds(options.plan.seed, options.held_out_windows)
    presets = dict(options.others)
    with runs(options.scene, 1) as all_runs:
        base, *others = all_runs.figures([options.current, *presets.values()], held_out, held_out=True)
    share = options.scene.held_out.window_share
    return {
        "case": words,
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "cpu_s": round(cpu_s, 1),
        "numbers": numbers(policy),
        "tuned": shown(verdict),
        "presets": {
            name: shown(judge(options.plan.objective, one, base, window_share=share))
            for name, one in zip(presets, others, strict=True)
        },
    }


def updates(count: int, generations: int, folder: Path) -> list[Row]:
    """Updates of a policy that was tuned before, each by a seed of its own, and the truth about each."""
    begin = folder / "begin.yaml"
    first, *_ = run(options_of(UPDATES, "--generations", str(generations), out=begin))
    spec = first.model_dump(mode="json", by_alias=True, exclude_none=True)
    resource = {"apiVersion": API_VERSION, "kind": "RoutingPolicy", "metadata": {"name": "p"}, "spec": spec}
    begin.write_text(yaml.safe_dump(resource), encoding="utf-8")
    rows = []
    for seed in track(range(1, count + 1), "updates", console=Console(stderr=True)):
        given = ("--update", str(begin), "--generations", "4", "--seed", str(seed))
        options = options_of(UPDATES, *given, out=folder / "out.yaml")
        policy, verdict, cpu_s = run(options)
        with runs(options.scene, 1) as all_runs:
            base, found = all_runs.figures([options.current, policy], FRESH, held_out=True)
        truth = judge(options.plan.objective, found, base)
        rows.append(
            {
                "seed": seed,
                "accepted": verdict.accepted,
                "reason": verdict.reason,
                "said": shown(verdict)["objective"],
                "truth": shown(truth)["objective"],
                "truly": truth.rows[0].verdict,
                "cpu_s": round(cpu_s, 1),
            }
        )
    return rows


def null(words: str, objective: str, count: int, out: Path) -> Row:
    """How often the same policy is taken for better, or for worse in what must hold."""
    options = options_of(words, "--objective", objective, out=out)
    with runs(options.scene, 1) as all_runs:
        (found,) = all_runs.figures([options.current], range(NULL_WINDOWS), held_out=True)
    rng, accepted, vetoed, improved = np.random.default_rng(0), 0, 0, 0
    for _ in range(count):
        drawn = rng.permutation(NULL_WINDOWS)[:40]
        verdict = judge(options.plan.objective, [found[k] for k in drawn[:20]], [found[k] for k in drawn[20:]])
        accepted += verdict.accepted
        improved += verdict.rows[0].verdict == "better"
        vetoed += any(row.must == "hold" and row.verdict == "worse" for row in verdict.rows)
    percent = {"accepted": accepted, "objective_better": improved, "something_worse": vetoed}
    return {
        "case": words,
        "objective": objective,
        "verdicts": count,
        **{name: round(100 * value / count, 2) for name, value in percent.items()},
    }


def print_gain(row: Row) -> None:
    print(f"{row['case']}\n  accepted {row['accepted']} ({row['reason']}), {row['cpu_s']} s of CPU")
    print(f"  {row['numbers']}")
    for name, figures in {"tuned": row["tuned"], **row["presets"]}.items():
        texts = (f"{key} {change:+.1f} ± {half:.1f}" for key, (change, half) in figures.items())
        print(f"  {name:9}" + ", ".join(texts), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["gains", "updates", "null"], nargs="+", default=["gains", "updates", "null"])
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="of gains, by number")
    parser.add_argument("--generations", type=int, default=40, help="of each tuning (default: %(default)s)")
    parser.add_argument("--count", type=int, default=40, help="updates (default: %(default)s)")
    parser.add_argument("--verdicts", type=int, default=2_000, help="of null, each case (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/tuning.json"), help="file to write")
    given = parser.parse_args()
    if min(given.generations, given.count, given.verdicts) < 1 or given.count > MAX_UPDATES:
        parser.error(f"--generations, --count and --verdicts must be at least 1, --count at most {MAX_UPDATES}")
    print(f"$ {(command := shlex.join(['python', *sys.argv]))}", flush=True)
    make_ready()
    result: Row = {"command": command}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.yaml"
        if "null" in given.part:
            result["null"] = [null(words, one, given.verdicts, out) for words in NULLS for one in PRESETS]
            print(json.dumps(result["null"], indent=1), flush=True)
        if "updates" in given.part:
            rows = result["updates"] = updates(given.count, given.generations, Path(folder))
            taken = [row for row in rows if row["accepted"]]
            better = sum(row["truly"] == "better" for row in taken)
            print(
                f"updates: {len(taken)} of {len(rows)} accepted, {better} of these better on fresh windows", flush=True
            )
            lost = sum(row["truly"] == "better" for row in rows if not row["accepted"])
            print(f"refused though better on fresh windows: {lost} of {len(rows) - len(taken)}", flush=True)
            mean_s = math.fsum(row["cpu_s"] for row in rows) / len(rows)
            print(f"{mean_s:.1f} s of CPU each", flush=True)
        if "gains" in given.part:
            result["gains"] = []
            for number in given.cases:
                result["gains"].append(gains(CASES[number], given.generations, out))
                print_gain(result["gains"][-1])
    given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
