"""What each preset of the default policy wins and costs, in every cell and at every load.

Paired changes in %, ± the half-width of the Student-t 95 % interval, against round-robin, LMetric, LeastInFlight and
MixingPenalty, in simulation: the mean and p99 of E2E, the p99 of TTFT and the p95 of TPOT.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.targets import BALANCED, BASE, E2E, JSQ, LMETRIC, SLO, Measured
from llmrouter.objectives import PRESETS
from llmrouter.study.cells import KINDS, CellSpec
from llmrouter.study.progress import make_ready
from llmrouter.study.seeds import SELECTION
from llmrouter.study.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.study.plan import Plan, Point

OF_PRESET = {"SLO": SLO, "Balanced": BALANCED, "E2E": E2E}
METRICS = ("e2e_mean_s", "e2e_p99_s", "ttft_p99_s", "tpot_p95_s")
AGAINST = (BASE, LMETRIC, JSQ, "MixingPenalty")
CELLS = ("h100-mix", "h100-prod", "paper-v100", "azure", "azure-unequal")
LOADS = (0.5, 0.8, 0.95, 1.1, 1.3)


def rows_of(measured: Measured, plan: Plan, point: Point) -> list[dict[str, Any]]:
    """One row for each preset and policy that it is compared with."""
    return [
        {
            "cell": point.cell.name,
            "load": point.load,
            "preset": preset,
            "against": against,
            "changes": {metric: asdict(measured.change(plan, point, policy, against, metric)) for metric in METRICS},
        }
        for preset, policy in OF_PRESET.items()
        for against in AGAINST
    ]


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("cell", "load", "preset", "against", "E2E mean %", "E2E p99 %", "TTFT p99 %", "TPOT p95 %")
    for row in rows:
        changes = [_text(row["changes"][metric]) for metric in METRICS]
        table.add_row(row["cell"], f"{row['load']:g}", row["preset"], row["against"], *changes)
    return table


def _text(change: dict[str, float | None]) -> str:
    percent, half_width = change["percent"], change["half_width"]
    return "–" if percent is None or half_width is None else f"{percent:+.1f} ± {half_width:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=sorted(KINDS), default=CELLS, help="default: %(default)s")
    parser.add_argument("--loads", nargs="+", type=float, default=LOADS, help="fractions of C (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=20, help="of the selection block (default: 20)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("build/bench/presets"), help="folder of results")
    given = parser.parse_args()
    if given.seeds < 2 or min(given.loads) <= 0:  # noqa: PLR2004 - an interval needs two
        parser.error("--seeds must be at least 2 and --loads above 0")
    command = shlex.join(["python", "-m", "bench.presets", *sys.argv[1:]])
    make_ready()
    with Store(given.out, fresh=False) as store:
        measured = Measured(store, first_seed=SELECTION.first, seeds=given.seeds, jobs=given.jobs)
        cells = [CellSpec(name=name) for name in given.cells]
        plan = measured.plan(cells, given.loads, (*AGAINST, *OF_PRESET.values()))
        rows = [row for point in measured.points(plan) for row in rows_of(measured, plan, point)]
    weights = {name: weights.as_mapping() for name, weights in PRESETS.items()}
    report = {
        "command": command,
        "seeds": {"first": SELECTION.first, "count": given.seeds},
        "weights": weights,
        "rows": rows,
    }
    (given.out / "presets.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console = Console()
    console.width = max(console.width, 120)
    console.print(f"$ {command}")
    console.print(shown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
