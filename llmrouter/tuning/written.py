"""A tuned policy as a manifest that ``kubectl apply`` takes, and as values for machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from llmrouter.resources import API_VERSION
from llmrouter.tuning.judgement import AMOUNTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmrouter.resources import RoutingPolicySpec
    from llmrouter.tuning.judgement import Judged, Verdict
    from llmrouter.tuning.parameters import Parameter
    from llmrouter.tuning.windows import Scene


def manifest(
    name: str,
    policy: RoutingPolicySpec,
    searched: Sequence[Parameter],
    *,
    about: Sequence[str],
    rows: Sequence[Judged],
) -> str:
    """The RoutingPolicy as YAML: what is not a default, every weight and every searched number; comments say why."""
    spec: dict[str, Any] = policy.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    spec.setdefault("objective", {}).setdefault("preset", policy.objective.preset)
    for one in searched:
        section, _, field = one.path.partition(".")
        spec.setdefault(section, {})[field] = getattr(getattr(policy, section), one.field)
    resource = {"apiVersion": API_VERSION, "kind": "RoutingPolicy", "metadata": {"name": name}, "spec": spec}
    comments = [*about, "", *(_line(row) for row in rows)]
    lines = [line for comment in comments for line in comment.splitlines() or [""]]
    header = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    return header + yaml.safe_dump(resource, sort_keys=False, allow_unicode=True)


def change_text(row: Judged) -> str:
    """``−3.1 ± 0.4 %``: in percent (of a ratio its logarithm), or in percentage points."""
    unit = "points" if row.name in AMOUNTS else "%"
    return f"{100 * row.change:+.2f} ± {100 * row.half_width:.2f} {unit}".replace("-", "−")


def values(scene: Scene, verdict: Verdict) -> dict[str, Any]:
    """What the verdict rests on, in plain values."""
    return {
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "figures": [asdict(row) for row in verdict.rows],
        "training": _part(scene, held_out=False),
        "held_out": _part(scene, held_out=True),
    }


def _part(scene: Scene, *, held_out: bool) -> dict[str, Any]:
    part = scene.held_out if held_out else scene.training
    return {
        "name": part.name,
        "rate_rps": part.rate_rps,
        "requests_of_a_window": part.requests,
        "window_share": part.window_share,
    }


def _line(row: Judged) -> str:
    must = {"improve": "must improve", "hold": "must not get worse", "": ""}[row.must]
    return f"{row.name:24} {change_text(row):>22}  {row.verdict:7} {must}".rstrip()
