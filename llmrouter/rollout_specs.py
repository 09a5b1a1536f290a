"""A policy on trial as a field of a resource: which one, on what share of the requests, and what ends the trial."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmrouter.resource_types import NameRef, Resource

CandidateMode = Literal["Shadow", "Canary"]
"""Scored beside the policy that decides, or decides for a share of the requests."""

Percent = Annotated[int, Field(ge=1, le=99)]
_Ratio = Annotated[float, Field(ge=1, le=100)]


class GuardrailsSpec(Resource):
    """How much worse than the current policy a candidate may be, and how sure it must be that it is."""

    max_ttft_ratio: _Ratio = 1.1
    max_tpot_ratio: _Ratio = 1.1
    max_e2e_ratio: _Ratio = Field(default=1.1, alias="maxE2eRatio")
    max_error_fraction_increase: float = Field(default=0.02, ge=0, le=1)
    false_alarm_probability: float = Field(default=0.01, ge=0.0001, le=0.5)
    min_requests: int = Field(default=10, ge=1, le=1_000_000)


class AutoPromoteSpec(Resource):
    """Whether a candidate that has proved itself serves all requests, and when it has."""

    enabled: bool = False
    after_seconds: float = Field(default=3600.0, ge=0, le=2_592_000)
    min_requests: int = Field(default=1000, ge=1, le=10_000_000)


class CandidateSpec(Resource):
    """The policy on trial; ``percent`` is read by Canary alone."""

    policy_ref: NameRef
    mode: CandidateMode
    percent: Percent = 10
    guardrails: GuardrailsSpec = GuardrailsSpec()
    auto_promote: AutoPromoteSpec = AutoPromoteSpec()

    @model_validator(mode="after")
    def _promotion_is_possible(self) -> Self:
        if self.auto_promote.enabled and self.mode == "Shadow":
            raise ValueError("autoPromote.enabled needs mode Canary: a shadow serves no request")
        if self.auto_promote.enabled and self.auto_promote.min_requests < self.guardrails.min_requests:
            raise ValueError("autoPromote.minRequests must be at least guardrails.minRequests")
        return self
