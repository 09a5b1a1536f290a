"""Decision records for tests."""

from __future__ import annotations

from typing import Any

from llmrouter.decisions.making import Decided, record_of
from llmrouter.decisions.record import DecisionRecord, Outcome, PolicyInForce
from llmrouter.domain import Candidate, Instance, InstanceView, Load, Request
from llmrouter.profiles import H100_MIX


def view(name: str, requests: int = 0, **load: Any) -> InstanceView:  # noqa: ANN401 - fields of Load
    """An instance that serves ``llama`` with so many requests in flight."""
    return InstanceView(Instance(name, name, "main", H100_MIX, frozenset({"llama"})), Load(requests, **load))


def request(request_id: str = "r1", **fields: Any) -> Request:  # noqa: ANN401 - fields of Request
    """A request of 100 prompt tokens, 50 to come."""
    return Request(
        **{
            "request_id": request_id,
            "model": "llama",
            "prompt_tokens": 100,
            "predicted_output_tokens": 50.0,
            "arrived_at_s": 10.0,
            **fields,
        }
    )


def decided(*views: InstanceView, asked: Request | None = None, **changes: Any) -> Decided:  # noqa: ANN401 - its fields
    """The first of the views was chosen, by the fewest requests in flight."""
    candidates = tuple(Candidate(one.instance.instance_id, float(one.load.requests), one.load) for one in views)
    fields: dict[str, Any] = {
        "request": asked or request(),
        "router_id": "router-0",
        "arrived_at_s": 10.0,
        "decided_at_s": 10.0,
        "arm": "current",
        "policy": PolicyInForce(name="p", type="LeastInFlight", digest="d", decided_by="LeastInFlight"),
        "reason": "LeastInFlight: a scored 0",
        "explored": False,
        "degraded": False,
        "load_age_s": 0.0,
        "eligible": len(views),
        "roomy_ids": frozenset(one.instance.instance_id for one in views),
        "views": views,
        "candidates": candidates,
        "propensities": {one.instance.instance_id: 1.0 if place == 0 else 0.0 for place, one in enumerate(views)},
        "chosen": views[0].instance.instance_id if views else None,
        "foretold": (0.1, 1.0),
    }
    return Decided(**{**fields, **changes})


def record(*views: InstanceView, outcome: Outcome | None = None, **changes: Any) -> DecisionRecord:  # noqa: ANN401 - its fields
    """A record of ``decided``; it ended well in two seconds."""
    ended = outcome or Outcome(kind="Finished", ttft_s=0.1, tpot_s=0.02, e2e_s=1.0, output_tokens=46)
    return record_of(decided(*views, **changes), ended)
