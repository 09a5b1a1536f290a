"""What each router says of itself to the operator: one key per router in the ConfigMap ``<llmrouter>-routers``.

The router writes only its own key (merge patch), the operator reads all and removes those of pods that are gone.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmrouter.lengths.distribution import LEVELS
from llmrouter.resource_types import Resource
from llmrouter.rollout.wire import WireArm  # noqa: TC001 - a field of a pydantic model

ACKNOWLEDGEMENTS_SUFFIX = "-routers"
CONFIG_SUFFIX = "-router-config"


MAX_MIX = 1e15
"""Bound of every number of a mix."""

MAX_MODELS = 32
"""Models whose mix is told of."""

_Amount = Annotated[float, Field(ge=0, le=MAX_MIX, allow_inf_nan=False)]
_Law = Annotated[tuple[_Amount, ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))]


class RouterMix(Resource):
    """What arrives for one model at one router: the fields of ``planning.mix.TrafficMix``."""

    requests: _Amount
    requests_per_s: _Amount
    prefill_tokens_per_s: _Amount
    decode_tokens_per_s: _Amount
    engine_s_per_s: _Amount
    prefill_time_fraction: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    prefill_squared_per_s: _Amount = 0.0
    context_tokens_per_s: _Amount = 0.0
    dispersion: _Amount | None = None
    prompt_tokens: _Law | None = None
    output_tokens: _Law | None = None


MAX_SLOW = 8
"""Slow instances that are named of a pool."""

MAX_DRAINING = 64
"""Draining instances that are told of; those with the most in flight."""

MAX_QUIETEST = 256
"""Quiet instances that are told of."""

_Residual = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
_Slowness = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class RouterCalibration(Resource):
    """What one router has learned of the step times of a pool: see ``routing.calibration.Calibration``.

    ``calibrate`` says what decisions use of it. ``slow`` names instances that are noticeably slower than the others of
    their pool, and how many times as slow; ``frozen`` is empty while coefficients follow the traffic.
    """

    pool: str = Field(max_length=63)
    calibrate: str = Field(max_length=16)
    observations: int = Field(ge=0)
    relative_residual: _Residual | None = None
    profile_residual: _Residual | None = None
    frozen: str = Field(default="", max_length=32)
    slow: dict[Annotated[str, Field(max_length=259)], _Slowness] = Field(default_factory=dict, max_length=MAX_SLOW)


_Count = Annotated[int, Field(ge=0, le=10**15)]
_Difference = Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)]


class RouterShadow(Resource):
    """What a candidate in shadow would have done, since its trial began.

    Of ``decisions`` some were ``holds``, and some ``fallbacks``: it could not decide. Of its ``placements`` those that
    named the instance that was taken are ``agreements``. ``costDifferenceSeconds`` is the mean over ``compared`` ones:
    the marginal cost of its choice minus that of the one taken, by the current policy's weights. ``skipped`` requests
    it was not asked about, to spare the router; ``decisionSeconds`` is what it took, on average.
    """

    decisions: _Count = 0
    placements: _Count = 0
    agreements: _Count = 0
    holds: _Count = 0
    fallbacks: _Count = 0
    skipped: _Count = 0
    compared: _Count = 0
    cost_difference_seconds: _Difference | None = None
    decision_seconds: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None


class RouterCandidate(Resource):
    """The candidate at one router: whether it is the candidate that is tried, and what came of it.

    ``trial`` is ``RouterConfig.trial``: arms of another one are of another comparison. A router that has ``paused`` the
    candidate gives it no request any more, by its own arms alone; ``pausedReason`` is ``rollout.verdict``'s word.
    ``notCompared`` are fields in which the candidate differs, and that are the current policy's for both arms. ``arms``
    are empty in shadow and where the candidate is refused; ``shadow`` is ``None`` in canary.
    """

    trial: str = Field(max_length=64)
    policy_name: str = Field(max_length=253)
    policy_digest: str = Field(max_length=64)
    mode: str = Field(max_length=16)
    ready: bool
    reason: str = Field(max_length=128)
    message: str = Field(default="", max_length=1024)
    provider: str = Field(default="", max_length=64)
    paused: bool = False
    paused_reason: str = Field(default="", max_length=128)
    paused_message: str = Field(default="", max_length=1024)
    not_compared: tuple[Annotated[str, Field(max_length=64)], ...] = Field(default=(), max_length=16)
    decisions: _Count = 0
    """Of the candidate or its fallback, in canary."""
    fallbacks: _Count = 0
    arms: dict[Annotated[str, Field(max_length=16)], WireArm] = Field(default_factory=dict, max_length=2)
    shadow: RouterShadow | None = None


class RouterAcknowledgement(Resource):
    """State of one router. ``*_ready`` is ``None`` where the part is not configured or not yet known.

    ``config_digest`` is of the configuration that runs, which is the last good one when a newer one was refused;
    ``refused_digest`` then names the refused one, and ``policy_reason``/``policy_message`` say why.
    """

    router_id: str = Field(max_length=253)
    config_digest: str = Field(max_length=64)
    generation: int
    refused_digest: str | None = Field(default=None, max_length=64)
    policy_name: str = Field(max_length=253)
    policy_type: str = Field(max_length=64)
    policy_digest: str = Field(max_length=64)
    deciding: str = Field(max_length=64)
    """Name of the policy that decides now: the fallback's where the declared one cannot."""
    policy_ready: bool
    policy_reason: str = Field(max_length=128)
    policy_message: str = Field(default="", max_length=1024)
    provider: str = Field(default="", max_length=64)
    """ONNX execution provider of the policy model, or empty."""
    predictor_ready: bool | None = None
    predictor_reason: str = Field(default="", max_length=128)
    predictor_message: str = Field(default="", max_length=1024)
    length_drift: bool | None = None
    """Whether predicted lengths have lately missed the answers as they did not before."""
    length_drift_message: str = Field(default="", max_length=1024)
    """Which application and by how much, rounded: each new wording is a status update."""
    state_backend_ready: bool | None = None
    state_backend_reason: str = Field(default="", max_length=128)
    certificate_ready: bool | None = None
    """Whether the endpoint picker's port serves the declared certificate, and it holds; ``None`` without TLS."""
    certificate_reason: str = Field(default="", max_length=128)
    certificate_message: str = Field(default="", max_length=1024)
    decision_log_ready: bool | None = None
    """Whether the declared decision log can be written; ``None`` where none is."""
    decision_log_reason: str = Field(default="", max_length=128)
    decision_log_message: str = Field(default="", max_length=1024)
    instances_ready: int = Field(ge=0)
    instances_total: int = Field(ge=0)
    in_flight: int = Field(ge=0)
    draining: dict[Annotated[str, Field(max_length=259)], int] = Field(default_factory=dict, max_length=MAX_DRAINING)
    """Instances that this router gives no new request because they are to go; what is still in flight on each."""
    quietest: dict[Annotated[str, Field(max_length=259)], int] = Field(default_factory=dict, max_length=MAX_QUIETEST)
    """Pods with the fewest requests in flight, a few of each pool, and how many: who might go first."""
    candidate: RouterCandidate | None = None
    """The policy on trial; ``None`` where the configuration names none."""
    mixes: dict[Annotated[str, Field(max_length=256)], RouterMix] = Field(default_factory=dict, max_length=MAX_MODELS)
    """What arrives, by model, as it was at ``at_s``; nothing while the router is too young to say."""
    calibration: tuple[RouterCalibration, ...] = Field(default=(), max_length=32)
    """What was learned of step times, of pools that anything was learned of."""
    at_s: float
    """When this was written, seconds since the epoch by the router's clock."""
