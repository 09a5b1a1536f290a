"""What arrives a while from now: the present as the forecast, beside exponential smoothing and Holt's trends.

    python -m bench.forecast [TRACE ...] [--rates FILE ...] [--horizon S] [--json FILE]

Of each trace the rates of requests, prompt tokens and output tokens are measured as routers measure them, every 15 s.
``--rates`` are ServeGen's ``*.rates.csv``: means of ten minutes, of all clients together. Errors are mean absolute, of
the mean rate; coverage is the share of instants at which the rate came within the forecast's interval, which is meant
to be 90 %.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from llmrouter.planning import forecast
from llmrouter.planning.mix import WINDOW_S
from llmrouter.study.traces import load_trace, trace_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHODS = {
    "present": (1.0, 0.0, 1.0),
    "smoothed 0.3": (0.3, 0.0, 1.0),
    "Holt 0.5, 0.1": (0.5, 0.1, 1.0),
    "damped 0.5, 0.1, 0.9": (0.5, 0.1, 0.9),
}
"""α of the level, β of the trend, φ that damps it (Gardner and McKenzie 1985)."""

WARM_UP = 30
WINDOW_RATES_S = 600.0


def series_of(path: Path) -> Iterator[tuple[str, Floats]]:
    """The rates (T,) of a trace, measured over exponential windows, every ``STEP_S``."""
    trace, _ = load_trace(str(path), "", skip_bad=True)
    at_N = trace.arrived_at_s - trace.arrived_at_s[0]
    ticks_T = np.arange(forecast.STEP_S, at_N[-1], forecast.STEP_S)
    last_T = np.searchsorted(at_N, ticks_T, side="right")
    for name, amounts_N in (
        ("requests", np.ones(len(at_N))),
        ("prompt tokens", trace.prompt_tokens.astype(float)),
        ("output tokens", trace.output_tokens.astype(float)),
    ):
        sums_T, total, first = np.zeros(len(ticks_T)), 0.0, 0
        for tick, (now_s, last) in enumerate(zip(ticks_T, last_T, strict=True)):
            total *= math.exp(-forecast.STEP_S / WINDOW_S)
            total += float((amounts_N[first:last] * np.exp((at_N[first:last] - now_s) / WINDOW_S)).sum())
            sums_T[tick], first = total, last
        windows_T = -WINDOW_S * np.expm1(-ticks_T / WINDOW_S)
        yield f"{trace_name(path)}: {name}", (sums_T / windows_T)[round(WINDOW_S / forecast.STEP_S) :]


def ten_minutes_of(path: Path) -> tuple[str, Floats]:
    """The rate (T,) of all clients of a ServeGen file, by windows of ten minutes."""
    rates: dict[float, float] = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            start_s = float(row["window_start_s"])
            rates[start_s] = rates.get(start_s, 0.0) + float(row["rate_rps"])
    starts_T = np.arange(min(rates), max(rates) + 1.0, WINDOW_RATES_S)
    return f"{trace_name(path)}: requests", np.array([rates.get(float(start_s), 0.0) for start_s in starts_T])


def foretold(rates_T: Floats, ahead: int, method: tuple[float, float, float]) -> Floats:
    """What a method says at each instant of the rate ``ahead`` steps later; shape (T,)."""
    alpha, beta, phi = method
    level, trend, said = float(rates_T[0]), 0.0, []
    reach = sum(phi**step for step in range(1, ahead + 1))
    for rate in rates_T.tolist():
        before = level
        level = alpha * rate + (1.0 - alpha) * (level + phi * trend)
        trend = beta * (level - before) + (1.0 - beta) * phi * trend
        said.append(max(level + reach * trend, 0.0))
    return np.array(said)


def judged(name: str, rates_T: Floats, ahead: int) -> dict[str, Any]:
    """Errors of all methods, and coverage and width of the product's interval."""
    count = len(rates_T)
    mean = float(rates_T.mean())
    errors = {
        method: float(
            np.abs(foretold(rates_T, ahead, how)[WARM_UP : count - ahead] - rates_T[WARM_UP + ahead :]).mean()
        )
        / mean
        for method, how in METHODS.items()
    }
    history, inside, widths = forecast.RateHistory(), [], []
    for step in range(count - ahead):
        history.note((float(rates_T[step]),), at_s=step * forecast.STEP_S)
        bands = history.bands(ahead * forecast.STEP_S)
        if bands is not None:
            inside.append(bands[0].low <= rates_T[step + ahead] <= bands[0].high)
            widths.append((bands[0].high - bands[0].low) / mean)
    return {
        "series": name,
        "instants": count - ahead - WARM_UP,
        "errors": errors,
        "coverage": float(np.mean(inside)) if inside else None,
        "width": float(np.mean(widths)) if widths else None,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Judges every series and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE")
    parser.add_argument("--rates", nargs="*", type=Path, default=[], metavar="FILE")
    parser.add_argument(
        "--horizon", type=float, default=300.0, metavar="S", help="default: %(default)s; of --rates 1800"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    ahead = max(1, round(given.horizon / forecast.STEP_S))
    rows = [judged(name, rates_T, ahead) for path in given.traces for name, rates_T in series_of(path)]
    rows += [judged(*ten_minutes_of(path), 3) for path in given.rates]
    table = Table(title="mean absolute error, % of the mean rate")
    for column in ("series", "instants", *METHODS, "covered", "width"):
        table.add_column(column, justify="left" if column == "series" else "right")
    for row in rows:
        least = min(row["errors"].values())
        cells = [
            f"[bold]{100 * error:.1f}[/]" if error <= 1.02 * least else f"{100 * error:.1f}"
            for error in row["errors"].values()
        ]
        known = row["coverage"] is not None
        table.add_row(
            row["series"],
            str(row["instants"]),
            *cells,
            f"{100 * row['coverage']:.0f} %" if known else "–",
            f"{100 * row['width']:.0f} %" if known else "–",
        )
    Console().print(table)
    if given.json is not None:
        command = shlex.join(["python", "-m", "bench.forecast", *(sys.argv[1:] if arguments is None else arguments)])
        given.json.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
