"""One self-contained page: measured against simulated latencies by group of runs, and errors against rate."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrouter.validation.report import SATURATED_FIGURES, target_of
from llmrouter.validation.svg import Axis, Series, chart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from llmrouter.validation.judge import Verdict

_SHARES = np.linspace(0.0, 1.0, 101)
_ERRORS = (("tpot_mean", "mean TPOT"), ("e2e_mean", "mean E2E"), ("ttft_p50", "median TTFT"))
_MOST = 0.5
"""Errors beyond ± this stand at the chart's edge."""

_STYLE = """
:root{--page:#fbfbfa;--ink:#1d2126;--soft:#667079;--line:#dfe3e6;--a:#0b6fb8;--b:#d4651a;--band:#2e9e5b22;
--good:#2a8f53;--bad:#c8401e}
@media(prefers-color-scheme:dark){:root{--page:#15181b;--ink:#e6e8ea;--soft:#98a2ab;--line:#2d3339;--a:#5cb0f0;
--b:#f0924e;--good:#5cc98a;--bad:#f27b5c}}
body{font:15px/1.5 system-ui,sans-serif;background:var(--page);color:var(--ink);max-width:1280px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem}
h2{font-size:1.1rem;margin:2rem 0 .2rem;border-top:1px solid var(--line);padding-top:1rem}
p{margin:.2rem 0 .6rem;color:var(--soft);max-width:80ch}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:.6rem}
svg{width:100%;height:auto}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}
svg .title{fill:var(--ink);font-weight:600;font-size:12px}
.grid{stroke:var(--line)}.zero{stroke:var(--soft)}.band{fill:var(--band)}
polyline{fill:none;stroke-width:2}
.low-m,.low-s{stroke:var(--a)}.high-m,.high-s{stroke:var(--b)}.low-s,.high-s{stroke-dasharray:5 3}
.unseen{fill:var(--a)}.seen{fill:none;stroke:var(--a);stroke-width:1.5}.over{fill:var(--b);opacity:.75}
.k{display:inline-block;width:1.6em;border-top:2px solid;vertical-align:middle;margin-right:.3em}
.d{border-top-style:dashed}
.o{display:inline-block;width:.6em;height:.6em;border-radius:50%;margin-right:.3em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid var(--line)}
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
        f"<title>Engine model against measured engines</title><style>{_STYLE}</style></head><body>"
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
    colours = ("var(--a)", "var(--b)")
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
        '<span class="o" style="background:var(--a)"></span>unseen, below saturation '
        '<span class="o" style="border:1.5px solid var(--a)"></span>fitted on '
        f'<span class="o" style="background:var(--b)"></span>saturated</p><div class="row">{"".join(charts)}</div>'
    )


def _shown(replayed: Sequence[Verdict]) -> list[Verdict]:
    """A low and a high rate, of unseen runs below saturation if there are two."""
    unseen = [verdict for verdict in replayed if verdict.below_saturation and not verdict.seen]
    pool = unseen if len(unseen) > 1 else list(replayed)
    return [pool[0]] if len(pool) == 1 else [pool[0], pool[-1]]


def _distribution(figure: str, shown: Sequence[Verdict]) -> str:
    lines: list[Series] = []
    for verdict, style in zip(shown, ("low", "high"), strict=False):
        assert verdict.replay is not None  # noqa: S101 - the caller keeps replayed runs only
        keep = verdict.run.judged
        measured = (verdict.run.ttft_s if figure == "TTFT" else verdict.run.e2e_s)[keep]
        simulated = (verdict.replay.ttft_s if figure == "TTFT" else verdict.replay.e2e_s)[:, keep]
        lines.append(_cumulative(f"{verdict.run.name} measured", f"{style}-m", measured))
        lines.append(_cumulative(f"{verdict.run.name} simulated", f"{style}-s", simulated))
    ends = [at for line in lines for at, _ in line.points if at > 0]
    axis = Axis(label=f"{figure}, seconds", low=min(ends) * 0.95, high=max(ends) * 1.05, log=True)
    return chart(f"{figure}: share of requests", axis, Axis(label="", low=0.0, high=1.0), lines)


def _cumulative(name: str, style: str, values: NDArray[np.float64]) -> Series:
    at = np.quantile(values, _SHARES)
    return Series(name=name, style=style, points=list(zip(at.tolist(), _SHARES.tolist(), strict=True)))


def _errors(group: str, replayed: Sequence[Verdict], figure: str, label: str) -> str:
    target = target_of(group)
    bound = getattr(target, figure) if target else None
    by_class: dict[str, list[Verdict]] = {"unseen": [], "seen": [], "over": []}
    for verdict in replayed:
        kind = "seen" if verdict.seen else "unseen" if verdict.below_saturation else "over"
        if verdict.errors[figure] is not None and math.isfinite(verdict.run.rate_rps):
            by_class[kind].append(verdict)
    dots = [
        Series(
            name=kind,
            style=kind,
            line=False,
            points=[(verdict.run.rate_rps, verdict.errors[figure] or 0.0) for verdict in members],
            tips=[f"{verdict.run.name}: {100 * (verdict.errors[figure] or 0.0):+.1f} %" for verdict in members],
        )
        for kind, members in by_class.items()
    ]
    rates = [verdict.run.rate_rps for verdict in replayed if math.isfinite(verdict.run.rate_rps)] or [1.0]
    errors = [abs(value) for one in dots for _, value in one.points] or [0.0]
    most = min(max(0.1, 1.1 * max(errors)), _MOST)
    x = Axis(label="requests per second", low=0.0, high=max(rates) * 1.05)
    y = Axis(label="", low=-most, high=most, percent=True)
    band = None if bound is None else (-min(bound, most), min(bound, most))
    return chart(f"Error of {label}", x, y, dots, band=band)
