"""What a trace or a cell is like: ``python -m llmrouter.arrivals FILE-OR-CELL ...``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.cells import CELL_NAMES, cell
from llmrouter.arrivals.describe import describe
from llmrouter.arrivals.readers import Format, Window, read
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.arrivals.describe import Description, Lengths

BAD_INPUT = 2
HEADER = (
    (
        "| workload | requests | duration s | rate /s | gap CV | IDC60 | prompt mean / p50 / p95 / p99 "
        "| output mean / p50 / p95 / p99 | correlation | shared prefixes |"
    ),
    "|---|---|---|---|---|---|---|---|---|---|",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row, or an object, for every workload; 2 with one line on bad input."""
    options = _parser().parse_args(arguments)
    try:
        told = [(name, *_described(name, options)) for name in options.workloads]
    except InvalidInputError as error:
        print(f"llmrouter.arrivals: {error}", file=sys.stderr)
        return BAD_INPUT
    for name, _, skipped in told:
        if skipped:
            print(f"{name}: left out {skipped}", file=sys.stderr)
    if options.json:
        print(json.dumps({name: one.as_mapping() for name, one, _ in told}, indent=2))
    else:
        print("\n".join((*HEADER, *(_row(name, one) for name, one, _ in told))))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llmrouter.arrivals", description="Describes traces and cells.")
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD", help=f"a file, or {', '.join(CELL_NAMES)}")
    parser.add_argument(
        "--format", choices=[one.value for one in Format], help="of the files (default: told from each)"
    )
    parser.add_argument("--skip-bad-lines", action="store_true", help="leave bad lines out and count them")
    parser.add_argument("--start-s", type=float, help="begin of a window (default: all; of ServeGen the first 600 s)")
    parser.add_argument("--duration-s", type=float, default=600.0, help="length of the window (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


def _described(name: str, options: argparse.Namespace) -> tuple[Description, str]:
    """A file wins over a cell of its name."""
    if not Path(name).exists() and name in CELL_NAMES:
        return describe(cell(name).history()), ""
    if options.seed < 0:
        raise InvalidInputError(f"--seed must be at least 0, not {options.seed}")
    workload, skipped = read(
        Path(name),
        format=options.format,
        on_bad="skip" if options.skip_bad_lines else "refuse",
        window=None if options.start_s is None else Window(options.start_s, options.duration_s),
        rng=np.random.default_rng(options.seed),
    )
    return describe(workload), str(skipped) if skipped.total else ""


def _row(name: str, one: Description) -> str:
    shown = Path(name).name
    figures = (
        *(f"{one.requests:,}", f"{one.duration_s:,.0f}"),
        *(_number(value) for value in (one.rate_rps, one.gap_cv, one.idc60)),
        *(_lengths(lengths) for lengths in (one.prompt_tokens, one.output_tokens)),
        *(_number(value) for value in (one.length_correlation, one.shared_prefix_fraction)),
    )
    return f"| {shown} | {' | '.join(figures)} |"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _lengths(one: Lengths) -> str:
    return f"{one.mean:,.0f} / {one.p50:,.0f} / {one.p95:,.0f} / {one.p99:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
