"""An engine as the simulator runs it: its profile, and what only a simulation needs to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llmrouter.domain import STEP_TIME_FIELDS, EngineMode, Role
from llmrouter.errors import InvalidInputError

if TYPE_CHECKING:
    from llmrouter.domain import EngineProfile


class Schedule(StrEnum):
    """What a step does with prompts.

    ``CHUNKED``: decodes first, then chunks of prompts up to the token budget (vLLM V1, Sarathi-Serve).
    ``PREFILL_FIRST``: whole prompts alone while any waits and fits, else decodes (vLLM V0).
    ``LAYERED``: a batch of prompts runs beside all decodes, one group of layers a step, ``ceil(P / budget)``
    steps in all.
    ``INTERVAL``: prompts alone after every ``decode_steps_between_prefills`` decode steps (S-LoRA, LightLLM).
    """

    CHUNKED = "Chunked"
    PREFILL_FIRST = "PrefillFirst"
    LAYERED = "Layered"
    INTERVAL = "Interval"


class Admission(StrEnum):
    """When a waiting request may join the batch.

    ``WATERMARK``: its whole prompt fits and the watermark stays free (vLLM, with ``scheduler_reserve_full_isl``).
    ``WORST_CASE``: besides, all running could grow to their ends (S-LoRA, LightLLM); where prompts run beside decodes,
    all full lengths fit together.
    ``FIRST_CHUNK``: its first chunk fits (vLLM V1 without that setting, which can thrash where KV is short).
    """

    WATERMARK = "Watermark"
    WORST_CASE = "WorstCase"
    FIRST_CHUNK = "FirstChunk"


class QueueOrder(StrEnum):
    """Which waiting request an engine admits first.

    ``LEAST_WORK_LEFT`` takes the fewest tokens still to compute, ``BIN_PACKING`` the longest that still fits; both know
    the true lengths, as bounds do.
    """

    FIRST_COME = "FirstComeFirstServed"
    LEAST_WORK_LEFT = "LeastWorkLeft"
    BIN_PACKING = "BinPacking"


_SCHEDULES = {EngineMode.CHUNKED: Schedule.CHUNKED, EngineMode.PREFILL_FIRST: Schedule.PREFILL_FIRST}


@dataclass(frozen=True, slots=True)
class EngineModel:
    """A profile and the parameters that only a simulation needs.

    Args:
        profile: step time and limits, as the router knows them too.
        schedule: ``None`` follows the profile's mode.
        front_s: seconds before the queue for every request (front end, tokenisation) …
        front_s_per_token: … and for every prompt token.
        scheduling_lag_steps: 1 where an arrival during a step is seen one step later still (asynchronous scheduling).
        prefix_caching: whether prompt blocks are kept for later prompts, least recently used first out.
        admission: see ``Admission``.
        watermark_fraction: share of the KV blocks that an admission leaves free for the sequences already running.
        queue_order: see ``QueueOrder``.
        role: what the instance does of a request.
        decode_steps_between_prefills: for ``Schedule.INTERVAL``.
        prefill_sequence_s: seconds added to a step for every sequence whose prompt it computes.
        kv_bytes_per_token: KV that a disaggregated prefill instance sends for every prompt token.
        transfer_bytes_per_s: bandwidth of its link; transfers from one instance follow one another.
        transfer_s: seconds before a transfer starts.
        hands_first_token: whether a disaggregated prefill instance makes the first token and the client gets it at once
            (DistServe), or the instance that decodes makes it of the prompt's last token once the KV is there (vLLM
            behind llm-d's sidecar). The latter only where routers pick both (``RouterSide.stages``).

    Raises:
        InvalidInputError: a number is impossible; the message names the field and the bound.
    """

    profile: EngineProfile
    schedule: Schedule | None = None
    front_s: float = 0.0
    front_s_per_token: float = 0.0
    scheduling_lag_steps: int = 0
    prefix_caching: bool = False
    admission: Admission = Admission.WATERMARK
    watermark_fraction: float = 0.01
    queue_order: QueueOrder = QueueOrder.FIRST_COME
    role: Role = Role.MIXED
    decode_steps_between_prefills: int = 0
    prefill_sequence_s: float = 0.0
    kv_bytes_per_token: float = 131_072.0
    transfer_bytes_per_s: float = 25e9
    transfer_s: float = 0.0
    hands_first_token: bool = True

    def __post_init__(self) -> None:
        check_profile(self.profile)
        for name in ("front_s", "front_s_per_token", "prefill_sequence_s", "kv_bytes_per_token", "transfer_s"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise InvalidInputError(
                    f"engine {self.profile.name}: {name} must be finite and at least 0, not {value}"
                )
        if not 0 <= self.watermark_fraction < 1:
            raise InvalidInputError(
                f"engine {self.profile.name}: watermark_fraction must be at least 0 and below 1, "
                f"not {self.watermark_fraction}"
            )
        if not self.transfer_bytes_per_s > 0:
            raise InvalidInputError(
                f"engine {self.profile.name}: transfer_bytes_per_s must be above 0, not {self.transfer_bytes_per_s}"
            )
        if self.scheduling_lag_steps not in (0, 1):
            raise InvalidInputError(
                f"engine {self.profile.name}: scheduling_lag_steps must be 0 or 1, not {self.scheduling_lag_steps}"
            )
        if self.decode_steps_between_prefills < 0:
            raise InvalidInputError(
                f"engine {self.profile.name}: decode_steps_between_prefills must be at least 0, "
                f"not {self.decode_steps_between_prefills}"
            )

    @property
    def steps_as(self) -> Schedule:
        """The schedule in force."""
        return self.schedule or _SCHEDULES[self.profile.mode]

    @property
    def max_request_tokens(self) -> int:
        """The longest prompt plus output that this engine can ever hold."""
        return self.profile.kv_tokens // self.profile.block_tokens * self.profile.block_tokens


def check_profile(profile: EngineProfile) -> None:
    """Raises InvalidInputError, naming field and bound, where a profile's limits or coefficients make no engine."""
    for name in ("block_tokens", "max_sequences", "token_budget"):
        if (limit := getattr(profile, name)) < 1:
            raise InvalidInputError(f"profile {profile.name}: {name} must be at least 1, not {limit}")
    if profile.kv_tokens < profile.block_tokens:
        raise InvalidInputError(
            f"profile {profile.name}: kv_tokens must be at least one block, not {profile.kv_tokens}"
        )
    if profile.mode is EngineMode.CHUNKED and profile.token_budget < profile.max_sequences:
        raise InvalidInputError(
            f"profile {profile.name}: token_budget must be at least max_sequences, {profile.max_sequences}, "
            f"not {profile.token_budget}"
        )
    for name in STEP_TIME_FIELDS:
        seconds = getattr(profile, name)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InvalidInputError(f"profile {profile.name}: {name} must be finite and at least 0, not {seconds}")
    if profile.base_decode_s == 0:
        raise InvalidInputError(f"profile {profile.name}: base_decode_s must be above 0: a step takes time")
