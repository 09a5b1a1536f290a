"""What a router says of the candidate on trial, as a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.acknowledgement import RouterCandidate
from llmrouter.rollout.wire import wire_of
from router_grpc.candidate import not_compared

if TYPE_CHECKING:
    from router_grpc.runtime import Runtime
    from router_grpc.world import World

MOST_PER_S = 10.0
"""How often all routers together write what their arms measured."""

SHORTEST_S = 1.0


def candidate_told(world: World, runtime: Runtime) -> RouterCandidate | None:
    """The candidate as it is now; ``None`` where the configuration in force names none."""
    one, trial = runtime.candidate, world.trial
    if one is None:
        return None
    readiness, paused = trial.readiness(one), trial.paused
    return RouterCandidate(
        trial=one.trial,
        policy_name=one.config.policy.name,
        policy_digest=one.digest,
        mode=one.config.mode,
        ready=readiness.ready,
        reason=readiness.reason,
        message=readiness.message[:1024],
        provider=one.provider,
        paused=paused is not None,
        paused_reason="" if paused is None else paused.reason,
        paused_message="" if paused is None else str(paused.breach)[:1024],
        not_compared=not_compared(runtime.config.policy, one.config.policy),
        decisions=trial.decisions,
        fallbacks=trial.fallbacks,
        arms={arm: wire_of(stats) for arm, stats in trial.arms(world).items()},
        shadow=None if one.config.mode == "Canary" else trial.shadow.told(),
    )


def arms_pause_s(runtime: Runtime | None, *, longest_s: float) -> float:
    """How long what a trial counts may wait before it is said again: the more routers there are, the longer."""
    if runtime is None or runtime.candidate is None:
        return longest_s
    routers = runtime.candidate.config.voices / 2  # the other half is the operator's
    return min(longest_s, max(SHORTEST_S, routers / MOST_PER_S))
