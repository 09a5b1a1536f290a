"""What a router says of itself, as a value: pure, from its runtime and its counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.acknowledgement import RouterAcknowledgement

if TYPE_CHECKING:
    from router_grpc.runtime import Runtime


def acknowledgement_of(
    runtime: Runtime,
    *,
    router_id: str,
    shared_state_ready: bool | None,
    instances: tuple[int, int],
    in_flight: int,
    at_s: float,
) -> RouterAcknowledgement:
    """``instances`` are (ready, total); ``shared_state_ready`` is ``None`` without a shared ledger."""
    ready, total = instances
    policy, policy_now, predictor_now = runtime.config.policy, runtime.policy_now, runtime.predictor_now
    state_reason = {None: "NotConfigured", True: "Connected", False: "Unreachable"}[shared_state_ready]
    return RouterAcknowledgement(
        router_id=router_id,
        config_digest=runtime.digest,
        generation=runtime.config.generation,
        refused_digest=runtime.refused_digest,
        policy_name=policy.name,
        policy_type=policy.type,
        policy_digest=runtime.policy_digest,
        deciding=runtime.deciding,
        policy_ready=policy_now.ready,
        policy_reason=policy_now.reason,
        policy_message=policy_now.message[:1024],
        provider=runtime.provider,
        predictor_ready=predictor_now.ready,
        predictor_reason=predictor_now.reason,
        state_backend_ready=shared_state_ready,
        state_backend_reason=state_reason,
        instances_ready=ready,
        instances_total=total,
        in_flight=in_flight,
        at_s=at_s,
    )
