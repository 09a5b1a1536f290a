"""ServeGen's clients: arrival rates of 600-second windows, length quantiles of 6-hour windows, two files side by side.

``<name>.rates.csv[.gz]`` has ``client, window_start_s, rate_rps, iat_dist, dist_p1``, ``<name>.lengths.csv[.gz]``
``client, window_start_s, field`` (``input_tokens`` or ``output_tokens``) and quantiles ``q0`` … ``q100``.

Requests are drawn: in each window every client is a stationary renewal process with the recorded rate and the recorded
family and shape of gaps (Gamma or Weibull); prompt and output lengths are drawn apart from one another from the
quantiles, linear between them, because no joint law is published. Clients without lengths are left out and counted.
"""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from llmrouter.arrivals.readers.columns import seconds
from llmrouter.arrivals.readers.lines import BadLine, Skipped, Source, Why
from llmrouter.arrivals.readers.servegen_draw import Client, Gaps, Window, draw
from llmrouter.arrivals.readers.tables import each, table
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.random import Generator
    from numpy.typing import NDArray

    from llmrouter.arrivals.readers.lines import OnBad
    from llmrouter.sim.workload import Workload

RATE_COLUMNS = ("client", "window_start_s", "rate_rps", "iat_dist", "dist_p1")
LENGTH_COLUMNS = ("client", "window_start_s", "field")
FIELDS = ("input_tokens", "output_tokens")
MAX_RATE_RPS = 1e6
SHAPES = {"Gamma": (0.001, 1e6), "Weibull": (0.02, 1e3)}
"""Least and greatest shape of each family."""
_KIND = re.compile(r"\.(rates|lengths)\.csv(\.gz)?$")
_QUANTILE = re.compile(r"^q(\d+(?:\.\d+)?)$")


def read(
    path: Path, rng: Generator, *, window: Window | None = None, on_bad: OnBad = "refuse"
) -> tuple[Workload, Skipped]:
    """Draws the requests of a window; without one, of the first 600 s that have a rate.

    Args:
        path: either of the two files.
        rng: chooses gaps and lengths.
        window: see ``Window``.
        on_bad: as everywhere; clients without lengths are left out and counted in either case.

    Raises:
        InvalidInputError: a file is missing or bad, nobody is active in the window, or it has over 20 million requests.
    """
    rates_path, lengths_path = _pair(path)
    rates, lengths = Source(rates_path, on_bad), Source(lengths_path, on_bad)
    clients = _read_rates(rates)
    levels = _read_lengths(lengths, clients)
    first_s = min(gaps.start_s for client in clients.values() for gaps in client.gaps)
    complete = [client for client in clients.values() if all(client.lengths[column] for column in FIELDS)]
    counted = rates.skipped + lengths.skipped
    if len(complete) < len(clients):
        counted[Why.UNKNOWN_LENGTHS] += len(clients) - len(complete)
    try:
        made = draw(complete, levels, window or Window(start_s=first_s), rng)
    except InvalidInputError as error:
        raise InvalidInputError(f"{rates_path}: {error}") from error
    name = _KIND.sub("", rates_path.name)
    return replace(made, name=name), Skipped(MappingProxyType(dict(counted)))


def _pair(path: Path) -> tuple[Path, Path]:
    """The files of rates and lengths, given one of them."""
    kind = _KIND.search(path.name)
    if kind is None:
        raise InvalidInputError(f"{path}: ServeGen's files are named NAME.rates.csv and NAME.lengths.csv, or .csv.gz")
    stem, suffix = path.name[: kind.start()], kind[2] or ""
    pair = [path.with_name(f"{stem}.{one}.csv{suffix}") for one in ("rates", "lengths")]
    for one in pair:
        if not one.is_file():
            raise InvalidInputError(f"{one}: no such file; it belongs beside {path.name}")
    return pair[0], pair[1]


def _read_rates(source: Source) -> dict[str, Client]:
    found = table(source, RATE_COLUMNS)
    client_at, start_at, rate_at, family_at, shape_at = (found.columns[name] for name in RATE_COLUMNS)
    clients: dict[str, Client] = {}

    def use(row: list[str]) -> None:
        if (family := row[family_at]) not in SHAPES:
            raise BadLine(Why.BOUNDS, f"iat_dist must be {' or '.join(SHAPES)}, not {family!r:.40}")
        low, high = SHAPES[family]
        gaps = Gaps(
            start_s=seconds(row[start_at], "window_start_s"),
            rate_rps=_number(row[rate_at], "rate_rps", low=0.0, high=MAX_RATE_RPS),
            family=family,
            shape=_number(row[shape_at], "dist_p1", low=low, high=high),
        )
        name = row[client_at]
        if gaps.rate_rps > 0:
            clients.setdefault(name, Client(name, [], {column: [] for column in FIELDS})).gaps.append(gaps)

    each(source, found.rows, use)
    if not clients:
        source.line = 0
        raise source.error("has no client with a rate")
    return clients


def _read_lengths(source: Source, clients: dict[str, Client]) -> NDArray[np.float64]:
    """Adds the quantiles to the clients that have a rate; returns their probabilities."""
    found = table(source, LENGTH_COLUMNS)
    levels = sorted((float(match[1]), name) for name in found.columns if (match := _QUANTILE.match(name)))
    if len(levels) < 2 or levels[0][0] != 0 or levels[-1][0] != 100:  # noqa: PLR2004
        raise source.error("lacks quantiles from q0 to q100")
    places = [found.columns[name] for _, name in levels]
    client_at, start_at, column_at = (found.columns[name] for name in LENGTH_COLUMNS)

    def use(row: list[str]) -> None:
        column = row[column_at]
        if column not in FIELDS or (client := clients.get(row[client_at])) is None:
            return
        quantiles = np.array([seconds(row[place], column) for place in places])
        if (np.diff(quantiles) < 0).any():
            raise BadLine(Why.BOUNDS, f"the quantiles of {column} decrease")
        client.lengths[column].append((seconds(row[start_at], "window_start_s"), quantiles))

    each(source, found.rows, use)
    for client in clients.values():
        for known in client.lengths.values():
            known.sort(key=lambda one: one[0])
    return np.array([level for level, _ in levels]) / 100


def _number(text: str, name: str, *, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadLine(Why.NUMBER, f"{name} must be a number, not {text!r:.40}") from None
    if not low <= value <= high:
        raise BadLine(Why.BOUNDS, f"{name} must be {low:g} to {high:g}, not {value:g}")
    return value
