"""What a router's prefix index is worth, how wrong it is, and what it costs.

Engines keep prefixes of KV; the same requests run under every policy, seed by seed, below and around the rate that
round-robin sustains with the same caches. ``--part worth``: no index, the index, and what the caches really hold at the
moment, with affinity rules beside them. ``--part routers``: several routers that each see only their own dispatches,
and the same with one index between them. ``--part cost``: microseconds and bytes of the index alone.

Changes are mean paired differences in percent against the default policy without an index, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress

from llmrouter.arrivals import transform
from llmrouter.arrivals.multi_turn import SessionLaw, sessions
from llmrouter.arrivals.readers import read
from llmrouter.domain import Candidate, Hold, ObjectiveWeights, Placement, Request
from llmrouter.profiles import H100_MIX
from llmrouter.routing.policies import LeastInFlight, request_bound
from llmrouter.routing.prefixes import PrefixIndex
from llmrouter.routing.rules import Rule
from llmrouter.sim import compiled
from llmrouter.sim.arrays import lay_out
from llmrouter.sim.model import EngineModel
from llmrouter.sim.run import play
from llmrouter.sim.setup import CompiledPolicy, PrefixView, RouterSide, Setup
from llmrouter.study.seeds import SELECTION
from llmrouter.study.statistics import paired_change
from router_grpc.calls import RouteAsk
from router_grpc.prefixing import Prefixing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from llmrouter.domain import Decision, InstanceView, PoolSnapshot
    from llmrouter.routing.policies import Policy
    from llmrouter.sim.workload import Workload

INSTANCES = 4
WARM_UP_FRACTION = 0.2
LOADS = (0.5, 0.8, 0.95)
FIGURES = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s")
SUSTAINED_TTFT_S = 1.0
STICKY_SHARE, STICKY_TTFT_S = 0.8, 18.0
"""Of llm-d's guide "sticky until saturated": what it calls sticky, and the penalty of TTFT that ends it."""

LAWS = {
    "chat": SessionLaw(
        tenants=8, system_prompt_tokens=1_024, mean_turns=6, question_median_tokens=150, block_tokens=64
    ),
    "agents": SessionLaw(
        tenants=8,
        system_prompt_tokens=4_096,
        mean_turns=12,
        think_median_s=2.0,
        question_median_tokens=800,
        output_median_tokens=120,
        max_prompt_tokens=48_000,
        block_tokens=64,
    ),
    "documents": SessionLaw(
        tenants=300,
        system_prompt_tokens=6_144,
        mean_turns=1,
        question_median_tokens=100,
        output_median_tokens=150,
        block_tokens=64,
    ),
}
"""Sessions over few system prompts; long ones of coding agents; single questions over 300 documents, which together are
1.8 million tokens, more than all caches hold (1.6 million)."""

GATED = {"max_requests": None, "kv_fraction": 1.0}
UNCREDITED = replace(ObjectiveWeights(), reuse=0.0).in_order
"""The default's weights without the credit for what a hit saves later prompts."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy, what it knows of caches, and how many routers run it."""

    name: str
    policy: Callable[[Workload], Policy | CompiledPolicy]
    prefixes: PrefixView = PrefixView.INDEX
    routers: int = 1
    refresh_s: float = 0.0


def ruled(rule: Rule, **room: object) -> Callable[[Workload], CompiledPolicy]:
    return lambda _workload: CompiledPolicy(rule=rule, **room)  # type: ignore[arg-type]


class Affine(LeastInFlight):
    """The instance that a preference picks of those with room; the fewest requests in flight among equals."""

    def __init__(self, preferred: Callable[[Request, Sequence[InstanceView]], list[InstanceView]]) -> None:
        super().__init__(request_bound(512))
        self._preferred = preferred

    def decide(self, request: Request, snapshot: PoolSnapshot, rng: random.Random) -> Decision:
        _, places = self._table.roomy(snapshot.views, request)
        roomy = [snapshot.views[place] for place in places]
        if not roomy:
            return Hold("none has room")
        view = min(self._preferred(request, roomy), key=lambda one: (one.total.requests, rng.random()))
        return Placement((Candidate(view.instance.instance_id, 0.0, view.load),), "affinity")


def most_cached(_workload: Workload) -> Policy:
    def preferred(request: Request, views: Sequence[InstanceView]) -> list[InstanceView]:
        most = max(request.cached_tokens.get(view.instance.instance_id, 0) for view in views)
        return [view for view in views if request.cached_tokens.get(view.instance.instance_id, 0) == most]

    return Affine(preferred)


def sticky_until_saturated(_workload: Workload) -> Policy:
    """Instances that have most of the prompt, unless they are far behind; the fewest uncached tokens among them."""

    def wait_s(view: InstanceView) -> float:
        return view.total.queued_prefill_tokens * view.instance.profile.prefill_s_per_token

    def preferred(request: Request, views: Sequence[InstanceView]) -> list[InstanceView]:
        def cached(view: InstanceView) -> int:
            return request.cached_tokens.get(view.instance.instance_id, 0)

        sticky = [view for view in views if cached(view) >= STICKY_SHARE * request.prompt_tokens]
        others = [view for view in views if view not in sticky]
        if sticky and others and min(map(wait_s, sticky)) - min(map(wait_s, others)) > STICKY_TTFT_S:
            sticky = []
        kept = sticky or list(views)
        loads = [view.total.queued_prefill_tokens + request.prompt_tokens - cached(view) for view in kept]
        return [view for view, load in zip(kept, loads, strict=True) if load == min(loads)]

    return Affine(preferred)


def session_affinity(workload: Workload) -> Policy:
    """Every session has an instance, drawn by its number; requests without a session are on their own."""
    home = np.arange(len(workload))
    for row, before in enumerate(workload.after.tolist()):
        if before >= 0:
            home[row] = home[before]
    drawn = np.random.default_rng(0).integers(INSTANCES, size=len(workload))

    def preferred(request: Request, views: Sequence[InstanceView]) -> list[InstanceView]:
        wanted = f"{drawn[home[int(request.request_id[1:])]]:03d}"
        return [view for view in views if view.instance.instance_id == wanted] or list(views)

    return Affine(preferred)


BASE = Contender("WorkloadImpact, no index", ruled(Rule.MARGINAL_COST, **GATED), PrefixView.UNKNOWN)
LMETRIC = Contender("LMetric, index", ruled(Rule.LMETRIC))
WORTH = (
    BASE,
    replace(BASE, name="WorkloadImpact, index", prefixes=PrefixView.INDEX),
    replace(BASE, name="WorkloadImpact, true caches", prefixes=PrefixView.EXACT),
    Contender("WorkloadImpact, index, reuse 0", ruled(Rule.MARGINAL_COST, weights=UNCREDITED, **GATED)),
    Contender("LMetric, no index", ruled(Rule.LMETRIC), PrefixView.UNKNOWN),
    LMETRIC,
    Contender("LMetric, true caches", ruled(Rule.LMETRIC), PrefixView.EXACT),
    Contender("TokenLoad 3:2:2, index", ruled(Rule.TOKEN_LOAD)),
    Contender("sticky until saturated", sticky_until_saturated),
    Contender("most cached", most_cached),
    Contender("session affinity", session_affinity, PrefixView.UNKNOWN),
    Contender("RoundRobin", ruled(Rule.ROUND_ROBIN), PrefixView.UNKNOWN),
)


def split(count: int) -> tuple[Contender, ...]:
    """The default and LMetric at several routers: without an index, with one each, and with one in all."""
    side = {"routers": count, "refresh_s": 0.1}
    return tuple(
        replace(one, name=f"{one.name.split(',')[0]}, {count} routers, {word}", prefixes=view, **side)  # type: ignore[arg-type]
        for one in (BASE, LMETRIC)
        for word, view in (
            ("no index", PrefixView.UNKNOWN),
            ("own indexes", PrefixView.INDEX),
            ("one index", PrefixView.SHARED),
        )
    )


def setup_of(contender: Contender) -> Setup:
    side = RouterSide(prefixes=contender.prefixes, routers=contender.routers, refresh_s=contender.refresh_s)
    return Setup(engines=(EngineModel(H100_MIX, prefix_caching=True),) * INSTANCES, routers=side)


def figures(contender: Contender, workload: Workload, seed: int) -> dict[str, float]:
    """Figures of one run, without its first fifth."""
    setup, policy = setup_of(contender), contender.policy(workload)
    world = lay_out(setup, workload, seed=seed)
    outcomes = play(world, setup, workload, policy, advance=compiled.advance(), seed=seed)
    order = np.argsort(outcomes.arrived_at_s, kind="stable")
    kept = order[int(WARM_UP_FRACTION * len(order)) :]
    prompts, cached = workload.prompt_tokens[kept], outcomes.cached_tokens[kept]
    believed = world.pool.sequences["cached_believed"][kept]
    e2e_s, ttft_s = outcomes.e2e_s[kept], outcomes.ttft_s[kept]
    quarter = ttft_s[-len(ttft_s) // 4 :]
    return {
        "e2e_mean_s": float(np.nanmean(e2e_s)),
        "e2e_p99_s": float(np.nanquantile(e2e_s, 0.99)),
        "ttft_mean_s": float(np.nanmean(ttft_s)),
        "ttft_p99_s": float(np.nanquantile(ttft_s, 0.99)),
        "hit_share": float(cached.sum() / prompts.sum()),
        "expected_share": float(believed.sum() / prompts.sum()),
        "wrong_share": float(np.abs(believed - cached).sum() / prompts.sum()),
        "last_ttft_s": float(np.nanmean(quarter)),
    }


def workload_of(cell: str, trace: Workload | None, rate_rps: float, seconds: float, seed: int) -> Workload:
    """Requests of a cell, predicted by their mean length; of a trace, a window that the seed draws."""
    rng, requests = np.random.default_rng(seed), max(1, round(rate_rps * seconds))
    if trace is None:
        law = LAWS[cell]
        made = sessions(law, rate_rps / law.mean_turns, max(1, round(requests / law.mean_turns)), rng)
    else:
        first = int(rng.integers(max(1, len(trace) - requests)))
        rows = np.arange(first, min(len(trace), first + requests))
        made = transform.scaled_to(transform.take(trace, rows), rate_rps)
    return made.with_predictions(np.full(len(made), made.output_tokens.mean()))


def capacity_rps(cell: str, trace: Workload | None, seconds: float) -> float:
    """The highest rate at which round-robin's mean TTFT in the last quarter of a run stays below a second."""
    low, high = 0.5, 100.0
    while high / low > 1.03:  # noqa: PLR2004
        rate = (low * high) ** 0.5
        last_s = figures(WORTH[-1], workload_of(cell, trace, rate, seconds, 1), 0)["last_ttft_s"]
        low, high = (rate, high) if last_s < SUSTAINED_TTFT_S else (low, rate)
    return low


def measured(
    contenders: Sequence[Contender], make: Callable[[int], Workload], seeds: range, tick: Callable[[], None]
) -> Iterator[dict[str, object]]:
    """A row per contender: means, and changes against the default without an index."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for contender in contenders:
        rows = []
        for seed in seeds:
            rows.append(figures(contender, make(seed), seed))
            tick()
        found[contender.name] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    base = found[contenders[0].name]
    for name, columns in found.items():
        changes = {figure: paired_change(columns[figure].tolist(), base[figure].tolist()) for figure in FIGURES}
        yield {
            "policy": name,
            **{column: float(values.mean()) for column, values in columns.items()},
            **{f"{figure}_change": (change.percent, change.half_width) for figure, change in changes.items()},
        }


def shown(row: dict[str, object]) -> str:
    changes = "".join(
        f"{change[0]:+8.1f} ±{change[1] or 0.0:4.1f}" if change[0] is not None else "      –      "
        for change in (row[f"{figure}_change"] for figure in FIGURES)
        if isinstance(change, tuple)
    )
    return (
        f"{row['policy']:38}{row['e2e_mean_s']:7.2f}{row['ttft_mean_s']:7.3f}{changes}"
        f"{100 * float(str(row['hit_share'])):6.1f}{100 * float(str(row['wrong_share'])):6.1f}"
    )


def part_of_runs(options: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    trace = None
    if options.trace is not None:
        trace = transform.in_order(read(options.trace, rng=np.random.default_rng(0))[0])
    cells = [options.trace.name] if trace is not None else options.cells
    contenders = WORTH if options.part == "worth" else (BASE, WORTH[1], *(c for n in options.routers for c in split(n)))
    rows: list[dict[str, object]] = []
    with Progress(console=console) as progress:
        task = progress.add_task(
            "runs", total=len(cells) * len(options.rates or options.loads) * len(contenders) * options.seeds
        )
        for cell in cells:
            most_rps = 1.0 if options.rates else capacity_rps(cell, trace, options.seconds)
            for load in options.rates or options.loads:
                rate = load * most_rps
                said = "" if options.rates else f"{load:g} C = "
                print(f"\n{cell}: {said}{rate:.2f} req/s; E2E s, TTFT s, change % of E2E mean, p99, "
                      "TTFT mean, p99; hit %, wrong %")  # fmt: skip
                seeds = range(SELECTION.first, SELECTION.first + options.seeds)
                made = {seed: workload_of(cell, trace, rate, options.seconds, seed) for seed in seeds}
                for row in measured(contenders, made.__getitem__, seeds, lambda: progress.advance(task)):
                    rows.append({"cell": cell, "load": load, "rate_rps": rate, **row})
                    print(shown(row), flush=True)
    return rows


def part_of_cost(options: argparse.Namespace) -> list[dict[str, object]]:
    """Times of a prompt of 4,096 tokens in blocks of 64, and memory where no two instances hold the same block."""
    rows: list[dict[str, object]] = []
    for instances in (4, 16, 64, 512):
        rng = random.Random(1)
        index, system = PrefixIndex(), [rng.getrandbits(64) for _ in range(16)]
        chain = [*system, *(rng.getrandbits(64) for _ in range(48))]
        kept = {"block_tokens": 64, "prompt_tokens": 4_097, "kv_tokens": H100_MIX.kv_tokens}
        for number in range(instances * 8):
            own = [rng.getrandbits(64) for _ in range(48)]
            index.use(f"i{number % instances}", [*system, *own], **kept)
        for number in range(instances):
            index.use(f"i{number}", chain[: rng.randrange(16, 64)], **kept)
        rows.append(
            {
                "instances": instances,
                "hits_us": microseconds(lambda: index.hits(chain, 64, 4_097), options.runs),  # noqa: B023 - timed at once
                "use_us": microseconds(lambda: index.use("i0", chain, **kept), options.runs),  # noqa: B023
            }
        )
    ask = RouteAsk(model="m", prompt_tokens=4_096, prompt=b"x" * 16_384)
    prefixing = Prefixing(b"k" * 32)
    rows.append({"hashing_16_KB_us": microseconds(lambda: prefixing.named(ask, 4_096), options.runs)})
    given = replace(ask, prompt=None, prefix_hashes=tuple(random.Random(1).randbytes(64)), prefix_block_tokens=64)
    rows.append({"hashing_64_hashes_us": microseconds(lambda: prefixing.named(given, 4_096), options.runs)})
    huge = replace(ask, prompt=b"x" * 16_000_000)
    rows.append({"hashing_16_MB_us": microseconds(lambda: prefixing.named(huge, 4_096), 20)})
    tracemalloc.start()
    rng, index = random.Random(1), PrefixIndex()
    for number in range(4_000):
        blocks = [rng.getrandbits(64) for _ in range(64)]
        index.use(f"i{number % 16}", blocks, block_tokens=64, prompt_tokens=4_097, kv_tokens=10**9)
    rows.append({"entries": index.entries, "bytes_per_entry": tracemalloc.get_traced_memory()[0] / index.entries})
    tracemalloc.stop()
    for row in rows:
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return rows


def microseconds(call: Callable[[], object], runs: int) -> float:
    """Median time of a call."""
    took_ns = []
    for _ in range(runs):
        started_ns = time.perf_counter_ns()
        call()
        took_ns.append(time.perf_counter_ns() - started_ns)
    return float(np.median(took_ns)) / 1_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("worth", "routers", "cost"), default="worth", help="what to measure")
    parser.add_argument("--cells", nargs="+", choices=sorted(LAWS), default=list(LAWS), help="laws of requests")
    parser.add_argument("--trace", type=Path, help="a trace with prefix blocks (Mooncake's) in place of the laws")
    parser.add_argument("--loads", type=float, nargs="+", default=list(LOADS), help="of what round-robin sustains")
    parser.add_argument("--rates", type=float, nargs="+", help="requests per second in place of --loads")
    parser.add_argument("--routers", type=int, nargs="+", default=[4], help="of --part routers (default: 4)")
    parser.add_argument("--seconds", type=float, default=240.0, help="of arrivals in each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=2_000, help="timed calls of --part cost (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    options = parser.parse_args()
    if options.seeds < 2 or options.seconds <= 0 or min(options.rates or options.loads) <= 0 or options.runs < 1:  # noqa: PLR2004
        parser.error("--seeds must be at least 2, --runs at least 1, --seconds, --loads and --rates above 0")
    print(f"$ {(command := shlex.join(['python', *sys.argv]))}")
    rows = part_of_cost(options) if options.part == "cost" else part_of_runs(options, Console(stderr=True))
    out = options.json or Path(f"build/bench/prefix_index_{options.part}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"command": command, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
