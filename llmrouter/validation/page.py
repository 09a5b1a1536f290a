"""One self-contained page: measured against simulated latencies by group of runs, and errors against rate."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.plots import theme
from llmrouter.plots.charts import Axis, Series, Spot, line_chart, scatter_chart
from llmrouter.validation.report import SATURATED_FIGURES, target_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.validation.judge import Verdict

_SHARES = np.linspace(0.0, 1.0, 101)
_ERRORS = (("tpot_mean", "mean TPOT"), ("e2e_mean", "mean E2E"), ("ttft_p50", "median TTFT"))
_MOST = 0.5
"""Errors beyond ± this stand at the chart's edge."""

_SLOTS = (1, 2)
"""Slots of the low and the high rate; a simulated line is dashed in the hue of the measured one."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;background:var(--page);color:var(--ink);max-width:1280px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem}
h2{font-size:1.1rem;margin:2rem 0 .2rem;border-top:1px solid var(--grid);padding-top:1rem}
p{margin:.2rem 0 .6rem;color:var(--soft);max-width:80ch}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:.6rem}
.k{display:inline-block;width:1.6em;border-top:2px solid;vertical-align:middle;margin-right:.3em}
.d{border-top-style:dashed}
.o{display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.3em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid var(--grid)}
td:first-child,th:first-child{text-align:left}
.wrap{overflow-x:auto}.good{color:var(--good)}.bad{color:var(--bad)}
"""


def page(verdicts: Sequence[Verdict], groups: Sequence[dict[str, Any]]) -> str:
    """The page as HTML."""
    sections = []
    for group in groups:
        members = [verdict for verdict in verdicts if verdict.engine and verdict.engine.group == group["name"]]
        sections.append(_section(group["name"], members))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Engine model against measured engines</title><style>{theme.style()}{_STYLE}</style></head><body>"
        "<h1>Engine model against measured engines</h1>"
        "<p>Median |simulated/measured − 1| over runs that no parameter was fitted on: below saturation, the target "
        f"in brackets, then the saturated ones.</p>{_table(groups)}{''.join(sections)}</body></html>"
    )


def _table(groups: Sequence[dict[str, Any]]) -> str:
    names = [name for name, _ in _ERRORS]
    head = "".join(f"<th>{escape(label)}</th>" for _, label in _ERRORS)
    head += "<th>saturated</th>" + "".join(f"<th>{label}</th>" for label in ("mean TPOT", "mean E2E", "makespan"))
    rows = []
    for group in groups:
        cells = "".join(f"<td>{_cell(group, name)}</td>" for name in names)
        over = group["median_abs_err_saturated"]
        cells += f"<td>{group['unseen_saturated'] or '–'}</td>"
        cells += "".join(f"<td>{_share(over[name])}</td>" for name in SATURATED_FIGURES)
        counts = f"{group['unseen_below_saturation']} of {group['runs']}"
        rows.append(f"<tr><td>{escape(group['name'])}</td><td>{counts}</td>{cells}</tr>")
    return f'<div class="wrap"><table><tr><th>runs of</th><th>judged</th>{head}</tr>{"".join(rows)}</table></div>'


def _cell(group: dict[str, Any], name: str) -> str:
    median, target = group["median_abs_err"][name], (group["target"] or {}).get(name)
    if median is None:
        return "–"
    text = _share(median)
    if target is None:
        return text
    return f'<span class="{"good" if median <= target else "bad"}">{text}</span> ({100 * target:.0f})'


def _share(median: float | None) -> str:
    return "–" if median is None else f"{100 * median:.1f} %"


def _section(name: str, members: Sequence[Verdict]) -> str:
    replayed = sorted(
        (verdict for verdict in members if verdict.replay is not None), key=lambda verdict: verdict.run.rate_rps
    )
    if not replayed:
        return ""
    shown = _shown(replayed)
    colours = tuple(f"var(--h{slot})" for slot in _SLOTS)
    legend = " &nbsp; ".join(
        f'<span class="k" style="color:{colour}"></span>{escape(verdict.run.name)} measured '
        f'<span class="k d" style="color:{colour}"></span>simulated'
        for verdict, colour in zip(shown, colours, strict=False)
    )
    charts = [
        _distribution("TTFT", shown),
        _distribution("E2E", shown),
        *(_errors(name, replayed, *one) for one in _ERRORS),
    ]
    return (
        f"<h2>{escape(name)}</h2><p>{legend}<br>"
        '<span class="o" style="background:var(--h1)"></span>unseen, below saturation '
        '<span class="o" style="border:1.5px solid var(--h1)"></span>fitted on '
        f'<span class="o" style="background:var(--h2)"></span>saturated</p><div class="row">{"".join(charts)}</div>'
    )


def _shown(replayed: Sequence[Verdict]) -> list[Verdict]:
    """A low and a high rate, of unseen runs below saturation if there are two."""
    unseen = [verdict for verdict in replayed if verdict.below_saturation and not verdict.seen]
    pool = unseen if len(unseen) > 1 else list(replayed)
    return [pool[0]] if len(pool) == 1 else [pool[0], pool[-1]]


def _distribution(figure: str, shown: Sequence[Verdict]) -> str:
    lines: list[Series] = []
    for verdict, slot in zip(shown, _SLOTS, strict=False):
        assert verdict.replay is not None  # noqa: S101 - the caller keeps replayed runs only
        keep = verdict.run.judged
        measured = (verdict.run.ttft_s if figure == "TTFT" else verdict.run.e2e_s)[keep]
        simulated = (verdict.replay.ttft_s if figure == "TTFT" else verdict.replay.e2e_s)[:, keep]
        lines.append(_cumulative(f"{verdict.run.name} measured", slot, measured))
        lines.append(_cumulative(f"{verdict.run.name} simulated", slot + theme.HUES, simulated))
    return line_chart(
        lines,
        title=figure,
        description=f"Share of requests whose {figure} is at most so long: measured drawn through, simulated dashed.",
        x=Axis("seconds", log=True),
        y=Axis("share of requests", include=(0.0, 1.0)),
    )


def _cumulative(name: str, slot: int, values: NDArray[np.float64]) -> Series:
    at = np.quantile(values, _SHARES)
    points = tuple(zip(at.tolist(), _SHARES.tolist(), strict=True))
    return Series(name=name, slot=slot, points=points, markers=False, tip=name)


def _errors(group: str, replayed: Sequence[Verdict], figure: str, label: str) -> str:
    target = target_of(group)
    bound = getattr(target, figure) if target else None
    spots = []
    for verdict in replayed:
        error = verdict.errors[figure]
        if error is None or not math.isfinite(verdict.run.rate_rps):
            continue
        spots.append(
            Spot(
                name=verdict.run.name,
                slot=_SLOTS[0] if verdict.seen or verdict.below_saturation else _SLOTS[1],
                x=verdict.run.rate_rps,
                y=min(max(error, -_MOST), _MOST),
                tip=f"{verdict.run.name}: {100 * error:+.1f} %",
                solid=not verdict.seen,
            )
        )
    least = max(0.1, bound or 0.0)
    return scatter_chart(
        spots,
        title=f"Error of {label}",
        description=f"Simulated over measured {label}, less one, for each run against its rate."
        + (f" The target is {100 * bound:.0f} %." if bound else ""),
        x=Axis("requests per second", include=(0.0,)),
        y=Axis("", include=(-least, least), written=lambda value: f"{100 * value:+.0f} %" if value else "0"),
        names=False,
    )
