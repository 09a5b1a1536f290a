"""How often instances are left out for late first tokens: wrongly, under ordinary noise, and rightly, if one is slow.

Simulated engines in virtual time, least requests in flight, Poisson arrivals, log-normal prompts and outputs. Every
answer is foretold to be of the mean length: nothing better is known. First tokens are foretold and judged by the code
that a router runs. ``rate`` is requests per second and instance. In the rows without a slow instance each factor judges
the same traffic and none acts: what it would have done is wrong. In the others one of the instances takes ``slow``
times as long for each step from the beginning of the timed part on, and the factor acts. ``p95`` is of the time to
first token.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from statistics import quantiles
from typing import Any

from llmrouter.domain import Instance, InstanceView, Load, Request, Reservation
from llmrouter.profiles import PROFILES
from llmrouter.routing.inflight import contribution
from llmrouter.routing.late_starts import lateness
from llmrouter.routing.outliers import OutlierRules, Outliers
from llmrouter.sim.engine import Engine, EngineRequest
from router_grpc.costing import own_seconds

PROFILE = PROFILES["llama-3.1-8b-rtx4090"]
PROMPT, PROMPT_SIGMA = 400.0, 1.0
OUTPUT, OUTPUT_SIGMA = 120.0, 0.9
MEAN_OUTPUT = 180.0
WARM_S = 120.0
FACTORS = [1.5, 2.0, 4.0]

Row = dict[str, Any]


class Pool:
    """Engines under a clock of their own, and what a router knows of them."""

    def __init__(self, instances: int, rng: random.Random) -> None:
        self.rng = rng
        self.now_s = 0.0
        names = [f"i{place}" for place in range(instances)]
        self.instances = [Instance(name, f"{name}:1", "p", PROFILE, frozenset("m")) for name in names]
        self.engines = {name: Engine(PROFILE) for name in names}
        self.slow: dict[str, float] = {}
        self.loads = dict.fromkeys(names, Load())
        self.open: dict[str, tuple[Reservation, float, float]] = {}
        self.events: list[tuple[float, int, str]] = []
        self.count = 0
        self.ttfts: list[float] = []
        self.in_flight: list[int] = []

    def at(self, seconds: float, what: str) -> None:
        self.count += 1
        heapq.heappush(self.events, (seconds, self.count, what))

    def step(self, name: str) -> None:
        engine = self.engines[name]
        if engine.has_work and not engine.in_step:
            self.at(self.now_s + engine.begin_step().duration_s * self.slow.get(name, 1.0), name)

    def arrive(self, out: frozenset[str]) -> str:
        allowed = [one for one in self.instances if one.instance_id not in out]
        least = min(self.loads[one.instance_id].requests for one in allowed)
        chosen = self.rng.choice([one for one in allowed if self.loads[one.instance_id].requests == least])
        name, request_id = chosen.instance_id, f"r{self.count}"
        prompt = max(1, min(6000, round(PROMPT * self.rng.lognormvariate(0, PROMPT_SIGMA))))
        output = max(1, min(2000, round(OUTPUT * self.rng.lognormvariate(0, OUTPUT_SIGMA))))
        asked = Request(request_id, "m", prompt, MEAN_OUTPUT, self.now_s)
        _, first_s = own_seconds(asked, InstanceView(chosen, self.loads[name]))
        reservation = Reservation(request_id, "r", name, prompt, MEAN_OUTPUT)
        self.open[request_id] = reservation, self.now_s, first_s
        self.loads[name] = self.loads[name].plus(contribution(reservation))
        self.engines[name].add(EngineRequest(request_id, prompt, output))
        self.step(name)
        return request_id

    def finish_step(self, name: str, judges: list[Outliers]) -> None:
        result = self.engines[name].finish_step()
        for request_id in result.first_tokens:
            reservation, sent_s, first_s = self.open[request_id]
            took_s = self.now_s - sent_s
            self.ttfts.append(took_s)
            late = lateness(took_s=took_s, foretold_s=first_s)
            for one in judges:
                one.started(name, request_id, late, now_s=self.now_s)
                one.answered(name, request_id)
            self.replaced(reservation, replace(reservation, prefilled=True))
        for request_id in result.finished:
            self.replaced(self.open.pop(request_id)[0], None)
        self.step(name)

    def waiting(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for reservation, sent_s, first_s in self.open.values():
            if not reservation.prefilled:
                late = lateness(took_s=self.now_s - sent_s, foretold_s=first_s)
                found.setdefault(reservation.instance_id, []).append(late)
        return found

    def replaced(self, old: Reservation, new: Reservation | None) -> None:
        load = self.loads[old.instance_id].minus(contribution(old))
        if new is not None:
            load = load.plus(contribution(new))
            self.open[new.request_id] = new, *self.open[new.request_id][1:]
        self.loads[old.instance_id] = load


def play(
    pool: Pool, rate: float, seconds: float, judges: list[Outliers], *, acts: bool
) -> list[tuple[float, int, str]]:
    """Ejections: when, by which judge, of which instance."""
    ejections: list[tuple[float, int, str]] = []
    ends_s = pool.now_s + seconds
    pool.at(pool.now_s, "arrival")
    pool.at(pool.now_s, "judge")
    while pool.events and pool.events[0][0] <= ends_s:
        pool.now_s, _, what = heapq.heappop(pool.events)
        if what == "arrival":
            out = judges[0].left_out(now_s=pool.now_s) if acts else frozenset[str]()
            request_id = pool.arrive(out)
            if acts:
                judges[0].dispatched(pool.open[request_id][0].instance_id, request_id, now_s=pool.now_s)
            pool.at(pool.now_s + pool.rng.expovariate(rate * len(pool.instances)), "arrival")
        elif what == "judge":
            pool.in_flight.append(len(pool.open))
            waiting = pool.waiting()
            for place, one in enumerate(judges):
                found = one.judge(waiting, now_s=pool.now_s, instances=len(pool.instances))
                ejections += [(pool.now_s, place, name) for name in found]
                for name in found if not acts else ():
                    one.keep_only({other for other in pool.engines if other != name})  # judged anew: nothing acts
            pool.at(pool.now_s + 1.0, "judge")
        else:
            pool.finish_step(what, judges)
    pool.events = [one for one in pool.events if one[2] not in {"arrival", "judge"}]
    heapq.heapify(pool.events)
    return ejections


def noise(instances: int, rate: float, minutes: float, factors: list[float], seed: int) -> list[Row]:
    pool = Pool(instances, random.Random(seed))
    play(pool, rate, WARM_S, [], acts=False)
    pool.ttfts.clear()
    judges = [Outliers(OutlierRules(ttft_factor=one, max_ejected_fraction=1.0)) for one in factors]
    ejections = play(pool, rate, 60 * minutes, judges, acts=False)
    shown = {"ttft_p50_s": round(quantiles(pool.ttfts)[1], 3), "ttft_p95_s": round(_p95(pool.ttfts), 3)}
    in_flight = round(sum(pool.in_flight) / len(pool.in_flight) / instances, 1)
    return [
        {
            "seed": seed,
            "instances": instances,
            "rate": rate,
            "slow": 1,
            "factor": factor,
            "first_tokens": len(pool.ttfts),
            "in_flight": in_flight,
            **shown,
            "ejections": sum(1 for _, judge, _ in ejections if judge == place),
            "instance_hours": round(instances * minutes / 60, 2),
        }
        for place, factor in enumerate(factors)
    ]


def slow(instances: int, rate: float, minutes: float, times: float, factor: float, seed: int) -> Row:  # noqa: PLR0917
    pool = Pool(instances, random.Random(seed))
    judges = [Outliers(OutlierRules(ttft_factor=factor))]
    play(pool, rate, WARM_S, judges, acts=True)
    pool.ttfts.clear()
    began_s, pool.slow["i0"] = pool.now_s, times
    ejections = play(pool, rate, 60 * minutes, judges, acts=True)
    first = next((at_s - began_s for at_s, _, name in ejections if name == "i0"), None)
    return {
        "seed": seed,
        "instances": instances,
        "rate": rate,
        "slow": times,
        "factor": factor,
        "first_ejected_after_s": None if first is None else round(first, 1),
        "others_ejected": sum(1 for _, _, name in ejections if name != "i0"),
        "ttft_p95_s": round(_p95(pool.ttfts), 3),
    }


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench/outliers.json"))
    parser.add_argument("--instances", type=int, default=8, help="of the pool (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of virtual time a run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each row (default: %(default)s)")
    parser.add_argument("--rate", type=float, action="append", help="repeatable (default: 1.5 4 8 14)")
    given = parser.parse_args()
    rows: list[Row] = []
    for rate in given.rate or [1.5, 4.0, 8.0, 14.0]:
        for seed in range(given.seeds):
            rows += noise(given.instances, rate, given.minutes, FACTORS, seed)
    for times in (3.0, 10.0, 30.0, 1e6):
        for factor in (0.0, 4.0):
            rows += [slow(given.instances, 1.5, given.minutes, times, factor, seed) for seed in range(given.seeds)]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"command": shlex.join(["python", *sys.argv]), "rows": rows}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
