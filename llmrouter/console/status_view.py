"""An LLMRouter's status as a person reads it: what holds, what arrives, what is tried, what comes next. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmrouter.decisions.words import seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import RenderableType

Object = dict[str, Any]

_GOOD, _BAD, _DIM = "green", "bold red", "dim"
_BACKWARDS = frozenset({"LengthDrift"})
"""Conditions that are bad where they are true."""
_NEUTRAL = frozenset({"Progressing", "RebalanceActive"})
"""Conditions that are neither good nor bad."""


def age_of(then: str | None, now: datetime) -> str:
    """Time since an RFC 3339 instant in its two largest units; a dash where there is none."""
    if not then:
        return "–"
    seconds = max(0, int((now - datetime.fromisoformat(then)).total_seconds()))
    for size, name, smaller, other in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            left = seconds % size // smaller
            return f"{seconds // size}{name}{left}{other}" if left else f"{seconds // size}{name}"
    return f"{seconds}s"


def overview(routers: Sequence[Object], now: datetime) -> RenderableType:
    """One line for each LLMRouter."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("NAMESPACE", "NAME", "READY", "POLICY", "CANDIDATE", "ROUTERS", "INSTANCES", "REQ/S", "MIX", "AGE"):
        table.add_column(column, no_wrap=True)
    for router in routers:
        metadata, status = router["metadata"], router.get("status") or {}
        ready = _condition(status, "Ready")
        mix = status.get("mix") or {}
        table.add_row(
            metadata["namespace"],
            metadata["name"],
            _state(ready),
            (status.get("activePolicy") or {}).get("name", "–"),
            _candidate_word(status.get("candidate")),
            (status.get("routers") or {}).get("summary", "–"),
            (status.get("instances") or {}).get("summary", "–"),
            _number(mix.get("requestsPerSecond")),
            mix.get("summary", "–"),
            age_of(metadata.get("creationTimestamp"), now),
        )
    return table


def detail(router: Object, now: datetime, *, held: float | None, events: Sequence[Object]) -> RenderableType:
    """Everything about one LLMRouter. ``held`` requests wait at its routers; ``None`` where they could not be asked."""
    status = router.get("status") or {}
    parts: list[RenderableType] = [_headline(router, now), Text()]
    parts += [_section("Conditions", _conditions(status, now))]
    parts += [_section("Policy", _policy(router, status, now))]
    if router["spec"].get("candidate") or status.get("candidate"):
        parts += [_section("Candidate", _candidate(status.get("candidate") or {}, now))]
    parts += [_section("Pools", _pools(router, status))]
    parts += [_section("Traffic", _traffic(status, held))]
    parts += [_section("What comes next", _next(router, status))]
    if events:
        parts += [_section("Latest events", _events(events, now))]
    return Group(*parts)


def _headline(router: Object, now: datetime) -> Text:
    metadata, status = router["metadata"], router.get("status") or {}
    line = Text.assemble((f"{metadata['namespace']}/{metadata['name']}", "bold"), "  ")
    line.append_text(_state(_condition(status, "Ready")))
    summary = (_condition(status, "Ready") or {}).get("message", "no status yet: is the operator running?")
    line.append(f"  {summary}", _DIM)
    line.append(f"  age {age_of(metadata.get('creationTimestamp'), now)}", _DIM)
    return line


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(title, "bold cyan"), body, Text())


def _grid(rows: Iterable[Sequence[RenderableType]]) -> Table:
    table = Table.grid(padding=(0, 2), pad_edge=True)
    for row in rows:
        table.add_row("", *row)
    return table


def _conditions(status: Object, now: datetime) -> RenderableType:
    rows = [
        (
            one["type"],
            _state(one),
            Text(one["reason"], _DIM),
            Text(age_of(one.get("lastTransitionTime"), now), _DIM),
            Text(one["message"] if one["status"] != "True" or one["type"] in _BACKWARDS | _NEUTRAL else ""),
        )
        for one in status.get("conditions") or ()
    ]
    return _grid(rows) if rows else Text("  none yet", _DIM)


def _state(condition: Object | None) -> Text:
    if condition is None:
        return Text("–", _DIM)
    word, kind = condition["status"], condition["type"]
    if word == "Unknown" or kind in _NEUTRAL:
        return Text(word, "yellow" if word == "Unknown" else _DIM)
    good = (word == "True") != (kind in _BACKWARDS)
    return Text(word, _GOOD if good else _BAD)


def _policy(router: Object, status: Object, now: datetime) -> RenderableType:
    policy = status.get("activePolicy")
    if not policy:
        return Text("  none in force", _DIM)
    note = "the last good one: the referenced one cannot run" if policy.get("lastKnownGood") else ""
    wished = router["spec"]["policyRef"]["name"]
    rows = [
        ("in force", Text.assemble((policy["name"], "bold"), f"  {policy['type']}  ", (policy["digest"], _DIM))),
        ("acknowledged", Text(f"{policy['acknowledged']} routers")),
    ]
    if wished != policy["name"]:
        rows.append(("referenced", Text(f"{wished}  {note}", "yellow")))
    since = _condition(status, "PolicyReady")
    if since is not None:
        rows.append(("since", Text(age_of(since.get("lastTransitionTime"), now), _DIM)))
    return _grid(rows)


def _candidate_word(candidate: Object | None) -> str:
    if not candidate:
        return "–"
    percent = f" {candidate['percent']}%" if candidate.get("mode") == "Canary" and "percent" in candidate else ""
    return f"{candidate.get('name', '?')}: {candidate.get('phase', '?')}{percent}"


def _candidate(candidate: Object, now: datetime) -> RenderableType:
    phase = candidate.get("phase", "Pending")
    style = {"RolledBack": _BAD, "Refused": _BAD, "Promoted": _GOOD}.get(phase, "yellow")
    line = Text.assemble("  ", (candidate.get("name", "?"), "bold"), "  ", (phase, style))
    if candidate.get("mode"):
        line.append(f"  {_candidate_mode(candidate)}", _DIM)
    line.append(f"  since {age_of(candidate.get('since'), now)}", _DIM)
    parts: list[RenderableType] = [line]
    if candidate.get("message"):
        parts.append(Text(f"  {candidate.get('reason', '')}: {candidate['message']}"))
    if candidate.get("arms"):
        parts.append(_arms(candidate["arms"]))
    if candidate.get("comparisons"):
        parts.append(_comparisons(candidate["comparisons"]))
    if candidate.get("shadow"):
        parts.append(_grid([("shadow", Text(_shadow(candidate["shadow"])))]))
    return Group(*parts)


def _candidate_mode(candidate: Object) -> str:
    if candidate["mode"] == "Canary" and "percent" in candidate:
        return f"canary of {candidate['percent']} %"
    return "shadow: scored, never acts" if candidate["mode"] == "Shadow" else str(candidate["mode"])


def _arms(arms: Sequence[Object]) -> Table:
    table = Table(box=None, header_style=_DIM, padding=(0, 2))
    for column in ("arm", "requests", "errors", "mean TTFT", "mean TPOT", "mean E2E"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in arms:
        table.add_row(
            arm["arm"],
            _number(arm.get("requests")),
            _number(arm.get("errors")),
            *(_seconds(arm.get(f"{name}MeanSeconds")) for name in ("ttft", "tpot", "e2e")),
        )
    return table


def _comparisons(comparisons: Sequence[Object]) -> Table:
    rows = [
        (one["metric"], Text(f"{one['ratio']:.3g} times the current's"), Text(_interval(one), _DIM))
        for one in comparisons
        if one.get("ratio") is not None
    ]
    return _grid(rows)


def _interval(one: Object) -> str:
    if one.get("low") is None or one.get("high") is None:
        return "no interval yet"
    return f"[{one['low']:.3g}, {one['high']:.3g}] at any time that one looks"


def _shadow(shadow: Object) -> str:
    said = f"{_number(shadow.get('decisions'))} decisions"
    if shadow.get("agreementFraction") is not None:
        said += f", {shadow['agreementFraction']:.0%} the same"
    if shadow.get("costDifferenceSeconds") is not None:
        said += f", {shadow['costDifferenceSeconds']:+.3g} s of foretold cost a request"
    return said


def _pools(router: Object, status: Object) -> Table:
    table = Table(box=None, header_style=_DIM, padding=(0, 2))
    for column in ("pool", "role", "models", "engines", "profile", "replicas", "wanted", "slow instances"):
        table.add_column(column)
    rebalance = status.get("rebalance") or {}
    applied, proposed = _replicas(rebalance.get("applied")), _replicas(rebalance.get("proposed"))
    slow = {
        one["pool"]: ", ".join(f"{it['instance']} ×{it['slowness']}" for it in one.get("slowInstances", ()))
        for one in (status.get("calibration") or {}).get("pools", ())
    }
    for pool in router["spec"]["pools"]:
        name = pool["name"]
        wanted = proposed.get(name)
        moved = wanted is not None and wanted != applied.get(name)
        table.add_row(
            Text(name, "bold"),
            pool.get("role", "Mixed"),
            ", ".join(pool.get("models") or ("all",)),
            _source(pool),
            (pool.get("profile") or {}).get("name", "inline"),
            _number(applied.get(name)),
            Text(_number(wanted), "yellow" if moved else ""),
            Text(slow.get(name, ""), "yellow"),
        )
    return table


def _replicas(split: Sequence[Object] | None) -> dict[str, int]:
    return {one["pool"]: one["replicas"] for one in split or ()}


def _source(pool: Mapping[str, Any]) -> str:
    if "selector" in pool:
        return ",".join(f"{name}={value}" for name, value in pool["selector"]["matchLabels"].items())
    if "inferencePoolRef" in pool:
        return f"InferencePool {pool['inferencePoolRef']['name']}"
    return f"{len(pool.get('endpoints') or ())} endpoints"


def _traffic(status: Object, held: float | None) -> RenderableType:
    mix = status.get("mix")
    rows: list[Sequence[RenderableType]] = []
    if mix:
        now = [mix.get("requestsPerSecond"), mix.get("prefillTokensPerSecond"), mix.get("decodeTokensPerSecond")]
        words = ("requests/s", "prefill tokens/s", "decode tokens/s")
        said = ", ".join(f"{_number(value)} {word}" for value, word in zip(now, words, strict=True))
        rows.append(("now", Text(f"{said}; {mix.get('summary', 'share of prefill unknown')}")))
        forecast = mix.get("forecast")
        if forecast:
            rows.append((f"in {_number(forecast.get('horizonSeconds'))} s", Text(_forecast(forecast))))
        rows += [(f"  {one['model']}", Text(_model_mix(one), _DIM)) for one in mix.get("models") or ()]
    else:
        rows.append(("now", Text("too little to say", _DIM)))
    waiting = "the routers could not be asked" if held is None else f"{held:.0f} requests"
    rows.append(("held", Text(waiting, "yellow" if held else _DIM if held is None else "")))
    return _grid(rows)


def _forecast(forecast: Object) -> str:
    return ", ".join(
        f"{_number(band.get('mid'))} [{_number(band.get('low'))}, {_number(band.get('high'))}] {word}"
        for name, word in (
            ("requestsPerSecond", "requests/s"),
            ("prefillTokensPerSecond", "prefill tokens/s"),
            ("decodeTokensPerSecond", "decode tokens/s"),
        )
        if (band := forecast.get(name))
    )


def _model_mix(mix: Object) -> str:
    fraction = mix.get("prefillTimeFraction")
    share = "" if fraction is None else f", {fraction:.0%} prefill"
    return f"{_number(mix.get('requestsPerSecond'))} requests/s{share}"


def _next(router: Object, status: Object) -> RenderableType:
    """What the operator is about to do, and what a person has to."""
    lines: list[Text] = []
    progressing = _condition(status, "Progressing")
    if progressing is not None and progressing["status"] == "True":
        lines.append(Text(f"  roll-out: {progressing['message']}"))
    candidate = status.get("candidate") or {}
    if candidate.get("phase") in {"Pending", "Shadowing", "Running"}:
        lines.append(Text(f"  candidate {candidate.get('name')}: {candidate.get('message') or candidate['phase']}"))
    if candidate.get("phase") == "Promoted":
        lines.append(
            Text(f"  yours: set spec.policyRef.name to {candidate.get('name')} and remove spec.candidate", "yellow")
        )
    if candidate.get("phase") in {"RolledBack", "Refused"} and router["spec"].get("candidate"):
        lines.append(Text("  yours: remove or replace spec.candidate; it gets no traffic", "yellow"))
    rebalance = status.get("rebalance")
    if rebalance:
        lines.append(Text(f"  rebalance ({rebalance.get('mode', '?')}): {rebalance.get('reason', '')}"))
    lines += [
        Text(f"  yours: {one['type']}: {one['message']}", "yellow")
        for one in status.get("conditions") or ()
        if one["status"] == "False" and one["type"] not in _BACKWARDS | _NEUTRAL | {"Ready"}
    ]
    return Group(*lines) if lines else Text("  nothing: what was declared is in force", _DIM)


def _events(events: Sequence[Object], now: datetime) -> Table:
    return _grid(
        (
            Text(age_of(one.get("lastTimestamp") or one["metadata"].get("creationTimestamp"), now), _DIM),
            Text(one.get("reason", ""), _BAD if one.get("type") == "Warning" else ""),
            Text(one.get("message", "")),
        )
        for one in events
    )


def _condition(status: Object, kind: str) -> Object | None:
    found: Object | None = next((one for one in status.get("conditions") or () if one["type"] == kind), None)
    return found


def _number(value: float | None) -> str:
    """Three digits, with thousands apart; a dash where it is not known."""
    if value is None:
        return "–"
    return f"{float(f'{value:.3g}'):,.6g}" if not isinstance(value, int) else f"{value:,}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else seconds(value)
