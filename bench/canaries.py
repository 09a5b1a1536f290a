"""How soon a canary that is worse is found out, and how often one that is not is blamed: the guardrail, simulated.

The outcomes are the simulator's: windows of the packaged Azure trace on one H100 at 5 requests a second, least
requests in flight, so times have heavy tails and long memory (bursts fill the engine, and all that come then are slow).
Which arm a request is in is drawn; the candidate's times are the simulator's times what it is worse by. ``fails`` is a
candidate of whose requests 5 % fail, ``silent`` one of whose requests 20 % never get a first token. Every five seconds
the verdict that operator and routers ask is asked, of what was known by then: first tokens and ends that had come, open
requests at what they had waited. ``guardrail`` is the largest ratio allowed: at 1.1 a candidate that is 5 % worse is
allowed, and one that is 10 % worse is exactly at the limit.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from llmrouter.arrivals.cells import cell
from llmrouter.rollout.arm_stats import LEAST_S, MOST_S, ArmStats, Moments, late_after_s, with_open
from llmrouter.rollout.verdict import verdict
from llmrouter.rollout_specs import GuardrailsSpec
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy, Setup

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE_RPS = 5.0
LOOK_EVERY_S = 5.0
ERROR_FRACTION, SILENT_FRACTION = 0.05, 0.2
NEVER_S = 1e9

Row = dict[str, Any]


@dataclass(frozen=True)
class Traffic:
    """Columns (N,) of one simulated run: instants and times in seconds."""

    arrived_at_s: NDArray[np.float64]
    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    e2e_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Effect:
    """What is wrong with a candidate: its times are so many times as long, or requests fail, or stay silent."""

    name: str
    times: float = 1.0
    fails: float = 0.0
    silent: float = 0.0


EFFECTS = (
    Effect("same"),
    Effect("5 % worse", 1.05),
    Effect("10 % worse", 1.1),
    Effect("20 % worse", 1.2),
    Effect("50 % worse", 1.5),
    Effect("3 times", 3.0),
    Effect("fails", fails=ERROR_FRACTION),
    Effect("silent", silent=SILENT_FRACTION),
)


def traffic(seed: int, requests: int) -> Traffic:
    """One run of the simulator."""
    azure = cell("azure")
    workload = azure.workload(RATE_RPS, requests, seed)
    policy = CompiledPolicy(rule=Rule.LEAST_IN_FLIGHT, max_requests=1_000_000)
    outcomes = simulate(Setup(engines=(azure.engine,)), workload, policy, seed=seed)
    return Traffic(
        outcomes.arrived_at_s - outcomes.arrived_at_s[0],
        outcomes.ttft_s,
        outcomes.tpot_s,
        outcomes.e2e_s,
        workload.prompt_tokens,
        workload.output_tokens,
    )


class Sums:
    """Moments of one metric of one arm at any instant: running sums over the instants at which each was measured."""

    def __init__(
        self, known_at_s: NDArray[np.float64], seconds: NDArray[np.float64], tokens: NDArray[np.int64]
    ) -> None:
        measured = np.isfinite(seconds) & (known_at_s < NEVER_S)
        order = np.argsort(known_at_s[measured], kind="stable")
        self._at_s = known_at_s[measured][order]
        clipped = np.clip(seconds[measured][order], LEAST_S, MOST_S)
        y, x = np.log(clipped), np.log1p(tokens[measured][order])
        columns = np.stack([clipped, y, y * y, x, x * x, x * y])
        self._sums = np.concatenate([np.zeros((6, 1)), np.cumsum(columns, axis=1)], axis=1)

    def at(self, now_s: float) -> Moments:
        """What had been measured by then."""
        count = int(np.searchsorted(self._at_s, now_s, side="right"))
        return Moments(count, *(float(value) for value in self._sums[:, count]))


class Arm:
    """One arm of a canary, at any instant."""

    def __init__(self, rows: NDArray[np.int64], seen: Traffic, effect: Effect, rng: np.random.Generator) -> None:
        self._arrived = seen.arrived_at_s[rows]
        fails = rng.random(len(rows)) < effect.fails
        ttft = np.where(rng.random(len(rows)) < effect.silent, NEVER_S, seen.ttft_s[rows] * effect.times)
        e2e = np.where(ttft >= NEVER_S, NEVER_S, seen.e2e_s[rows] * effect.times)
        tpot = seen.tpot_s[rows] * effect.times
        first, last = self._arrived + ttft, self._arrived + e2e
        self._prompts = seen.prompt_tokens[rows]
        well = np.where(fails, NEVER_S, last)
        self._ttft = Sums(first, ttft, self._prompts)
        self._tpot = Sums(well, tpot, seen.output_tokens[rows])
        self._e2e = Sums(well, e2e, seen.output_tokens[rows])
        self._first = first
        self._failed, self._finished = np.sort(last[fails]), np.sort(last[~fails])

    def at(self, now_s: float) -> ArmStats:
        """What had been measured by then, open requests left out."""
        return ArmStats(
            requests=int(np.searchsorted(self._arrived, now_s, side="right")),
            finished=int(np.searchsorted(self._finished, now_s, side="right")),
            errors=int(np.searchsorted(self._failed, now_s, side="right")),
            ttft=self._ttft.at(now_s),
            tpot=self._tpot.at(now_s),
            e2e=self._e2e.at(now_s),
        )

    def waits(self, now_s: float) -> list[tuple[float, int]]:
        """Waits and prompt tokens of the requests that wait for their first token."""
        arrived = int(np.searchsorted(self._arrived, now_s, side="right"))
        open_ = np.flatnonzero(self._first[:arrived] > now_s)
        return [(float(now_s - self._arrived[row]), int(self._prompts[row])) for row in open_]


def canary(seen: Traffic, effect: Effect, percent: int, rules: list[GuardrailsSpec], seed: int) -> list[Row]:
    """One canary under each of several guardrails: when each ended it, and why."""
    rng = np.random.default_rng([seed, percent])
    in_trial = rng.random(len(seen.arrived_at_s)) * 100 < percent
    current = Arm(np.flatnonzero(~in_trial), seen, Effect("current"), rng)
    candidate = Arm(np.flatnonzero(in_trial), seen, effect, rng)
    found: list[Row] = [{} for _ in rules]
    for now_s in np.arange(LOOK_EVERY_S, float(seen.arrived_at_s[-1]), LOOK_EVERY_S):
        arms = current.at(now_s), candidate.at(now_s)
        late_s = late_after_s(arms)
        one, other = (
            with_open(arm, side.waits(now_s), late_after_s=late_s)
            for arm, side in zip(arms, (current, candidate), strict=True)
        )
        for place, rule in enumerate(rules):
            said = None if found[place] else verdict(one, other, rule)
            if said is not None and said.breach is not None:
                found[place] = {"after_s": float(now_s), "requests": other.requests, "reason": said.reason}
        if all(found):
            break
    return found


def summary(found: list[Row], effect: Effect, percent: int, rules: GuardrailsSpec) -> Row:
    """A row of the table."""
    ended = [one for one in found if one]

    def of(name: str, quantile: float) -> float | None:
        values = [one[name] for one in ended]
        return round(float(np.quantile(values, quantile)), 1) if values else None

    reasons = [one["reason"] for one in ended]
    return {
        "candidate": effect.name,
        "percent": percent,
        "guardrail": rules.max_ttft_ratio,
        "min_requests": rules.min_requests,
        "canaries": len(found),
        "rolled_back": len(ended),
        "requests_p50": of("requests", 0.5),
        "requests_p90": of("requests", 0.9),
        "after_s_p50": of("after_s", 0.5),
        "after_s_p90": of("after_s", 0.9),
        "reasons": {name: reasons.count(name) for name in sorted(set(reasons))},
    }


def guardrails(ratio: float, least: int, probability: float) -> GuardrailsSpec:
    """The same ratio for all times."""
    return GuardrailsSpec(
        max_ttft_ratio=ratio,
        max_tpot_ratio=ratio,
        max_e2e_ratio=ratio,
        min_requests=least,
        false_alarm_probability=probability,
    )


def table(rows: list[Row]) -> Table:
    """As people read it."""
    columns = (
        "candidate",
        "percent",
        "guardrail",
        "min",
        "rolled back",
        "its requests p50 / p90",
        "seconds p50 / p90",
        "why",
    )
    shown = Table(*columns, title=f"{rows[0]['canaries']} canaries each, {RATE_RPS:g} requests a second")
    for row in rows:
        requests, seconds = (
            "–" if row[f"{name}_p50"] is None else f"{row[f'{name}_p50']:,.0f} / {row[f'{name}_p90']:,.0f}"
            for name in ("requests", "after_s")
        )
        why = ", ".join(f"{name} {count}" for name, count in row["reasons"].items())
        cells = (row["candidate"], row["percent"], row["guardrail"], row["min_requests"], row["rolled_back"])
        shown.add_row(*map(str, cells), requests, seconds, why)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench/canaries.json"))
    parser.add_argument("--canaries", type=int, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=10_000, help="of each canary, both arms (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="of the simulator that they share (default: %(default)s)")
    parser.add_argument("--percent", type=int, action="append", help="repeatable (default: 10 50)")
    parser.add_argument("--guardrail", type=float, action="append", help="largest ratio; repeatable (default: 1 1.1)")
    parser.add_argument("--only", choices=[one.name for one in EFFECTS], help="one kind alone")
    parser.add_argument("--least", type=int, action="append", help="minRequests; repeatable (default: the product's)")
    parser.add_argument("--probability", type=float, default=0.01, help="falseAlarmProbability (default: %(default)s)")
    given = parser.parse_args()
    least = given.least or [GuardrailsSpec().min_requests]
    rules = [guardrails(ratio, one, given.probability) for ratio in given.guardrail or [1.0, 1.1] for one in least]
    err = Console(stderr=True)
    runs = [traffic(seed, given.requests) for seed in track(range(given.runs), "simulating", console=err)]
    rows: list[Row] = []
    for percent in given.percent or [10, 50]:
        effects = [one for one in EFFECTS if given.only in {None, one.name}]
        for effect in track(effects, f"{percent} %", console=err):
            found = [canary(runs[one % len(runs)], effect, percent, rules, one) for one in range(given.canaries)]
            rows += [summary([one[place] for one in found], effect, percent, rule) for place, rule in enumerate(rules)]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"command": shlex.join(["python", *sys.argv]), "rows": rows}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console(width=150).print(table(rows))


if __name__ == "__main__":
    main()
