"""What the router's queue costs with many requests held, on one core: to join, to find who goes first, to be served.

Each row fills a line and then, with that many held, serves some and lets as many join: microseconds of CPU time for
each, without garbage collection, and of the smallest line the memory that a held request keeps in it. One kick costs
what it takes to find who goes first.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import shlex
import sys
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

from llmrouter.domain import Request
from llmrouter.routing.lines import QueueRules
from llmrouter.routing.orders import ORDERS
from router_grpc.holding import HoldLine

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from router_grpc.holding import Ticket

HELD = (1_000, 10_000, 100_000)
SEED = 1
GAP_S = 0.001

Row = dict[str, str | int | float | None]


class Crowd:
    """A line and those in it, under a clock of its own."""

    def __init__(self, rules: QueueRules, tenants: int) -> None:
        self.now_s = 0.0
        self.line = HoldLine(rules, lambda: self.now_s)
        self.rng = random.Random(SEED)
        self.tenants = tenants
        self.entered: dict[Ticket, AbstractContextManager[Ticket]] = {}
        self.count = 0

    def join(self) -> None:
        self.now_s += GAP_S
        self.count += 1
        deadline_s = self.now_s + self.rng.uniform(1, 600) if self.rng.random() < 1 / 2 else None
        asked = Request(
            f"r{self.count}",
            "m",
            prompt_tokens=self.rng.randint(10, 4_000),
            predicted_output_tokens=self.rng.lognormvariate(5, 1),
            arrived_at_s=self.now_s,
            predicted_rank=self.rng.lognormvariate(5, 1),
            priority=self.rng.choice((0, 0, 0, 1)),
            tenant=f"t{self.rng.randrange(self.tenants)}",
            deadline_at_s=deadline_s,
        )
        context = self.line.ticket(asked, work_s=self.rng.lognormvariate(0, 1), kept=1, since=self.line.events)
        self.entered[context.__enter__()] = context

    def tried(self) -> Ticket:
        """Whoever has the turn."""
        if self.line.trying is None:
            self.line.kick()
        if self.line.trying is None:
            raise RuntimeError("nobody has the turn")
        return self.line.trying

    def serve(self) -> None:
        ticket = self.tried()
        ticket.served()
        self.entered.pop(ticket).__exit__(None, None, None)


def measure(name: str, held: int, *, fair: bool, kicks: int) -> Row:
    gc.collect()
    gc.disable()
    if held <= HELD[0]:
        tracemalloc.start()
    crowd = Crowd(QueueRules(ORDERS[name], fair=fair), tenants=max(10, held // 10))
    for _ in range(held):
        crowd.join()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()  # of no effect where it was not started
    for _ in range(5):  # what a first search tidies up
        crowd.tried().stays()
    seconds = {"kick": 0.0, "serve": 0.0, "join": 0.0}
    for _ in range(kicks):
        crowd.now_s += GAP_S
        began = time.process_time()
        crowd.line.kick()
        crowd.tried().stays()
        kicked = time.process_time()
        crowd.serve()
        served = time.process_time()
        crowd.join()
        seconds["kick"] += kicked - began
        seconds["serve"] += served - kicked
        seconds["join"] += time.process_time() - served
    gc.enable()
    per_us = {f"{what}_us": round(spent / kicks * 1e6, 1) for what, spent in seconds.items()}
    return {"order": name, "fair": int(fair), "held": held, **per_us, "bytes_each": round(kept / held) or None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench/hold_line.json"))
    parser.add_argument("--kicks", type=int, default=500, help="of each row (default: %(default)s)")
    parser.add_argument("--held", type=int, action="append", help=f"repeatable (default: {HELD})")
    given = parser.parse_args()
    rows = [
        measure(name, held, fair=fair, kicks=given.kicks)
        for held in given.held or HELD
        for name in ORDERS
        for fair in (False, True)
    ]
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one core",
        "rows": rows,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("| order | fair | held | kick µs | serve µs | join µs | bytes each |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")


if __name__ == "__main__":
    main()
