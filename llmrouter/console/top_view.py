"""Loads and speed of routers and instances, now: pure, from what routers say at their metrics ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmrouter.console.routers import PLACED, Sight, instance_loads, quantile, rate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

BAR_CHARACTERS = 20
SLOW = 1.3
"""Times as slow as the others of its pool from which on an instance is marked."""


@dataclass(frozen=True, slots=True)
class Looked:
    """Two looks at the routers: the one before (empty the first time), now, and those that did not answer, and why."""

    before: Mapping[str, Sight]
    now: Sequence[Sight]
    silent: Mapping[str, str]


def top(name: str, looked: Looked) -> RenderableType:
    """Routers, then instances, the busiest of each pool first."""
    parts: list[RenderableType] = [Text(name, "bold"), Text(), _routers(looked), Text(), _instances(looked.now)]
    parts += [Text(f"{router}: {why}", "yellow") for router, why in sorted(looked.silent.items())]
    return Group(*parts)


def _routers(looked: Looked) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("ROUTER", "PLACED/s", "REFUSED/s", "HELD", "DECIDE p50", "p99", "TTFT p50", "p99", "FALLBACK/s"):
        table.add_column(column, justify="left" if column == "ROUTER" else "right", no_wrap=True)
    for sight in looked.now:
        before = looked.before.get(sight.router)
        asked, placed = rate(before, sight, "requests_total"), rate(before, sight, "requests_total", outcome=PLACED)
        refused = None if asked is None else asked - (placed or 0.0) - (_forwarded(before, sight) or 0.0)
        times = [quantile(before, sight, one, q) for one in _TIMES for q in (0.5, 0.99)]
        table.add_row(
            sight.router,
            _rate(placed),
            Text(_rate(refused), "red" if refused else ""),
            _count(sight.total("held_requests")),
            *map(_time, times),
            _rate(rate(before, sight, "policy_fallback_total")),
        )
    return table


_TIMES = ("decision_seconds", "request_ttft_seconds")


def _forwarded(before: Sight | None, now: Sight) -> float | None:
    return rate(before, now, "requests_total", outcome="Forwarded")


def _instances(sights: Sequence[Sight]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("POOL", "INSTANCE", "IN FLIGHT", "", "TOKENS", "SLOWNESS"):
        table.add_column(column, justify="right" if column in {"IN FLIGHT", "TOKENS", "SLOWNESS"} else "left")
    loads = instance_loads(sights)
    most = max((one.requests for one in loads), default=0.0) or 1.0
    for load in sorted(loads, key=lambda one: (one.pool, -one.requests, one.instance)):
        slow = load.slowness is not None and load.slowness >= SLOW
        table.add_row(
            load.pool,
            load.instance,
            _count(load.requests),
            Text("█" * round(BAR_CHARACTERS * load.requests / most), "cyan"),
            _count(load.tokens),
            Text("–" if load.slowness is None else f"{load.slowness:.2f}", "yellow" if slow else ""),
        )
    return table


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{max(value, 0.0):.1f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.2f} {name}"
    return f"{seconds * 1e6:.0f} µs"
