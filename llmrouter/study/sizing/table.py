"""A plan for a terminal, and as a drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmrouter.plots import theme
from llmrouter.plots.charts import Axis, Series, line_chart
from llmrouter.plots.markup import Markup, el

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

_SPLITS_SHOWN = 16


def print_plan(result: Mapping[str, Any], console: Console) -> None:
    """What was asked, the answer in a line, and the tables behind it."""
    slo, asked = result["slo"], result["asked"]
    console.print(
        f"{result['trace']}: {asked['requests']:,} requests at {asked['rate_rps']:.3g}/s; TTFT ≤ {slo['ttft_s']:g} s, "
        f"TPOT ≤ {slo['tpot_s'] * 1e3:g} ms for {slo['attainment']:.0%} of them",
        highlight=False,
    )
    console.print(_models(result))
    best = result["best"]
    answer = "" if result["meets"] else "not enough, but the best there is: "
    console.print(
        f"[bold]{answer}{_split(best)} = {best['gpus']} GPUs[/]: {best['attainment']:.0%} within the SLO expected",
        highlight=False,
    )
    for one in result["simulated"]:
        console.print(
            f"simulated with the same requests: {_split(one)} = {one['gpus']} GPUs: "
            f"{one['simulated_attainment']:.1%} within the SLO",
            highlight=False,
        )
    for layout, curve in result["curves"].items():
        if curve:
            console.print(_options(f"{layout}, by GPUs", curve))
    splits = result["splits"]
    if len(splits) > 1:
        shown = sorted(splits, key=lambda one: -one["attainment"])[:_SPLITS_SHOWN]
        kept = [one for one in splits if one in shown]
        console.print(_options(f"splits of {best['gpus']} GPUs", kept))


def drawing(result: Mapping[str, Any]) -> Markup:
    """Attainment over GPUs, a line a layout, as a file of its own."""
    series = [
        Series(
            name=layout,
            slot=slot,
            points=tuple((float(one["gpus"]), 100.0 * one["attainment"]) for one in curve),
        )
        for slot, (layout, curve) in enumerate(result["curves"].items(), start=1)
        if curve
    ]
    drawn = line_chart(
        series,
        title=", ".join(f"{one.name} ({_COLOURS.get(one.slot, 'further')})" for one in series),
        description="Share of the requests expected to meet the SLO, by the GPUs of the best split of each layout.",
        x=Axis("GPUs"),
        y=Axis("within the SLO, %"),
        limit=(0.0, 100.0),
    )
    return el("svg", el("style", theme.style()), drawn, xmlns="http://www.w3.org/2000/svg", viewbox="0 0 420 260")


_COLOURS = {1: "blue", 2: "orange"}


def _models(result: Mapping[str, Any]) -> Table:
    table = Table()
    for name in ("model", "requests/s", "prompt to compute", "output", "burstiness"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for one in result["asked"]["models"]:
        table.add_row(
            one["model"] or "–",
            f"{one['requests_per_s']:.3g}",
            f"{one['prefill_tokens']:,.0f}",
            f"{one['output_tokens']:,.0f}",
            f"{one['dispersion']:.2g}",
        )
    return table


def _options(title: str, options: list[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("GPUs", "split", "in SLO", "good/s", "TTFT p90", "TPOT", "carries/s"):
        table.add_column(name, justify="left" if name == "split" else "right", overflow="fold", no_wrap=name != "split")
    for one in options:
        ttft_s, tpot_s, carries = one["ttft_p90_s"], one["tpot_s"], one["carries_rps"]
        table.add_row(
            str(one["gpus"]),
            _split(one),
            f"{one['attainment']:.1%}",
            f"{one['goodput_rps']:.3g}",
            "–" if ttft_s is None else f"{ttft_s:.2g} s",
            "–" if tpot_s is None else f"{1e3 * tpot_s:.3g} ms",
            "–" if carries is None else f"{carries:.3g}",
        )
    return table


def _split(option: Mapping[str, Any]) -> str:
    return " + ".join(f"{count} {pool}" for pool, count in option["replicas"].items() if count)
