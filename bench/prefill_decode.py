"""When prefill and decode on different instances pay: goodput of 8 GPUs, split in every way, against 8 that do both.

    python -m bench.prefill_decode [--gpus 8] [--seeds 2] [--json FILE]

Goodput is the highest Poisson rate at which 90 % of the requests meet both targets, found by bisection to 3 %.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.role_traffic import CHAT, REASONING, SUMMARY, Stretch, Targets, engine, policy, routers, traffic
from llmrouter.domain import Role
from llmrouter.routing.stages import StageRules
from llmrouter.sim.capacity import highest_rate
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.arrivals.laws import LengthClass

SHARE = 0.9
SECONDS = 60.0
LOOSE, TIGHT = Targets(ttft_s=1.5, tpot_s=0.05), Targets(ttft_s=1.5, tpot_s=0.025)
ETHERNET = 1.25e9
"""Bytes a second of 10 Gbit/s."""

MIN_PREFILL = (0, 256, 1_024, 4_096)
START_RPS = {CHAT.name: 60.0, SUMMARY.name: 8.0, REASONING.name: 15.0}


@dataclass(frozen=True)
class Split:
    """Instances that compute prompts for others, that answer them, and that do both."""

    prefill: int
    decode: int
    mixed: int

    def __str__(self) -> str:
        named = (("prefill", self.prefill), ("decode", self.decode), ("mixed", self.mixed))
        return " + ".join(f"{count} {name}" for name, count in named if count)


@dataclass(frozen=True)
class Found:
    """The goodput of a split."""

    traffic: str
    tpot_s: float
    split: str
    link_bytes_per_s: float
    min_prefill_tokens: int
    goodput_rps: float | None


@dataclass(frozen=True)
class Question:
    """One search."""

    kind: LengthClass
    targets: Targets
    split: Split
    link: float = 25e9
    least_prefill: int = 256

    def answered(self, seeds: Sequence[int]) -> Found:
        """By bisection; the rate of a seed's traffic is scaled, its lengths stay."""
        split = self.split
        engines = (
            *(engine(Role.PREFILL, transfer_bytes_per_s=self.link) for _ in range(split.prefill)),
            *(engine(Role.DECODE) for _ in range(split.decode)),
            *(engine(Role.MIXED) for _ in range(split.mixed)),
        )
        setup = Setup(engines=engines, routers=routers(StageRules(self.least_prefill)))

        def meets(rate_rps: float) -> bool:
            shares = []
            for seed in seeds:
                workload = traffic([Stretch(self.kind, rate_rps, SECONDS)], seed)
                shares.append(self.targets.met(simulate(setup, workload, policy(), seed=seed)).mean())
            return bool(sum(shares) / len(shares) >= SHARE)

        rate = highest_rate(meets, START_RPS[self.kind.name], lowest_rps=0.2, tolerance=0.03)
        return Found(*(self.kind.name, self.targets.tpot_s, str(split), self.link, self.least_prefill, rate))


def splits_of(gpus: int) -> list[Split]:
    """All mixed; every split into prefill and decode; a few that compute prompts for those that do both."""
    apart = [Split(prefill, gpus - prefill, 0) for prefill in range(1, gpus)]
    return [Split(0, 0, gpus), *apart, *(Split(one, 0, gpus - one) for one in (1, 2, gpus // 2))]


def questions(gpus: int) -> list[Question]:
    """Every split for every traffic; then, where prompts are many, slow links and ``minPrefillTokens``."""
    asked = [
        Question(kind, targets, split)
        for kind in (CHAT, SUMMARY, REASONING)
        for targets in (LOOSE, TIGHT)
        for split in splits_of(gpus)
    ]
    chat, summary = Split(3 * gpus // 8, gpus - 3 * gpus // 8, 0), Split(5 * gpus // 8, gpus - 5 * gpus // 8, 0)
    for kind, split in ((CHAT, chat), (SUMMARY, summary)):
        asked.append(Question(kind, TIGHT, split, link=ETHERNET))
        asked += [Question(kind, TIGHT, split, least_prefill=least) for least in MIN_PREFILL if least != 256]  # noqa: PLR2004 - the default
    return asked


def shown(found: Sequence[Found], named: Callable[[Found], str], title: str) -> Table:
    """Goodput in requests a second, a row for each traffic and target."""
    columns = list(dict.fromkeys(named(one) for one in found))
    table = Table("traffic", "TPOT", *columns, title=title)
    for kind, tpot_s in dict.fromkeys((one.traffic, one.tpot_s) for one in found):
        row = {named(one): one.goodput_rps for one in found if (one.traffic, one.tpot_s) == (kind, tpot_s)}
        cells = ("" if name not in row else "–" if row[name] is None else f"{row[name]:.1f}" for name in columns)
        table.add_row(kind, f"{tpot_s * 1e3:g} ms", *cells)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Searches, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, default=8, help="instances, 8 or a multiple of it")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("build/bench/prefill_decode.json"))
    options = parser.parse_args(arguments)
    if options.gpus < 8 or options.gpus % 8 or options.seeds < 1:  # noqa: PLR2004 - the splits are eighths
        parser.error("--gpus must be a multiple of 8, --seeds at least 1")
    asked = questions(options.gpus)
    seeds = range(1, options.seeds + 1)
    found = [one.answered(seeds) for one in track(asked, "searches", console=Console(stderr=True))]
    plain = len(splits_of(options.gpus)) * 6
    console = Console(width=200)
    console.print(shown(found[:plain], lambda one: one.split, "requests a second within the targets"))
    console.print(shown(found[plain:], _varied, "the split that was best, otherwise"))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    said = {"command": shlex.join(["python", "-m", "bench.prefill_decode", *sys.argv[1:]]), "gpus": options.gpus}
    options.json.write_text(json.dumps(said | {"found": [asdict(one) for one in found]}, indent=1) + "\n")


def _varied(one: Found) -> str:
    return "10 Gbit/s" if one.link_bytes_per_s == ETHERNET else f"minPrefillTokens {one.min_prefill_tokens}"


if __name__ == "__main__":
    main()
