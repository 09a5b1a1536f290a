"""Two policies under the same traffic: the plan of a run, its summary file and its table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmrouter.testbed.measure import lengths_foretold, percentile, show, side_by_side, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llmrouter.testbed.replay_events import ReplayState

MODEL = "llama-3.1-8b"
CAPACITY_RPS = 23.1
"""The rate that round-robin sustains on four llama-3.1-8b-rtx4090 and four llama-3.1-8b-rtx-pro-6000 with this trace.

From ``bench/capacity.py``; a test holds it to that.
"""
LOAD = 0.85
RATE_RPS = LOAD * CAPACITY_RPS
FIRST_REQUEST = 4_000
"""Where in the trace the measured window begins, the same for both phases."""

WARM_UP = "warm-up"
BEFORE = "RoundRobin"
SWITCH = "switch"
AFTER = "marginal-cost"
DISTURBED = "router-kill"
DECIDERS = ("RoundRobin", "Onnx")
"""Who must have decided in each phase, alone."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long each part of a run takes; ``disturbed_s`` of 0 leaves that part out."""

    window_s: float
    warm_up_s: float = 6.0
    switch_s: float = 40.0
    disturbed_s: float = 0.0

    def stretches(self) -> list[str]:
        """Arguments for the replay's ``--stretch``, in order."""
        parts = [
            f"{WARM_UP}:0:{self.warm_up_s:g}",
            f"{BEFORE}:{FIRST_REQUEST}:{self.window_s:g}",
            f"{SWITCH}:0:{self.switch_s:g}:policy-change",
            f"{AFTER}:{FIRST_REQUEST}:{self.window_s:g}",
        ]
        return parts + ([f"{DISTURBED}:2000:{self.disturbed_s:g}"] if self.disturbed_s else [])

    def replay_arguments(self) -> list[str]:
        """The replay's command line, but for where the routers are."""
        stretches = [word for stretch in self.stretches() for word in ("--stretch", stretch)]
        return ["--model", MODEL, "--rate", f"{RATE_RPS:g}", "--json", *stretches]


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the one who ran the comparison knows."""

    ready_s: float
    apply_to_acknowledged_s: float | None
    more: Mapping[str, Any]


def summary(state: ReplayState, facts: Facts) -> dict[str, Any]:
    """The content of ``summary.json``. Seconds; ``None`` is unknown."""
    end = state.end or {}
    whole = summarise(state.outcomes)
    phases = [
        {"policy": name, **summarise(state.of(name)).as_mapping(), "decided_by": sorted(state.decided_by.get(name, ()))}
        for name in (BEFORE, AFTER)
    ]
    return {
        "ready_s": round(facts.ready_s, 3),
        "apply_to_acknowledged_s": _rounded(facts.apply_to_acknowledged_s),
        "requests": whole.requests,
        "failed": whole.failed,
        "retries": whole.retries,
        "reservations_left": end.get("reservations_left"),
        "phases": phases,
        "lengths": _lengths(state),
        "rate_rps": round(RATE_RPS, 3),
        "capacity_rps": CAPACITY_RPS,
        "client": {
            "lateness_p99_s": _rounded(percentile([outcome.lateness_s for outcome in state.outcomes], 99)),
            "cpu_s": end.get("cpu_s"),
            "cpu_ms_per_1000_chunks": end.get("cpu_ms_per_1000_chunks"),
            "reports_moved": end.get("reports_moved"),
            "reports_unknown": end.get("reports_unknown"),
            "reports_refused": end.get("reports_refused"),
        },
        **facts.more,
    }


def _lengths(state: ReplayState) -> dict[str, Any]:
    foretold = lengths_foretold(state.outcomes)
    return {
        "answers": foretold.answers,
        "within_80_fraction": _rounded(foretold.within_80_fraction),
        "error_p50_tokens": _rounded(foretold.error_p50_tokens),
        "predictors": {name: round(share, 3) for name, share in foretold.predictors.items()},
    }


def write_summary(values: Mapping[str, Any], path: Path) -> None:
    """Writes the summary as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


def table(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Both phases side by side, the header first."""
    before, after = phases
    header = ("", str(before["policy"]), str(after["policy"]), "change")
    return [header, *side_by_side(before, after)]


def notes(values: Mapping[str, Any]) -> list[str]:
    """What else a reader of the table should know, in sentences."""
    client = values["client"]
    lines = [
        f"{values['rate_rps']:.1f} requests/s, {LOAD:g} of what RoundRobin sustains here; the same in both phases.",
        (
            f"In all: {values['requests']} requests, {values['failed']} failed, {values['retries']} retries, "
            f"{values['reservations_left']} reservations left."
        ),
        f"The client itself was at most {show(client['lateness_p99_s'], 'ms')} late (p99).",
    ]
    lengths = values["lengths"]
    if lengths["answers"]:
        shares = lengths["predictors"]
        said = ", ".join(f"{name} {shares[name]:.1%}" for name in sorted(shares, key=shares.__getitem__, reverse=True))
        lines.append(
            f"Answer lengths: {lengths['within_80_fraction']:.0%} lay in their 80 % interval, the median was "
            f"{lengths['error_p50_tokens']:.0f} tokens off (half of the answers less); foretold by {said}."
        )
    if kill := values.get("router_kill"):
        lines.append(
            f"Router {kill['pod']} was killed under traffic: {kill['failed']} of {kill['requests']} requests failed, "
            f"{kill['retries']} retried; its replacement was at work after {kill['replacement_acknowledged_s']:.1f} s."
        )
    if values["apply_to_acknowledged_s"] is not None:
        own = f", kubectl's own {values['kubectl_apply_s']:.2f} s included" if "kubectl_apply_s" in values else ""
        lines.insert(0, f"From apply to acknowledged by every router: {values['apply_to_acknowledged_s']:.2f} s{own}.")
    late_s = client["lateness_p99_s"]
    if late_s is not None and late_s > 0.1:  # noqa: PLR2004 - a tenth of a second shows in a TTFT
        lines.append("That is late enough to colour the figures: this machine was too busy.")
    return lines


def shortcomings(values: Mapping[str, Any]) -> list[str]:
    """Reasons not to believe the comparison; none is good."""
    found = []
    if values["reservations_left"] != 0:
        found.append(f"{values['reservations_left']} reservations were left in the ledger")
    if values["failed"]:
        found.append(f"{values['failed']} requests failed")
    found += [f"no request was measured under {p['policy']}" for p in values["phases"] if not p["requests"]]
    for phase, expected in zip(values["phases"], DECIDERS, strict=True):
        if phase["decided_by"] != [expected]:
            found.append(f"{', '.join(phase['decided_by']) or 'nobody'} decided in phase {phase['policy']}")
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
