"""A decision on a terminal: the sentences of ``decisions.words``, and a table of who was considered."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from llmrouter.decisions.words import told

if TYPE_CHECKING:
    from rich.console import Console

    from llmrouter.decisions.record import ConsideredInstance, DecisionRecord


def plain(record: DecisionRecord) -> dict[str, Any]:
    """The record and its sentences, for JSON."""
    return {"record": record.model_dump(mode="json", exclude_none=True), "words": list(told(record).sentences)}


def show(record: DecisionRecord, console: Console) -> None:
    """Prints a decision."""
    at = datetime.fromtimestamp(record.decided_at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    console.print(f"[bold]{escape(record.request_id)}[/bold]  {at}  router {escape(record.router_id or '(none)')}")
    for sentence in told(record).sentences:
        console.print(escape(sentence), soft_wrap=False)
    if record.candidates:
        console.print(_table(record))


def _table(record: DecisionRecord) -> Table:
    explores = record.policy.exploration_fraction > 0.0
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("instance", overflow="fold", min_width=16)
    table.add_column("pool")
    for name in ("score", "requests", "to prefill", "to decode", "cached"):
        table.add_column(name, justify="right")
    table.add_column("room")
    if explores:
        table.add_column("odds", justify="right")
    for one in record.candidates:
        style = "green" if one.id == record.chosen else None if one.has_room else "dim"
        table.add_row(*_row(one, record), *([_probability(one)] if explores else []), style=style)
    return table


def _row(one: ConsideredInstance, record: DecisionRecord) -> tuple[str, ...]:
    mark = " *" if one.id == record.chosen else ""
    return (
        escape(one.id) + mark,
        escape(one.pool),
        "" if one.score is None else f"{one.score:.4g}",
        str(one.requests),
        str(one.queued_prefill_tokens),
        f"{one.remaining_decode_tokens:.0f}",
        str(one.cached_tokens),
        "yes" if one.has_room else "no",
    )


def _probability(one: ConsideredInstance) -> str:
    return "unknown" if one.propensity is None else f"{one.propensity:.3g}"
