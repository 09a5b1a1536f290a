"""How well step times are foretold by coefficients that a router learns, on engines that its profile has wrong.

Each row is one run: engines of a cell under its traffic, reported as clients report (first token, progress every 0.5 s,
finish), to a router that believes a wrong profile. The error is that of step times over steps of the run's middle half,
mean of |foretold ÷ true − 1|, once before and then after so many finished requests. The columns ``10 %`` and ``20 %``
are requests from which on the error stays within.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.calibration_reports import ReportedRun
from llmrouter.arrivals.cells import cell
from llmrouter.domain import EngineMode, Instance, InstanceView, Load
from llmrouter.routing.calibration import COEFFICIENTS, ClassCalibration, Observation
from llmrouter.routing.calibration_intervals import Intervals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.calibration_reports import Watcher
    from llmrouter.domain import EngineProfile
    from llmrouter.sim.engine import StepPlan
    from llmrouter.sim.model import EngineModel
    from llmrouter.sim.workload import Workload

CHECK_EVERY = 10
SHOWN = (50, 100, 200, 400, 800)
EVALUATED = 2_000
SLOW = 2.0

PRIORS = {
    "right": (1.0, 1.0, 1.0, 1.0),
    "all x3": (3.0, 3.0, 3.0, 3.0),
    "all /3": (1 / 3, 1 / 3, 1 / 3, 1 / 3),
    "b g2 x3, g1 g3 /3": (3.0, 1 / 3, 3.0, 1 / 3),
    "b g2 /3, g1 g3 x3": (1 / 3, 3.0, 1 / 3, 3.0),
}
LIES: dict[str, tuple[float, Callable[[random.Random], float]]] = {
    "": (0.0, lambda _: 1.0),
    "10 % lie": (0.1, lambda rng: math.exp(rng.uniform(-2.3, 2.3))),
    "30 % lie": (0.3, lambda rng: math.exp(rng.uniform(-2.3, 2.3))),
    "20 % say x5": (0.2, lambda _: 5.0),
    "all lie": (1.0, lambda rng: math.exp(rng.uniform(-2.3, 2.3))),
}
"""Share of the requests that lie, and the factor by which they say more tokens than there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: a cell's engines at a share of its capacity, and what its router believes and hears."""

    cell: str
    load: float
    prior: str = "right"
    slow_instance: bool = False
    lies: str = ""
    jumps: bool = False
    routers: int = 1
    requests: int = 1_000
    seed: int = 1

    @property
    def engines(self) -> list[EngineModel]:
        one, instances = cell(self.cell).engine, cell(self.cell).instances
        first = replace(one, profile=one.profile.slower(SLOW)) if self.slow_instance else one
        return [first, *[one] * (instances - 1)]

    @property
    def workload(self) -> Workload:
        """Arrivals for the engines that there are: a slow one counts as its share."""
        made = cell(self.cell)
        share = (made.instances - 1 + 1 / SLOW) / made.instances if self.slow_instance else 1.0
        return made.workload(self.load * share * (made.capacity_rps or 1.0), self.requests, self.seed)

    @property
    def believed(self) -> EngineProfile:
        true = cell(self.cell).engine.profile
        base, prefill, context, sequence = PRIORS[self.prior]
        return replace(
            true,
            name="believed",
            base_decode_s=true.base_decode_s * base,
            base_prefill_s=true.base_prefill_s * base,
            prefill_s_per_token=true.prefill_s_per_token * prefill,
            prefill_s_per_token_squared=true.prefill_s_per_token_squared * prefill,
            context_s_per_token=true.context_s_per_token * context,
            sequence_s=true.sequence_s * sequence,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of a case; ``ratios`` are learned ÷ true at the end."""

    case: Case
    before: float
    after: dict[int, float]
    within: dict[str, int | None]
    ratios: dict[str, float]
    observations: int
    frozen: str | None
    slowest: float
    microseconds: float


class Nobody:
    """Watches nothing."""

    def dispatched(
        self, request_id: str, instance: Instance, *, prompt_tokens: int, alone: bool, now_s: float
    ) -> None: ...

    def advanced(self, request_id: str, tokens: int, *, now_s: float) -> None: ...

    def ended(self, request_id: str, tokens: int | None, *, now_s: float) -> None: ...

    def refreshed(self, view_of: Callable[[Instance], InstanceView], *, now_s: float) -> None: ...


class Jumping:
    """Hands on to another watcher with a clock that jumps 40 s ahead or 20 s back, each after some seconds."""

    def __init__(self, watcher: Watcher, rng: random.Random) -> None:
        self._watcher, self._rng = watcher, rng
        self._ahead_s, self._next_s = 0.0, 5.0

    def _clock(self, now_s: float) -> float:
        if now_s >= self._next_s:
            self._next_s = now_s + self._rng.uniform(2.0, 8.0)
            self._ahead_s += self._rng.choice((40.0, -20.0))
        return now_s + self._ahead_s

    def dispatched(self, request_id: str, instance: Instance, *, prompt_tokens: int, alone: bool, now_s: float) -> None:
        now_s = self._clock(now_s)
        self._watcher.dispatched(request_id, instance, prompt_tokens=prompt_tokens, alone=alone, now_s=now_s)

    def advanced(self, request_id: str, tokens: int, *, now_s: float) -> None:
        self._watcher.advanced(request_id, tokens, now_s=self._clock(now_s))

    def ended(self, request_id: str, tokens: int | None, *, now_s: float) -> None:
        self._watcher.ended(request_id, tokens, now_s=self._clock(now_s))

    def refreshed(self, view_of: Callable[[Instance], InstanceView], *, now_s: float) -> None:
        self._watcher.refreshed(view_of, now_s=self._clock(now_s))


@cache
def true_steps(name: str, load: float, requests: int, seed: int, *, slow_instance: bool) -> list[Observation]:
    """Steps of the middle half of a run, as observations of one step each; at most ``EVALUATED``."""
    case = Case(cell=name, load=load, requests=requests, seed=seed, slow_instance=slow_instance)
    profile, duration_s = case.engines[-1].profile, case.workload.duration_s
    steps: list[Observation] = []

    def note(at: int, plan: StepPlan) -> None:
        if not 0.25 * duration_s <= run.now_s <= 0.75 * duration_s:
            return
        alone = plan.prefill_tokens > 0 and profile.mode is EngineMode.PREFILL_FIRST
        steps.append(
            Observation(
                f"{at:03d}",
                plan.duration_s,
                profile.base_prefill_s / profile.base_decode_s if alone else 1.0,
                plan.prefill_tokens,
                plan.context_tokens,
                plan.decode_sequences,
            )
        )

    run = ReportedRun(case.engines, profile, case.workload, Nobody(), rng=random.Random(seed), on_step=note)
    run.play()
    return steps[:: max(1, len(steps) // EVALUATED)]


def error_of(calibration: ClassCalibration, steps: list[Observation]) -> float:
    """Mean of |foretold ÷ true − 1|."""
    return sum(abs(calibration.seconds(step) / step.seconds - 1.0) for step in steps) / len(steps)


def listen(case: Case, calibration: ClassCalibration, on_end: Callable[[int], None]) -> float:
    """Plays a case to a calibration; returns the CPU seconds that learning took."""
    rng = random.Random(case.seed)
    share, factor = LIES[case.lies]
    said = [factor(rng) if rng.random() < share else 1.0 for _ in range(case.requests)]
    spent = [0.0]

    def learn(_: Instance, observation: Observation) -> None:
        started_s = time.process_time()
        calibration.learn(observation)
        spent[0] += time.process_time() - started_s

    intervals = Intervals(learn)
    ReportedRun(
        case.engines,
        case.believed,
        case.workload,
        Jumping(intervals, rng) if case.jumps else intervals,
        rng=rng,
        routers=case.routers,
        spoken=lambda row, tokens: max(1, round(tokens * said[row])),
        on_end=on_end,
    ).play()
    return spent[0]


def perform(case: Case) -> Row:
    """Plays a case, and judges what is believed from time to time."""
    calibration = ClassCalibration(case.believed)
    steps = true_steps(case.cell, case.load, case.requests, case.seed, slow_instance=case.slow_instance)
    errors = {0: error_of(calibration, steps)}

    def look(ended: int) -> None:
        if ended % CHECK_EVERY == 0:
            errors[ended] = error_of(calibration, steps)

    spent_s = listen(case, calibration, look)
    known = calibration.calibration
    true = cell(case.cell).engine.profile
    return Row(
        case=case,
        before=errors[0],
        after={count: errors[count] for count in SHOWN if count in errors},
        within={bound: within(errors, float(bound) / 100) for bound in ("20", "10")},
        ratios={name: known.coefficients[name] / getattr(true, name) for name in COEFFICIENTS},
        observations=known.observations,
        frozen=known.frozen,
        slowest=max(known.slowness.values(), default=1.0),
        microseconds=1e6 * spent_s / max(known.observations, 1),
    )


def within(errors: dict[int, float], bound: float) -> int | None:
    """Finished requests from which on the error stays within a bound; ``None`` where it never does."""
    since = None
    for count in sorted(errors, reverse=True):
        if errors[count] > bound:
            break
        since = count
    return since


def cost() -> str:
    """Microseconds of CPU a call: 3,200 requests on 64 instances, reported every half second for 20 s."""
    profile = cell("h100-mix").engine.profile
    calibration = ClassCalibration(profile)
    intervals = Intervals(lambda _, observation: (calibration.learn(observation), None)[1])
    instances = [Instance(f"{at:03d}", "e:1", "pool", profile, frozenset()) for at in range(64)]
    view = InstanceView(instances[0], Load(50, 80_000, 2_000, 100.0))
    spent = dict.fromkeys(("dispatch", "refresh of 64", "report, learning included"), 0.0)

    def timed(name: str, calls: Iterable[Callable[[], None]]) -> None:
        started_s = time.process_time()
        for call in calls:
            call()
        spent[name] += time.process_time() - started_s

    names = [str(row) for row in range(3_200)]
    timed(
        "dispatch",
        [
            partial(intervals.dispatched, name, instances[row % 64], prompt_tokens=1_000, alone=False, now_s=0.0)
            for row, name in enumerate(names)
        ],
    )
    for half in range(40):
        for tenth in range(5):
            timed(
                "refresh of 64",
                [partial(intervals.refreshed, lambda _: view, now_s=0.5 * half + 0.1 * (tenth + 1))],
            )
        at_s = 0.5 * (half + 1)
        timed(
            "report, learning included",
            [
                partial(intervals.advanced, name, 40 * half + 1, now_s=at_s + row * 1e-6)
                for row, name in enumerate(names)
            ],
        )
    calls = {"dispatch": 3_200, "refresh of 64": 200, "report, learning included": 40 * 3_200}
    return ", ".join(f"{name} {1e6 * spent[name] / calls[name]:.1f}" for name in spent)


def cases() -> list[Case]:
    """Every prior on both engines; then what goes wrong, from a prior that is wrong by 3."""
    made = [
        Case(cell=name, load=load, prior=prior, requests=requests)
        for name, load, requests in (("h100-mix", 0.8, 1_600), ("paper-v100", 0.8, 1_000), ("paper-v100", 1.1, 1_000))
        for prior in PRIORS
    ]
    for name, requests in (("h100-mix", 1_600), ("paper-v100", 1_000)):
        worst = Case(cell=name, load=0.8, prior="b g2 x3, g1 g3 /3", requests=requests)
        made += [replace(worst, load=0.2, requests=600), replace(worst, slow_instance=True)]
        made += [replace(worst, lies=lies) for lies in LIES if lies]
        made += [replace(worst, jumps=True)]
        made += [replace(worst, routers=routers, requests=2 * requests) for routers in (2, 4)]
    return made


def line(row: Row) -> str:
    """A row of the table."""
    case = row.case
    what = [case.lies, "one engine 2x slower" if case.slow_instance else "", "clock jumps" if case.jumps else ""]
    what += [f"{case.routers} routers" if case.routers > 1 else ""]
    after = " | ".join(f"{100 * row.after[count]:.1f}" if count in row.after else "" for count in SHOWN)
    ratios = " ".join(f"{row.ratios[name]:.2f}" for name in COEFFICIENTS)
    since = " | ".join("never" if count is None else str(count) for count in row.within.values())
    return (
        f"| {case.cell} {case.load:g} C | {case.prior} | {', '.join(filter(None, what))} | {100 * row.before:.0f} "
        f"| {after} | {since} | {ratios} | {row.slowest:.2f} | {row.frozen or ''} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/calibration.json"))
    parser.add_argument("--only", default="", help="cells whose name begins so")
    parser.add_argument("--cost", action="store_true", help="microseconds of CPU a call, and no table")
    options = parser.parse_args()
    if options.cost:
        print(cost())
        return
    shown = " | ".join(str(count) for count in SHOWN)
    print(
        f"| traffic | prior | besides | before, % | {shown} | to 20 % | to 10 % "
        "| b g1 g2 g3 ÷ true | slowest | frozen |"
    )
    print("|---" * (10 + len(SHOWN) - 1) + "|")
    rows = []
    for case in cases():
        if case.cell.startswith(options.only):
            rows.append(perform(case))
            print(line(rows[-1]), flush=True)
    learned = sum(row.observations for row in rows)
    mean = sum(row.microseconds * row.observations for row in rows) / max(learned, 1)
    print(f"{mean:.0f} microseconds of CPU an observation", file=sys.stderr)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "command": shlex.join(["python", "-m", "bench.calibration", *sys.argv[1:]]),
        "rows": [asdict(row) for row in rows],
    }
    options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
