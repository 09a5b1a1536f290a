"""Half of saturation for as long as is asked, with clients that leave, reset, and read slowly.

Of a router behind Envoy: whether its memory stays, whether nothing stays reserved, and whether every request's end is
one that was meant. Exit status 1 where it is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shlex
import statistics
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from scipy.stats import linregress
from scipy.stats import t as student_t

from bench.data_plane.candidates import Candidate, Stack, start_fleet, start_stack, wait_free
from bench.data_plane.cells import Bench, saturation
from bench.data_plane.programs import provide
from bench.data_plane.prompts import write_prompts
from llmrouter.study.statistics import CONFIDENCE
from llmrouter.testbed.cluster.errors import ClusterError
from llmrouter.testbed.cluster.places import repository_root
from llmrouter.testbed.cluster.processes import start

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = 1
ENGINES = 8
MIX = {"plain": 0.9, "stream": 0.03, "slow": 0.01, "cancel": 0.03, "reset": 0.02, "half": 0.01}
"""Shares of requests: answered whole, streams, streams read slowly, streams left or reset midway, half a body."""

MEANT = {"plain 200", "stream 200", "slow 200", "cancel 200", "reset 200", "half left"}
SAMPLE_S = 2.0
BLOCKS = 12
SKIPPED = 1 / 4
"""Of the time, at its start: what a router learns first, its caches and Envoy's connections are memory too."""

FLAT_SHARE = 0.02
"""Memory that stays grows by less than this share of itself within as long again as was looked at."""

FREE_WITHIN_S = 60.0
_SAMPLE = re.compile(r'^llmrouter_reservations_total\{event="(\w+)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Growth:
    """Resident memory after the start, in MiB; its slope in MiB an hour with the 95 % interval of blocks' means."""

    mib: float
    per_hour: float
    low: float
    high: float
    flat: bool


def growth(samples: Sequence[tuple[float, int]]) -> Growth:
    """Of samples (seconds, bytes): the line through the means of blocks, since neighbours are alike."""
    kept = samples[int(len(samples) * SKIPPED) :]
    size = max(1, len(kept) // BLOCKS)
    blocks = [kept[at : at + size] for at in range(0, size * BLOCKS, size) if kept[at : at + size]]
    hours = [statistics.fmean(at for at, _ in block) / 3600 for block in blocks]
    mib = [statistics.fmean(rss for _, rss in block) / 2**20 for block in blocks]
    line = linregress(hours, mib)
    half = float(student_t.ppf(0.5 + CONFIDENCE / 2, len(blocks) - 2)) * float(line.stderr)
    low, high = float(line.slope) - half, float(line.slope) + half
    grown = max(0.0, low) * (hours[-1] - hours[0])
    return Growth(statistics.fmean(mib), float(line.slope), low, high, grown < FLAT_SHARE * statistics.fmean(mib))


def reservations(address: str) -> dict[str, int]:
    """How many reservations began and ended, by how, as the router's metrics say."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        return {name: int(float(value)) for name, value in _SAMPLE.findall(answer.read().decode())}


def soak(bench: Bench, stack: Stack, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the load and looks at memory all the while."""
    progress = Console(stderr=True)
    rate = options.rate or saturation(bench, stack, seconds=8.0, seed=SEED) / 2
    progress.print(f"{rate:.0f} requests/s for {options.minutes:g} minutes")
    before, log = reservations(stack.metrics), folder / "client.json"
    log.unlink(missing_ok=True)
    words = ["open", "--target", stack.target, "--prompts", str(bench.prompts.short), "--seed", str(SEED)]
    words += ["--stream-prompts", str(bench.prompts.streams), "--mix", ",".join(map(str, MIX.values()))]
    words += ["--rate", str(rate), "--seconds", str(options.minutes * 60)]
    began_s, used = time.monotonic(), stack.usage()
    client = start("client", [bench.programs.traffic, *words], log=log)
    memory: dict[str, list[tuple[float, int]]] = {name: [] for name in stack.processes}
    while client.alive:
        for name, usage in stack.usage().items():
            memory[name].append((time.monotonic() - began_s, usage.rss_bytes))
        if len(memory["picker"]) % 30 == 1:
            told = ", ".join(f"{name} {samples[-1][1] / 2**20:.0f} MiB" for name, samples in memory.items())
            progress.print(f"{time.monotonic() - began_s:5.0f} s: {told}, {stack.reserved()} reserved")
        time.sleep(SAMPLE_S)
    took_s, usage_after = time.monotonic() - began_s, stack.usage()
    left = wait_free(stack, within_s=FREE_WITHIN_S)
    said, after = json.loads(log.read_text()), reservations(stack.metrics)
    ended = {name: after[name] - before.get(name, 0) for name in after}
    return {
        "rate": rate,
        "minutes": options.minutes,
        "seconds": took_s,
        "offered": said["offered"],
        "outcomes": said["outcomes"],
        "latency_ms": said["latency_ms"],
        "reservations": ended,
        "reserved_after": left,
        "cpu_cores": {name: (one.cpu_s - used[name].cpu_s) / took_s for name, one in usage_after.items()},
        "memory": {name: asdict(growth(samples)) for name, samples in memory.items()},
        "samples": memory,
    }


def faults(found: dict[str, Any]) -> list[str]:
    """What must not be."""
    told = [f"{count} × {name}" for name, count in found["outcomes"].items() if name not in MEANT]
    if found["reserved_after"] != 0:
        told.append(f"{found['reserved_after']} reservations left")
    if sum(found["outcomes"].values()) != found["offered"]:
        told.append(f"{found['offered']} requests were sent, {sum(found['outcomes'].values())} ended")
    events = dict(found["reservations"])
    if (began := events.pop("committed", 0)) != sum(events.values()):
        told.append(f"{began} reservations began, {sum(events.values())} ended: {events}")
    told += [f"the memory of {name} grows" for name, one in found["memory"].items() if not one["flat"]]
    return told


def table(found: dict[str, Any]) -> Table:
    """What is told of a soak."""
    rows = Table(title=f"{found['minutes']:g} minutes at {found['rate']:.0f} requests/s", title_justify="left")
    rows.add_column("")
    rows.add_column("")
    for name, count in sorted(found["outcomes"].items()):
        rows.add_row(f"clients: {name}", f"{count:,}")
    for name, count in sorted(found["reservations"].items()):
        rows.add_row(f"reservations {name}", f"{count:,}")
    rows.add_row("reservations at the end", str(found["reserved_after"]))
    for name, one in found["memory"].items():
        slope = f"{one['per_hour']:+.1f} [{one['low']:+.1f}, {one['high']:+.1f}] MiB/h"
        rows.add_row(f"memory of {name}", f"{one['mib']:.0f} MiB, {slope}")
        rows.add_row(f"cores of {name}", f"{found['cpu_cores'][name]:.2f}")
    latency = found["latency_ms"] or {}
    rows.add_row("whole answers, p50 / p99 / p99.9 ms", " / ".join(str(latency.get(n)) for n in ("p50", "p99", "p999")))
    return rows


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m bench.data_plane.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="for how long (default: %(default)s)")
    parser.add_argument("--rate", type=float, help="requests/s (default: half of what saturates)")
    parser.add_argument("--transport", choices=("Fast", "Grpc"), default="Fast", help="(default: %(default)s)")
    parser.add_argument("--first-port", type=int, default=21_600, help="of the engines (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/data_plane_soak.json"), help="file to write")
    options = parser.parse_args(arguments)
    if options.minutes < 1 or (options.rate is not None and options.rate <= 0):
        parser.error("--minutes must be at least 1, --rate above 0")
    return options


def main(arguments: Sequence[str]) -> int:
    """Runs, prints, writes; exit status 1 where something is wrong."""
    options = parsed(arguments)
    folder = repository_root() / "build" / "bench" / "data_plane_soak"
    candidate = Candidate(f"ours, {options.transport}", "ours", ENGINES, (("transport", options.transport),))
    try:
        programs, _ = provide(proxies=False)
        with ExitStack() as exit_stack:
            prompts = write_prompts(folder / "prompts", random.Random(SEED))
            fleet = start_fleet(programs, folder, count=ENGINES, first_port=options.first_port, gap_ms=10.0)
            exit_stack.callback(fleet.process.stop)
            stack = start_stack(candidate, programs, fleet, folder)
            exit_stack.callback(stack.stop)
            found = soak(Bench(programs, prompts, fleet), stack, options, folder)
    except ClusterError as error:
        print(f"bench.data_plane.soak: {error}", file=sys.stderr)
        return error.exit_status
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(found))
    found |= {"command": shlex.join(["python", "-m", "bench.data_plane.soak", *arguments]), "wrong": faults(found)}
    console.print(f"wrong: {'; '.join(found['wrong'])}" if found["wrong"] else "nothing is wrong")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
