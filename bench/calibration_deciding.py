"""What deciding with learned step times is worth while they are learned: a router's parts before simulated engines.

The router's ``Calibrating`` and ``LoadReplica`` hear what clients report, and the marginal cost behind its KV gate
decides on the replica's snapshots. Rows are situations; figures are mean and 99th percentile of E2E against the same
router with ``calibrate: None``, in %, means and 95 % intervals over paired seeds. ``truth`` sees every instance's own
step times at every moment.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shlex
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t

from bench.calibration import LIES, Case, Jumping
from bench.calibration_reports import ReportedRun
from bench.models import pool
from llmrouter.arrivals.cells import cell
from llmrouter.domain import InstanceView, Placement, Request, Reservation
from llmrouter.routing.calibration_use import Calibrate
from llmrouter.routing.formulas import WorkloadImpact
from llmrouter.routing.inflight import contribution
from llmrouter.routing.policies import kv_gate
from router_grpc.calibrating import Calibrating
from router_grpc.replica import LoadReplica

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmrouter.domain import EngineProfile, Instance
    from llmrouter.sim.workload import Workload

FIRST_SEED = 7_101
WARM = 0.2
BELIEVE_S = 1.0
TRUTH = "truth"
WAYS = (*(one.value for one in Calibrate), TRUTH)
SLOW = 2.0
WRONG = "b g2 x3, g1 g3 /3"

if TYPE_CHECKING:
    Speed = Callable[[int, float], float]
    Row = dict[str, Any]


def alike(_at: int, _share: float) -> float:
    """All engines as their class."""
    return 1.0


def one_slow(at: int, _share: float) -> float:
    """The first is twice as slow."""
    return SLOW if at == 0 else 1.0


def slow_for_a_while(at: int, share: float) -> float:
    """The first is twice as slow from a third of the run to two thirds."""
    return SLOW if at == 0 and 1 / 3 <= share < 2 / 3 else 1.0


@dataclass(frozen=True, slots=True)
class Situation:
    """What is so in a run; ``speed`` takes an instance's number and the share of the run that is over.

    Runs are ``length`` times as long as others.
    """

    name: str
    speed: Speed = alike
    prior: str = "right"
    lies: str = ""
    jumps: bool = False
    load: float = 0.9
    length: int = 1


SITUATIONS = (
    Situation("alike"),
    Situation("one 2x slow", one_slow),
    Situation("one 2x slow, wrong profile", one_slow, prior=WRONG),
    Situation("alike, wrong profile", prior=WRONG),
    Situation("alike, all lie", lies="all lie"),
    Situation("one 2x slow, 10 % lie", one_slow, lies="10 % lie"),
    Situation("one 2x slow, clock jumps", one_slow, jumps=True),
    Situation("one 2x slow, load 0.4 C", one_slow, load=0.4),
    Situation("one 2x slow for a third of the run", slow_for_a_while, load=0.8, length=3),
    Situation("one 2x slow for a third of the run, load 0.4 C", slow_for_a_while, load=0.4, length=2),
)


class DecidingRouter:
    """A router's calibration, replica and policy; hears what ``Intervals`` would, as a ``Watcher``.

    Args:
        calibrate: what decisions use.
        requests: the workload's.
        rng: breaks ties.
        truth: seconds to the profile of each instance, by its number, in place of what is learned.
    """

    def __init__(
        self,
        calibrate: Calibrate,
        requests: Workload,
        rng: random.Random,
        truth: Callable[[int, float], EngineProfile] | None = None,
    ) -> None:
        self.calibrating, self.replica = Calibrating(), LoadReplica()
        self.calibrating.follow({"pool": calibrate})
        self._policy, self._rng = WorkloadImpact(kv_gate(1.0)), rng
        self._requests, self._truth = requests, truth
        self._reservations: dict[str, Reservation] = {}
        self._believed_at_s: float | None = None
        self.run: ReportedRun | None = None
        self.frozen: Counter[str] = Counter()

    def choose(self, row: int) -> int | None:
        """The instance of a request, which the replica counts from now on; ``None`` where it is held."""
        run = self._running
        request = Request(
            request_id=str(row),
            model="",
            prompt_tokens=int(self._requests.prompt_tokens[row]),
            predicted_output_tokens=float(self._requests.predicted_output_tokens[row]),
            arrived_at_s=run.now_s,
        )
        decision = self._policy.decide(request, self.replica.snapshot(run.instances, now_s=run.now_s), self._rng)
        if not isinstance(decision, Placement):
            return None
        chosen = decision.candidates[0].instance_id
        reservation = Reservation(
            request.request_id, "router", chosen, request.prompt_tokens, request.predicted_output_tokens
        )
        self._reservations[request.request_id] = reservation
        self.replica.absorb({chosen: self.replica.load_of(chosen).plus(contribution(reservation))})
        return int(chosen)

    def dispatched(self, request_id: str, instance: Instance, *, prompt_tokens: int, alone: bool, now_s: float) -> None:
        """See ``Watcher``."""
        del prompt_tokens, alone
        self.calibrating.dispatched(self._reservations[request_id], instance, self.replica, now_s=now_s)

    def advanced(self, request_id: str, tokens: int, *, now_s: float) -> None:
        """See ``Watcher``."""
        self.calibrating.advanced(request_id, tokens, now_s=now_s)

    def ended(self, request_id: str, tokens: int | None, *, now_s: float) -> None:
        """See ``Watcher``."""
        self.calibrating.ended(request_id, tokens, now_s=now_s)
        reservation = self._reservations.pop(request_id)
        self.replica.subtract(reservation.instance_id, contribution(reservation))

    def refreshed(self, view_of: Callable[[Instance], InstanceView], *, now_s: float) -> None:
        """See ``Watcher``."""
        instances = self._running.instances
        self.replica.replace({one.instance_id: view_of(one).load for one in instances}, now_s=now_s)
        self.calibrating.refreshed(self.replica, now_s=now_s)
        if self._believed_at_s is None or not 0.0 <= now_s - self._believed_at_s < BELIEVE_S:
            self._believed_at_s = now_s
            self._believe(instances, now_s)

    def _believe(self, instances: tuple[Instance, ...], now_s: float) -> None:
        if self._truth is not None:
            pairs = ((one, self._truth(int(one.instance_id), self._running.now_s)) for one in instances)
            self.replica.believe({one.instance_id: (one, replace(one, profile=profile)) for one, profile in pairs})
            return
        self.replica.believe(self.calibrating.believed(instances, now_s=now_s))
        known = self.calibrating.of("pool")
        self.frozen[str(known.frozen) if known is not None and known.frozen else ""] += 1

    @property
    def _running(self) -> ReportedRun:
        assert self.run is not None  # noqa: S101 - set before the run begins
        return self.run


def task_means(name: str) -> Mapping[int, float]:
    """Mean output of each application, as a router knows it."""
    history = cell(name).history()
    return {
        int(one): float(history.output_tokens[history.application == one].mean())
        for one in np.unique(history.application)
    }


def workload(case: Case, seed: int, means: Mapping[int, float]) -> Workload:
    """A case's arrivals, outputs foretold by the application's mean."""
    made = replace(case, seed=seed).workload
    return made.with_predictions(np.array([means[int(one)] for one in made.application]))


def interval(values_S: np.ndarray) -> tuple[float, float]:
    """Mean and half width of its 95 % interval."""
    count = len(values_S)
    return float(values_S.mean()), float(t.ppf(0.975, count - 1) * values_S.std(ddof=1) / math.sqrt(count))


@dataclass(frozen=True, slots=True)
class Told:
    """What came of a run: seconds, the share that the first instance got, seconds frozen by reason."""

    mean_s: float
    p99_s: float
    first_share: float
    frozen: Mapping[str, int]


def play(name: str, situation: Situation, how: str, *, requests: int, seed: int) -> Told:
    """One run; ``how`` is a ``Calibrate`` or ``TRUTH``."""
    made = cell(name)
    capacity = made.instances - (1.0 - 1.0 / SLOW if situation.speed is one_slow else 0.0)
    case = Case(cell=name, load=situation.load * capacity / made.instances, prior=situation.prior, requests=requests)
    arriving = workload(case, seed, task_means(name))
    rng, duration_s = random.Random(seed), arriving.duration_s
    share, factor = LIES[situation.lies]
    said = [factor(rng) if rng.random() < share else 1.0 for _ in range(requests)]

    def speed(at: int, now_s: float) -> float:
        return situation.speed(at, now_s / duration_s)

    def truth(at: int, now_s: float) -> EngineProfile:
        return made.engine.profile.slower(speed(at, now_s))

    router = DecidingRouter(
        Calibrate.NONE if how == TRUTH else Calibrate(how), arriving, rng, truth if how == TRUTH else None
    )
    router.run = ReportedRun(
        case.engines,
        case.believed,
        arriving,
        Jumping(router, rng) if situation.jumps else router,
        rng=rng,
        choose=router.choose,
        speed=speed,
        spoken=lambda row, tokens: max(1, round(tokens * said[row])),
    )
    router.run.play()
    e2e_s = (np.array(router.run.finished_at_s) - arriving.arrived_at_s)[int(WARM * requests) :]
    first = sum(at == 0 for at in router.run.placed_at[int(WARM * requests) :]) / len(e2e_s)
    return Told(float(e2e_s.mean()), float(np.quantile(e2e_s, 0.99)), first, dict(router.frozen))


def row_of(name: str, situation: Situation, *, requests: int, seeds: int) -> Row:
    """All ways to decide in one situation, against ``None``."""
    length = requests * situation.length
    every = range(FIRST_SEED, FIRST_SEED + seeds)
    told = {how: [play(name, situation, how, requests=length, seed=seed) for seed in every] for how in WAYS}
    off = np.array([(one.mean_s, one.p99_s) for one in told["None"]])
    change = {
        how: 100.0 * (np.array([(one.mean_s, one.p99_s) for one in runs]) / off - 1.0) for how, runs in told.items()
    }
    return {
        "cell": name,
        "situation": situation.name,
        "mean_percent": {how: interval(change[how][:, 0]) for how in told},
        "p99_percent": {how: interval(change[how][:, 1]) for how in told},
        "first_share": {how: float(np.mean([one.first_share for one in runs])) for how, runs in told.items()},
        "runs": {how: [asdict(one) for one in runs] for how, runs in told.items()},
    }


def line(row: Row) -> str:
    """A row of the table."""
    shown = " | ".join(
        f"{row[figures][how][0]:+.1f} ± {row[figures][how][1]:.1f}"
        for figures in ("mean_percent", "p99_percent")
        for how in WAYS[1:]
    )
    first = " ".join(f"{100 * row['first_share'][how]:.0f}" for how in WAYS)
    return f"| {row['cell']}, {row['situation']} | {shown} | {first} |"


def cost(runs: int = 1_500) -> None:
    """Prints how long a snapshot and a decision take, in µs, on declared and on corrected profiles."""
    asked = Request("r", "m", prompt_tokens=800, predicted_output_tokens=200.0, arrived_at_s=0.0)
    for count in (4, 16, 64):
        rng = random.Random(1)
        views = pool(count, rng).views
        instances = [view.instance for view in views]
        loads = {view.instance.instance_id: view.load for view in views}
        believed = [replace(one, profile=one.profile.slower(1.0 + 0.05 * (at % 6))) for at, one in enumerate(instances)]
        for name, pairs in (
            ("declared", {}),
            ("corrected", dict(zip(loads, zip(instances, believed, strict=True), strict=True))),
        ):
            replica, policy, took_us = LoadReplica(), WorkloadImpact(kv_gate(1.0)), []
            replica.replace(loads, now_s=0.0)
            replica.believe(pairs)
            for run in range(runs):
                changed = instances[run % count].instance_id
                replica.absorb({changed: loads[changed]})
                started_ns = time.perf_counter_ns()
                policy.decide(asked, replica.snapshot(instances, now_s=1.0), rng)
                took_us.append((time.perf_counter_ns() - started_ns) / 1_000)
            print(f"{count} instances, {name}: {np.median(took_us):.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/calibration_deciding.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--cell", default="", help="cells whose name begins so")
    parser.add_argument("--only", default="", help="the situation of this name alone")
    parser.add_argument("--cost", action="store_true", help="microseconds of a decision, and no table")
    options = parser.parse_args()
    if options.cost:
        cost()
        return
    print(
        "| situation | mean: Slowness | Full | truth | p99: Slowness | Full | truth | first, % |\n" + "|---" * 8 + "|"
    )
    rows = []
    for name in ("h100-mix", "paper-v100"):
        for situation in SITUATIONS:
            if name.startswith(options.cell) and options.only in {"", situation.name}:
                rows.append(row_of(name, situation, requests=options.requests, seeds=options.seeds))
                print(line(rows[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "bench.calibration_deciding", *sys.argv[1:]])
    options.out.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
