"""``llmrouter replay``: what another policy would have done with the requests of a decision log."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from rich.console import Console

from llmrouter.config import PolicyConfig, compile_policy
from llmrouter.config_file import parse_policy, read_text
from llmrouter.decisions.estimators import estimates
from llmrouter.decisions.record import read_log
from llmrouter.errors import InvalidConfigError, InvalidInputError
from llmrouter.replay.choosing import Chooser
from llmrouter.replay.evaluating import METRICS, MIN_DECISIONS, choices_of, usable
from llmrouter.replay.replay_table import show
from llmrouter.replay.simulating import scene_of, simulated
from llmrouter.resources import PlainPolicyType, PredictingPolicyType, RoutingPolicySpec
from llmrouter.study.progress import make_ready, progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.decisions.record import DecisionRecord
    from llmrouter.replay.evaluating import Usable

NAMED = (*get_args(PlainPolicyType), *get_args(PredictingPolicyType))
MAX_RECORDS = 1_000_000

MIN_EFFECTIVE = 100.0
"""Decisions that a log must be worth before its intervals are to be believed."""

MAX_UNSUPPORTED = 0.01
"""Share of the other policy's choices that a log may lack."""

MAX_WEIGHT = 0.05
"""Share of all weight that one decision may have."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="llmrouter replay",
        description="Says what another policy would have done with the requests of a decision log, in two ways: from "
        "the log itself, by how likely that policy was to decide as the log's did (each decision by itself, in the "
        "states that the log's policy brought about), and by simulation of the log's arrivals and lengths (every "
        "decision). The first needs a log of a policy that explores: RoutingPolicy spec.exploration.",
    )
    made.add_argument("--log", type=Path, required=True, metavar="FILE", help="decision log: JSON lines")
    made.add_argument(
        "--policy",
        required=True,
        metavar="POLICY",
        help="the other policy: a YAML file with one RoutingPolicy, or a type with all defaults: " + ", ".join(NAMED),
    )
    made.add_argument(
        "--logged",
        metavar="POLICY",
        help="the log's own policy, in the same way, to be simulated beside it (default: its type with all defaults)",
    )
    made.add_argument(
        "--max-requests", type=int, metavar="N", help="limits.maxInFlightPerInstance (default: the resource's default)"
    )
    made.add_argument("--no-simulation", action="store_true", help="estimate from the log alone")
    made.add_argument("--seed", type=int, default=0, help="of resamples and simulated chance (default: %(default)s)")
    made.add_argument("--json", action="store_true", help="the figures as JSON")
    return made


def main(rest: Sequence[str]) -> int:
    """Runs the command; returns its exit status.

    Raises:
        InvalidInputError: the command line, or a file that it names, is wrong.
    """
    options = parser().parse_args(rest)
    if options.seed < 0:
        raise InvalidInputError("--seed: must be at least 0")
    if options.max_requests is not None and not 1 <= options.max_requests <= 65_536:  # noqa: PLR2004 - the bound of the resource
        raise InvalidInputError("--max-requests: must be 1 to 65536")
    policy = policy_named(options.policy, "--policy")
    records = list(read_log(options.log, stop_at=MAX_RECORDS))
    if not records:
        raise InvalidInputError(f"{options.log}: no decision in it")
    logged = policy_named(options.logged, "--logged") if options.logged else declared_in(records)
    result = replayed(records, policy, logged, options)
    result["command"] = shlex.join(["llmrouter", "replay", *rest])
    if options.json:
        sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    else:
        show(result, Console())
    return 0


def policy_named(said: str, option: str) -> PolicyConfig:
    """The policy of a file or of a type; raises InvalidInputError."""
    if said in NAMED:
        return compile_policy(said, RoutingPolicySpec(type=said), model_sha256=None)
    path = Path(said)
    if not path.exists():
        raise InvalidInputError(f"{option} {said}: neither a file nor one of {', '.join(NAMED)}")
    try:
        name, spec = parse_policy(read_text(path))
    except InvalidConfigError as error:
        raise InvalidInputError(f"{option} {said}: {error}") from error
    return compile_policy(name, spec, model_sha256=None)


def declared_in(records: Sequence[DecisionRecord]) -> PolicyConfig | None:
    """The log's policy as far as its records name it; ``None`` where its type says too little."""
    last = records[-1].policy
    if last.type not in NAMED:
        return None
    return compile_policy(last.name, RoutingPolicySpec(type=last.type), model_sha256=None)


def replayed(
    records: Sequence[DecisionRecord], policy: PolicyConfig, logged: PolicyConfig | None, options: argparse.Namespace
) -> dict[str, Any]:
    """All figures of a replay as plain values."""
    with progress("decisions", len(records), unit="decisions") as advance:
        found = usable(_counted(records, advance), Chooser(policy, max_requests=options.max_requests))
    last = records[-1].policy
    result: dict[str, Any] = {
        "policy": {"name": policy.name, "type": policy.type, "digest": policy.digest},
        "logged": {"name": last.name, "type": last.type, "digest": last.digest},
        "exploration_fraction": last.exploration_fraction,
        "records": len(records),
        "decisions": len(found.rows),
        "left_out": dict(found.left_out),
        "estimates": _estimates(found, options.seed),
    }
    result["simulation"] = None if options.no_simulation else _simulation(records, policy, logged, options)
    result["warnings"] = warnings_of(result, {one.policy.digest for one in records})
    return result


def _counted(records: Sequence[DecisionRecord], advance: Any) -> Any:  # noqa: ANN401 - a generator of what it is given
    for record in records:
        yield record
        advance(1)


def _estimates(found: Usable, seed: int) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for place, metric in enumerate(METRICS):
        choices = choices_of(found.rows, metric)
        said[metric] = None if choices is None else asdict(estimates(choices, np.random.default_rng([seed, place])))
    return said


def _simulation(
    records: Sequence[DecisionRecord], policy: PolicyConfig, logged: PolicyConfig | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Simulated means of both policies, or ``why_not``."""
    scene = scene_of(records)
    if isinstance(scene, str):
        return {"why_not": scene}
    make_ready()
    said: dict[str, Any] = {"notes": list(scene.notes), "logged": None}
    try:
        said["policy"] = dict(simulated(scene, policy, max_requests=options.max_requests, seed=options.seed))
    except InvalidConfigError as error:
        return {"why_not": str(error)}
    if logged is None:
        said["notes"].append("The log's own policy is not simulated: name its file with --logged.")
    else:
        said["logged"] = dict(simulated(scene, logged, max_requests=options.max_requests, seed=options.seed))
        if options.logged is None and logged.digest != records[-1].policy.digest:
            said["notes"].append("The log's own policy is simulated with the defaults of its type: it had others.")
    return said


def warnings_of(result: dict[str, Any], digests: set[str]) -> list[str]:
    """Why the figures are to be read with care, the gravest first."""
    said = []
    known = [one for one in result["estimates"].values() if one is not None]
    if not known:
        return [f"Fewer than {MIN_DECISIONS} decisions can be asked again: nothing is estimated from the log."]
    missing = max(one["unsupported_fraction"] for one in known)
    if missing > MAX_UNSUPPORTED:
        said.append(
            f"The log's policy could never have made {missing:.0%} of the other policy's choices: what those bring is "
            "not in the log, and the estimates from it are not identified. Let the policy explore (RoutingPolicy "
            "spec.exploration.fraction) and log anew."
        )
    effective = min(one["effective"] for one in known)
    if effective < MIN_EFFECTIVE:
        said.append(f"For the other policy the log is worth {effective:.0f} decisions: intervals this thin mislead.")
    heaviest = max(one["largest_weight_fraction"] for one in known)
    if heaviest > MAX_WEIGHT:
        said.append(f"One decision has {heaviest:.0%} of all weight.")
    usable_share = result["decisions"] / result["records"]
    if usable_share < 1.0 - MAX_UNSUPPORTED:
        said.append(
            f"{1.0 - usable_share:.0%} of the records are left out; where that depends on load, figures are biased."
        )
    if len(digests) > 1:
        said.append(f"The log is of {len(digests)} policies: its own figures are of all of them.")
    return said
