"""Pools of instances as policies see them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain import EngineProfile, Instance, InstanceView, Load, PoolSnapshot, Request
from llmrouter.profiles import H100_MIX

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = "llama"


def request(*, prompt_tokens: int = 100, predicted_output_tokens: float = 50.0, **others: object) -> Request:
    asked = Request(
        request_id="r1",
        model=MODEL,
        prompt_tokens=prompt_tokens,
        predicted_output_tokens=predicted_output_tokens,
        arrived_at_s=0.0,
    )
    return replace(asked, **others)  # type: ignore[arg-type]


def view(instance_id: str, requests: int = 0, *, profile: EngineProfile = H100_MIX, model: str = MODEL) -> InstanceView:
    """An instance with so many requests of 500 context tokens and 100 to come each in flight."""
    load = Load(requests=requests, context_tokens=500 * requests, remaining_decode_tokens=100.0 * requests)
    instance = Instance(
        instance_id=instance_id, endpoint=f"{instance_id}:8000", pool="p", profile=profile, models=frozenset({model})
    )
    return InstanceView(instance=instance, load=load)


def snapshot(views: Sequence[InstanceView]) -> PoolSnapshot:
    return PoolSnapshot(views=tuple(views), taken_at_s=0.0)
