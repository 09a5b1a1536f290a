"""What a router says of itself, as a value: pure, from its runtime and its counts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from llmrouter.acknowledgement import (
    MAX_DRAINING,
    MAX_MIX,
    MAX_MODELS,
    MAX_SLOW,
    RouterAcknowledgement,
    RouterCalibration,
    RouterMix,
)
from router_grpc.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.acknowledgement import RouterCandidate
    from llmrouter.lengths.drift import Drift
    from llmrouter.planning.mix import TrafficMix
    from llmrouter.routing.calibration import Calibration
    from llmrouter.routing.calibration_use import Calibrate
    from router_grpc.runtime import Runtime


SLOW_FROM = 1.3
"""Times as slow as the others of its pool from which on an instance is named."""


def acknowledgement_of(
    runtime: Runtime,
    *,
    router_id: str,
    shared_state_ready: bool | None,
    instances: tuple[int, int],
    in_flight: int,
    resting: bool,
    drift: Drift | None,
    drift_known: bool,
    mixes: Mapping[str, TrafficMix],
    at_s: float,
    calibration: Mapping[str, tuple[Calibrate, Calibration]] | None = None,
    certificate: Readiness | None = None,
    decision_log: Readiness | None = None,
    draining: Mapping[str, int] | None = None,
    quietest: Mapping[str, int] | None = None,
    candidate: RouterCandidate | None = None,
) -> RouterAcknowledgement:
    """``instances`` are (ready, total); ``shared_state_ready`` is ``None`` without a shared ledger.

    ``resting`` says that the length model rests; ``drift`` what has changed of lengths, if anything; ``drift_known``
    that enough answers came to say so; ``mixes`` what arrives, by model. ``calibration`` gives by pool what decisions
    use of what is known of its step times, and what is known. ``certificate`` is ``None`` where no port speaks TLS,
    ``decision_log`` where none is declared. ``draining`` are the requests in flight on instances that are to go,
    ``quietest`` those on some that have few.
    """
    ready, total = instances
    policy, policy_now = runtime.config.policy, runtime.policy_now
    predictor_now = _predictor_now(runtime, resting=resting)
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
        predictor_message=predictor_now.message[:1024],
        length_drift=drift is not None if drift_known else None,
        length_drift_message="" if drift is None else drift.message[:1024],
        state_backend_ready=shared_state_ready,
        state_backend_reason=state_reason,
        certificate_ready=None if certificate is None else certificate.ready,
        certificate_reason="" if certificate is None else certificate.reason,
        certificate_message="" if certificate is None else certificate.message[:1024],
        decision_log_ready=None if decision_log is None else decision_log.ready,
        decision_log_reason="" if decision_log is None else decision_log.reason,
        decision_log_message="" if decision_log is None else decision_log.message[:1024],
        instances_ready=ready,
        instances_total=total,
        in_flight=in_flight,
        draining=_most(draining or {}),
        quietest=dict(quietest or {}),
        candidate=candidate,
        mixes=_mixes_of(mixes),
        calibration=tuple(_calibration_of(pool, *known) for pool, known in (calibration or {}).items()),
        at_s=at_s,
    )


def _most(draining: Mapping[str, int]) -> dict[str, int]:
    """Those with the most in flight: what is not told of is not known to be empty."""
    return dict(sorted(draining.items(), key=lambda one: (-one[1], one[0]))[:MAX_DRAINING])


def _mixes_of(mixes: Mapping[str, TrafficMix]) -> dict[str, RouterMix]:
    """Of the models that ask for the most engine time, in six digits and within bounds."""
    most = sorted(mixes, key=lambda model: (-mixes[model].engine_s_per_s, model))[:MAX_MODELS]
    return {
        model: RouterMix(**{name: _rounded(value) for name, value in asdict(mixes[model]).items()}) for model in most
    }


def _rounded(value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(min(float(f"{one:.4g}"), MAX_MIX) for one in value)
    return min(float(f"{value:.6g}"), MAX_MIX)


def _calibration_of(pool: str, calibrate: Calibrate, known: Calibration) -> RouterCalibration:
    """In two digits; of its slow instances the slowest."""
    slow = {name: round(one, 2) for name, one in known.slowness.items() if one >= SLOW_FROM}
    slowest = sorted(slow, key=lambda name: (-slow[name], name))[:MAX_SLOW]
    return RouterCalibration(
        pool=pool,
        calibrate=calibrate.value,
        observations=known.observations,
        relative_residual=None if known.relative_residual is None else round(known.relative_residual, 2),
        profile_residual=None if known.profile_residual is None else round(known.profile_residual, 2),
        frozen="" if known.frozen is None else known.frozen.value,
        slow={name: slow[name] for name in slowest},
    )


def _predictor_now(runtime: Runtime, *, resting: bool) -> Readiness:
    """Whether the declared predictor answers; it does not while its model rests."""
    if runtime.predictor_readiness.ready and resting:
        message = "the model was too slow: quantiles learned online answer while it rests"
        return Readiness(ready=False, reason="TooSlow", message=message)
    return runtime.predictor_readiness
